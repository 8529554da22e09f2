# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a project's image is made of, as one digest: equal means that a build would change nothing.

It also reads of a Dockerfile which images it starts from, to refuse those of other users before a build, and
writes it as the classic builder takes it (``buildkit``).
Source of the syntax: https://docs.docker.com/reference/dockerfile/.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from . import buildkit
from .buildkit import Document
from .context import Member
from .errors import InvalidInput, Refused
from .names import printable

_FORMAT = 1
_ESCAPE = re.compile(r"#\s*escape\s*=", re.IGNORECASE)
# A backslash at the end continues the line, but not after another one.
_CONTINUED = re.compile(r"(?<!\\)(\\[ \t]*)$")
# Flags come first; with quotes or backslashes in them the builder would see others than we do.
_FLAG = re.compile(r"--[a-z][a-z-]*(?:=[^\s\"'\\<]*)?")
_FLAGGED = frozenset({"FROM", "RUN", "COPY", "ADD", "HEALTHCHECK"})
# Those are predefined: with a value of their own they would pass through builds that share a cache.
_PROXIES = frozenset({"http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"})
_WORD = re.compile(r"[A-Z]+")
_ARGUMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:=(?:\"[^\"\\]*\"|'[^'\\]*'|[^\s\"'\\]*))?")
# What the engine would fetch itself, as root and from the network of the host.
_ADDRESS = re.compile(r"://|git@|[$\\]")
_LOCAL_REGISTRY = re.compile(r"(?:localhost|[0-9.]+|\[.*\])(?::[0-9]+)?", re.IGNORECASE)
# What ENV sets: the word before a "=", or the first one (the old form without it).
_SET = re.compile(r"(?:^|(?<=\s))[A-Za-z_][A-Za-z0-9_]*(?==)|^[A-Za-z_][A-Za-z0-9_]*(?=\s)")
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
    """An instruction of a Dockerfile: its first line (counted from 1), its word in capitals, and the rest.

    The here-documents that it opens are in the rest by their openings alone.
    """

    line: int
    word: str
    rest: str
    documents: tuple[Document, ...] = ()


def instructions(dockerfile: str) -> list[Instruction]:
    """Return the instructions of a Dockerfile, continued lines joined, comments left out.

    It reads as the builder does, since an instruction that only the builder saw could start from anything;
    what versions of the builder read differently is refused with InvalidInput.
    Source: moby/buildkit, frontend/dockerfile/parser/parser.go.
    """
    found: list[Instruction] = []
    collected, first = "", 0
    # str.splitlines would know more ends of lines than the builder does.
    lines = enumerate(dockerfile.lstrip("\ufeff").split("\n"), start=1)
    for number, raw in lines:
        line = raw[:-1] if raw.endswith("\r") else raw
        text = line.lstrip(" \t")
        if _ESCAPE.match(text):
            raise InvalidInput(
                f"Dockerfile line {number}: another escape character is not supported.", "Remove it."
            )
        # Inside a continued instruction, too, comments and empty lines are skipped.
        if not text or text.startswith("#"):
            continue
        if not line.replace("\t", " ").isprintable():
            raise InvalidInput(
                f"Dockerfile line {number}: it holds a control character, or a space of an unusual kind.",
                "Write it with plain spaces.",
            )
        collected += line if first else text
        first = first or number
        continued = _CONTINUED.search(collected)
        if continued is not None:
            collected = collected[: continued.start(1)]
            continue
        _append(found, first, collected, lines)
        collected, first = "", 0
    if collected:
        _append(found, first, collected, lines)
    return found


def _append(found: list[Instruction], line: int, text: str, following: Iterator[tuple[int, str]]) -> None:
    words = text.split(None, 1)
    if not words:
        return
    item = Instruction(line, words[0].upper(), words[1].strip() if len(words) > 1 else "")
    _check(item)
    where = f"Dockerfile line {line}"
    documents = buildkit.documents(item.word, item.rest, following, where)
    buildkit.check_flags(item.word, item.rest, documents, where)
    found.append(replace(item, documents=documents))


def _check(item: Instruction) -> None:
    """Raise InvalidInput or Refused for what builders read differently, or would do as root."""
    where = f"Dockerfile line {item.line}"
    if len(item.rest.encode("utf-8", "replace")) > buildkit.LINE_LIMIT:
        raise InvalidInput(f"{where}: it is too long.", "Use a file and COPY.")
    if item.rest.endswith("\\"):
        raise InvalidInput(f"{where}: it ends with a backslash.", "Remove it.")
    if not _WORD.fullmatch(item.word):
        raise InvalidInput(f"{where}: {printable(item.word)[:40]} is no instruction.", "Correct the line.")
    if item.word == "ONBUILD":
        raise Refused(f"{where}: ONBUILD is not supported.", "Write the instruction where it is needed.")
    if item.word == "ADD" and _ADDRESS.search(item.rest):
        raise Refused(
            f"{where}: ADD of an address or a variable is not supported.",
            "Use RUN with curl, or COPY with a plain path.",
        )
    if item.word == "ARG":
        _check_argument(item.rest, where)
    elif item.word in _FLAGGED:
        _check_flags(item.rest, where)


def _check_argument(rest: str, where: str) -> None:
    if not _ARGUMENT.fullmatch(rest):
        raise InvalidInput(f"{where}: ARG needs one name, and a plain value.", "Write one ARG for each.")
    name, equals, _value = rest.partition("=")
    if name.lower() in _PROXIES and equals:
        raise Refused(f"{where}: {name} cannot be an argument with a value.", "Use ENV.")


def _check_flags(rest: str, where: str) -> None:
    for word in rest.split():
        if not word.startswith("--"):
            return
        if not _FLAG.fullmatch(word):
            raise InvalidInput(
                f"{where}: the flag {printable(word)[:80]} is not plain.",
                "Write it without quotes and backslashes.",
            )


def sources(dockerfile: str, build_args: Mapping[str, str], uid: int) -> dict[str, int]:
    """Return the images that a Dockerfile starts or copies from, in their order, each with its first line.

    Raises Refused for an image of another user, or one named by an id (which could be another user's);
    InvalidInput where it cannot be told which image is meant.
    """
    arguments: dict[str, str] = {}
    stages: list[str] = []
    found: dict[str, int] = {}
    for item in instructions(dockerfile):
        if item.word == "ARG" and not stages:
            _take_arguments(arguments, item.rest, build_args)
        elif item.word == "FROM":
            image, stage = _from(item, arguments)
            if image.lower() not in filter(None, stages) and image != "scratch":
                found.setdefault(_allowed(image, uid, item.line), item.line)
            stages.append(stage)
        # ONBUILD holds an instruction too; a RUN or a COPY that only looks so is refused alike.
        for image in _FROM_FLAG.findall(item.rest):
            if not _REFERENCE.fullmatch(image):
                raise InvalidInput(
                    f"Dockerfile line {item.line}: it cannot be told which image 'from' means.", _WRITE_IT
                )
            if image.lower() not in stages and not (image.isdigit() and int(image) < len(stages)):
                found.setdefault(_allowed(image, uid, item.line), item.line)
    if not stages:
        raise InvalidInput("The Dockerfile has no FROM line.", "Begin it with FROM and a base image.")
    return found


def variables(dockerfile: str) -> frozenset[str]:
    """Return the names of the variables that a Dockerfile declares by ARG or sets by ENV, in any stage.

    A word within quotes that only looks like one counts, too. Raises InvalidInput as ``instructions`` does.
    """
    found: set[str] = set()
    for item in instructions(dockerfile):
        if item.word == "ARG":
            found.add(item.rest.partition("=")[0])
        elif item.word == "ENV":
            found.update(_SET.findall(item.rest))
    return frozenset(found)


@dataclass(frozen=True)
class Step:
    """A step of a build as the builder counts them: its line, and the instruction that it comes from."""

    text: str
    origin: Instruction


def steps(
    dockerfile: str,
    build_args: Mapping[str, str],
    environment: Mapping[str, str] | None = None,
    copies: Mapping[str, str] | None = None,
    shells: Mapping[str, Sequence[str] | None] | None = None,
) -> list[Step]:
    """Return the steps of a Dockerfile as it was read here, the images of FROM in plain.

    ``shells`` are what runs commands in the images that it starts from (``shell_of``), by their names; in
    others it is the usual one.

    After each FROM, before anything runs, ``copies`` (paths of the context, by where they go in the image)
    and ``environment`` are put in, as COPY and ARG: an ARG is in the environment of what runs in the build,
    and not in that of the image. What the Dockerfile declares or sets itself is left out. Both are ours, and
    plain. Raises InvalidInput as ``sources`` does.
    """
    for name, value in (environment or {}).items():
        _check_argument(f"{name}={value}", "The environment of the build")
    own = variables(dockerfile)
    more = [f"COPY {path} {place}" for place, path in sorted((copies or {}).items())]
    more += [f"ARG {name}={value}" for name, value in sorted((environment or {}).items()) if name not in own]
    quiet = [f"ARG {name}={value}" for name, value in buildkit.NO_CACHES.items() if name not in own]
    arguments: dict[str, str] = {}
    found: list[Step] = []
    stages = _Shells(shells or {})
    started = caches = False
    for item in instructions(dockerfile):
        if item.word == "ARG" and not started:
            _take_arguments(arguments, item.rest, build_args)
        if item.word == "FROM":
            started, caches = True, False
            image, stage = _from(item, arguments)
            stages.begin(image, stage)
            flags = [word for word in item.rest.split() if word.startswith("--")]
            text = " ".join(["FROM", *flags, image, *(("AS", stage) if stage else ())])
            found += [Step(line, item) for line in (text, *more)]
            continue
        if item.word == "SHELL":
            stages.change(item.rest)
        if item.word == "RUN" and not caches and buildkit.leaves_caches_out(item.rest):
            caches = True
            found += [Step(line, item) for line in quiet]
        found.append(Step(_written(item, stages.shell), item))
    return found


class _Shells:
    """Follows what runs the commands of a stage: what its image says, and then SHELL."""

    def __init__(self, images: Mapping[str, Sequence[str] | None]) -> None:
        self._images = images
        self._stages: dict[str, Sequence[str] | None] = {}
        self._stage = ""
        self.shell: Sequence[str] | None = buildkit.SHELL

    def begin(self, image: str, stage: str) -> None:
        """Begin a stage of this name, which may be "", on an image or another stage."""
        earlier = image.lower() in self._stages
        self._stage = stage
        self._set(self._stages[image.lower()] if earlier else self._images.get(image, buildkit.SHELL))

    def change(self, rest: str) -> None:
        """Take what SHELL says; the builder refuses what is no list."""
        self._set(buildkit.exec_form(rest) or None)

    def _set(self, shell: Sequence[str] | None) -> None:
        self.shell = shell
        if self._stage:
            self._stages[self._stage] = shell


def shell_of(config: Mapping[str, object]) -> Sequence[str] | None:
    """Return what runs commands in an image, by its configuration as Docker tells it; None if unknown.

    Instructions that an image leaves for what is built on it may change it.
    """
    triggers = config.get("OnBuild")
    if isinstance(triggers, list) and any("shell" in str(trigger).lower() for trigger in triggers):
        return None
    said = config.get("Shell")
    return [str(word) for word in said] if isinstance(said, list) and said else buildkit.SHELL


def _written(item: Instruction, shell: Sequence[str] | None) -> str:
    """Return an instruction other than FROM as the classic builder takes it: one line."""
    word, rest = item.word, item.rest
    if word == "RUN":
        rest = buildkit.run(rest, item.documents, shell, f"Dockerfile line {item.line}")
    elif word in ("COPY", "ADD"):
        # What stands in the Dockerfile is no archive to be unpacked.
        word = "COPY" if item.documents else word
        rest = buildkit.copy(rest, item.documents, item.line)
    return f"{word} {rest}".rstrip()


def inline_files(dockerfile: str) -> dict[str, tuple[str, int]]:
    """Return the files in the context that stand in the Dockerfile itself: (text, mode) by their paths."""
    found: dict[str, tuple[str, int]] = {}
    for item in instructions(dockerfile):
        if item.word in ("COPY", "ADD"):
            found.update(buildkit.files(item.rest, item.documents, item.line))
    return found


def canonical(
    dockerfile: str,
    build_args: Mapping[str, str],
    environment: Mapping[str, str] | None = None,
    copies: Mapping[str, str] | None = None,
    shells: Mapping[str, Sequence[str] | None] | None = None,
) -> str:
    """Return the Dockerfile as it was read here: one instruction a line, with what ``steps`` puts in.

    This is what the builder gets, so that it cannot read another image than was allowed, whatever its
    version makes of ends of lines, quotes and variables. Raises InvalidInput as ``sources`` does.
    """
    return "".join(f"{step.text}\n" for step in steps(dockerfile, build_args, environment, copies, shells))


def labels(values: Mapping[str, str]) -> str:
    """Return the line that ends a Dockerfile with labels of ours, over any that the image has.

    One line is one step: as an option of the builder, each label is a step with a container of its own.
    """
    return f"LABEL {assignments(values)}\n"


def assignments(values: Mapping[str, str]) -> str:
    """Return names and values as ENV and LABEL take them; nothing in a value is replaced any more."""
    # A JSON string is a quoted word of a Dockerfile, but for the variables.
    quoted = {
        name: json.dumps(value, ensure_ascii=False).replace("$", "\\$") for name, value in values.items()
    }
    return " ".join(f"{name}={value}" for name, value in sorted(quoted.items()))


def check_triggers(image: str, triggers: Iterable[object]) -> None:
    """Raise Refused when the ONBUILD instructions of an image could read another one."""
    for trigger in triggers:
        text = str(trigger)
        if "from" in text.lower() or "\\" in text or "--" in text or not text.isprintable():
            raise Refused(
                f"The image {printable(image)} has an ONBUILD that may copy from others.", "Use another one."
            )


def base(dockerfile: str, build_args: Mapping[str, str]) -> str:
    """Return the image that the last stage of a Dockerfile stands on, through other stages; "" for none.

    Raises InvalidInput as ``sources`` does.
    """
    arguments: dict[str, str] = {}
    stages: dict[str, str] = {}
    image = ""
    for item in instructions(dockerfile):
        if item.word == "ARG" and not image:
            _take_arguments(arguments, item.rest, build_args)
        elif item.word == "FROM":
            named, stage = _from(item, arguments)
            image = stages.get(named.lower(), named)
            if stage:
                stages[stage] = image
    return "" if image == "scratch" else image


def plain(image: str) -> str:
    """Return a reference without what Docker adds by itself: its own registry, and the tag latest."""
    for registry in ("index.docker.io/", "docker.io/"):
        image = image[len(registry) :] if image.lower().startswith(registry) else image
    return image[: -len(":latest")] if image.endswith(":latest") else image


def _take_arguments(arguments: dict[str, str], rest: str, build_args: Mapping[str, str]) -> None:
    name, _equals, default = rest.partition("=")
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
    short = plain(image.lower())
    own = _OWN.match(short)
    if own is not None and int(own.group(1)) != uid:
        raise Refused(
            f"Dockerfile line {line}: there is no image {printable(image)}.", "Start from a base image."
        )
    if "/" in short and _LOCAL_REGISTRY.fullmatch(short.split("/")[0]):
        raise Refused(
            f"Dockerfile line {line}: {printable(image)} is on no registry with a name.", "Use a public one."
        )
    if _IMAGE_ID.fullmatch(short):
        raise Refused(
            f"Dockerfile line {line}: {printable(image)} could be the id of an image.",
            "Name the image instead.",
        )
    return image


def fingerprint(members: Iterable[Member], build_args: Mapping[str, str], bases: Mapping[str, str]) -> str:
    """Return the fingerprint (SHA-256, hexadecimal) of a build.

    ``members`` is what counts of the checked context (``taken``), the Dockerfile with it; ``bases`` maps the
    images that it starts from to their ids.
    """
    digest = hashlib.sha256()
    head = {"format": _FORMAT, "args": dict(build_args), "bases": dict(bases)}
    digest.update(json.dumps(head, sort_keys=True).encode("ascii"))
    for member in sorted(members, key=lambda member: member.path):
        line = json.dumps([member.path, member.kind, member.executable, member.content])
        digest.update(b"\n" + line.encode("ascii"))
    return digest.hexdigest()
