"""The script of a warm box in tests: executes what it reads."""

import sys


def main() -> None:
    exec(sys.stdin.buffer.read().decode(), {"__name__": "__main__"})  # noqa: S102
    sys.stdout.flush()
