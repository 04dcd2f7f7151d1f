"""Model output made safe to show."""

from __future__ import annotations

import re
import unicodedata

_KEEP = frozenset("\n\t")
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})  # controls, format (bidi) and surrogate characters

_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")


def stable(text: str) -> str:
    """One printable line of an error's text, without memory addresses, which differ from run to run.

    Args:
        text: Any text; its first 10,000 characters count.
    """
    return printable(" ".join(_ADDRESS.sub("0x...", text[:10_000]).split()))


def printable(text: str) -> str:
    """The text with every character that could steer a terminal or reorder a line written as \\x1b.

    Args:
        text: Any text; its newlines and tabs stay.
    """
    return "".join(_escape(c) if c not in _KEEP and unicodedata.category(c) in _HIDDEN else c for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
