# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The lab users' programs, ``project``, ``container``, ``image``, ``workspace``: how they are called."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

from . import (
    cli_backup,
    cli_container,
    cli_dataset,
    cli_doctor,
    cli_gpu,
    cli_image,
    cli_inside,
    cli_keeping,
    cli_lab,
    cli_lab_gpus,
    cli_lab_reserve,
    cli_project,
    cli_share,
    cli_status,
    cli_storage,
    cli_why,
    cli_workspace,
    names,
)
from .calls import Call, Command, name_argument
from .errors import HostError, InvalidInput, LabError
from .protocol import EXIT_CODES, INTERRUPTED, kind_of
from .terminal import Terminal

#: What an exit code means.
CODES = {
    0: "done, or nothing was to do",
    1: "it failed, and the message says why; or you answered no",
    2: "the command line is wrong, or it asks and no terminal is there",
    3: "the rules of this server do not allow it",
    4: "there is no such project, container, image or path",
    INTERRUPTED: "you stopped watching with Ctrl-C",
}
# Of a command that runs one of the user's own; the others keep their meaning where that was not run.
_PASSED_ON = {"N": "the command was run, and ended with N"}

COMMANDS: tuple[Command, ...] = (
    *cli_project.COMMANDS,
    *cli_status.COMMANDS,
    *cli_keeping.COMMANDS,
    *cli_doctor.COMMANDS,
    *cli_container.COMMANDS,
    *cli_inside.COMMANDS,
    *cli_why.COMMANDS,
    *cli_image.COMMANDS,
    *cli_workspace.COMMANDS,
    *cli_storage.COMMANDS,
    *cli_share.COMMANDS,
    *cli_lab.COMMANDS,
    *cli_lab_gpus.COMMANDS,
    *cli_lab_reserve.COMMANDS,
    *cli_backup.COMMANDS,
    *cli_dataset.COMMANDS,
    *cli_gpu.COMMANDS,
)

#: What each group is for; one of two words is among the commands of the other.
GROUPS = {
    "project": "Your projects: folders of ~/workspace, each with a container of its own.",
    "container": "Your containers: one for each project that was launched.",
    "image": "The images of your projects: what their containers are made of.",
    "workspace": "Your workspace: what is kept, and how much room it has.",
    "lab": "The server, for its admins: called as root; lab share is for everybody.",
    "lab share": "The published datasets: to look up, and for data managers to publish.",
    "gpu": "The GPUs of this server: who has them, and who waits.",
}


class _Parser(argparse.ArgumentParser):
    """argparse with one sentence, the rule, and where to read on, instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        message = message.replace("argument NAME: NAME:", "NAME:")
        err = Terminal(sys.stderr, os.environ, lossy=True)
        err.sentence(f"{self.prog}: {names.printable(message)}")
        err.sentence(f"Try '{self.prog} --help'.")
        raise SystemExit(2)


def programs() -> list[str]:
    """Return the names of all programs: each group, and each command written with a hyphen."""
    return sorted({*map(_hyphened, GROUPS), *("-".join(command.words) for command in COMMANDS)})


def _hyphened(group: str) -> str:
    return group.replace(" ", "-")


def members(group: str) -> list[Command | str]:
    """Return the commands of a group, in their order, and the names of the groups in it."""
    size = len(group.split())
    found: list[Command | str] = []
    for command in COMMANDS:
        if " ".join(command.words[:size]) != group:
            continue
        inner = " ".join(command.words[: size + 1])
        if len(command.words) == size + 1:
            found.append(command)
        elif inner not in found:
            found.append(inner)
    return found


def _fill(parser: argparse.ArgumentParser, command: Command) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    codes = "".join(f"  {code}  {meaning}\n" for code, meaning in exit_codes(command.trailing).items())
    parser.epilog = f"example:\n  {_on_lines(command.example)}\n\nexit codes:\n{codes}"
    if command.named:
        parser.add_argument(
            "name", metavar="NAME", type=name_argument, help="name of the project: a-z, 0-9 and '-'"
        )
    if command.arguments:
        command.arguments(parser)
    if command.dry_run:
        parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    if command.asks:
        parser.add_argument("--yes", action="store_true", help="do it without asking")
    if command.json:
        parser.add_argument("--json", action="store_true", help="answer with one JSON object")
    parser.set_defaults(run=command.run, prog=parser.prog, **({} if command.json else {"json": False}))
    if command.trailing:
        # argparse knows nothing of it; all the other words are as it would tell them.
        known = parser.format_usage().partition(":")[2].split()
        parser.usage = " ".join([*known, command.trailing])


def exit_codes(trailing: str) -> dict[str, str]:
    """Return what each exit code means, of a command with that ``trailing``."""
    return {**{str(code): meaning for code, meaning in CODES.items()}, **(_PASSED_ON if trailing else {})}


def _on_lines(example: str) -> str:
    """Return a command line as a shell takes it, on several lines where it is long."""
    import textwrap

    parts = textwrap.wrap(example, 74, break_long_words=False, break_on_hyphens=False)
    return " \\\n    ".join(parts)


def _wrapped(text: str) -> str:
    import textwrap

    return textwrap.fill(text, 76)


def build_parser(program: str) -> argparse.ArgumentParser:
    """Return the parser of one of ``programs()``; raise InvalidInput for another."""
    for command in COMMANDS:
        if "-".join(command.words) == program:
            parser = _Parser(prog=program, description=_wrapped(command.description), allow_abbrev=False)
            _fill(parser, command)
            return parser
    for group, about in GROUPS.items():
        if _hyphened(group) == program:
            parser = _Parser(prog=program, description=about, allow_abbrev=False)
            _fill_group(parser, group)
            return parser
    raise InvalidInput(f"{names.printable(program)} is not a command of lab.server.")


def _fill_group(parser: argparse.ArgumentParser, group: str) -> None:
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    for one in members(group):
        if isinstance(one, str):
            about = GROUPS[one]
            inner = verbs.add_parser(
                one.split()[-1],
                help=about[:1].lower() + about[1:].rstrip("."),
                description=about,
                allow_abbrev=False,
            )
            _fill_group(inner, one)
            continue
        _fill(
            verbs.add_parser(
                one.words[-1], help=one.summary, description=_wrapped(one.description), allow_abbrev=False
            ),
            one,
        )


def _parse(program: str, words: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line, with what follows its ``--`` where that is a command."""
    trailing = ["-".join(command.words) for command in COMMANDS if command.trailing]
    cut = len(words)
    if "--" in words and (program in trailing or "-".join([program, *words[:1]]) in trailing):
        cut = list(words).index("--")
    options = build_parser(program).parse_args(words[:cut])
    options.trailing = list(words[cut + 1 :])
    return options


def _failed(call: Call, error: LabError) -> int:
    kind = kind_of(error)
    if call.json:
        with suppress(OSError):
            call.answer({"error": {"kind": kind, "message": error.message, "hint": error.hint}})
            return EXIT_CODES[kind]
    call.err.sentence(f"{call.options.prog}: {names.printable(error.message)}", colour="bad")
    if error.hint:
        call.err.sentence(names.printable(error.hint))
    return EXIT_CODES[kind]


def _reopen() -> None:
    """Give the standard streams that the caller closed a place to go: Python leaves them None."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # Opened in the order of the descriptors, so that each takes its own number (open(2)).
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # open until we end


def _let_go() -> None:
    """Write what is left to be written; what cannot be must not fail once more when Python ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that ``argv`` names (program first) and return its exit code."""
    _reopen()
    try:
        return _run(list(sys.argv if argv is None else argv))
    finally:
        _let_go()


def _on_watching(call: Call) -> str:
    """Say what goes on after Ctrl-C, and which command knows of it."""
    name = getattr(call.options, "name", None)
    of_project = name and call.options.prog.replace("-", " ").split()[0] in ("project", "container", "image")
    status, build = (f"project status {name}", f"image log {name} --follow") if of_project else ("", "")
    said = (
        f"You stopped watching. What was begun goes on; see how it stands with '{status or 'project list'}'"
    )
    return f"{said}, and watch a build again with '{build}'." if build else f"{said}."


def _run(words: Sequence[str]) -> int:
    program = os.path.basename(words[0])
    call = Call(
        argparse.Namespace(json=False, prog=program),
        Terminal(sys.stdout, os.environ),
        Terminal(sys.stderr, os.environ, lossy=True),
    )
    try:
        call.options = _parse(program, words[1:])
        run: Callable[[Call], int] = call.options.run
        return run(call)
    except LabError as error:
        return _failed(call, error)
    except KeyboardInterrupt:
        call.err.clear()
        call.err.sentence(_on_watching(call))
        return INTERRUPTED
    except BrokenPipeError:
        return EXIT_CODES["failed"]  # whoever read us has gone
    except OSError as error:
        from .asuser import explain

        return _failed(call, HostError(explain(error)))
