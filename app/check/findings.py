"""What was found in a data set, as numbers and as advice."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from common.errors import printable
from data.duplicates import FARTHEST, OF_CONTRAST, Duplicates, range_by_kind
from data.image_files import extensions_of
from data.sources.layout import alike_but_for_case

FEW = 10  # a class with fewer images in a split hardly teaches anything
UNEVEN = 10  # the largest class is worth a note if it has so many times the smallest's images
LONG = 8  # so many times as long as wide, or more, a random crop sees a sliver
TINY = 16  # pixels; of a smaller side little can be seen
_NAMES_AT_ONCE = 65_536
LISTED = 1000  # groups of duplicates, and odd images
_MEMBERS = 100  # of a group
_SIDES = (1, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)  # pixels, where classes of size begin
_RATIOS = (0.0, 0.5, 0.95, 1.05, 2.0)  # width by height
_SHAPES = (
    'tall, 1 : 2 and more',
    'upright',
    'about square',
    'wide',
    'very wide, 2 : 1 and more',
)
PROBLEM, ADVICE = 'problem', 'advice'


@dataclasses.dataclass(frozen=True)
class Checked:
    """All n images of a data set.

    Attributes:
        name: of the data set.
        summary: what was understood, one line.
        classes: their names.
        splits: their names.
        split: [n], which of `splits` each image is in.
        position: [n], its place in that split.
        label: [n], its class, negative for none.
        wrong_labels: number of images whose label is none of the classes; they count as without.
        height: [n], pixels, 0 where it can't be decoded.
        width: [n].
        size: [n], bytes of the file.
        format: [n], name of its format, '' where it can't be decoded.
        reasons: image → why it can't be decoded, as the end of a sentence.
        duplicates: of the usable images.
        identify: split, positions → names of files.
    """

    name: str
    summary: str
    classes: Sequence[str]
    splits: Sequence[str]
    split: np.ndarray
    position: np.ndarray
    label: np.ndarray
    wrong_labels: int
    height: np.ndarray
    width: np.ndarray
    size: np.ndarray
    format: np.ndarray
    reasons: Mapping[int, str]
    duplicates: Duplicates
    identify: Callable[[str, Sequence[int]], Sequence[str]]

    @property
    def usable(self) -> np.ndarray:
        """Numbers of the images that can be decoded, to which `duplicates` refer."""
        return np.flatnonzero(self.height)

    def names(self, images: Sequence[int]) -> list[str]:
        """The file of each image, or what else a person finds it by."""
        found = [''] * len(images)
        images = np.asarray(images, np.int64)
        for number, split in enumerate(self.splits):
            places = np.flatnonzero(self.split[images] == number)
            if len(places):
                known = self.identify(split, self.position[images[places]].tolist())
                for place, name in zip(places, known, strict=True):
                    found[place] = name
        return found

    def class_of(self, image: int) -> str | None:
        """The name of its class."""
        label = self.label[image]
        return self.classes[label] if label >= 0 else None


@dataclasses.dataclass(frozen=True)
class Note:
    """Something to look at.

    Attributes:
        kind: PROBLEM or ADVICE.
        text: what was found: one sentence or more.
        part: the part of the page that shows it.
    """

    kind: str
    text: str
    part: str


def describe(checked: Checked) -> dict[str, Any]:
    """The contents of `check.json`."""
    groups, groups_in_all = groups_of(checked, LISTED)
    odd, plain, misnamed = odd_shapes(checked), plain_images(checked), misnamed_files(checked)
    return {
        'data': checked.name,
        'summary': checked.summary,
        'images': len(checked.height),
        'usable': len(checked.usable),
        'damaged': len(checked.reasons),
        'notes': [dataclasses.asdict(note) for note in notes(checked, misnamed)],
        'splits': _by_split(checked),
        'classes': _by_class(checked),
        'formats': _by_format(checked),
        'sizes': _sizes(checked),
        'damaged_files': _damaged(checked),
        'odd_shapes': _listed(checked, odd[:LISTED]),
        'odd_shapes_in_all': len(odd),
        'single_color': _listed(checked, plain[:LISTED]),
        'single_color_in_all': len(plain),
        'misnamed': _listed(checked, misnamed[:LISTED]),
        'misnamed_in_all': len(misnamed),
        'duplicates': duplicates_by_split(checked),
        'duplicate_groups': [_group(checked, group) for group in groups],
        'duplicate_groups_in_all': groups_in_all,
        'compared_by': {
            'largest_difference': FARTHEST,
            'largest_share_of_contrast': OF_CONTRAST,
        },
    }


def _by_split(checked: Checked) -> list[dict[str, Any]]:
    rows = []
    for number, name in enumerate(checked.splits):
        its = checked.split == number
        bad = int((checked.height[its] == 0).sum())
        size = int(checked.size[its].sum())
        rows.append({'name': name, 'images': int(its.sum()), 'damaged': bad, 'bytes': size})
    return rows


def _by_class(checked: Checked) -> list[dict[str, Any]]:
    """Usable images by class; a last row without a name is of those that have none."""
    counts = class_counts(checked)
    rows = [
        {'name': name, 'images': dict(zip(checked.splits, row))}
        for name, row in zip([*checked.classes, None], counts.tolist())
    ]
    return rows if counts[-1].any() or not checked.classes else rows[:-1]


def class_counts(checked: Checked) -> np.ndarray:
    """[c + 1, s], usable images of each class in each split; those without a class come last."""
    classes, splits = len(checked.classes), len(checked.splits)
    label = np.where(checked.label < 0, classes, checked.label)[checked.usable]
    place = label * splits + checked.split[checked.usable]
    return np.bincount(place, minlength=(classes + 1) * splits).reshape(classes + 1, splits)


def _by_format(checked: Checked) -> list[dict[str, Any]]:
    names, counts = np.unique(checked.format[checked.usable], return_counts=True)
    order = np.argsort(-counts, kind='stable')
    return [{'format': str(names[i]), 'images': int(counts[i])} for i in order]


def _sizes(checked: Checked) -> dict[str, Any]:
    height, width = checked.height[checked.usable], checked.width[checked.usable]
    if not len(height):
        return {}
    sides = np.histogram(np.minimum(height, width), [*_SIDES, np.inf])[0]
    shapes = np.histogram(width / height, [*_RATIOS, np.inf])[0]
    pairs, counts = np.unique(np.stack([width, height], 1), axis=0, return_counts=True)
    often = np.argsort(-counts, kind='stable')[:5]
    names = [f'{low:,} to {above - 1:,} pixels' for low, above in itertools.pairwise(_SIDES)]
    return {
        'shorter_side': dict(zip([*names, f'{_SIDES[-1]:,} pixels and more'], sides.tolist())),
        'shape': dict(zip(_SHAPES, shapes.tolist())),
        'often': [
            {'width': int(pairs[i][0]), 'height': int(pairs[i][1]), 'images': int(counts[i])}
            for i in often
        ],
        'median': {'width': int(np.median(width)), 'height': int(np.median(height))},
        'smallest': _extent(checked, np.argmin(height.astype(np.int64) * width)),
        'largest': _extent(checked, np.argmax(height.astype(np.int64) * width)),
    }


def _extent(checked: Checked, place: np.intp) -> dict[str, Any]:
    return _listed(checked, [checked.usable[place]])[0]


def _listed(checked: Checked, images: Sequence[int]) -> list[dict[str, Any]]:
    """What is to be known of single images."""
    return [
        {
            'file': name,
            'split': checked.splits[checked.split[image]],
            'class': checked.class_of(image),
            'width': int(checked.width[image]),
            'height': int(checked.height[image]),
            'format': str(checked.format[image]),
        }
        for image, name in zip(images, checked.names(images))
    ]


def _damaged(checked: Checked) -> list[dict[str, Any]]:
    rows = [
        {
            'file': name,
            'split': checked.splits[checked.split[image]],
            'class': checked.class_of(image),
            'reason': checked.reasons[image],
        }
        for image, name in zip(checked.reasons, checked.names(list(checked.reasons)))
    ]
    return sorted(rows, key=lambda row: (row['split'], row['file']))


def odd_shapes(checked: Checked) -> list[int]:
    """Images that are very long or very small, the longest first."""
    height, width = checked.height[checked.usable], checked.width[checked.usable]
    shorter, longer = np.minimum(height, width), np.maximum(height, width)
    odd = np.flatnonzero((longer >= LONG * shorter) | (shorter < TINY))
    odd = odd[np.argsort(-(longer / shorter)[odd], kind='stable')]
    return checked.usable[odd].tolist()


def plain_images(checked: Checked) -> list[int]:
    """Images of a single color."""
    return checked.usable[checked.duplicates.plain].tolist()


def duplicates_by_split(checked: Checked) -> list[dict[str, Any]]:
    """For each split, how many of its images have duplicates in each split, itself included.

    An image that has an exact duplicate there is not counted among those with near ones.
    """
    found, split = checked.duplicates, checked.split[checked.usable]
    rows = []
    for number, name in enumerate(checked.splits):
        its = split == number
        for other, other_name in enumerate(checked.splits):
            same = found.copied[its, other]
            alike = found.similar[its, other] & ~same
            counts = {'exact': int(same.sum()), 'near': int(alike.sum())}
            if any(counts.values()):
                rows.append({'split': name, 'also_in': other_name, **counts})
    return rows


def groups_of(checked: Checked, most: int) -> tuple[list[list[int]], int]:
    """Images that are linked by being duplicates, exact or near, in groups of two or more.

    Args:
        checked: what was found.
        most: number of groups at most.

    Returns:
        The groups, those across splits first, then those across classes, then the largest; in a
        group, images of different splits and classes come first. And the number of all groups.
    """
    group, usable = checked.duplicates.group, checked.usable
    sizes = np.bincount(group)
    several = [
        np.less(*range_by_kind(group, values[usable], len(sizes)))
        for values in (checked.split, checked.label)
    ]
    ranked = np.lexsort((-sizes, ~several[1], ~several[0], sizes < 2))
    total = int((sizes > 1).sum())
    by_group = np.argsort(group, kind='stable')
    starts = np.cumsum(sizes) - sizes
    chosen = ranked[: min(most, total)]
    members = (by_group[starts[each] : starts[each] + sizes[each]] for each in chosen)
    return [_different_first(checked, usable[places]) for places in members], total


def _different_first(checked: Checked, images: np.ndarray) -> list[int]:
    """`images`, one of each split first, then one of each class, then the others."""
    chosen: dict[int, None] = {}
    for values in (checked.split, checked.label):
        _, first = np.unique(values[images], return_index=True)
        chosen |= dict.fromkeys(images[first].tolist())
    return list(chosen | dict.fromkeys(images.tolist()))


def _group(checked: Checked, images: Sequence[int]) -> dict[str, Any]:
    return {
        'images': len(images),
        'different_files': different_files(checked, images),
        'listed': _listed(checked, images[:_MEMBERS]),
    }


def different_files(checked: Checked, images: Sequence[int]) -> int:
    """How many files differ in their contents."""
    content = checked.duplicates.content[np.searchsorted(checked.usable, images)]
    return len(np.unique(content))


# --- advice


def notes(checked: Checked, misnamed: Sequence[int]) -> list[Note]:
    """What there is to look at, the worst first."""
    found = [
        *_notes_on_files(checked, misnamed),
        *_notes_on_leaks(checked),
        *_notes_on_contradictions(checked),
        *_notes_on_classes(checked),
        *_notes_on_duplicates(checked),
        *_notes_on_shapes(checked),
    ]
    return sorted(found, key=lambda note: note.kind != PROBLEM)


def _kinds(exact: int, near: int) -> str:
    """How many duplicates there are of each kind, in words."""
    kinds = [(exact, 'exact'), (near, 'near')]
    words = ', '.join(f'{count:,} {kind}' for count, kind in kinds if count)
    return f'{words} duplicate{"s" if exact + near > 1 else ""}'


def _images(count: int) -> str:
    return '1 image' if count == 1 else f'{count:,} images'


def _are(count: int) -> str:
    """'1 image is', '2 images are'."""
    return f'{_images(count)} {"is" if count == 1 else "are"}'


def _notes_on_files(checked: Checked, misnamed: Sequence[int]) -> Iterator[Note]:
    bad, total = len(checked.reasons), len(checked.height)
    if bad:
        them = 'it' if bad == 1 else 'them'
        yield Note(
            PROBLEM,
            f'{bad:,} of {total:,} files cannot be decoded ({100 * bad / total:.2g}%). Restore or '
            f'remove {them}.',
            'damaged',
        )
    if misnamed:
        names = ', '.join(map(printable, checked.names(misnamed[:3])))
        yield Note(
            ADVICE,
            f'{_are(len(misnamed))} of another format than the extension says, such as {names}. '
            'The content decides here; other programs may go by the name.',
            'odd',
        )


def misnamed_files(checked: Checked) -> list[int]:
    """Images of another format than the extension of their file says."""
    found = []
    usable = checked.usable
    for start in range(0, len(usable), _NAMES_AT_ONCE):
        images = usable[start : start + _NAMES_AT_ONCE]
        for image, name in zip(images.tolist(), checked.names(images)):
            ending, known = os.path.splitext(name)[1].lower(), extensions_of(checked.format[image])
            if ending and known and ending not in known:
                found.append(image)
    return found


def _notes_on_leaks(checked: Checked) -> Iterator[Note]:
    sizes = {row['name']: row['images'] for row in _by_split(checked)}
    for row in duplicates_by_split(checked):
        split, other, exact, near = row['split'], row['also_in'], row['exact'], row['near']
        if (sizes[split], split) < (sizes[other], other):  # told of the smaller one
            yield Note(
                PROBLEM if exact else ADVICE,
                f'{_are(exact + near)} in {printable(split)} and in {printable(other)} '
                f'({_kinds(exact, near)}). Accuracy on such images says nothing about new ones. '
                'Keep only one copy of each.',
                'duplicates',
            )


def _notes_on_contradictions(checked: Checked) -> Iterator[Note]:
    found = checked.duplicates
    exact, near = int(found.copied_elsewhere.sum()), int(found.similar_elsewhere.sum())
    if exact or near:
        yield Note(
            PROBLEM if exact else ADVICE,
            f'{_are(exact + near)} in several classes ({_kinds(exact, near)}). Such labels '
            'contradict each other.',
            'duplicates',
        )


def _notes_on_duplicates(checked: Checked) -> Iterator[Note]:
    for row in duplicates_by_split(checked):
        if row['split'] == row['also_in']:
            exact, near = row['exact'], row['near']
            yield Note(
                ADVICE,
                f'{_are(exact + near)} in {printable(row["split"])} more than once '
                f'({_kinds(exact, near)}). Each copy counts like another image.',
                'duplicates',
            )


def _notes_on_classes(checked: Checked) -> Iterator[Note]:
    counts = class_counts(checked)[:-1]
    if checked.wrong_labels:
        yield Note(
            PROBLEM,
            f'{_images(checked.wrong_labels)} with a label that is none of the '
            f'{_classes(len(checked.classes))}. Fix them, or choose another --label_key.',
            'classes',
        )
    for names in alike_but_for_case(checked.classes):
        yield Note(
            PROBLEM,
            f'The classes {" and ".join(map(printable, names))} differ by upper and lower case '
            'only. Are they one class?',
            'classes',
        )
    labeled = [i for i in range(len(checked.splits)) if counts[:, i].any()]
    if len(labeled) > 1:
        once = [
            f'{printable(checked.classes[c])} ({printable(checked.splits[np.flatnonzero(row)[0]])})'
            for c, row in enumerate(counts)
            if (row > 0).sum() == 1
        ]
        if once:
            yield Note(
                PROBLEM,
                f'{_classes(len(once))} in one split only: {_first(once)}. A class must be in the '
                'training split to be learned, and in the other to be measured.',
                'classes',
            )
    totals = counts.sum(axis=1)
    none = [printable(checked.classes[c]) for c in np.flatnonzero(totals == 0)]
    if none:
        yield Note(
            PROBLEM, f'{_classes(len(none))} without usable images: {_first(none)}.', 'classes'
        )
    yield from _notes_on_sizes(checked, totals)


def _notes_on_sizes(checked: Checked, totals: np.ndarray) -> Iterator[Note]:
    """What there is to say of the number of images in each class, [c]."""
    there = np.flatnonzero(totals)
    names = {c: f'{printable(checked.classes[c])} {totals[c]:,}' for c in there.tolist()}
    few = [names[c] for c in there.tolist() if totals[c] < FEW]
    if few:
        yield Note(
            ADVICE, f'{_classes(len(few))} with fewer than {FEW} images: {_first(few)}.', 'classes'
        )
    if len(there) and totals.max() >= UNEVEN * totals[there].min():
        most, least = int(totals.argmax()), int(there[totals[there].argmin()])
        yield Note(
            ADVICE,
            f'Classes differ much in size, from {names[least]} to {names[most]}. Accuracy says '
            'little about the small ones.',
            'classes',
        )


def _classes(count: int) -> str:
    return '1 class' if count == 1 else f'{count:,} classes'


def _first(names: Sequence[str], count: int = 8) -> str:
    return ', '.join(names[:count]) + (', …' if len(names) > count else '')


def _notes_on_shapes(checked: Checked) -> Iterator[Note]:
    odd, plain = len(odd_shapes(checked)), len(plain_images(checked))
    if odd:
        yield Note(
            ADVICE,
            f'{_are(odd)} at least {LONG} times as long as wide, or smaller than {TINY} pixels. '
            'Random crops of such images show little.',
            'odd',
        )
    if plain:
        yield Note(
            ADVICE, f'{_are(plain)} of a single color, once transparent parts are white.', 'odd'
        )
