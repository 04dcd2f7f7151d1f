"""The messages of failing servers, short enough for a sentence."""

from __future__ import annotations

from typing import Any

from cycleqd.outside import parse_json


def message_of(error: Any) -> str:
    """The message in the answer that a generated client (Kubeflow's, Kubernetes') raised, without its wrappings.

    Args:
        error: With its answer's body and reason.
    """
    body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else error.body
    try:
        found = parse_json(body or "")
        return short(found.get("message") or found.get("error_message") or found.get("error") or error.reason)
    except (ValueError, AttributeError):
        return short(body or error.reason)


def short(text: object) -> str:
    """One line of at most 300 characters, without the last full stop.

    Args:
        text: Of any length; an exception is its message.
    """
    return " ".join(str(text).split())[:300].rstrip(".")
