"""What was found in a data set, as numbers and as advice."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from common.errors import printable
from data.duplicates import FARTHEST, OF_CONTRAST, Duplicates
from data.image_files import extensions_of
from data.sources.layout import alike_but_for_case

FEW = 10  # a class with fewer images in a split hardly teaches anything
LONG = 8  # so many times as long as wide, or more, a random crop sees a sliver
TINY = 16  # pixels; of a smaller side little can be seen
LISTED = 1000  # groups of duplicates, and images of odd shapes
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
    groups = groups_of(checked)
    odd = odd_shapes(checked)
    return {
        'data': checked.name,
        'summary': checked.summary,
        'images': len(checked.height),
        'usable': len(checked.usable),
        'damaged': len(checked.reasons),
        'notes': [dataclasses.asdict(note) for note in notes(checked)],
        'splits': _by_split(checked),
        'classes': _by_class(checked),
        'formats': _by_format(checked),
        'sizes': _sizes(checked),
        'damaged_files': _damaged(checked),
        'odd_shapes': _listed(checked, odd[:LISTED]),
        'odd_shapes_in_all': len(odd),
        'single_color': _listed(checked, plain_images(checked)[:LISTED]),
        'single_color_in_all': len(plain_images(checked)),
        'copies': copies_between(checked),
        'duplicate_groups': [_group(checked, group) for group in groups[:LISTED]],
        'duplicate_groups_in_all': len(groups),
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
    ends = [f'{side - 1}' for side in _SIDES[1:]]
    names = [f'{low:,} to {int(high):,} pixels' for low, high in zip(_SIDES, ends)]
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


def copies_between(checked: Checked) -> list[dict[str, Any]]:
    """For each split, how many of its images are in a split too, itself included.

    An image that is in the other split as the same file is not counted as looking the same.
    """
    found, split = checked.duplicates, checked.split[checked.usable]
    rows = []
    for number, name in enumerate(checked.splits):
        its = split == number
        for other, other_name in enumerate(checked.splits):
            same = found.copied[its, other]
            alike = found.similar[its, other] & ~same
            counts = {'same_file': int(same.sum()), 'looks_the_same': int(alike.sum())}
            if any(counts.values()):
                rows.append({'split': name, 'also_in': other_name, **counts})
    return rows


def groups_of(checked: Checked) -> list[list[int]]:
    """Images that are linked by being the same or looking the same, in groups of two or more.

    Those that cross splits come first, then those that cross classes, then the largest ones.
    """
    group = checked.duplicates.group
    order = np.argsort(group, kind='stable')
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    members = [part for part in np.split(order, starts[1:]) if len(part) > 1]

    def rank(places: np.ndarray) -> tuple[bool, bool, int]:
        images = checked.usable[places]
        labels = {label for label in checked.label[images].tolist() if label >= 0}
        return len(set(checked.split[images].tolist())) < 2, len(labels) < 2, -len(places)

    return [checked.usable[places].tolist() for places in sorted(members, key=rank)]


def _group(checked: Checked, images: Sequence[int]) -> dict[str, Any]:
    content = checked.duplicates.content[np.searchsorted(checked.usable, images)]
    return {
        'images': len(images),
        'different_files': len(set(content.tolist())),
        'listed': _listed(checked, images[:_MEMBERS]),
    }


# --- advice


def notes(checked: Checked) -> list[Note]:
    """What there is to look at, the worst first."""
    found = [
        *_notes_on_files(checked),
        *_notes_on_leaks(checked),
        *_notes_on_contradictions(checked),
        *_notes_on_classes(checked),
        *_notes_on_copies(checked),
        *_notes_on_shapes(checked),
    ]
    return sorted(found, key=lambda note: note.kind != PROBLEM)


def _ways(same: int, alike: int) -> str:
    """How images are there again, in words."""
    ways = [(same, 'the same file'), (alike, 'look the same')]
    return ' and '.join(f'{count:,} {words}' for count, words in ways if count)


def _images(count: int) -> str:
    return '1 image' if count == 1 else f'{count:,} images'


def _notes_on_files(checked: Checked) -> Iterator[Note]:
    bad, total = len(checked.reasons), len(checked.height)
    if bad:
        which = 'file cannot' if bad == 1 else 'files cannot'
        yield Note(
            PROBLEM,
            f'{bad:,} {which} be decoded, {100 * bad / total:.2g}% of {total:,}. Restore or remove '
            f'{"it" if bad == 1 else "them"}.',
            'damaged',
        )
    misnamed = _misnamed(checked)
    if misnamed:
        names = ', '.join(map(printable, checked.names(misnamed[:3])))
        yield Note(
            ADVICE,
            f'{_images(len(misnamed))} of another format than the name says, such as {names}. Here '
            'contents decide; other programs may go by the name.',
            'formats',
        )


def _misnamed(checked: Checked) -> list[int]:
    found = []
    usable = checked.usable
    for image, name in zip(usable.tolist(), checked.names(usable)):
        ending, known = os.path.splitext(name)[1].lower(), extensions_of(checked.format[image])
        if ending and known and ending not in known:
            found.append(image)
    return found


def _notes_on_leaks(checked: Checked) -> Iterator[Note]:
    rows = {(row['split'], row['also_in']): row for row in copies_between(checked)}
    sizes = {row['name']: row['images'] for row in _by_split(checked)}
    for (split, other), row in rows.items():
        if (sizes[split], split) < (sizes[other], other):  # told of the smaller one
            same, alike = row['same_file'], row['looks_the_same']
            is_are = 'is' if same + alike == 1 else 'are'
            yield Note(
                PROBLEM,
                f'{_images(same + alike)} of {printable(split)} {is_are} in {printable(other)} too '
                f'({_ways(same, alike)}). Accuracy on them says nothing about new images. Remove '
                'them from one of the two.',
                'copies',
            )


def _notes_on_contradictions(checked: Checked) -> Iterator[Note]:
    found = checked.duplicates
    same, alike = int(found.copied_elsewhere.sum()), int(found.similar_elsewhere.sum())
    if same or alike:
        is_are = 'is' if same + alike == 1 else 'are'
        yield Note(
            PROBLEM if same else ADVICE,
            f'{_images(same + alike)} {is_are} in another class too ({_ways(same, alike)}). Such '
            'labels contradict each other.',
            'copies',
        )


def _notes_on_copies(checked: Checked) -> Iterator[Note]:
    for row in copies_between(checked):
        if row['split'] == row['also_in']:
            same, alike = row['same_file'], row['looks_the_same']
            yield Note(
                ADVICE,
                f'{_images(same + alike)} of {printable(row["split"])} are there more than once '
                f'({_ways(same, alike)}). Each counts as often in training.',
                'copies',
            )


def _notes_on_classes(checked: Checked) -> Iterator[Note]:
    counts = class_counts(checked)[:-1]
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
    few = [f'{printable(checked.classes[c])} {totals[c]:,}' for c in np.flatnonzero(totals < FEW)]
    few = [text for text in few if not text.endswith(' 0')]
    if few:
        yield Note(
            ADVICE, f'{_classes(len(few))} with fewer than {FEW} images: {_first(few)}.', 'classes'
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
            f'{_images(odd)} at least {LONG} times as long as wide, or smaller than {TINY} pixels. '
            'Crops of them show little.',
            'shapes',
        )
    if plain:
        yield Note(
            ADVICE,
            f'{_images(plain)} of a single color, where transparent parts are white.',
            'shapes',
        )
