# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The pages of the manual, made of the parsers: ``man project``, ``man project-launch`` (groff_man(7))."""

from __future__ import annotations

import posixpath

from . import VERSION, cli
from .interface import Argument, Interface, Option, programs

DIRECTORY = "/usr/local/share/man/man1"
# Characters that troff takes for its own, or shows as typographic ones that cannot be pasted (groff_char(7)).
_ESCAPES = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", '"': r"\(dq"}


def files(mark: str) -> dict[str, str]:
    """Return the text of each page by its path; ``mark`` is the sentence that says whose it is."""
    every = programs()
    return {posixpath.join(DIRECTORY, f"{one.page}.1"): page(one, every, mark) for one in every}


def page(one: Interface, every: list[Interface], mark: str) -> str:
    """Return the page of a program in troff's language."""
    lines = [
        rf".\" {mark}",
        f'.TH {_plain(one.page.upper())} 1 "" "lab.server {VERSION}" "Lab server"',
        # Words are not taken apart nor spaced out: people copy them.
        ".nh",
        ".ad l",
        ".SH NAME",
        rf"{_plain(one.page)} \- {_plain(one.summary)}",
        ".SH SYNOPSIS",
        *_synopsis(one),
        ".SH DESCRIPTION",
        _plain(one.description),
    ]
    if one.commands:
        lines.append(".SH COMMANDS")
        for command in one.commands:
            lines += [".TP", f".BR {_plain(command.page)} (1)", _plain(command.summary)]
    if one.arguments:
        lines.append(".SH ARGUMENTS")
        for argument in one.arguments:
            lines += [".TP", rf".I {_plain(argument.name)}", _plain(argument.help)]
    lines.append(".SH OPTIONS")
    for option in one.options:
        lines += [".TP", _of_option(option), _plain(option.help)]
    lines.append(".SH EXIT STATUS")
    for code, meaning in cli.exit_codes(one.trailing).items():
        lines += [".TP", f".B {code}", _plain(meaning)]
    lines += [".SH EXAMPLES", ".nf", _plain(one.example), ".fi", ".SH SEE ALSO", *_others(one, every)]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    shown = "".join(_ESCAPES.get(character, character) for character in text)
    return rf"\&{shown}" if shown.startswith(".") else shown


def _synopsis(one: Interface) -> list[str]:
    call = _plain(" ".join(one.words))
    if one.commands:
        return [f".B {call}", r"\fICOMMAND\fR [\fINAME\fR] [\fIOPTION\fR ...]"]
    parts = [f"[{_of_option(option, bare=True)}]" for option in one.options]
    parts += [_of_argument(argument) for argument in one.arguments]
    parts += [_plain(one.trailing)] if one.trailing else []
    return [f".B {call}", *parts]


def _of_option(option: Option, *, bare: bool = False) -> str:
    """Return an option with its value: as in the synopsis (``bare``) its long spelling alone."""
    spellings = option.spellings[-1:] if bare else option.spellings
    shown = ", ".join(rf"\fB{_plain(spelling)}\fR" for spelling in spellings)
    if option.choices:
        return shown + r" \fR{" + ",".join(_plain(choice) for choice in option.choices) + "}"
    return shown + (rf" \fI{_plain(option.value)}\fR" if option.value else "")


def _of_argument(argument: Argument) -> str:
    shown = rf"\fI{_plain(argument.name)}\fR" + (" ..." if argument.most == 0 else "")
    return f"[{shown}]" if argument.least == 0 else shown


def _others(one: Interface, every: list[Interface]) -> list[str]:
    """Return references to the pages of the same group, or of the other groups."""
    group = one.page.split("-")[0]
    kin = [other for other in every if other.page != one.page and other.page.split("-")[0] == group]
    kin = [] if one.commands else kin
    kin += [other for other in every if other.commands and other.page not in (group, one.page)]
    names = sorted({other.page for other in kin})
    return [f".BR {_plain(name)} (1){',' if name != names[-1] else ''}" for name in names]
