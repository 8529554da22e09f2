# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What people see: lines, tables, bars and one line that updates itself.

Plain ASCII throughout, so that it reads alike in every locale. Colour and the updating line only on a
terminal that can do them: not with ``NO_COLOR`` (https://no-color.org) and not with ``TERM=dumb``.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TextIO

from .names import printable

_COLOURS = {"good": "32", "warn": "33", "bad": "31", "faint": "2", "strong": "1"}
_CLEAR = "\r\x1b[K"
_STYLED = re.compile(r"\x1b\[[0-9;]*m")
_WORD = re.compile(r" *[^ ]+")
_NARROWEST = 20  # columns; below this nothing can be laid out


def fit(text: str, width: int) -> str:
    """Return ``text`` in at most ``width`` columns, its end replaced by ``..`` where it is longer."""
    if len(text) <= width:
        return text
    return text[: max(width - 2, 0)] + ".."[: max(width, 0)]


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Return the lines of ``text``, broken between words at ``width`` columns; colours take none of them.

    Each but the first begins with ``indent``. A word that is longer than a line stays whole: people copy it.
    """
    lines, line, used = [], "", 0
    for word in _WORD.findall(text):
        columns = len(_STYLED.sub("", word))
        if line and used + columns > width:
            lines.append(line)
            first = word.lstrip(" ")
            line, used = indent + first, len(indent) + len(_STYLED.sub("", first))
        else:
            line, used = line + word, used + columns
    return [*lines, line]


def gauge(fraction: float, width: int = 24) -> str:
    """Return a bar of ``width`` columns in brackets for ``fraction`` (0 to 1; beyond is shown as full)."""
    filled = round(max(0.0, min(1.0, fraction)) * width)
    return "[" + "#" * filled + "." * (width - filled) + "]"


def duration(seconds: float) -> str:
    """Return a time span for people in its largest unit: ``40 s``, ``5 min``, ``3 h``, ``12 d``."""
    value = max(0, int(seconds))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if value >= 2 * size or (unit != "min" and value >= size):
            return f"{value // size} {unit}"
    return f"{value} s"


def clock(seconds: float) -> str:
    """Return a time span as a clock that runs: ``0:07``, ``12:30``, ``1:02:03``."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def moment(seconds: object) -> str:
    """Return a time (seconds since 1970) for people: ``2026-11-26 01:31``."""
    if not isinstance(seconds, (int, float)):
        return "at an unknown time"
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int = 80) -> list[str]:
    """Return the lines of a table that fits ``width`` columns: the widest columns are cut until it does."""
    cells = [list(headings)] + [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    room = width - 2 * (len(widths) - 1)
    while sum(widths) > room and max(widths) > 4:
        widths[widths.index(max(widths))] -= 1
    return [
        "  ".join(fit(cell, size).ljust(size) for cell, size in zip(row, widths)).rstrip() for row in cells
    ]


def _columns(stream: TextIO, environment: Mapping[str, str]) -> int:
    """Return how wide a terminal is: what COLUMNS says, else what it says itself, else 80."""
    said = environment.get("COLUMNS", "")
    if said.isascii() and said.isdigit() and int(said[:9]) > 0:
        return int(said[:9])
    with suppress(OSError, ValueError):
        return os.get_terminal_size(stream.fileno()).columns or 80
    return 80


class Terminal:
    """A stream for people: lines, colours where they show, and at most one line that updates itself."""

    def __init__(self, stream: TextIO, environment: Mapping[str, str], *, lossy: bool = False) -> None:
        """``environment`` is the caller's: TERM, NO_COLOR and COLUMNS are looked at.

        ``lossy`` is for what may be lost without harm when nobody can read it any more, such as progress.
        """
        self._lossy = lossy
        self._stream = stream
        self.interactive = stream.isatty()
        capable = self.interactive and environment.get("TERM", "dumb") not in ("", "dumb")
        self.updating = capable
        self._colour = capable and not environment.get("NO_COLOR")
        self._status = ""
        self.width = max(_NARROWEST, _columns(stream, environment) if self.interactive else 80)

    def style(self, text: str, colour: str) -> str:
        """Return ``text`` in a colour (good, warn, bad, faint, strong) where colours show."""
        if not self._colour:
            return text
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"

    def _write(self, text: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "ascii"
        try:
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._stream.flush()
        except OSError:
            # What could not be written is tried again when Python ends, and must not fail then.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if not self._lossy:
                raise

    def write(self, text: str) -> None:
        """Print text without a line's end."""
        self.clear()
        self._write(text)

    def verbatim(self, text: str) -> None:
        """Print one line as it is, however long: JSON, and what other programs wrote."""
        self.clear()
        self._write(text + "\n")

    def command(self, text: str) -> None:
        """Print what is to be typed or opened, on one line however long, so that it can be copied."""
        self.verbatim(f"  {text}")

    def line(self, text: str = "") -> None:
        """Print one line; on a terminal that is narrower wrapped between words, behind its own indent."""
        self.sentence(text.lstrip(" "), text[: len(text) - len(text.lstrip(" "))])

    def sentence(self, text: str, label: str = "", colour: str = "") -> None:
        """Print a sentence behind a label: on a terminal wrapped between words, else on one line."""
        lines = [label + text]
        if self.interactive and len(_STYLED.sub("", lines[0])) > self.width:
            lines = wrapped(lines[0], self.width, " " * len(label))
        for line in lines:
            self.verbatim(self.style(line, colour) if colour else line)

    def status(self, text: str) -> None:
        """Show ``text`` on the line that updates itself; as a plain line where lines cannot be updated."""
        text = printable(text)
        if not self.updating:
            self._write(text + "\n")
            return
        self._status = fit(text, self.width - 1)
        self._write(_CLEAR + self._status)

    def clear(self) -> None:
        """Take the line that updates itself away."""
        if self._status:
            self._status = ""
            self._write(_CLEAR)
