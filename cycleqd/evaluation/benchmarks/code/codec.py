"""Python values as JSON and back, for passing them between the box and the judge.

Both sides use this file; it needs the standard library only (and numpy where a value is such). None, bool, str, float
and small int are themselves; everything else is a list that starts with a tag. What has no plain form becomes
["o", type name], and decodes to an `Opaque`, which equals nothing: an object cannot bring its own `__eq__` along.
A subclass counts as its base type, as which it compares unless it has its own `__eq__`.
"""

from __future__ import annotations

import hashlib
import itertools
import marshal
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

_SMALL = 1 << 63
_ATOMS = frozenset({str, float, bool, type(None)})
_DEPTH = 200  # of nesting; a deeper value is opaque
_GENERATED = 1_000_000  # elements taken from an iterator
_NUMPY_KINDS = "biufc"
_CROWDED = 100  # elements of a set that may share a hash value
_LEVELS = 8  # of lists in lists, whose elements are all looked at together


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
    if any(kind.__module__ == "numpy" for kind in kinds):  # in a container they compare as the numbers that they are
        elements = [element.item() if _is_number(element) else element for element in elements]
        kinds = set(map(type, elements))
    if kinds <= _ATOMS or (kinds == {int} and min(elements) > -_SMALL and max(elements) < _SMALL):
        return elements
    return [encode(element, depth=depth - 1) for element in elements]


def _is_number(value: Any) -> bool:
    """Whether it is one number of numpy's."""
    return type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0 and value.dtype.kind in _NUMPY_KINDS


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
    bytearray: lambda v: ["b", bytearray.hex(v)],  # equal to bytes of the same content
    Fraction: lambda v: ["q", hex(v.numerator), hex(v.denominator)],
    Decimal: lambda v: ["m", Decimal.__str__(v)],
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
    except Exception as problem:  # numpy, for one, evaluates the names of types: they may be syntax errors
        raise ValueError(f"not an encoded value: {type(problem).__name__}: {problem}") from None


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
    "q": lambda rest: Fraction(int(str(rest[0]), 16), int(str(rest[1]), 16)),
    "m": lambda rest: Decimal(str(rest[0])),
    "r": lambda rest: range(decode(rest[0]), decode(rest[1]), decode(rest[2])),
    "n": _numpy,
    "o": lambda rest: Opaque(str(rest[0])),
}


def digest(value: Any) -> str:
    """The same text for values of plain types that are equal, as 2 and 2.0; "" for one that nothing is equal to.

    Args:
        value: One of plain types, of any size.
    """
    try:
        plain = value if _is_canonical(value) else _canonical(value)
    except ValueError:
        return ""
    return hashlib.sha256(marshal.dumps(plain, 2)).hexdigest()  # version 2 writes shared objects out


def _is_canonical(value: Any) -> bool:
    """Whether equal values have equal bytes already: lists in lists of texts and integers, seen level by level."""
    for depth in range(_LEVELS):
        level: Iterable[Any] = [value]
        for _ in range(depth):
            level = itertools.chain.from_iterable(level)
        kinds = set(map(type, level))
        if kinds <= {str, int, bytes, type(None)}:
            return True
        if not kinds <= {list, tuple}:
            break
    return False


def _canonical(value: Any) -> Any:
    if isinstance(value, list):
        return list(map(_canonical, value))
    if isinstance(value, tuple):
        return tuple(map(_canonical, value))
    if isinstance(value, set | frozenset | dict):
        pairs = value.items() if isinstance(value, dict) else ((element, None) for element in value)
        return ("d" if isinstance(value, dict) else "s", *sorted(_packed(pairs)))
    if value is None or isinstance(value, str | bytes):
        return value
    if isinstance(value, range):
        return ("r", len(value), *((value[0], value[-1]) if value else ()))
    number = value.item() if _is_number(value) else value
    if isinstance(number, complex) and number.imag == 0:
        number = number.real
    if not isinstance(number, int | float | complex | Fraction | Decimal) or number != number:
        raise ValueError("nothing is equal to it")
    if isinstance(number, complex):
        return number
    if number in (float("inf"), float("-inf")) or number != int(number):
        return float(number) if float(number) == number else str(Fraction(number))
    return int(number)


def _packed(pairs: Iterable[tuple[Any, Any]]) -> Iterator[bytes]:
    return (marshal.dumps((_canonical(key), _canonical(value)), 2) for key, value in pairs)
