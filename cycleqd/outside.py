"""What comes from outside, before it is used: names of files stay inside their folder, what is parsed is bounded.

Names stand in manifests, records and listings of S3; texts are configurations, headers, records and task data.
"""

from __future__ import annotations

import errno
import gzip
import json
from pathlib import Path
from typing import IO, Any

from cycleqd.errors import CycleQDError, IntegrityError, InvalidInputError

JSON_BYTES = 64 << 20
"""Most bytes of a JSON text: the largest tokenizers have 40 million, a snapshot of 100,000 children 20 million."""

YAML_BYTES = 1 << 20
"""Most bytes of a configuration."""

DATA_BYTES = 1 << 30
"""Most bytes of what is read whole: a task's data, unpacked, or an object in S3."""

DEPTH = 100
"""Levels of lists and objects within each other that are read; real files have ten."""

_PARTS = 1_000_000  # lists and mappings of a level; a YAML file's aliases count each time they are used


def is_name(name: str) -> bool:
    """Whether a text names a file below a folder: relative, no part "." or "..", nothing that no file's name holds.

    Args:
        name: Parts with "/" between them.
    """
    try:
        sizes = [len(part.encode()) for part in name.split("/")]
    except UnicodeEncodeError:  # half a surrogate pair, from JSON
        return False
    controls = any(ord(letter) < 32 or ord(letter) == 127 for letter in name)
    return not controls and all(0 < size < 256 for size in sizes) and not {".", ".."} & set(name.split("/"))


def inside(folder: Path, name: str) -> Path:
    """Where to write a file that something from outside names: below the folder, and through no link.

    Args:
        folder: A folder of this machine.
        name: Of the file, relative to the folder.

    Raises:
        IntegrityError: It leads out of the folder.
    """
    if not is_name(name):
        raise IntegrityError(f"{name[:200]!r} is no name of a file in a folder; what names it was altered: restore it")
    path = folder
    for part in name.split("/"):
        path = path / part
        if path.is_symlink():
            raise IntegrityError(f"{path} is a link, and nothing is written through one; remove it")
    return path


def parse_json(text: bytes | str, most: int = JSON_BYTES) -> Any:
    """The value of a JSON text.

    Args:
        text: UTF-8 where it is bytes.
        most: Bytes that it may have.

    Raises:
        ValueError: It is not JSON, too large, or nested too deeply.
    """
    if len(text) > most:
        raise ValueError(f"it has {len(text):,} bytes, and at most {most:,} are read")
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(_too_deep()) from error
    level = [value]
    for _ in range(DEPTH):
        level = [
            part
            for one in level
            for part in (one.values() if isinstance(one, dict) else one if isinstance(one, list) else ())
            if isinstance(part, dict | list)
        ]
        if not level:
            return value
    raise ValueError(_too_deep())


def parse_yaml(text: bytes) -> Any:
    """The value of a YAML text of plain values.

    Args:
        text: UTF-8 or UTF-16.

    Raises:
        ValueError: It is too large, nested too deeply, or its aliases stand for too much.
        YAMLError: It is not YAML.
    """
    import yaml

    if len(text) > YAML_BYTES:
        raise ValueError(f"it has {len(text):,} bytes, and at most {YAML_BYTES:,} are read")
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        level = [] if node is None else [node]
        for _ in range(DEPTH):
            if len(level) > _PARTS:
                raise ValueError("its aliases stand for too much")
            level = [part for one in level for part in _parts(one)]
            if not level:
                return None if node is None else loader.construct_document(node)
        raise ValueError(_too_deep())
    except RecursionError as error:
        raise ValueError(_too_deep()) from error
    finally:
        loader.dispose()


def yaml_lines(text: bytes) -> dict[tuple[str | int, ...], int]:
    """The line of each key of a YAML text, from 1, by the keys that lead to it; nothing of a text that is not YAML.

    Args:
        text: One that `parse_yaml` has read.
    """
    import yaml

    found: dict[tuple[str | int, ...], int] = {}
    waiting: list[tuple[tuple[str | int, ...], Any]] = [((), yaml.compose(text, yaml.SafeLoader))]
    while waiting:
        key, node = waiting.pop()
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                found[(*key, name.value)] = name.start_mark.line + 1
                waiting.append(((*key, name.value), value))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                found[(*key, index)] = value.start_mark.line + 1
                waiting.append(((*key, index), value))
    return found


def _parts(node: Any) -> list[Any]:
    """The lists and mappings that a YAML list or mapping holds."""
    if isinstance(node.value, str):
        return []
    inner = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
    return [part for part in inner if not isinstance(part.value, str)]


def _too_deep() -> str:
    return f"it is nested more than {DEPTH} levels deep"


def read_file(path: Path, most: int = DATA_BYTES) -> bytes:
    """A file's bytes; of a device that never ends no more than that are read.

    Args:
        path: The file.
        most: Bytes that it may have.

    Raises:
        OSError: It cannot be read.
        ValueError: It is larger.
    """
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return data


def told(error: OSError | MemoryError) -> CycleQDError:
    """What the operating system refused, as a sentence: of a file or a disk, nothing of it is a mistake of ours.

    Args:
        error: As it was raised.
    """
    if isinstance(error, MemoryError):
        return CycleQDError("memory is used up; end other programs, or use a machine with more")
    file = error.filename2 or error.filename
    where = f"{file}: " if file is not None else ""
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CycleQDError(f"{where}{reason}; free some space, or name a folder on another disk")
    if file is not None:
        return InvalidInputError(f"{where}{reason}; name another file or folder, or change who may use it")
    return CycleQDError(f"the operating system refused: {reason}")


def unpack(packed: Path | IO[bytes], most: int = DATA_BYTES) -> bytes:
    """The content of a gzip file.

    Args:
        packed: The file.
        most: Bytes that it may unpack to.

    Raises:
        OSError: It cannot be read, or is no gzip file; EOFError, a part of one.
        ValueError: It unpacks to more.
    """
    with gzip.open(packed) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it unpacks to more than {most:,} bytes")
    return data
