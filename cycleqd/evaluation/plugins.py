"""Finding a task's class: "package.module:Class" for installed code, "path/to/file.py:Class" for a file."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from cycleqd.errors import InvalidInputError
from cycleqd.evaluation.task import Task


class _SourceOnly(SourceFileLoader):
    """Reads the source each time: no stale bytecode, and no __pycache__ beside the user's file."""

    def path_stats(self, path: str) -> Mapping[str, Any]:
        raise OSError


def load_class(reference: str, root: Path = Path()) -> type[Task]:
    """The Task subclass that `reference` names; file paths are taken from `root`.

    A file is run as a module of its own that is not left in sys.modules, so two files of one name never meet.
    Raises InvalidInputError when the module, the file or the class is missing, fails to import or is not a Task.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name.isidentifier():
        raise InvalidInputError(
            f"task class '{reference}' is neither 'package.module:Class' nor 'path/to/file.py:Class'; correct it"
        )
    try:
        module = _from_file(root / place) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:
        raise InvalidInputError(
            f"task class '{reference}' cannot be imported ({type(error).__name__}: {error}); correct name or file"
        ) from error
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise InvalidInputError(
            f"'{name}' in '{place}' is not a subclass of cycleqd.evaluation.task.Task; define it there"
        )
    return found


def _from_file(path: Path) -> ModuleType:
    name = f"cycleqd_plugin_{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_loader(name, _SourceOnly(name, str(path)))
    assert spec is not None and spec.loader is not None  # a loader was given
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it runs
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module
