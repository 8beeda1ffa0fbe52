"""What a folder of images means: which folders are splits, which are classes, what is held out.

No TensorFlow here, and nothing is read but the names in `Listing`.
"""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from common.errors import UserError, printable
from data.names import find_prepared, how_to_open
from data.sources.files import NO_CLASS, Files, Group, files_of, hold_out
from data.sources.listing import Folder, Listing, describe_left

LAYOUT = (
    '<split>/<class>/*.jpg, <class>/*.jpg or, without classes, *.jpg in any folders (also .png, '
    '.webp, .tif and others)'
)
TRAIN, EVALUATION = 'train', 'validation'  # what the defaults of the two settings say
_NAMES_OF_TRAIN = ('train', 'training')
_NAMES_OF_EVALUATION = ('validation', 'val', 'valid', 'test')
_LISTED = 6  # classes, in a line


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the settings ask for.

    Attributes:
        train: names of the splits to train on.
        evaluation: names of the splits to evaluate on.
        fraction: of the images to hold out where there is nothing to evaluate on; 0 for none.
    """

    train: Sequence[str] = (TRAIN,)
    evaluation: Sequence[str] = (EVALUATION,)
    fraction: float = 0.1


@dataclasses.dataclass(frozen=True)
class Images:
    """The images of a data set.

    Attributes:
        splits: name → files, in an order that is mixed, but always the same.
        classes: names of the classes, by number.
        summary: what was understood, for the user: one line without a full stop.
        places: how many folders, or lists, they were found in.
    """

    splits: Mapping[str, Files]
    classes: tuple[str, ...]
    summary: str
    places: int = 1


@dataclasses.dataclass(frozen=True)
class _Member:
    """The images of one folder: of which split and class they are, None for none."""

    root: str
    folder: Folder
    split: str | None = None
    name: str | None = None


@dataclasses.dataclass(frozen=True)
class _Found:
    """How one folder is laid out, in words, with its images and what to say of it."""

    kind: str
    members: list[_Member]
    notes: list[str] = dataclasses.field(default_factory=list)


def understand(listings: Sequence[Listing], asked: Asked) -> Images:
    """Tells splits, classes and images without either apart.

    Several folders are read as one data set: splits and classes of the same name are one.

    Args:
        listings: of one folder or several.
        asked: the splits that must be there.

    Raises:
        UserError: if there are no images, or it cannot be told what they are.
    """
    for listing in listings:
        if not listing.folders:
            raise _no_images(listing)
    # A class among others may have a whole place to itself.
    alone = len({name for listing in listings for name in _top(listing)}) == 1
    found = [_layout_of(listing, asked, alone) for listing in listings]
    members = [member for each in found for member in each.members]
    classes = tuple(sorted({m.name for m in members if m.name is not None}))
    splits = _files(members, classes)
    total = sum(map(len, splits.values()))
    counts = np.bincount(
        np.concatenate([files.labels for files in splits.values()]) - NO_CLASS,
        minlength=len(classes) + 1,
    )
    splits, told = with_evaluation(splits, asked)
    parts = [
        ', '.join(dict.fromkeys(each.kind for each in found)),
        f'{total:,} image{"s" if total != 1 else ""}',
        *describe_classes(classes, counts[1:], int(counts[0])),
        *told,
        *_differ_by_case(classes),
        *(note for each in found for note in each.notes),
    ]
    left = sum((collections.Counter(each.left) for each in listings), collections.Counter())
    parts += [f'left alone: {describe_left(left)}'] if left else []
    roots = ', '.join(printable(each.root) for each in listings)
    return Images(splits, classes, f'{roots}: {"; ".join(parts)}', len(listings))


def _no_images(listing: Listing) -> UserError:
    prepared = find_prepared(listing.root)
    if prepared is not None:
        return UserError(
            f'--data_dir={printable(listing.root)} must hold images; found a data set that '
            f'TensorFlow Datasets prepared. Give {how_to_open(prepared)}.'
        )
    left = f', but {describe_left(listing.left)}' if listing.left else ''
    return UserError(
        f'--data_dir={printable(listing.root)} must hold images, as {LAYOUT}; found no such '
        f'images{left}. Give the folder that they are in.'
    )


def _top(listing: Listing) -> list[str]:
    """Names of the folders right in it that hold images."""
    return list(dict.fromkeys(folder.parts[0] for folder in listing.folders if folder.path))


def _layout_of(listing: Listing, asked: Asked, alone: bool = True) -> _Found:
    """How the images of `listing` are sorted into folders.

    Args:
        listing: of one place.
        asked: the splits that must be there.
        alone: whether a single folder holds all there is.
    """
    loose = [folder for folder in listing.folders if not folder.path]
    top = _top(listing)
    if _training_folder([*top, *listing.aliases], asked.train) is not None:
        return _split_folders(listing, loose)
    if loose:
        beside = f', some of them beside {len(top)} folders' if top else ''
        return _Found(f'images without classes{beside}', _unsorted(listing))
    if all(name.lower() in _NAMES_OF_EVALUATION for name in top):
        raise UserError(
            f'--data_dir={printable(listing.root)} must hold images in a folder {TRAIN!r} beside '
            f'{", ".join(map(printable, top))}; found none. Add them, or name another '
            '--train_split.'
        )
    if len(top) == 1 and (alone or _holds_splits(listing, asked)):
        return _single_folder(listing, asked)
    return _class_folders(listing)


def _training_folder(names: Iterable[str], wanted: Sequence[str]) -> str | None:
    """The name of a folder that is a training split; None if there is none."""
    names = list(names)
    likely = _NAMES_OF_TRAIN if TRAIN in wanted else ()
    return next(
        (name for name in names if name in wanted),
        next((name for name in names if name.lower() in likely), None),
    )


def _split_folders(listing: Listing, loose: list[Folder]) -> _Found:
    folders = [folder for folder in listing.folders if folder.path]
    for name, target in listing.aliases.items():  # as 'val', a link to 'test'
        folders += [
            dataclasses.replace(folder, path='/'.join([name, *folder.parts[1:]]))
            for folder in listing.folders
            if folder.parts[:1] == [target]
        ]
    members: list[_Member] = []
    unsorted: dict[str, Folder] = {}  # which splits have images that are in no folder of a class
    for folder in folders:
        split, *below = folder.parts
        if not below:
            unsorted[split] = folder
        elif split in unsorted:
            raise UserError(
                f'{printable(os.path.join(listing.root, split))} must hold either class folders or '
                f'images without labels; found both, such as '
                f'{_first_image(listing, unsorted[split])}. Move the loose images into a class or '
                'a split of their own.'
            )
        members.append(_Member(listing.root, folder, split, below[0] if below else None))
    notes = [_empty('split folder', [p[0] for p in listing.empty if len(p) == 1])]
    splits = {member.split for member in members}
    inner = sorted('/'.join(p) for p in listing.empty if len(p) == 2 and p[0] in splits)
    notes.append(_empty('class folder', inner))
    if loose:
        notes.append(f'{loose[0].count:,} images beside the split folders are left alone')
    return _Found('split folders', members, [note for note in notes if note])


def _first_image(listing: Listing, folder: Folder) -> str:
    return printable(os.path.join(listing.root, folder.path, folder.images.split('/', 1)[0]))


def _empty(what: str, names: list[str]) -> str:
    """That folders have no images, '' if there are none of them."""
    if not names:
        return ''
    more = f' and {len(names) - 3} more' if len(names) > 3 else ''
    return f'{what} without images: {", ".join(map(printable, names[:3]))}{more}'


def _class_folders(listing: Listing) -> _Found:
    members = [_Member(listing.root, f, None, f.parts[0]) for f in listing.folders]
    notes = [_empty('class folder', [p[0] for p in listing.empty if len(p) == 1])]
    notes += [
        f'{printable(name)} is a link to {printable(target)} and left alone'
        for name, target in listing.aliases.items()
    ]
    name = os.path.basename(os.path.abspath(listing.root)).lower()
    if name in (*_NAMES_OF_TRAIN, *_NAMES_OF_EVALUATION):
        notes.append(
            'for the splits beside it give --data_dir='
            f'{printable(os.path.dirname(os.path.abspath(listing.root)))}'
        )
    return _Found('class folders', members, [note for note in notes if note])


def _within(listing: Listing) -> Listing:
    """What is in the only folder of `listing`."""
    root = os.path.join(listing.root, _top(listing)[0])
    inner = [dataclasses.replace(f, path='/'.join(f.parts[1:])) for f in listing.folders]
    empty = [parts[1:] for parts in listing.empty if len(parts) > 1]
    return Listing(root, tuple(inner), tuple(empty), {})


def _holds_splits(listing: Listing, asked: Asked) -> bool:
    return _training_folder(_top(_within(listing)), asked.train) is not None


def _single_folder(listing: Listing, asked: Asked) -> _Found:
    """Everything is in one folder: there are splits in it, or no classes."""
    inner = _within(listing)
    if _holds_splits(listing, asked):
        return _layout_of(inner, asked)
    notes = [f'all are in the folder {printable(_top(listing)[0])}']
    if len(_top(inner)) > 1:
        notes[0] += f'; for its folders as classes give --data_dir={printable(inner.root)}'
    return _Found('images without classes', _unsorted(listing), notes)


def _unsorted(listing: Listing) -> list[_Member]:
    return [_Member(listing.root, folder) for folder in listing.folders]


def _files(members: list[_Member], classes: tuple[str, ...]) -> dict[str, Files]:
    """The files of each split; sorted by class they would need a shuffle buffer as large as it."""
    number = {name: label for label, name in enumerate(classes)}
    groups: dict[str, list[Group]] = {}
    for member in members:
        place = os.path.join(member.root, member.folder.path)
        label = NO_CLASS if member.name is None else number[member.name]
        group = Group(place, member.folder.path, member.folder.images, label)
        groups.setdefault(member.split or TRAIN, []).append(group)
    return {
        split: files_of(parts).shuffled(os.fsencode(split))
        for split, parts in sorted(groups.items())
    }


def with_evaluation(
    splits: Mapping[str, Files], asked: Asked
) -> tuple[dict[str, Files], list[str]]:
    """`splits` with the ones that are asked for by their usual names, and what was done, in words.

    'validation' may be a split of another name; where there is nothing to evaluate on, some of the
    training files are held out.
    """
    found, told = dict(splits), [_sizes(splits)] if len(splits) > 1 else []
    training = _training_folder(found, asked.train)
    if training and training not in asked.train:
        found[TRAIN] = found[training]
        told.append(f'{TRAIN} is the split {printable(training)}')
    usual = _of_evaluation(found)
    missing = [name for name in asked.evaluation if name not in found]
    if EVALUATION in missing and usual:
        found[EVALUATION] = found[usual]
        told.append(f'{EVALUATION} is the split {printable(usual)}')
    elif missing and not usual and training and asked.fraction:
        name = training if training in asked.train else TRAIN
        wanted = next((each for each in missing if each in _NAMES_OF_EVALUATION), EVALUATION)
        kept, held = hold_out(found[name], asked.fraction)
        if len(held):
            found[name], found[wanted] = kept, held
            told.append(
                f'{len(held):,} of {printable(name)} are held out as {wanted} '
                f'(--holdout_fraction={asked.fraction:g})'
            )
    return found, told


def _of_evaluation(names: Iterable[str]) -> str | None:
    """The split that is most likely there to evaluate on."""
    found = {name.lower(): name for name in names}
    return next((found[name] for name in _NAMES_OF_EVALUATION if name in found), None)


def _sizes(splits: Mapping[str, Files]) -> str:
    return 'splits ' + ', '.join(f'{printable(name)} {len(f):,}' for name, f in splits.items())


def describe_classes(classes: Sequence[str], counts: np.ndarray, unlabeled: int) -> list[str]:
    """'3 classes (cat 12, dog 10, owl 8)', and how many have none, where some have."""
    if not classes:
        return []
    pairs = [f'{printable(name)} {count:,}' for name, count in zip(classes, counts.tolist())]
    more = ', …' if len(pairs) > _LISTED else ''
    words = 'class' if len(classes) == 1 else 'classes'
    parts = [f'{len(classes):,} {words} ({", ".join(pairs[:_LISTED])}{more})']
    return parts + ([f'{unlabeled:,} images without a class'] if unlabeled else [])


def alike_but_for_case(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that are the same but for upper and lower case."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(name.casefold(), []).append(name)
    return [group for group in alike.values() if len(group) > 1]


def _differ_by_case(classes: Iterable[str]) -> list[str]:
    return [
        f'classes {" and ".join(map(printable, names))} differ by upper and lower case only'
        for names in alike_but_for_case(classes)
    ]
