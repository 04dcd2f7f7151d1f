"""Finding a class by its name: one of the library's own, one of installed code, or one in a user's file."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Iterable, Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Protocol, TypeVar

from cycleqd.errors import InvalidInputError
from cycleqd.outside import read_file


class Named(Protocol):
    """A base class whose subclasses in the library are found by the names of their modules, a class a module."""

    own_modules: ClassVar[str]
    """Their modules, with "{}" in the name's place: "cycleqd.search.operators.mutation.{}"."""


T = TypeVar("T", bound=Named)

_PLUGIN = "cycleqd_plugin_"
_SOURCE_BYTES = 16 << 20


class _SourceOnly(SourceFileLoader):
    """Reads the source each time: no stale bytecode, and no __pycache__ beside the user's file."""

    def path_stats(self, path: str) -> Mapping[str, Any]:
        raise OSError


def load_class(reference: str, base: type[T], root: Path = Path()) -> type[T]:
    """The class of a name: one of the library's own, of installed code, or of a user's file.

    A file is run as a module of its own that is not left in sys.modules, so two files of one name never meet.

    Args:
        reference: "name", "package.module:Class" or "path/to/file.py:Class".
        base: What the class must be a subclass of.
        root: Folder that relative paths of files are taken from.

    Raises:
        InvalidInputError: the module, the file or the class is missing, fails to import or is not a complete subclass.
    """
    what, own = base.__name__.lower(), own_names(base.own_modules)
    place, _, name = reference.rpartition(":")
    if reference in own:
        return _own_class(reference, base)
    if not place or not name.isidentifier():
        raise InvalidInputError(
            f"there is no {what} '{reference}'{meant(reference, own)}; there are {', '.join(own)}, or give"
            " 'package.module:Class' or 'path/to/file.py:Class'"
        )
    try:
        module = _from_file(root / place) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:
        raise InvalidInputError(
            f"{what} '{reference}' cannot be imported ({type(error).__name__}: {error}); correct name or file"
        ) from error
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise InvalidInputError(f"'{name}' in '{place}' is not a subclass of cycleqd.plugins.{base.__name__}")
    if missing := sorted(getattr(found, "__abstractmethods__", ())) if inspect.isabstract(found) else ():
        raise InvalidInputError(f"'{name}' in '{place}' lacks {', '.join(missing)}, which every {what} has; write it")
    return found


def own_names(own_modules: str) -> list[str]:
    """The names of a base's subclasses in the library, sorted: adding a module adds a name.

    Args:
        own_modules: The base's: the modules' names, with "{}" in the subclass's place.
    """
    package, _, inner = own_modules.partition(".{}")
    modules = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return sorted(module.name for module in modules if module.ispkg == bool(inner))


def meant(name: str, names: Iterable[str]) -> str:
    """What may have been meant, as " (did you mean 'svd'?)"; nothing where no name is like what was written.

    Args:
        name: As it was written.
        names: Those that there are.
    """
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def is_file(reference: str) -> bool:
    """Whether a class is in a file of the user's.

    Args:
        reference: "path/to/file.py:Class", or anything else.
    """
    return reference.rpartition(":")[0].endswith(".py")


def source_digest(found: type) -> str:
    """sha256 of the file that a class was loaded from, when that was a user's.

    Args:
        found: A class that `load_class` returned.
    """
    return found.__module__.removeprefix(_PLUGIN)


def _own_class(name: str, base: type[T]) -> type[T]:
    module = importlib.import_module(base.own_modules.format(name))
    (found,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    )
    return found


def _from_file(path: Path) -> ModuleType:
    name = f"{_PLUGIN}{hashlib.sha256(read_file(path, _SOURCE_BYTES)).hexdigest()}"
    spec = importlib.util.spec_from_loader(name, _SourceOnly(name, str(path)))
    assert spec is not None and spec.loader is not None  # a loader was given
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pydantic look their module up while it runs
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module
