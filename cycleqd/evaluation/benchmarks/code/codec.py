"""Python values as JSON and back, for passing them between the box and the judge.

Both sides use this file; it needs the standard library only (and numpy where a value is such). None, bool, str, float
and small int are themselves; everything else is a list that starts with a tag. What has no plain form becomes
["o", type name], and decodes to an `Opaque`, which equals nothing: an object cannot bring its own `__eq__` along.
A subclass counts as its base type, as which it compares unless it has its own `__eq__`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

_SMALL = 1 << 63
_ATOMS = frozenset({str, float, bool, type(None)})
_DEPTH = 200  # of nesting; a deeper value is opaque
_GENERATED = 1_000_000  # elements taken from an iterator
_NUMPY_KINDS = "biufc"
_CROWDED = 100  # elements of a set that may share a hash value


class Opaque:
    """A value that cannot be encoded. Equal to nothing, not even to itself."""

    __slots__ = ("name",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return False


def encode(value: Any, iterate: bool = False, depth: int = _DEPTH) -> Any:
    """The JSON tree of a value.

    Args:
        value: Anything.
        iterate: Write out the elements of iterators too (for the problems that compare sets).
        depth: How deeply lists and the like may be nested before a value is opaque.
    """
    kind = type(value)
    if kind in _ATOMS or (kind is int and -_SMALL < value < _SMALL):
        return value
    if depth == 0:
        return ["o", "nested too deeply"]
    for base, tag in ((list, "l"), (tuple, "t"), (set, "s"), (frozenset, "f")):
        if isinstance(value, base):
            return [tag, *_elements(value, base, depth)]
    if isinstance(value, dict):
        return ["d", *([encode(k, depth=depth - 1), encode(v, depth=depth - 1)] for k, v in dict.items(value))]
    scalar = _scalar(value)
    if scalar is not None:
        return scalar
    if iterate or kind.__name__ in ("dict_keys", "dict_items"):
        return _iterated(value, depth)
    return ["o", kind.__name__]


def _elements(value: Any, base: type, depth: int) -> list[Any]:
    elements = list(base.__iter__(value))  # type: ignore[attr-defined]
    kinds = set(map(type, elements))
    if kinds <= _ATOMS or (kinds == {int} and min(elements) > -_SMALL and max(elements) < _SMALL):
        return elements
    return [encode(element, depth=depth - 1) for element in elements]


def _scalar(value: Any) -> Any:
    kind = type(value)
    if kind.__module__ == "numpy" and getattr(getattr(value, "dtype", None), "kind", "") in _NUMPY_KINDS:
        return ["n", str(value.dtype), encode(value.tolist())]
    for base, convert in _SCALARS.items():
        if isinstance(value, base):
            return convert(value)
    return None


_SCALARS: dict[type, Callable[[Any], Any]] = {
    int: lambda v: int.__int__(v) if -_SMALL < int.__int__(v) < _SMALL else ["i", hex(int.__int__(v))],
    float: float.__float__,
    str: lambda v: str.__str__(v),
    complex: lambda v: ["c", v.real, v.imag],
    bytes: lambda v: ["b", bytes.hex(v)],
    range: lambda v: ["r", encode(v.start), encode(v.stop), encode(v.step)],
}


def _iterated(value: Any, depth: int) -> Any:
    tag = "k" if type(value).__name__ in ("dict_keys", "dict_items") else "g"
    taken: list[Any] = []
    try:
        for element in value:
            taken.append(encode(element, depth=depth - 1))
            if len(taken) > _GENERATED:
                return ["o", "endless"]
    except TypeError:
        return ["o", type(value).__name__]
    return [tag, *taken]


def decode(tree: Any) -> Any:
    """The value of a JSON tree.

    Args:
        tree: Of `encode`, or of anybody's making.

    Raises:
        ValueError: `encode` cannot have made it.
    """
    if not isinstance(tree, list):
        if isinstance(tree, dict):
            raise ValueError("a JSON object is no encoded value")
        return tree
    if not tree or not isinstance(tree[0], str) or tree[0] not in _DECODERS:
        raise ValueError("an encoded value starts with a known tag")
    try:
        return _DECODERS[tree[0]](tree[1:])
    except (TypeError, IndexError, OverflowError, RecursionError) as problem:
        raise ValueError(f"not an encoded value: {problem}") from None


def hashed(kind: Callable[[Iterable[Any]], Any], elements: list[Any]) -> Any:
    """A set or dict of untrusted elements.

    Args:
        kind: What makes it of the elements.
        elements: Its elements or keys.

    Raises:
        ValueError: More than 100 different ones share a hash value, which takes a forger.
    """
    buckets: dict[int, list[Any]] = {}
    for element in elements if len(elements) > _CROWDED else ():
        bucket = buckets.setdefault(hash(element), [])
        if element not in bucket:
            bucket.append(element)
        if len(bucket) > _CROWDED:
            raise ValueError("too many elements with one hash value")
    return kind(elements)


def _unordered(kind: Callable[[Iterable[Any]], Any]) -> Callable[[list[Any]], Any]:
    return lambda rest: hashed(kind, [decode(element) for element in rest])


def _mapping(rest: list[Any]) -> dict[Any, Any]:
    pairs = [(decode(key), decode(value)) for key, value in rest]
    hashed(set, [key for key, _ in pairs])
    return dict(pairs)


def _numpy(rest: list[Any]) -> Any:
    import numpy as np

    dtype = np.dtype(str(rest[0]))
    if dtype.kind not in _NUMPY_KINDS:
        raise ValueError("not a numeric dtype")
    array = np.asarray(decode(rest[1]), dtype=dtype)
    return array if isinstance(rest[1], list) and rest[1][:1] == ["l"] else array[()]


_DECODERS: dict[str, Callable[[list[Any]], Any]] = {
    "l": lambda rest: [decode(element) for element in rest],
    "t": lambda rest: tuple(decode(element) for element in rest),
    "g": lambda rest: iter([decode(element) for element in rest]),
    "s": _unordered(set),
    "f": _unordered(frozenset),
    "k": lambda rest: hashed(dict.fromkeys, [decode(element) for element in rest]).keys(),
    "d": _mapping,
    "i": lambda rest: int(str(rest[0]), 16),
    "c": lambda rest: complex(rest[0], rest[1]),
    "b": lambda rest: bytes.fromhex(rest[0]),
    "r": lambda rest: range(decode(rest[0]), decode(rest[1]), decode(rest[2])),
    "n": _numpy,
    "o": lambda rest: Opaque(str(rest[0])),
}
