# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The patterns of a file .dockerignore, as the Docker SDK for Python reads them.

A test holds them to the SDK's own reading; importing that would take longer than all else that a launch does
before it asks Docker. Rules: https://docs.docker.com/build/concepts/context/#dockerignore-files, and
moby/patternmatcher.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple


class Pattern(NamedTuple):
    """A line of .dockerignore: what it matches, how many folders deep it names, and whether it takes back."""

    matches: re.Pattern[str]
    depth: int
    exception: bool
    text: str


def patterns(lines: Sequence[str]) -> list[Pattern]:
    """Return the patterns of these lines, in their order; those that name nothing are left out.

    Raises re.error or OverflowError for a line that is no pattern.
    """
    found = []
    for line in lines:
        exception = line.startswith("!")
        parts = _parts(line[1:] if exception else line)
        if parts:
            text = "/".join(parts)
            found.append(Pattern(re.compile(expression(text)), len(parts), exception, text))
    return found


def _parts(pattern: str) -> list[str]:
    """Return the parts of a path without those that are empty or ".", and with ".." carried out."""
    found: list[str] = []
    for part in pattern.strip().split("/"):
        if part == "..":
            del found[-1:]
        elif part not in ("", "."):
            found.append(part)
    return found


def expression(pattern: str) -> str:
    """Return the regular expression of a pattern, to be matched from the start of a path."""
    made, at = "", 0
    while at < len(pattern):
        sign, at = pattern[at], at + 1
        if sign == "*" and pattern.startswith("*", at):
            at += 2 if pattern.startswith("/", at + 1) else 1
            made += "(.*/)?" if at < len(pattern) else ".*"
        elif sign == "*":
            made += "[^/]*"
        elif sign == "?":
            made += "[^/]"
        elif sign == "[":
            text, at = _class(pattern, at)
            made += text
        else:
            made += re.escape(sign)
    return f"^{made}$"


def _class(pattern: str, at: int) -> tuple[str, int]:
    """Return the expression of the class of characters whose "[" is before ``at``, and where it ends."""
    # A "]" that comes first is one of the characters.
    first = at + 1 if pattern.startswith("!", at) else at
    end = pattern.find("]", first + 1 if pattern.startswith("]", first) else first)
    if end < 0:
        return "\\[", at
    text = pattern[at:end].replace("\\", "\\\\")
    if text.startswith("!"):
        text = f"^{text[1:]}"
    elif text.startswith("^"):
        text = f"\\{text}"
    return f"[{text}]", end + 1
