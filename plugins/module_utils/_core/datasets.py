# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Published datasets on paper: their record, their manifest, the links in them, and the catalogue.

A version is ``<share>/<name>/<version>``, with ``current`` beside it. Records are read from folders that data
managers write, so all of a record is checked before any of it is shown.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from . import names
from .errors import HostError, InvalidInput
from .sizes import format_size

#: What is in a version beside its files, and in the share beside its datasets.
MANIFEST, RECORD, CATALOGUE = "MANIFEST.sha256", "DATASET.json", "CATALOGUE.md"
#: The link to the newest version.
CURRENT = "current"
FORMAT = 1
_TEXT_LIMIT = 200  # characters of a description
_LINKS_LIMIT, _LINKS_TEXT = 10_000, 500_000  # links, and characters of them together
_HOPS = 40  # links on the way to one thing, as the kernel has it (path_resolution(7))

_VERSION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._+-]{0,62}[A-Za-z0-9])?")
# RFC 3986 without the characters that it leaves out, and schemes that run nothing when they are clicked.
_SOURCE = re.compile(r"(?:https?://|ftp://|s3://|gs://|doi:)[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]{1,500}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
# https://spdx.github.io/spdx-spec/, "SPDX license expressions"; whether a licence is listed is not looked up.
_LICENCE = re.compile(r"(?:DocumentRef-[A-Za-z0-9.-]{1,80}:)?[A-Za-z0-9][A-Za-z0-9.-]{0,80}\+?")
_LICENCE_LIMIT = 200
# What coreutils escapes in the name of a file, where it then begins the line with a backslash (sha256sum(1)).
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
# What means something to Markdown within a line (CommonMark, and the tables and strikethrough of GFM).
_MARKUP = frozenset("\\`*_[]<>#|~&")
_LINE = re.compile(r"(\\?)([0-9a-f]{64})  (.+)", re.DOTALL)


@dataclass(frozen=True)
class Dataset:
    """A version of a dataset.

    ``published`` is in seconds since 1970, ``size`` in bytes, ``manifest`` the SHA-256 of the manifest;
    ``links`` are the symbolic links in it, by their paths, which no manifest holds.
    """

    name: str
    version: str
    description: str
    source: str
    licence: str
    publisher: str
    published: int
    size: int
    files: int
    manifest: str
    links: tuple[tuple[str, str], ...] = ()

    def shown(self) -> dict[str, Any]:
        """Return the dataset as plain data, without its links."""
        return {key: value for key, value in asdict(self).items() if key != "links"}


def version(value: object) -> str:
    """Return ``value`` if it may name a version, else raise InvalidInput."""
    if not isinstance(value, str) or not _VERSION.fullmatch(value) or value == CURRENT:
        raise InvalidInput(
            f"version: {names.printable(repr(value))[:80]} is not allowed.",
            "Use 1 to 64 letters, digits, '.', '_', '+' and '-', such as 2.1 or 2026-11-26; not 'current'.",
        )
    return value


def source(value: object) -> str:
    """Return ``value`` if it says where a dataset comes from, else raise InvalidInput."""
    if not isinstance(value, str) or not _SOURCE.fullmatch(value):
        raise InvalidInput(
            f"source: {names.printable(repr(value))[:80]} is no URL.",
            "Write where it comes from: https://..., ftp://..., s3://..., gs://... or doi:...",
        )
    return value


def description(value: object) -> str:
    """Return ``value`` if it is a line that describes a dataset, else raise InvalidInput."""
    if not isinstance(value, str) or not value.isprintable() or len(value) > _TEXT_LIMIT:
        raise InvalidInput(
            f"description: must be one line of at most {_TEXT_LIMIT} characters.",
            "Say in a few words what it is.",
        )
    return value


def licence(value: object) -> str:
    """Return ``value`` if it is an expression of SPDX, such as ``CC-BY-4.0``, else raise InvalidInput."""
    if not isinstance(value, str) or len(value) > _LICENCE_LIMIT or not _is_expression(value):
        raise InvalidInput(
            f"licence: {names.printable(repr(value))[:80]} is no expression of SPDX.",
            "Use one of https://spdx.org/licenses, such as CC-BY-4.0, or LicenseRef-NAME for another.",
        )
    return value


def _is_expression(text: str) -> bool:
    depth, wanted = 0, True  # whether a licence is wanted next, or what joins two
    for part in re.findall(r"[()]|[^\s()]+", text):
        if part == "(" and wanted:
            depth += 1
        elif part == ")" and not wanted and depth:
            depth -= 1
        elif part in ("AND", "OR", "WITH") and not wanted:
            wanted = True
        elif wanted and part not in ("AND", "OR", "WITH") and _LICENCE.fullmatch(part):
            wanted = False
        else:
            return False
    return depth == 0 and not wanted and text == text.strip() and text.isprintable()


# ---- the record ------------------------------------------------------------------------------------------


def render(dataset: Dataset) -> bytes:
    """Return the text of a record; ``parse`` of it gives an equal dataset."""
    record = {"format": FORMAT, **asdict(dataset)}
    return (json.dumps(record, indent=1, sort_keys=True) + "\n").encode("ascii")


def parse(text: bytes) -> Dataset:
    """Return the dataset of a record; raise HostError if it is none."""
    try:
        given = json.loads(text)
        if not isinstance(given, dict) or given.pop("format", None) != FORMAT:
            raise InvalidInput("it is not of this format.")
        if set(given) != {field.name for field in fields(Dataset)}:
            raise InvalidInput("it has other keys.")
        return Dataset(
            name=names.share_name(given["name"], "name"),
            version=version(given["version"]),
            description=description(given["description"]),
            source=source(given["source"]),
            licence=licence(given["licence"]),
            publisher=_publisher(given["publisher"]),
            published=_number(given["published"]),
            size=_number(given["size"]),
            files=_number(given["files"]),
            manifest=_digest(given["manifest"]),
            links=_links(given["links"]),
        )
    except (ValueError, RecursionError, InvalidInput) as error:
        said = error.message if isinstance(error, InvalidInput) else "it is no JSON."
        raise HostError(
            f"{RECORD} is damaged: {said}", "Retract this version and publish it again."
        ) from error


def _publisher(value: object) -> str:
    return "root" if value == "root" else names.user_name(value, "publisher")


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 62:
        raise InvalidInput("a number is wrong.")
    return value


def _digest(value: object) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise InvalidInput("the checksum of the manifest is wrong.")
    return value


def _links(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list) or len(value) > _LINKS_LIMIT:
        raise InvalidInput("its links are wrong.")
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise InvalidInput("its links are wrong.")
    return tuple((pair[0], pair[1]) for pair in value)


# ---- the manifest ----------------------------------------------------------------------------------------


def manifest(digests: Mapping[str, str]) -> bytes:
    """Return the manifest of files, path to SHA-256, as ``sha256sum -c`` reads it."""
    lines = []
    for path in sorted(digests, key=os.fsencode):
        escaped = "".join(_ESCAPES.get(character, character) for character in path)
        lines.append(f"{'' if escaped == path else chr(92)}{digests[path]}  {escaped}\n")
    return b"".join(map(os.fsencode, lines))


def read_manifest(text: bytes) -> dict[str, str]:
    """Return path to SHA-256 of a manifest; raise HostError if it is none."""
    found = {}
    for line in os.fsdecode(text).split("\n")[:-1]:
        match = _LINE.fullmatch(line)
        if match is None:
            raise HostError(f"{MANIFEST} is damaged.", "Retract this version and publish it again.")
        escaped, digest, path = match.groups()
        found[_unescaped(path) if escaped else path] = digest
    return found


def _unescaped(path: str) -> str:
    meant = {escape[1]: character for character, escape in _ESCAPES.items()}
    return re.sub(r"\\([\\nr])", lambda match: meant[match.group(1)], path)


# ---- links -----------------------------------------------------------------------------------------------


def astray(links: Mapping[str, str], there: Container[str]) -> Iterator[str]:
    """Yield each link, path to target, that does not lead to something in the tree.

    ``there`` holds the paths of its files and folders. A link may pass other links, and an absolute one never
    leads into the tree: the tree is elsewhere in the end.
    """
    return (path for path in sorted(links) if not _leads(path, links, there))


def _leads(path: str, links: Mapping[str, str], there: Container[str]) -> bool:
    here: list[str] = path.split("/")[:-1]
    left, hops = [path.split("/")[-1]], 0
    while left:
        part = left.pop()
        if part in ("", "."):
            continue
        if part == "..":
            if not here:
                return False
            here.pop()
            continue
        step = "/".join([*here, part])
        if step in links:
            hops += 1
            if hops > _HOPS or not links[step] or links[step].startswith("/"):
                return False
            left += reversed(links[step].split("/"))
        elif step in there:
            here.append(part)
        else:
            return False
    return True


def many_links(links: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return links as a record holds them; raise InvalidInput where there are too many."""
    if len(links) > _LINKS_LIMIT or sum(map(len, [*links, *links.values()])) > _LINKS_TEXT:
        raise InvalidInput(
            f"There are more than {_LINKS_LIMIT} symbolic links, or very long ones.",
            "Put the files themselves there, or an archive.",
        )
    return tuple((_as_utf8(path), _as_utf8(links[path])) for path in sorted(links))


def _as_utf8(path: str) -> str:
    # What is no UTF-8 gets the same surrogates in every locale.
    return os.fsencode(path).decode("utf-8", "surrogateescape")


# ---- the catalogue ---------------------------------------------------------------------------------------


def catalogue(share: str, found: Sequence[tuple[Dataset, bool]]) -> str:
    """Return the page of a share: its versions, by dataset and newest first; True marks that ``current`` is.

    ``share`` is the path of the share.
    """
    lines = [
        f"# Datasets in {_plain(share)}",
        "",
        "A version is the folder `NAME/VERSION` here, and `NAME/current` leads to the current one. The",
        "command `lab share verify` compares the files with their checksums, as `sha256sum -c`",
        "of MANIFEST.sha256 does. This page is written anew by `lab share`.",
    ]
    name = ""
    for dataset, current in found:
        if dataset.name != name:
            name = dataset.name
            lines += ["", f"## {_plain(name)}", ""]
            lines += [_plain(dataset.description), ""] if dataset.description else []
            lines += ["| version | published | by | files | size | licence | source |", "|" + "---|" * 7]
        day = time.strftime("%Y-%m-%d", time.gmtime(dataset.published))
        cells = [
            dataset.version + (" (current)" if current else ""),
            day,
            dataset.publisher,
            str(dataset.files),
            format_size(dataset.size),
            dataset.licence,
        ]
        # A URL in angle brackets is a link; none of ours holds what would end it.
        link = f"<{dataset.source}>" if dataset.source.startswith("http") else _plain(dataset.source)
        lines.append("| " + " | ".join([*map(_plain, cells), link]) + " |")
    if not found:
        lines += ["", "There are none yet."]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is, and that reads well unrendered."""
    escaped = "".join(f"\\{character}" if character in _MARKUP else character for character in text)
    # What begins a line may begin a list or a heading.
    return f"\\{escaped}" if escaped[:1] in ("-", "+", "=") else escaped
