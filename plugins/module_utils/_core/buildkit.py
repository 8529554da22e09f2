# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What Dockerfiles have that only BuildKit knows, written so that the classic builder does the same. Pure.

- ``RUN --mount=type=cache`` is left out: it makes a build quicker and leaves nothing in the image. So that
  pip and uv leave nothing there either, they are told to keep no cache (``NO_CACHES``).
- ``--link`` is left out, and so is what says what is so anyway (``--network=default``).
- A here-document of RUN becomes an argument of the shell, in the exec form (JSON, one line of ASCII), which
  the builder neither expands nor searches for flags. It has no "<" either, so that no version of the builder
  finds a here-document in it.
- A here-document of COPY becomes a file of ours in the build context.

Whatever is not read in one way only by the versions of BuildKit, or cannot be done, is refused with a
sentence: a word of a here-document is one that a shell and BuildKit take for the same, plain and at the
beginning of a word.

Source: moby/buildkit, frontend/dockerfile: parser/parser.go (heredocsFromLine), shell/lex.go,
instructions/parse.go (parseSourcesAndDest), instructions/commands_runmount.go and dockerfile2llb/convert.go
(dispatchRun, dispatchCopy).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import InvalidInput
from .names import printable

SHELL = ("/bin/sh", "-c")
"""What runs the commands of an image that says nothing else."""
#: Where the context has the files of here-documents of COPY, below it a folder for each line.
INLINE = ".lab-server-here"
#: What a stage is told in which a cache was left out: what pip and uv kept would be in the image.
NO_CACHES = {"PIP_NO_CACHE_DIR": "1", "UV_NO_CACHE": "1"}
LINE_LIMIT = 65_000
"""The longest instruction, in bytes: the builder's scanner ends at 65,536 (bufio.MaxScanTokenSize)."""

_WRITTEN = ("RUN", "COPY", "ADD")
# A word as BuildKit and shells take it apart: escaped, in quotes, or plain.
_PIECE = re.compile(r"\\.|'[^']*'|\"(?:[^\"\\]|\\.)*\"|[^\s\\'\"]+|\s+")
_OPENING = re.compile(r"([0-9]*)<<(-?)(['\"]?)([A-Za-z0-9_][A-Za-z0-9_.-]*)\3")
_RUNS = re.compile(r"<{2,}")
# BuildKit reads no word of a line with another use of ${...}, which a shell may know.
_BRACES = re.compile(r"\$\{(?![A-Za-z_][A-Za-z0-9_]*(?::[-+][^{}'\"\\$<\s]*)?\})")
# What no text has, or what could not be told from bytes that are no text.
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffd]")
_TABS = re.compile(r"^\t+", re.MULTILINE)
_MODE = re.compile(r"[0-7]{3,4}")
_TARGETS = frozenset({"target", "dst", "destination"})
_CACHE_OPTIONS = _TARGETS | {
    "type",
    "id",
    "sharing",
    "mode",
    "uid",
    "gid",
    "ro",
    "readonly",
    "rw",
    "readwrite",
}
_MOUNTS = {
    "bind": "Take what the step needs into the image by COPY before it.",
    "secret": "Never put a secret into an image: use it in the running container.",
    "ssh": "Fetch what needs the key into the project's folder, and COPY it.",
    "tmpfs": "Leave it out, and remove at the end of the step what is not to stay.",
}
_NEVER = {
    "chmod": "Add after it: RUN chmod ... Or make the file executable in the project; COPY keeps that.",
    "parents": "Write a COPY for each folder.",
    "exclude": "Name in .dockerignore what is not to be copied.",
    "checksum": "Fetch and check it by RUN.",
    "keep-git-dir": "Clone it by RUN.",
    "unpack": "Use COPY for an archive that is to stay one, ADD for others.",
}
_ELSEWHERE = "Use a file and COPY."


@dataclass(frozen=True)
class Document:
    """A here-document: the word that ends it, what is in it, and what its opening says.

    ``plain``: the word is in quotes, so nothing in it is replaced. ``tabs``: those before its lines go.
    """

    name: str
    body: str
    plain: bool
    tabs: bool

    @property
    def content(self) -> str:
        """What is in it, as a file or a script has it."""
        return _TABS.sub("", self.body) if self.tabs else self.body


# Reading


def split_flags(rest: str) -> tuple[list[str], str]:
    """Return the flags of an instruction, and what follows them."""
    flags = []
    while rest.startswith("--"):
        flag, *left = rest.split(None, 1)
        flags.append(flag)
        rest = left[0] if left else ""
    return flags, rest


def exec_form(text: str) -> list[str] | None:
    """Return the words of an exec form, a JSON list of texts; None for what is none."""
    words = _list(text)
    return None if words is None or not all(isinstance(word, str) for word in words) else words


def _list(text: str) -> list[Any] | None:
    try:
        found: object = json.loads(text) if text.startswith("[") else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def documents(word: str, rest: str, following: Iterator[tuple[int, str]], where: str) -> tuple[Document, ...]:
    """Return the here-documents of an instruction, which are taken from the lines that follow (number, text).

    Raises InvalidInput for one that is not read in one way only.
    """
    if "<<" not in rest:
        return ()
    _flags, text = split_flags(rest)
    openings = _openings(word, text, where)
    if openings and word != "RUN":
        _check_copy(text, openings, where)
    found = tuple(_document(opening, following, where) for opening in openings)
    for one in found:
        if word != "RUN" and not one.plain and re.search(r"[$\\]", one.body):
            raise InvalidInput(
                f"{where}: what has $ or \\ in the here-document {one.name} would be replaced, which is not"
                " supported.",
                f"Write <<'{one.name}', and nothing is.",
            )
    # Of the text itself, and of each body, as JSON has them.
    if word == "RUN":
        _check_length(_json(rest, *(one.body for one in found)), where)
    return found


def _check_length(text: str, where: str) -> None:
    if len(text) > LINE_LIMIT:
        raise InvalidInput(f"{where}: it is too long, with its here-document.", _ELSEWHERE)


def _openings(word: str, text: str, where: str) -> list[re.Match[str]]:
    unclear = InvalidInput(f"{where}: its here-document cannot be read for sure.", _ELSEWHERE)
    if word not in _WRITTEN:
        if re.search(r"(?<!<)<<(?!<)", text):
            raise InvalidInput(f"{where}: a here-document is for RUN and COPY.", _ELSEWHERE)
        return []
    if _list(text) is not None:
        if word == "RUN" and exec_form(text) is not None:
            return []
        raise unclear
    pieces = _pieces(text)
    if pieces is None or _BRACES.search(text):
        raise unclear
    found = []
    for raw, bare in _by_word(pieces):
        opening = _OPENING.fullmatch(raw)
        if opening is not None:
            found.append(opening)
            continue
        for run in _RUNS.finditer(bare):
            # "<<<" is another thing, and so is a shift in an expression; "cat<<EOF" is read in two ways, and
            # newer versions of BuildKit take the word that follows "<< " for a part of this one.
            shift = "((" in bare[: run.start()] and run.end() < len(bare)
            if len(run.group()) > 3 or (len(run.group()) == 2 and not shift):
                raise InvalidInput(
                    f"{where}: its here-document cannot be read for sure.",
                    "Write it with a space before and a plain word right after it: <<EOF.",
                )
    return found


def _pieces(text: str) -> list[str] | None:
    """Return the text in pieces; None where a quote has no end."""
    found, at = [], 0
    while at < len(text):
        piece = _PIECE.match(text, at)
        if piece is None:
            return None
        found.append(piece.group())
        at = piece.end()
    return found


def _by_word(pieces: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each word as it stands, and with what is quoted in it left out."""
    raw, bare = "", ""
    for piece in (*pieces, " "):
        if piece[0].isspace():
            if raw:
                yield raw, bare
            raw, bare = "", ""
        else:
            raw += piece
            bare += "''" if piece[0] in "\\'\"" else piece


def _check_copy(text: str, openings: Sequence[re.Match[str]], where: str) -> None:
    names = [opening.group(4) for opening in openings]
    words = text.split()
    if (
        len(set(names)) < len(names)
        or any(opening.group(1) for opening in openings)
        or _OPENING.fullmatch(words[-1])
        or any(re.search(r"[\\'\"]", word) for word in words if not _OPENING.fullmatch(word))
    ):
        raise InvalidInput(
            f"{where}: its here-documents cannot be read for sure.",
            "Write it as: COPY <<'EOF' /path/of/file.",
        )


def _document(opening: re.Match[str], following: Iterator[tuple[int, str]], where: str) -> Document:
    _descriptor, tabs, quote, name = opening.groups()
    body = ""
    for number, raw in following:
        line = raw.rstrip("\r")
        if (line.lstrip("\t") if tabs else line) == name:
            return Document(name, body, bool(quote), bool(tabs))
        if _UNFIT.search(raw):
            raise InvalidInput(
                f"Dockerfile line {number}: in a here-document it holds a control character, line ends of"
                " Windows, or what is not UTF-8.",
                "Write it as plain text with the line ends of Linux.",
            )
        body += raw + "\n"
    raise InvalidInput(
        f"{where}: no line ends the here-document {name}.",
        f"Write {name} alone on a line, after what is in it.",
    )


# Flags


def check_flags(word: str, rest: str, found: Sequence[Document], where: str) -> None:
    """Raise InvalidInput for flags that the classic builder does not have, and that cannot be left out."""
    flags, text = split_flags(rest)
    if word == "RUN":
        for flag in flags:
            _check_run_flag(flag, where)
    elif word in ("COPY", "ADD"):
        inline = bool(found) and len(found) == len(text.split()) - 1
        if found and ((word == "ADD" and not inline) or any(flag.startswith("--from") for flag in flags)):
            raise InvalidInput(f"{where}: a here-document needs a step of its own.", "Write two COPY.")
        for flag in flags:
            _check_copy_flag(flag, inline, where)


def _check_run_flag(flag: str, where: str) -> None:
    name, _equals, value = flag[2:].partition("=")
    if name == "mount":
        _check_mount(value, where)
    elif name == "network" and value != "default":
        raise InvalidInput(
            f"{where}: RUN --network={printable(value)[:40]} is not supported: each step has the network of a"
            " container.",
            "Leave it out.",
        )
    elif name == "security" and value != "sandbox":
        raise InvalidInput(f"{where}: RUN --security is not supported.", "Leave it out.")
    elif name not in ("network", "security"):
        raise InvalidInput(f"{where}: RUN --{printable(name)[:40]} is not supported.", "Leave it out.")


def _check_mount(value: str, where: str) -> None:
    kind, options = "bind", set()
    for option in value.split(","):
        name, _equals, given = option.partition("=")
        options.add(name.lower())
        if name.lower() == "type":
            kind = given.lower()
    if kind in _MOUNTS:
        raise InvalidInput(f"{where}: RUN --mount of the type {kind} is not supported.", _MOUNTS[kind])
    if kind != "cache" or not options <= _CACHE_OPTIONS or not options & _TARGETS:
        raise InvalidInput(
            f"{where}: RUN --mount={printable(value)[:80]} is not supported.",
            "Write it as --mount=type=cache,target=/path, or leave it out.",
        )


def _check_copy_flag(flag: str, inline: bool, where: str) -> None:
    name, _equals, value = flag[2:].partition("=")
    if name == "link" and value not in ("", "true", "false"):
        raise InvalidInput(f"{where}: {printable(flag)[:40]} is neither true nor false.", "Leave it out.")
    if name in _NEVER and not (name == "chmod" and inline and _MODE.fullmatch(value)):
        raise InvalidInput(f"{where}: --{name} is not supported.", _NEVER[name])


def leaves_caches_out(rest: str) -> bool:
    """Say whether a RUN has a mount, which after ``check_flags`` is a cache."""
    return any(flag.startswith("--mount") for flag in split_flags(rest)[0])


# Writing


def run(rest: str, found: Sequence[Document], shell: Sequence[str] | None, where: str) -> str:
    """Return what follows RUN for the classic builder, in one line.

    ``shell`` is what runs a command in this stage; InvalidInput where that is needed and not known (None).
    """
    _flags, text = split_flags(rest)
    if "<<" not in text:
        return text
    words = exec_form(text)
    if words is None:
        if shell is None:
            raise InvalidInput(
                f"{where}: nobody can tell which shell runs it.", 'Write before it: SHELL ["/bin/sh", "-c"].'
            )
        words = [*shell, _command(text, found)]
    written = _json(*words)
    _check_length(written, where)
    return written


def _command(text: str, found: Sequence[Document]) -> str:
    if len(found) == 1 and _OPENING.fullmatch(text):
        content = found[0].content
        return _script(found[0].name, content) if content.startswith("#!") else content
    # The shell reads it again; tabs are its own business.
    return text + "".join(f"\n{one.body}{one.name}" for one in found)


def _script(name: str, content: str) -> str:
    """Return a command that runs a script by the interpreter that it names, from where BuildKit has it.

    /dev is in memory, so nothing stays; who is not root there has a folder that is removed. Nothing is
    exported, so the script has the environment of any step. No line of it is its name, which would have
    ended it.
    """
    return (
        'set -- /dev/pipes; mkdir -p "$1" 2>/dev/null || set -- "$(mktemp -d)"; '
        f'cat >"$1/{name}" <<\'{name}\' && chmod 755 "$1/{name}" && "$1/{name}"\n{content}{name}\n'
        'set -- "$1" $?; [ "$1" = /dev/pipes ] || rm -r "$1"; exit "$2"\n'
    )


def _json(*words: str) -> str:
    return json.dumps(words).replace("<", "\\u003c")


def copy(rest: str, found: Sequence[Document], line: int) -> str:
    """Return what follows COPY for the classic builder: no ``--link``, files of ours for here-documents."""
    flags, text = split_flags(rest)
    left = ("--link", "--chmod") if found else ("--link",)
    kept = [flag for flag in flags if flag.partition("=")[0] not in left]
    if not found:
        # What follows stays as it is, as it may be JSON.
        return " ".join([*kept, text]) if len(kept) < len(flags) else rest
    return " ".join([*kept, *(_source(word, line) for word in text.split())])


def _source(word: str, line: int) -> str:
    opening = _OPENING.fullmatch(word)
    return word if opening is None else f"{INLINE}/{line}/{opening.group(4)}"


def from_the_context(text: str, found: Sequence[Document]) -> str:
    """Return the words of a COPY without its here-documents, which take nothing of the context."""
    return " ".join(word for word in text.split() if not _OPENING.fullmatch(word)) if found else text


def files(rest: str, found: Sequence[Document], line: int) -> dict[str, tuple[str, int]]:
    """Return the files that the here-documents of a COPY need in the context: (text, mode) by their paths."""
    modes = [int(flag[8:], 8) for flag in split_flags(rest)[0] if flag.startswith("--chmod=")]
    mode = modes[-1] if modes else 0o644
    return {f"{INLINE}/{line}/{one.name}": (one.content, mode) for one in found}
