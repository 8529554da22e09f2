# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""People in CSV files, as a spreadsheet or the register of a university writes them.

``parse`` is a pure function of a file's bytes; ``read`` finds the files. What comes out are items of
``lab_users``, each with the place where it stands, and the policy judges them as it does all others.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Callable

from .errors import InvalidInput, together
from .names import printable

_BLANKS_OR_COMMAS = re.compile(r"[\s,;]+")
_DELIMITERS = ",;\t"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# A workbook is a ZIP archive, whatever its name says.
_WORKBOOK = b"PK\x03\x04"
# What Ansible would run as a template: a name out of somebody else's register must not.
_TEMPLATE = re.compile(r"\{[{%#]")
_LARGEST = 16 << 20
_LARGEST_KEYS = 64 << 10
_SAVE = "Save it as 'CSV UTF-8'."


@dataclass(frozen=True)
class Row:
    """One user of a file: ``where`` it stands, for messages, and the keys of an item of ``lab_users``."""

    where: str
    user: Mapping[str, object]


def _text(cell: str) -> object:
    return cell


def _whole(cell: str) -> object:
    # Anything else is left to the policy, which says what it wants.
    return int(cell) if cell.isascii() and cell.isdigit() else cell


def _number(cell: str) -> object:
    try:
        return float(cell)
    except ValueError:
        return cell


def _words(cell: str) -> object:
    return [word for word in _BLANKS_OR_COMMAS.split(cell) if word]


def _lines(cell: str) -> object:
    stripped = (line.strip() for line in cell.splitlines())
    return [line for line in stripped if line and not line.startswith("#")]


_KEY_FILE = "ssh_key_file"
#: The columns, and how a cell of each is read. A dot leads into a mapping.
COLUMNS: Mapping[str, Callable[[str], object]] = {
    "name": _text,
    "uid": _whole,
    "group": _text,
    "groups": _words,
    "comment": _text,
    "account": _text,
    "ssh_keys": _lines,
    _KEY_FILE: _text,
    **dict.fromkeys(
        (
            *("limits.containers", "limits.pids", "limits.gpus", "limits.layers_files"),
            *("limits.run_hours", "limits.idle_hours", "quota.inodes_soft", "quota.inodes_hard"),
        ),
        _whole,
    ),
    "limits.cpus": _number,
    **dict.fromkeys(
        (
            *("limits.memory", "limits.shm", "limits.layers_size", "limits.images_size"),
            *("limits.data_size", "quota.soft", "quota.hard"),
        ),
        _text,
    ),
}


def on_controller(path: str, folder: str = "") -> str:
    """Return where a file is that the inventory names; a relative path begins at its ``folder``."""
    return os.path.join(os.getcwd(), folder, os.path.expanduser(path))


def read(paths: object, folder: str) -> tuple[Row, ...]:
    """Return the users of all files; a relative path is one below ``folder``, the inventory's.

    Raises InvalidInput with a sentence for each mistake, which names file and line.
    """
    if isinstance(paths, (str, Mapping)) or not isinstance(paths or [], (list, tuple)):
        raise InvalidInput("lab_users_from: expected a list.", "Write it as a YAML list of paths.")
    rows: list[Row] = []
    mistakes: list[InvalidInput] = []
    for number, path in enumerate(paths or ()):  # type: ignore[arg-type, var-annotated]  # a list, see above
        if not isinstance(path, str) or not path:
            raise InvalidInput(f"lab_users_from[{number}]: expected a path.", "Name a CSV file.")
        place = on_controller(path, folder)
        try:
            rows += parse(_bytes(place, path, _LARGEST), path, _keys_beside(place))
        except InvalidInput as mistake:
            mistakes.append(mistake)
    if mistakes:
        raise together(mistakes)
    return tuple(rows)


def _bytes(place: str, shown: str, most: int) -> bytes:
    try:
        with open(place, "rb") as stream:
            data = stream.read(most + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InvalidInput(
            f"{printable(shown)} cannot be read: {why}.", "A relative path begins at the inventory's folder."
        ) from None
    if len(data) > most:
        raise InvalidInput(f"{printable(shown)} is larger than {most >> 10} KiB.", "Name the right file.")
    return data


def _keys_beside(place: str) -> Callable[[str], str]:
    """Return a function that reads a file of keys, which is in the folder of the CSV file or below it."""

    def keys(path: str) -> str:
        if path.startswith("/") or posixpath.normpath(path) != path or path.split("/")[0] == "..":
            raise InvalidInput(
                f"{printable(path)[:80]!r} is not below the folder of the CSV file.", "Put it there."
            )
        return _decoded(_bytes(os.path.join(os.path.dirname(place), path), path, _LARGEST_KEYS), path)

    return keys


def parse(data: bytes, shown: str, keys: Callable[[str], str]) -> list[Row]:
    """Return the users in a CSV file; ``shown`` is its name, and ``keys`` reads a file of ssh keys.

    Comma, semicolon or tab, with or without a byte order mark or a line ``sep=``; blanks around a cell and
    lines without anything in them do not count. Raises InvalidInput with a sentence for each mistake.
    """
    shown = printable(shown)
    delimiter, lines = _records(_decoded(data, shown), shown)
    header: list[str] | None = None
    rows: list[Row] = []
    mistakes: list[InvalidInput] = []
    for number, cells in lines:
        if not any(cells):
            continue
        where = f"{shown}:{number}"
        try:
            if header is None:
                header = _header(cells, where, delimiter)
            else:
                rows.append(_row(dict(_cells(header, cells, where)), where, keys))
        except InvalidInput as mistake:
            mistakes.append(mistake)
            if header is None:
                break
    if mistakes:
        raise together(mistakes)
    if header is None:
        raise InvalidInput(f"{shown} is empty.", f"Its first line names columns: {_known()}.")
    return rows


def _decoded(data: bytes, shown: str) -> str:
    if data.startswith(_UTF_16):
        raise InvalidInput(f"{printable(shown)} is UTF-16.", _SAVE)
    if data.startswith(_WORKBOOK):
        raise InvalidInput(f"{printable(shown)} is a workbook, not a CSV file.", _SAVE)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidInput(
            f"{printable(shown)}:{line}: a character is not UTF-8.",
            f"{_SAVE} Or run: iconv -f WINDOWS-1252 -t UTF-8",
        ) from None


def _records(text: str, shown: str) -> tuple[str, Iterator[tuple[int, list[str]]]]:
    """Return the delimiter, and (number of the first line, stripped cells) of each record."""
    stream = io.StringIO(text, newline="")
    skipped, first = 0, stream.readline()
    told = re.fullmatch(r'"?sep=([,;\t])"?\s*', first)
    if told:
        skipped, delimiter = 1, told.group(1)
    else:
        stream.seek(0)
        head = next((line for line in text.splitlines() if line.strip()), "")
        delimiter = max(_DELIMITERS, key=head.count)
    return delimiter, _lines_of(csv.reader(stream, delimiter=delimiter, strict=True), shown, skipped)


def _lines_of(reader: Iterator[list[str]], shown: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    while True:
        number = getattr(reader, "line_num", 0) + skipped + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            raise InvalidInput(
                f"{shown}:{number}: a quotation mark does not end, or is in the middle of a cell.",
                'Write a cell with quotation marks as "one ""quoted"" word".',
            ) from None
        yield number, [cell.strip() for cell in cells]


def _known() -> str:
    return ", ".join(COLUMNS)


def _header(cells: Sequence[str], where: str, delimiter: str) -> list[str]:
    names = [cell.casefold() for cell in cells]
    for cell, name in zip(cells, names):
        if name and name not in COLUMNS:
            raise InvalidInput(
                f"{where}: the column {printable(cell)[:40]!r} is not known.", f"Use: {_known()}."
            )
        if name and names.count(name) > 1:
            raise InvalidInput(f"{where}: the column {name!r} is there twice.", "Remove one.")
    for name in ("name", "group"):
        if name not in names:
            parted = {",": "commas", ";": "semicolons"}.get(delimiter, "tabs")
            raise InvalidInput(
                f"{where}: there is no column {name!r}.",
                f"The first line names the columns; they were taken as parted by {parted}.",
            )
    return names


def _cells(header: Sequence[str], cells: Sequence[str], where: str) -> Iterator[tuple[str, str]]:
    """Return (column, cell) of those that are not empty. Some programs leave empty ones at the end out."""
    for number, cell in enumerate(cells):
        name = header[number] if number < len(header) else ""
        if not cell:
            continue
        if not name:
            raise InvalidInput(
                f"{where}: {printable(cell)[:40]!r} is in a column without a name.",
                "A cell that holds the delimiter is written in quotation marks.",
            )
        if _TEMPLATE.search(cell):
            raise InvalidInput(
                f"{where}.{name}: {printable(cell)[:40]!r} looks like a template.", "Use plain text."
            )
        yield name, cell


def _row(cells: Mapping[str, str], where: str, keys: Callable[[str], str]) -> Row:
    user: dict[str, object] = {}
    nested: dict[str, dict[str, object]] = {}
    for name, cell in cells.items():
        outer, dot, inner = name.partition(".")
        if dot:
            nested.setdefault(outer, {})[inner] = COLUMNS[name](cell)
        elif name != _KEY_FILE:
            user[name] = COLUMNS[name](cell)
    if "name" in cells:
        where += f" ({printable(cells['name'])[:32]})"
    if _KEY_FILE in cells:
        try:
            found = _lines(keys(cells[_KEY_FILE]))
        except InvalidInput as error:
            raise InvalidInput(f"{where}.{_KEY_FILE}: {error.message}", error.hint) from None
        own = user.get("ssh_keys", [])
        user["ssh_keys"] = [*own, *found]  # type: ignore[misc]  # both are lists, see _lines
    return Row(where, {**user, **nested})
