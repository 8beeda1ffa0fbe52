"""Looks up names of data sets without importing TensorFlow, which takes seconds."""

from __future__ import annotations

import difflib
import itertools
import json
import os
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterable
from typing import TYPE_CHECKING

from common.errors import UserError, one_line, printable

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_PORTS = {'https': 443, 'http': 80, 'ftp': 21}
_HOSTS_ASKED = 3
_SECONDS_TO_ANSWER = 3.0
# Name -> 'module:function' that opens it. Other names are looked up in TensorFlow Datasets.
SOURCES = {
    'bundled': 'data.sources.bundled:open_bundled',
    'image_folder': 'data.sources.image_folder:open_image_folder',
    'image_list': 'data.sources.file_list:open_file_list',
    'tfrecords': 'data.sources.tfrecords:open_tfrecords',
}
PREPARED_FILE = 'dataset_info.json'  # in the folder of a data set that TFDS prepared
_RECORDS = re.compile(r'\.tfrecords?\b|-\d{5}-of-\d{5}$', re.IGNORECASE)
_LOOKED_AT, _FOLDERS_LOOKED_AT = 1000, 8  # entries of a folder, folders in it
_LISTS = ('.txt', '.lst', '.csv', '.tsv', '.jsonl', '.ndjson', '.json')


def folders_of(data_dir: str | None) -> list[str]:
    """The places that `--data_dir` names: one, or several separated by commas.

    A place whose name has a comma is one if it is there.
    """
    whole = os.path.expanduser(data_dir or '')
    if ',' not in whole or os.path.exists(whole):
        return [whole] if whole else []
    places = [os.path.expanduser(place.strip()) for place in whole.split(',')]
    return list(dict.fromkeys(place for place in places if place))


def source_for(name: str, data_dir: str | None) -> str:
    """The name in `SOURCES` of what opens data set `name`; of own images, by what `data_dir` is."""
    if name != 'image_folder':
        return name
    for place in folders_of(data_dir):
        if _names_records(place):
            return 'tfrecords'
        if os.path.isfile(place) or ('://' in place and place.lower().endswith(_LISTS)):
            return 'image_list'
    return name


def is_record_file(name: str) -> bool:
    """Whether a file is taken for a TFRecord file, by its name."""
    return _RECORDS.search(name) is not None


def _names_records(place: str) -> bool:
    """Whether `place` is a TFRecord file, a pattern of such, or a folder that holds such files."""
    if '://' in place or not os.path.isdir(place):
        return is_record_file(os.path.basename(place))
    first = _first_names(place)
    if any(map(is_record_file, first)):
        return True
    folders = filter(os.path.isdir, (os.path.join(place, name) for name in first))
    below = itertools.islice(folders, _FOLDERS_LOOKED_AT)
    return any(is_record_file(name) for folder in below for name in _first_names(folder))


def _first_names(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in itertools.islice(entries, _LOOKED_AT)]
    except OSError:
        return []  # whoever opens it says why it can't be read


def how_to_open(folder: str) -> str:
    """The flags for the data set that TFDS prepared in a folder.

    Args:
        folder: .../name/version or .../name/config/version.
    """
    *above, _ = os.path.abspath(folder).split('/')
    named = len(above) - 1
    try:
        with open(os.path.join(folder, PREPARED_FILE), encoding='utf-8') as file:
            named = len(above) - 1 - above[::-1].index(json.load(file)['name'])
    except (OSError, ValueError, LookupError, TypeError):
        pass  # the folder above is its name, then
    data_dir = '/'.join(above[:named]) or '/'
    return f'--dataset={printable("/".join(above[named:]))} --data_dir={printable(data_dir)}'


def find_prepared(root: str) -> str | None:
    """A folder of this machine, `root` or below, with a data set that TFDS prepared."""
    return next((at for at, _, names in os.walk(root) if PREPARED_FILE in names), None)


def check_name(name: str, data_dir: str | None) -> None:
    """Raises UserError if there is no data set `name`, here or in TensorFlow Datasets."""
    if name in SOURCES:
        return
    import tensorflow_datasets as tfds

    if name.split('/')[0].split(':')[0] not in tfds.list_builders(with_community_datasets=False):
        find_builder(name, data_dir)


def check_is_utf8(data_dir: str | None) -> None:
    """Raises UserError if `data_dir` is not UTF-8, which TensorFlow Datasets needs."""
    if any('\udc80' <= character <= '\udcff' for character in data_dir or ''):
        raise UserError(
            '--data_dir must be a path in UTF-8 for TensorFlow Datasets; found '
            f'{printable(data_dir)}. Rename the folder.'
        )


def check_downloadable(name: str, urls: Iterable[str], folder: str) -> None:
    """Raises UserError if none of the hosts that a data set is downloaded from answers.

    TensorFlow Datasets itself retries many times, with a log line for each attempt.

    Args:
        name: of the data set, for the message.
        urls: what is downloaded; only the first few hosts are asked.
        folder: where the data set would be prepared, for the message.
    """
    if urllib.request.getproxies():
        return
    parts = [urllib.parse.urlsplit(url) for url in urls]
    ports = {part.hostname: part.port or _PORTS.get(part.scheme) for part in parts}
    causes = []
    for host, port in list(ports.items())[:_HOSTS_ASKED]:
        try:
            socket.create_connection((host, port), _SECONDS_TO_ANSWER).close()
            return
        except OSError as error:
            causes.append(f'{host}: {error}')
    if causes:
        raise UserError(
            f'Data set {name!r} is not prepared in {printable(folder)} and cannot be downloaded '
            f'without a network ({one_line(causes[0])}). Prepare it elsewhere and give '
            'its --data_dir, or use --dataset=image_folder or the bundled images.'
        )


def find_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """The TFDS builder of `name`, 'name', 'name/config' or 'name/config:version'.

    Raises:
        UserError: if there is none, neither in the catalog nor prepared in `data_dir`.
    """
    import tensorflow_datasets as tfds

    data_dir = os.path.expanduser(data_dir) if data_dir else None
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        raise UserError(_unknown_name(name, data_dir)) from None
    except unreadable() as error:
        folder = os.path.join(data_dir, name.split('/')[0].split(':')[0]) if data_dir else ''
        raise UserError(
            what_is_broken(folder) or f'Cannot open --dataset={name!r}: {one_line(error)}'
        ) from error


def unreadable() -> tuple[type[Exception], ...]:
    """Exceptions that TFDS raises for unknown configurations and versions, and broken files."""
    from google.protobuf import json_format

    plain = (ValueError, AssertionError, KeyError, TypeError, AttributeError, RuntimeError)
    return (*plain, ImportError, OSError, json_format.ParseError)


def what_is_broken(folder: str) -> str | None:
    """An error message about the first unreadable metadata file in `folder` or below, or None."""
    from google.protobuf import json_format
    from tensorflow_datasets.core.proto import dataset_info_pb2, feature_pb2

    kinds = {
        'dataset_info.json': dataset_info_pb2.DatasetInfo,
        'features.json': feature_pb2.Feature,
    }
    for place, _, names in sorted(os.walk(folder)):
        for name in kinds.keys() & set(names):
            path = os.path.join(place, name)
            try:
                with open(path, encoding='utf-8') as file:
                    if not isinstance(content := json.load(file), dict):
                        raise ValueError(f'it holds a {type(content).__name__}')
                json_format.ParseDict(content, kinds[name]())
            except (ValueError, OSError, json_format.ParseError) as error:
                return (
                    f'{printable(path)} must be JSON as written by TensorFlow Datasets; it cannot '
                    f'be read ({one_line(error)}). Restore it, or prepare the data set again.'
                )
    return None


def _unknown_name(name: str, data_dir: str | None) -> str:
    import tensorflow_datasets as tfds

    known = [*SOURCES, *tfds.list_builders(with_community_datasets=False)]
    close = difflib.get_close_matches(name.split('/')[0].split(':')[0].lower(), known, n=3)
    found = f'nor a prepared data set in {data_dir or "the default data_dir of TFDS"}'
    advice = f'Did you mean {", ".join(close)}?' if close else 'See the catalog of TFDS.'
    own = ', '.join(SOURCES)
    return f'There is no data set {name!r}: neither {own}, nor a name in TFDS, {found}. {advice}'
