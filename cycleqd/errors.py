"""What can go wrong, as sentences a user can act on."""

from __future__ import annotations


class CycleQDError(Exception):
    """A failure with one clear sentence: what is wrong, where, and what to do. Shown without a traceback."""

    exit_code = 1


class InvalidInputError(CycleQDError):
    """The configuration, a model or task data cannot be used as they are. Nothing was started."""

    exit_code = 2


class IntegrityError(CycleQDError):
    """Stored bytes differ from the digest that was recorded for them."""

    exit_code = 3


class ConflictError(CycleQDError):
    """Another process holds or has changed what this one needs (an evolution in flight, a moved HEAD)."""

    exit_code = 4


class UnavailableError(CycleQDError):
    """A service or program that is needed does not answer or is not installed."""

    exit_code = 5


class OutageError(UnavailableError):
    """A service that answers at other times does not now: what asks for it may be done again a while later."""


class EvaluationError(CycleQDError):
    """A model could not be scored (out of memory, a dead engine). Never turned into a score."""

    exit_code = 6


REFUSALS = frozenset(kind.exit_code for kind in (InvalidInputError, IntegrityError, ConflictError, EvaluationError))
"""Exit codes of errors that the same work would meet again: repeating it cannot help."""


def named(kind: str) -> type[CycleQDError] | None:
    """The class of an error that a log or a record names; None when it is none of these.

    Args:
        kind: Name of a class of this module.
    """
    found = globals().get(kind)
    return found if isinstance(found, type) and issubclass(found, CycleQDError) else None
