# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The commands ``container ...``: list, stop, retire, bring back."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from . import names
from .calls import Call, Command, age, ask, remark_on, state, told
from .consent import agreed
from .sizes import format_size
from .terminal import fit, moment, table

_STOP_LOSES = "What runs in it would end; its files would stay."
_RETIRE_LOSES = "Your workspace would stay as it is."


def _container_list(call: Call) -> int:
    call.user()
    data = ask("container-list")
    if call.json:
        call.answer(data)
        return 0
    rows = [
        [str(one.get("container")), state(one), age(one), remark_on(one)]
        for one in data.get("containers", [])
    ]
    if not rows:
        call.out.line("You have no containers. Start one: project launch NAME")
        return 0
    for line in table(["CONTAINER", "STATE", "AGE", "REMARK"], rows, call.out.width):
        call.out.line(line)
    return 0


def _container_start(call: Call) -> int:
    call.user()
    name, dry_run = call.options.name, call.options.dry_run
    facts = ask("container-start-check" if dry_run else "container-start", name)
    if call.json:
        call.answer({**facts, "dry_run": True} if dry_run else facts)
    elif dry_run:
        would = "would be started" if facts.get("changed") else "runs already"
        call.out.line(f"The container of {name} {would}. Nothing was changed.")
        _say_gpus(call, facts)
    elif facts.get("changed"):
        call.out.line(f"The container of {name} runs again. Enter it: container attach {name}")
        _say_gpus(call, facts)
    else:
        call.out.line(f"The container of {name} was running already.")
    return 0


def _say_gpus(call: Call, facts: Mapping[str, Any]) -> None:
    """Say which GPUs a container has again, or would have."""
    if told(facts, "gpus"):
        call.out.sentence(", ".join(told(facts, "gpus")), "  gpus:      ")


def _container_stop(call: Call) -> int:
    call.user()
    name, dry_run = call.options.name, call.options.dry_run
    facts = ask("container-stop-check" if dry_run else "container-stop", name)
    if call.json:
        call.answer({**facts, "dry_run": True} if dry_run else facts)
    elif dry_run and facts.get("changed"):
        call.out.line(f"The container of {name} would be stopped. {_STOP_LOSES}")
    elif facts.get("changed"):
        call.out.line(f"The container of {name} is stopped; its files stay.")
        call.out.line(f"Start it again: container start {name}")
    else:
        call.out.line(f"The container of {name} was stopped already.")
    return 0


def _container_retire(call: Call) -> int:
    call.user()
    name = call.options.name
    if call.options.dry_run:
        return _retire_previewed(call)
    facts = ask("container-retire", name, *([] if call.options.yes else ["ask=yes"]))
    if facts.get("asks"):
        if not call.json:
            call.out.line(f"In the container of {name} there is what would be gone for good.")
            _say_lost(call, facts)
            call.out.sentence("It could not be brought back" + _because(facts), "  ")
        if not agreed(call, "Retire it?"):
            call.out.line("Nothing was retired.")
            return 1
        facts = ask("container-retire", name)
    if call.json:
        call.answer(facts)
    elif facts.get("changed"):
        call.out.line(f"The container of {name} is retired.")
        call.out.line(f"Your workspace is untouched: ~/workspace/{name}")
        _say_lost(call, facts)
        if not _say_until(call, facts):
            call.out.sentence("It is gone for good" + _because(facts), "  ")
        call.out.line(f"Start a new one: project launch {name}")
    else:
        call.out.line(f"There is no container of {name}; nothing to do. Your workspace is untouched.")
    return 0


def _retire_previewed(call: Call) -> int:
    """Say what a retire would lose, and whether it could be undone."""
    name = call.options.name
    facts = ask("container-retire-check", name)
    if call.json:
        call.answer({**facts, "dry_run": True})
        return 0
    if not facts.get("changed"):
        call.out.line(f"There is no container of {name}; nothing to do.")
        return 0
    call.out.line(f"The container of {name} would be retired. {_RETIRE_LOSES}")
    say_would_lose(call, facts)
    return 0


def say_would_lose(call: Call, facts: Mapping[str, Any]) -> None:
    """Say what a retire would lose, and until when it could be undone."""
    if "lost" in facts:
        _say_lost(call, facts)
        if not _say_until(call, facts):
            call.out.sentence("It could not be brought back" + _because(facts), "  ")


def _because(facts: Mapping[str, Any]) -> str:
    why = names.printable(str(facts.get("not_kept") or ""))
    return f": {why}." if why else "."


def _say_lost(call: Call, facts: Mapping[str, Any], key: str = "lost") -> None:
    """Say what is in the container and not in the workspace, by the name of those facts."""
    lost, word = facts.get(key), key
    if not isinstance(lost, dict):
        return
    more = "" if lost.get("complete") else "at least "
    files, size = lost.get("files", 0), lost.get("bytes", 0)
    for path in told(lost, "volumes"):
        call.out.line(fit(f"  {word}: all in {path}", call.out.width))
    if not files and not more:
        call.out.line(f"  {word}: nothing; no file in it differs from its image")
        return
    call.out.line(f"  {word}: {more}{files} file{'' if files == 1 else 's'}, {format_size(int(size))}")
    for label, key, least in (("packages", "packages", 8), ("such as", "paths", 3)):
        shown = told(lost, key)
        rest = len(shown) - least
        if shown:
            line = ", ".join(shown[:least]) + (f" and {rest} more" if rest > 0 and key == "packages" else "")
            call.out.line(fit(f"  {label}: {line}", call.out.width))


def _say_until(call: Call, facts: Mapping[str, Any]) -> bool:
    """Say until when a retire can be undone, if it can; say whether it can."""
    until = facts.get("undo_until")
    if not isinstance(until, int):
        return False
    call.out.line(f"  until {moment(until)} you can have it back: container undo {call.options.name}")
    return True


def _container_undo(call: Call) -> int:
    call.user()
    name, dry_run, back = call.options.name, call.options.dry_run, call.options.back
    verb = "container-undo-check" if dry_run else "container-undo"
    facts = ask(verb, name, *([f"back={back}"] if back > 1 else []))
    if call.json:
        call.answer({**facts, "dry_run": dry_run})
    elif dry_run and facts.get("changed"):
        call.out.line(f"The container of {name} would be brought back and started. Nothing was changed.")
        _say_gpus(call, facts)
        _say_lost(call, facts, "holds")
    elif facts.get("changed"):
        call.out.line(f"The container of {name} is back and runs. Enter it: project launch {name}")
        _say_gpus(call, facts)
    else:
        call.out.line(f"The container of {name} was brought back already.")
    return 0


def _container_extend(call: Call) -> int:
    call.user()
    name, dry_run, asked = call.options.name, call.options.dry_run, call.options.hours
    verb = "container-extend-check" if dry_run else "container-extend"
    facts = ask(verb, name, *([f"hours={asked}"] if asked else []))
    if call.json:
        call.answer({**facts, "dry_run": dry_run})
        return 0
    verdict = "would be put off" if dry_run else "is put off"
    call.out.line(f"The stop of {name} {verdict} by {facts.get('hours')} hours.")
    if isinstance(facts.get("at"), int):
        call.out.line(
            f"  it would run until {moment(facts['at'])} at least"
            if dry_run
            else f"  it runs until {moment(facts['at'])} at least"
        )
    call.out.line(f"  you can do so {facts.get('left')} more times before it is stopped")
    return 0


def _undo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--back",
        type=int,
        choices=range(1, 11),
        default=1,
        metavar="N",
        help="which one: 1, the default, was retired or replaced last, 2 before that, and so on",
    )


def _extend_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hours", type=_hours, metavar="N", help="for so many hours (as many as the server allows at once)"
    )


def _hours(value: str) -> int:
    if not value.isascii() or not value.isdigit() or not 1 <= int(value[:9]) <= 8760:
        raise argparse.ArgumentTypeError("use a number of hours, 1 to 8760")
    return int(value)


COMMANDS: tuple[Command, ...] = (
    Command(
        ("container", "list"),
        "list your containers",
        "List your containers, whether they run, and how old they are.",
        "container list",
        _container_list,
        named=False,
    ),
    Command(
        ("container", "start"),
        "start a stopped container again",
        "Start the project's container again as it is, without building anything. Where there is none: "
        "project launch NAME.",
        "container start my-thesis",
        _container_start,
        dry_run=True,
    ),
    Command(
        ("container", "stop"),
        "stop a container and keep its files",
        "Stop the project's container. Its files stay until it is retired. It stays stopped after a reboot.",
        "container stop my-thesis",
        _container_stop,
        dry_run=True,
    ),
    Command(
        ("container", "retire"),
        "give a container up; your workspace stays",
        "Give the project's container up, with all that is not in /workspace. Your workspace is untouched. "
        "For some days it can be brought back: container undo NAME. Where it could not, and something would "
        "be lost, you are asked first. With --dry-run, say what would be lost.",
        "container retire my-thesis --dry-run",
        _container_retire,
        dry_run=True,
        asks=True,
    ),
    Command(
        ("container", "undo"),
        "bring a retired container back",
        "Bring back the container of the project that was retired last, with all that was in it, and start "
        "it; one that IT's run replaced counts as retired. There must be no other container of the project "
        "meanwhile: retire that, and --back 2 brings back the one before it.",
        "container undo my-thesis",
        _container_undo,
        dry_run=True,
        arguments=_undo_arguments,
    ),
    Command(
        ("container", "extend"),
        "put off the stop of a container that has run its time",
        "Where the server limits for how long a container may run or do nothing, put its stop off. The "
        "greeting and container list tell when that is to be.",
        "container extend my-thesis --hours 12",
        _container_extend,
        dry_run=True,
        arguments=_extend_arguments,
    ),
)
