# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a project's image is made of, as one digest: equal means that a build would change nothing.

It also reads of a Dockerfile which images it starts from, to refuse those of other users before a build.
Source of the syntax: https://docs.docker.com/reference/dockerfile/.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .context import Member
from .errors import InvalidInput, Refused
from .names import printable

_FORMAT = 1
_ESCAPE = re.compile(r"#\s*escape\s*=", re.IGNORECASE)
# A backslash at the end continues the line, but not after another one.
_CONTINUED = re.compile(r"(?<!\\)(\\[ \t]*)$")
_HERE_DOCUMENT = re.compile(r"[0-9]*<<-?[\"']?[A-Za-z_]")
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)(?::([-+])([^}]*))?\}|([A-Za-z_][A-Za-z0-9_]*))")
# COPY --from=..., and RUN --mount=type=bind,from=...
_FROM_FLAG = re.compile(r"(?:--|,)from=([^\s,]+)", re.IGNORECASE)
# What can be a reference for sure: with quotes, escapes or variables left, Docker could read another one.
_REFERENCE = re.compile(r"[A-Za-z0-9._/:@-]+")
_STAGE = re.compile(r"[a-z][a-z0-9_.-]*")
_IMAGE_ID = re.compile(r"(?:sha256:)?[0-9a-f]{1,64}")
_OWN = re.compile(r"lab/([0-9]+)/")
_WRITE_IT = "Write the image's name there, plainly."


@dataclass(frozen=True)
class Instruction:
    """An instruction of a Dockerfile: its first line (counted from 1), its word in capitals, and the rest."""

    line: int
    word: str
    rest: str


def instructions(dockerfile: str) -> list[Instruction]:
    """Return the instructions of a Dockerfile, continued lines joined, comments left out.

    It reads as the builder does, since an instruction that only the builder saw could start from anything;
    what versions of the builder read differently is refused with InvalidInput.
    Source: moby/buildkit, frontend/dockerfile/parser/parser.go.
    """
    found: list[Instruction] = []
    collected, first = "", 0
    # str.splitlines would know more ends of lines than the builder does.
    for number, raw in enumerate(dockerfile.lstrip("\ufeff").split("\n"), start=1):
        line = raw.rstrip("\r")
        text = line.lstrip()
        if _ESCAPE.match(text):
            raise InvalidInput(
                f"Dockerfile line {number}: another escape character is not supported.", "Remove it."
            )
        # Inside a continued instruction, too, comments and empty lines are skipped.
        if not text or text.startswith("#"):
            continue
        collected += line if first else text
        first = first or number
        continued = _CONTINUED.search(collected)
        if continued is not None:
            collected = collected[: continued.start(1)]
            continue
        _append(found, first, collected)
        collected, first = "", 0
    if collected:
        _append(found, first, collected)
    return found


def _append(found: list[Instruction], line: int, text: str) -> None:
    words = text.split(None, 1)
    if any(_HERE_DOCUMENT.match(word) for word in text.split()):
        raise InvalidInput(
            f"Dockerfile line {line}: a here-document is not supported.", "Use a file and COPY."
        )
    if words:
        found.append(Instruction(line, words[0].upper(), words[1].strip() if len(words) > 1 else ""))


def sources(dockerfile: str, build_args: Mapping[str, str], uid: int) -> tuple[str, ...]:
    """Return the images that a Dockerfile starts from or copies from, in their order, each once.

    Raises Refused for an image of another user, or one named by an id (which could be another user's);
    InvalidInput where it cannot be told which image is meant.
    """
    arguments: dict[str, str] = {}
    stages: list[str] = []
    found: list[str] = []
    for item in instructions(dockerfile):
        if item.word == "ARG" and not stages:
            _take_arguments(arguments, item.rest, build_args)
        elif item.word == "FROM":
            image, stage = _from(item, arguments)
            if image.lower() not in filter(None, stages) and image != "scratch":
                found.append(_allowed(image, uid, item.line))
            stages.append(stage)
        # ONBUILD holds an instruction too; a RUN or a COPY that only looks so is refused alike.
        for image in _FROM_FLAG.findall(item.rest):
            if not _REFERENCE.fullmatch(image):
                raise InvalidInput(
                    f"Dockerfile line {item.line}: it cannot be told which image 'from' means.", _WRITE_IT
                )
            if image.lower() not in stages and not (image.isdigit() and int(image) < len(stages)):
                found.append(_allowed(image, uid, item.line))
    if not stages:
        raise InvalidInput("The Dockerfile has no FROM line.", "Begin it with FROM and a base image.")
    return tuple(dict.fromkeys(found))


def _take_arguments(arguments: dict[str, str], rest: str, build_args: Mapping[str, str]) -> None:
    for word in rest.split():
        name, _equals, default = word.partition("=")
        arguments[name] = build_args.get(name, _substituted(default.strip("\"'"), arguments))


def _from(item: Instruction, arguments: Mapping[str, str]) -> tuple[str, str]:
    words = [word for word in item.rest.split() if not word.startswith("--")]
    if not words or len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
        raise InvalidInput(
            f"Dockerfile line {item.line}: FROM needs one image.", "Write it as: FROM lab/python."
        )
    image, stage = _substituted(words[0], arguments), words[2].lower() if len(words) == 3 else ""
    if not _REFERENCE.fullmatch(image):
        raise InvalidInput(
            f"Dockerfile line {item.line}: it cannot be told which image FROM means.", _WRITE_IT
        )
    if stage and not _STAGE.fullmatch(stage):
        raise InvalidInput(
            f"Dockerfile line {item.line}: {printable(stage)!r} cannot name a stage.", "Use letters."
        )
    return image, stage


def _substituted(text: str, arguments: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        name = match.group(1) or match.group(4)
        known = arguments.get(name, "")
        if match.group(2) == "-":
            return known or match.group(3)
        if match.group(2) == "+":
            return match.group(3) if known else ""
        return known

    return _VARIABLE.sub(value, text)


def _allowed(image: str, uid: int, line: int) -> str:
    plain = image.lower()
    for registry in ("index.docker.io/", "docker.io/"):
        plain = plain[len(registry) :] if plain.startswith(registry) else plain
    own = _OWN.match(plain)
    if own is not None and int(own.group(1)) != uid:
        raise Refused(
            f"Dockerfile line {line}: there is no image {printable(image)}.", "Start from a base image."
        )
    if _IMAGE_ID.fullmatch(plain):
        raise Refused(
            f"Dockerfile line {line}: {printable(image)} could be the id of an image.",
            "Name the image instead.",
        )
    return image


def fingerprint(members: Iterable[Member], build_args: Mapping[str, str], bases: Mapping[str, str]) -> str:
    """Return the fingerprint (SHA-256, hexadecimal) of a build.

    ``members`` is the checked context, which holds the Dockerfile; ``bases`` maps the images that it starts
    from to their ids.
    """
    digest = hashlib.sha256()
    head = {"format": _FORMAT, "args": dict(build_args), "bases": dict(bases)}
    digest.update(json.dumps(head, sort_keys=True).encode("ascii"))
    for member in sorted(members, key=lambda member: member.path):
        line = json.dumps([member.path, member.kind, member.executable, member.content])
        digest.update(b"\n" + line.encode("ascii"))
    return digest.hexdigest()
