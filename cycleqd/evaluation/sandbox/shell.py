"""A login shell on a terminal of its own, kept through all rounds of an episode.

bash's line editor announces when it begins and ends reading a line (ESC [?2004h and l). So the text between the end of
reading our command and the beginning of reading the next one is the command's output: no prompt has to be recognised,
whatever the user or the programs do to it.
"""

from __future__ import annotations

import os
import pty
import re
import struct
import termios
import time
from contextlib import suppress
from fcntl import ioctl

from cycleqd.errors import UnavailableError
from cycleqd.evaluation.sandbox.descriptors import ready
from cycleqd.evaluation.sandbox.keeper import ENVIRONMENT
from cycleqd.evaluation.sandbox.machine import Machine

_BEGIN, _END = b"\x1b[?2004h", b"\x1b[?2004l"
_PASTE, _PASTED = b"\x1b[200~", b"\x1b[201~"
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_ROWS, _COLUMNS = 24, 80
_KEPT = 1 << 16
_OPENING = 60.0


class Shell:
    """A `bash --login` in a machine. `alive` is False once it has ended (by `exit`, or with its machine)."""

    def __init__(self, machine: Machine, seconds: float) -> None:
        """Wait for the first prompt; later wait up to `seconds` for the end of each command."""
        self._machine, self._seconds = machine, seconds
        self.alive = True
        self._reading = False  # whether the shell waits for a line
        self._terminal, inner = pty.openpty()
        try:
            ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
            machine.start(["bash", "--login"], (inner, inner, inner), {**ENVIRONMENT, "TERM": "xterm"}, terminal=True)
        except BaseException:
            os.close(self._terminal)
            raise
        finally:
            os.close(inner)
        os.set_blocking(self._terminal, False)
        shown, prompted = self._exchange(b"", _OPENING)
        if not (prompted and self.alive):
            self.close()
            raise UnavailableError(f"bash gave no prompt in {_OPENING:g} s in a fresh box: {shown[-200:]!r}.")

    def execute(self, command: str) -> tuple[str, bool]:
        """Type a command and return (what the terminal then showed, whether it ended in time).

        The text is without prompt, echo, terminal escapes and carriage returns, and without newlines at its end. A
        command that takes longer goes on: what comes later is shown with the next command, which is typed into whatever
        reads the terminal then.

        Args:
            command: Any text, of one or several lines.
        """
        if not self.alive:
            return "", True
        text = command.encode(errors="replace")
        if self._reading:  # as one paste, so that many lines are one command and nothing is run half-typed
            text = _PASTE + text.replace(_PASTED, b"").replace(b"\r", b"") + _PASTED
        return self._exchange(text + b"\r", self._seconds)

    def _exchange(self, sending: bytes, seconds: float) -> tuple[str, bool]:
        with self._machine.turns.shared():
            self._machine.busy = True
            shown = _Shown(self._reading, lines=1 if sending else 0)
            deadline = time.monotonic() + seconds
            while self.alive and not (shown.done and not sending) and (left := deadline - time.monotonic()) > 0:
                readable, writable = ready(self._terminal, left, writing=bool(sending))
                try:
                    if writable:
                        sending = sending[os.write(self._terminal, sending[:4096]) :]
                    if readable:
                        shown.add(os.read(self._terminal, 1 << 16))
                except OSError:  # the terminal's last user is gone
                    self.alive = False
            self._reading = shown.reading
            self._machine.busy = False
        return clean(bytes(shown.text)), shown.done or not self.alive

    def close(self) -> None:
        """Give up the terminal; the shell ends with its machine."""
        with suppress(OSError):
            os.close(self._terminal)


class _Shown:
    """Sorts what arrives into output and the line editor's own (prompt and echo)."""

    def __init__(self, reading: bool, lines: int) -> None:
        """`lines`: how many lines the shell has yet to read before the next prompt ends the command."""
        self.text = bytearray()
        self.reading = reading
        self.done = False
        self._lines = lines
        self._rest = b""

    def add(self, data: bytes) -> None:
        data = self._rest + data
        while True:
            mark = _END if self.reading else _BEGIN
            before, found, after = data.partition(mark)
            if not found:
                break
            self._keep(before)
            self._lines -= self.reading
            self.reading = not self.reading
            self.done = self.reading and self._lines <= 0
            data = after
        cut = _partial(data, mark)
        self._keep(data[: len(data) - cut])
        self._rest = data[len(data) - cut :]

    def _keep(self, data: bytes) -> None:
        if not self.reading and len(self.text) < _KEPT:
            self.text += data[: _KEPT - len(self.text)]


def _partial(data: bytes, mark: bytes) -> int:
    """The length of the longest beginning of `mark` that `data` ends with."""
    return next((n for n in range(len(mark) - 1, 0, -1) if data.endswith(mark[:n])), 0)


def clean(data: bytes) -> str:
    """Terminal output as text: no escape sequences, no controls but newline and tab, no newlines at the end.

    Args:
        data: What the terminal got, in UTF-8.
    """
    text = data.decode(errors="replace").replace("\r\n", "\n")
    return _CONTROLS.sub("", _ESCAPES.sub("", text)).rstrip("\n")
