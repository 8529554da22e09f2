# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What each program takes, read off its parser: completion and manual are made of it, and cannot differ."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from . import cli
from .calls import Command


@dataclass(frozen=True)
class Option:
    """An option: its spellings, the name of the value that it takes ("" for none), and what it may be."""

    spellings: tuple[str, ...]
    value: str
    choices: tuple[str, ...]
    help: str


@dataclass(frozen=True)
class Argument:
    """A word that is no option, and how often it is there; ``most`` is 0 for any number."""

    name: str
    least: int
    most: int
    help: str


@dataclass(frozen=True)
class Interface:
    """A program, or one command of a group: ``words`` is how it is called, ``trailing`` what ends that."""

    words: tuple[str, ...]
    summary: str
    description: str
    example: str
    options: tuple[Option, ...]
    arguments: tuple[Argument, ...]
    commands: tuple[Interface, ...] = ()
    trailing: str = ""

    @property
    def page(self) -> str:
        """The name of its page of the manual, and of the program that is the same."""
        return "-".join(self.words)


def programs() -> list[Interface]:
    """Return all programs, by name: groups with their commands, and each command as a program of its own."""
    found = []
    for name in cli.programs():
        command = next((one for one in cli.COMMANDS if "-".join(one.words) == name), None)
        if command:
            found.append(_of_command(command, (name,)))
            continue
        group = next(one for one in cli.GROUPS if one.replace(" ", "-") == name)
        found.append(_of_group(group, (name,)))
    return found


def _of_group(group: str, words: tuple[str, ...]) -> Interface:
    parser = cli.build_parser(group.replace(" ", "-"))
    description = (parser.description or "").rstrip(".")
    inner = tuple(
        _of_group(one, tuple(one.split())) if isinstance(one, str) else _of_command(one, one.words)
        for one in cli.members(group)
    )
    return Interface(
        words=words,
        summary=description[:1].lower() + description[1:],
        description=description + ".",
        example=inner[0].example,
        options=_options(parser),
        arguments=(),
        commands=inner,
    )


def _of_command(command: Command, words: tuple[str, ...]) -> Interface:
    parser = cli.build_parser("-".join(command.words))
    return Interface(
        words=words,
        summary=command.summary,
        description=command.description,
        example=command.example,
        options=_options(parser),
        arguments=_arguments(parser),
        trailing=command.trailing,
    )


def _actions(parser: argparse.ArgumentParser) -> Sequence[argparse.Action]:
    # Python has no public way to ask a parser what it takes.
    return parser._actions


def _shown(action: argparse.Action) -> str:
    return action.metavar if isinstance(action.metavar, str) else action.dest.upper()


def _options(parser: argparse.ArgumentParser) -> tuple[Option, ...]:
    return tuple(
        Option(
            tuple(action.option_strings),
            "" if action.nargs == 0 else _shown(action),
            tuple(str(choice) for choice in action.choices or ()),
            _help(action),
        )
        for action in _actions(parser)
        if action.option_strings
    )


def _arguments(parser: argparse.ArgumentParser) -> tuple[Argument, ...]:
    found = []
    for action in _actions(parser):
        if not action.option_strings:
            least = 0 if action.nargs in ("*", "?", argparse.REMAINDER) else 1
            most = 0 if action.nargs in ("*", "+", argparse.REMAINDER) else 1
            found.append(Argument(_shown(action), least, most, _help(action)))
    return tuple(found)


def _help(action: argparse.Action) -> str:
    text = "show this help" if action.dest == "help" else action.help or ""
    return text % {"default": action.default} if "%(" in text else text.replace("%%", "%")
