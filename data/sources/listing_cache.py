"""Keeps what is in large folders of images, so that the next run need not list them again.

A folder is listed again once something in it came or went, which changes the time that the file
system keeps of it; only that time is looked up, once a folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time

from data.sources.listing import Entries, Identity, Listing, Scan, entries_of, list_images

KEPT_FROM = 20_000  # images; fewer are listed as fast as they are looked up
_FORMAT = 1
_SETTLED = 2_000_000_000  # nanoseconds; some file systems tell the time no finer


def list_with_cache(root: str, scan: Scan, seen: set[tuple[int, int]] | None = None) -> Listing:
    """`list_images` for a folder of this machine, with the cache of the user.

    Args:
        root: path of the folder.
        scan: lists one folder.
        seen: as `list_images` takes it.

    Raises:
        UserError: if a folder cannot be listed.
    """
    cache = _Cache(root, scan)
    listing = list_images(root, scan=scan, lookup=cache.lookup, seen=seen)
    if cache.changed and sum(folder.count for folder in listing.folders) >= KEPT_FROM:
        with contextlib.suppress(OSError):  # no place to keep it, so the next run lists again
            cache.write()
    return listing


def cache_file(root: str) -> str:
    """Where the listing of `root` is kept."""
    place = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
    name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:32]
    return os.path.join(place, 'simclr', 'listings', f'{name}.json')


class _Cache:
    """Entries of all folders below `root`: those of an earlier run, and those that are read now."""

    def __init__(self, root: str, scan: Scan) -> None:
        self._root, self._scan = root, scan
        self._path = cache_file(root)
        self._known = _read(self._path)
        self._kept: dict[str, list] = {}
        self._reused = 0

    @property
    def changed(self) -> bool:
        """Whether there is more, or less, to keep than there was."""
        return self._reused != len(self._known) or self._reused != len(self._kept)

    def lookup(self, folder: str, identity: Identity | None) -> Entries:
        key = os.path.relpath(folder, self._root)
        known = self._known.get(key)
        if known is not None and identity is not None and known[0] == _state(identity):
            self._reused += 1
            self._kept[key] = known
            return Entries(known[1], tuple(known[2]), (), known[3])
        entries, now = entries_of(folder, self._scan), time.time_ns()
        settled = identity is not None and identity.modified < now - _SETTLED
        # Where links lead may change without a trace in the folder that they are in.
        if settled and not entries.links:
            row = [_state(identity), entries.images, list(entries.folders), dict(entries.left)]
            self._kept[key] = row
        return entries

    def write(self) -> None:
        """Writes what is kept, whole or not at all."""
        folder = os.path.dirname(self._path)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with tempfile.NamedTemporaryFile('w', dir=folder, delete=False) as file:
            try:
                json.dump({'format': _FORMAT, 'folders': self._kept}, file)
                file.close()
                os.replace(file.name, self._path)
            except BaseException:
                os.unlink(file.name)
                raise


def _state(identity: Identity) -> list[int]:
    return [*identity.folder, identity.modified]


def _read(path: str) -> dict[str, list]:
    """What an earlier run kept; nothing where that cannot be read."""
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
        if content['format'] == _FORMAT and all(map(_is_row, content['folders'].values())):
            return content['folders']
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass  # it is written anew
    return {}


def _is_row(row: object) -> bool:
    if not isinstance(row, list) or [type(part) for part in row] != [list, str, list, dict]:
        return False
    names, counts = row[2], row[3].values()
    return all(isinstance(name, str) for name in names) and all(type(n) is int for n in counts)
