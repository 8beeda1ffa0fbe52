"""What lies in a folder and below it: the images by name, and what was left alone."""

from __future__ import annotations

import collections
import dataclasses
import os
import stat
from collections.abc import Callable, Iterator, Mapping

from common.errors import UserError, one_line, printable

# By their contents files are told apart when they are decoded.
EXTENSIONS = (
    *('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.webp', '.tif', '.tiff', '.bmp', '.gif'),
    *('.ppm', '.pgm', '.pbm', '.pnm', '.avif', '.heic', '.heif'),
)
FILE, FOLDER, LINK, NOTHING = 'file', 'folder', 'link', 'nothing'
_KINDS_COUNTED = 50  # of other files in a folder; what is rarer is counted together
_KINDS_SHOWN = 4
_UPPER = (1, 2, 3)  # levels of folders that may be splits and classes
_ARCHIVER = '__MACOSX'  # what macOS leaves in archives; no folder of images
# What is left alone besides files that are no images: in the plural → in the singular.
_HIDDEN, _BROKEN = 'hidden folders', 'broken links or special files'
_LEADS_BACK, _READ_ALREADY = 'links that lead back', 'folders that are read already'
_SINGULAR = {
    _HIDDEN: 'hidden folder',
    _BROKEN: 'broken link or special file',
    _LEADS_BACK: 'link that leads back',
    _READ_ALREADY: 'folder that is read already',
}


@dataclasses.dataclass(frozen=True)
class Entries:
    """What is in one folder.

    Attributes:
        images: names of its images, sorted, joined by '/', which no name holds.
        folders: names of folders, sorted.
        links: names of links to folders, sorted.
        left: what else is there, in words, and how often.
    """

    images: str = ''
    folders: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    left: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder with images.

    Attributes:
        path: relative to the one that was opened, '' for itself.
        images: names of the images right in it, sorted, joined by '/'.
    """

    path: str
    images: str

    @property
    def parts(self) -> list[str]:
        """Names of the folders on the way to it."""
        return self.path.split('/') if self.path else []

    @property
    def count(self) -> int:
        """Number of images right in it."""
        return self.images.count('/') + 1 if self.images else 0


@dataclasses.dataclass(frozen=True)
class Listing:
    """All that is in a folder and below.

    Attributes:
        root: path of the folder.
        folders: those with images; parents come first, brothers in alphabetical order.
        empty: the upper folders in which, and below which, there is no image, as tuples of the
            names that lead to them.
        left: what was left alone, in words, and how often.
        aliases: links right in it to folders right in it: name → name of the folder. They are not
            followed.
    """

    root: str
    folders: tuple[Folder, ...]
    empty: tuple[tuple[str, ...], ...]
    left: Mapping[str, int]
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)


# Path of a folder → (name, kind) of everything in it.
Scan = Callable[[str], Iterator[tuple[str, str]]]


def scan_local(folder: str) -> Iterator[tuple[str, str]]:
    """Name of everything in a folder of this machine, and whether it is a file, folder or link.

    Links to files are files. Only links are looked at one by one.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry.name, _kind(entry)


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return LINK if entry.is_symlink() else FOLDER
        return FILE if entry.is_file() else NOTHING
    except OSError:
        if not entry.is_symlink():
            raise
        return NOTHING  # it leads to itself, or to where nobody may look


@dataclasses.dataclass(frozen=True)
class Identity:
    """Which folder a path leads to, and its state.

    Attributes:
        folder: the same for two paths if they lead to the same folder.
        modified: when something in it last came or went, in nanoseconds.
    """

    folder: tuple[int, int]
    modified: int


def identify_local(folder: str) -> Identity:
    """Looks at a folder of this machine."""
    found = os.stat(folder)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(20, 'Not a directory', folder)
    return Identity((found.st_dev, found.st_ino), found.st_mtime_ns)


def entries_of(folder: str, scan: Scan) -> Entries:
    """What is in `folder`; names that begin with a dot are left alone."""
    images, folders, links, left = [], [], [], collections.Counter()
    for name, kind in scan(folder):
        if kind == FILE and is_image(name):
            images.append(name)
        elif name.startswith('.') or name == _ARCHIVER:
            hidden = kind in (FOLDER, LINK)
            left[_HIDDEN if hidden else _ending(name)] += 1
        elif kind in (FOLDER, LINK):
            (folders if kind == FOLDER else links).append(name)
        else:
            left[_BROKEN if kind == NOTHING else _ending(name)] += 1
    return Entries(
        images='/'.join(sorted(images)),
        folders=tuple(sorted(folders)),
        links=tuple(sorted(links)),
        left=_frequent(left),
    )


def is_image(name: str) -> bool:
    """Whether a file is taken for an image, by its name."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith('.')


def _ending(name: str) -> str:
    """By what a file that is no image is counted."""
    if name.startswith('.'):
        return name if name == '.DS_Store' else 'hidden'
    return os.path.splitext(name)[1].lower() or 'no ending'


def _frequent(left: collections.Counter[str]) -> dict[str, int]:
    frequent = dict(left.most_common(_KINDS_COUNTED))
    rest = left.total() - sum(frequent.values())
    return {**frequent, **({'others': rest} if rest else {})}


def list_images(
    root: str,
    *,
    scan: Scan = scan_local,
    identify: Callable[[str], Identity | None] = identify_local,
    lookup: Callable[[str, Identity | None], Entries] | None = None,
    seen: set[tuple[int, int]] | None = None,
) -> Listing:
    """Lists a folder and all below it.

    Links to folders are followed after all else, and no folder is entered twice.

    Args:
        root: path of the folder.
        scan: lists one folder.
        identify: looks at one folder; gives None where folders can't be told apart and there are no
            links.
        lookup: gives the entries of one folder, from a cache maybe. None: they are read.
        seen: which folders were listed already, for another root; this one's are added.

    Raises:
        UserError: if a folder cannot be listed.
    """
    lookup = lookup or (lambda folder, _: entries_of(folder, scan))
    walk = _Walk(root, identify, lookup, set() if seen is None else seen)
    walk.run()
    with_images = {parts[:depth] for parts in walk.folders for depth in _UPPER}
    return Listing(
        root=root,
        folders=tuple(walk.folders[parts] for parts in sorted(walk.folders)),
        empty=tuple(sorted(walk.upper - with_images)),
        left=dict(walk.left),
        aliases=walk.aliases,
    )


class _Walk:
    """A walk through all folders below `root`."""

    def __init__(
        self,
        root: str,
        identify: Callable[[str], Identity | None],
        lookup: Callable[[str, Identity | None], Entries],
        seen: set[tuple[int, int]],
    ) -> None:
        self._root, self._identify, self._lookup = root, identify, lookup
        self._seen = seen
        self._pending: list[tuple[str, ...]] = [()]
        self._links: collections.deque[tuple[str, ...]] = collections.deque()
        self.folders: dict[tuple[str, ...], Folder] = {}
        self.aliases: dict[str, str] = {}
        self.upper: set[tuple[str, ...]] = set()
        self.left: collections.Counter[str] = collections.Counter()

    def run(self) -> None:
        while self._pending or self._links:
            parts = self._pending.pop() if self._pending else self._links.popleft()
            place = os.path.join(self._root, *parts)
            try:
                entries = self._enter(place)
            except OSError as error:
                raise UserError(
                    f'{printable(place)} must be a folder that can be listed; found otherwise '
                    f'({printable(one_line(error))}). Let it be read, or move it out of --data_dir.'
                ) from error
            if entries is not None:
                self._add(parts, place, entries)

    def _enter(self, place: str) -> Entries | None:
        """What is in a folder; None if it was read already, under another path."""
        identity = self._identify(place)
        if identity is not None:
            if identity.folder in self._seen:
                self.left[_READ_ALREADY] += 1
                return None
            self._seen.add(identity.folder)
        return self._lookup(place, identity)

    def _add(self, parts: tuple[str, ...], place: str, entries: Entries) -> None:
        self.left.update(entries.left)
        if len(parts) in _UPPER:
            self.upper.add(parts)
        if entries.images:
            self.folders[parts] = Folder('/'.join(parts), entries.images)
        self._pending += [(*parts, name) for name in reversed(entries.folders)]
        for name in entries.links:
            link = os.path.join(place, name)
            brother = _brother(link)
            if not parts and brother in entries.folders:
                self.aliases[name] = brother
            elif _leads_back(link, self._root):
                self.left[_LEADS_BACK] += 1
            else:
                self._links.append((*parts, name))


def _brother(link: str) -> str:
    """The name of the folder beside it that a link leads to, '' if it leads elsewhere."""
    folder, name = os.path.split(os.path.realpath(link))
    return name if folder == os.path.realpath(os.path.dirname(link)) else ''


def _leads_back(link: str, root: str) -> bool:
    """Whether a link leads to a folder that it lies in itself, or to one above `root`."""
    target = os.path.join(os.path.realpath(link), '')
    inside = (os.path.realpath(os.path.dirname(link)), os.path.realpath(root))
    return any(os.path.join(folder, '').startswith(target) for folder in inside)


def describe_left(left: Mapping[str, int]) -> str:
    """What was left alone: '12 other files (.txt, .DS_Store), 1 link that leads back'."""
    files = {key: count for key, count in left.items() if key not in _SINGULAR}
    parts = []
    if files:
        often = sorted(files, key=lambda key: (-files[key], key))
        kinds = ', '.join(map(printable, often[:_KINDS_SHOWN]))
        kinds += ', …' if len(often) > _KINDS_SHOWN else ''
        total = sum(files.values())
        parts.append(f'{total:,} other file{"s" if total > 1 else ""} ({kinds})')
    others = sorted(left.keys() & _SINGULAR.keys())
    parts += [f'{left[key]:,} {key if left[key] > 1 else _SINGULAR[key]}' for key in others]
    return ', '.join(parts)
