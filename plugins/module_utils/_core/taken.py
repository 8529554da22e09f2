# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which files of a build context a Dockerfile can take into its image. Pure functions.

Only these count in the fingerprint, so that a result which is saved in the project's folder makes no new
image of a Dockerfile that copies nothing but its requirements. Never is one left out that a build could take:
whatever is not understood for sure makes all of the context count.

- COPY and ADD take the files of their sources, folders with all that is in them. ``COPY .`` takes all.
- ``COPY --from=...`` takes nothing of the context.
- ``*`` and ``?`` stand for anything but ``/`` (Go's filepath.Match, which the builder asks for the path of
  each file and folder). With ``[``, ``**``, quotes, backslashes, variables or ``..``, everything counts.
- The builder follows a link that is a source, or on the way to one, to wherever in the context it leads.
  Where there is such a link, everything counts. Links within a folder that is taken stay links.
- Instructions that the base image left (ONBUILD) can take all of it. RUN takes nothing: a mount that could
  see the context is refused before (``buildkit``).
- A here-document of COPY is part of the Dockerfile.
- The Dockerfile and .dockerignore always count.

Source: moby, builder/dockerfile/copy.go and builder/remotecontext; https://docs.docker.com/reference/dockerfile/.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from . import buildkit
from .context import DOCKERFILE, IGNORE_FILE, Member
from .fingerprint import Instruction, instructions

_COPYING = frozenset({"COPY", "ADD"})
# What the builder would read in another way than we do, or finds out only while it builds.
_UNCLEAR = re.compile(r"[$\\\[\]\"'`]|\*\*")
_FROM_ELSEWHERE = re.compile(r"--from=.+")


def taken(members: Sequence[Member], dockerfile: str, *, triggers: bool = False) -> list[Member]:
    """Return the members of a checked context that a build of the Dockerfile can depend on, in their order.

    ``triggers`` says that an image which it starts from has instructions of its own (ONBUILD). Raises
    InvalidInput for a Dockerfile that cannot be read.
    """
    sources = None if triggers else sources_of(instructions(dockerfile))
    if sources is None:
        return list(members)
    inside = [re.compile(_expression(source) + "(?:/.*)?", re.DOTALL) for source in sources]
    on_the_way = [
        re.compile(_expression(source[:depth])) for source in sources for depth in range(1, len(source) + 1)
    ]
    if any(
        member.kind == "l" and any(way.fullmatch(member.path) for way in on_the_way) for member in members
    ):
        return list(members)
    return [
        member
        for member in members
        if member.path in (DOCKERFILE, IGNORE_FILE) or any(one.fullmatch(member.path) for one in inside)
    ]


def sources_of(found: Iterable[Instruction]) -> list[tuple[str, ...]] | None:
    """Return the sources that are taken from the context, each as the parts of its path, wildcards in them.

    None where they cannot be told for sure, or where one is the whole context.
    """
    sources: list[tuple[str, ...]] = []
    for item in found:
        flags, words = buildkit.split_flags(item.rest)
        if item.word in _COPYING:
            if item.word == "COPY" and any(_FROM_ELSEWHERE.fullmatch(flag) for flag in flags):
                continue
            given = _words(buildkit.from_the_context(words, item.documents), 1 if item.documents else 2)
            if given is None:
                return None
            for source in given:
                parts = tuple(part for part in source.split("/") if part not in ("", "."))
                if not parts or ".." in parts:
                    return None
                sources.append(parts)
        elif item.word == "ONBUILD":
            return None
    return sources


def _words(text: str, least: int) -> list[str] | None:
    """Return the sources of a COPY or an ADD, its last word being where they go; None if not for sure."""
    words: object = text.split()
    if text.startswith("["):
        try:
            words = json.loads(text)
        except ValueError:
            return None
    if not isinstance(words, list) or len(words) < least or not all(isinstance(word, str) for word in words):
        return None
    given = words[:-1]
    return None if any(_UNCLEAR.search(word) for word in given) else given


def _expression(parts: Sequence[str]) -> str:
    """Return the regular expression of a path with wildcards."""
    one = {"*": "[^/]*", "?": "[^/]"}
    return "/".join("".join(one.get(letter, re.escape(letter)) for letter in part) for part in parts)
