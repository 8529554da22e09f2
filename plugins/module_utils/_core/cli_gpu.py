# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The commands ``gpu ...``: what there is, who waits, what is reserved, and why something cannot be had."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any

from . import cli_lab_gpus, names
from .calls import Call, Command, ask, told
from .errors import InvalidInput, Refused
from .notices import IDLE_WAITED
from .protocol import gpus
from .sizes import format_size
from .terminal import duration, table


def _is_admin() -> bool:
    """Say whether root asks: it is told of all, by name, and not by way of the broker."""
    return os.getuid() == 0


def _gpu_list(call: Call) -> int:
    if _is_admin():
        return cli_lab_gpus.show(call)
    call.user()
    data = ask("gpu-list")
    if call.json:
        call.answer(data)
        return 0
    rows = [_row(one) for one in data.get("devices") or []]
    if rows:
        for line in table(["GPU", "WHAT", "MEMORY", "STATE", "PROJECT", "UUID"], rows, call.out.width):
            call.out.line(line)
    if data.get("problem"):
        call.out.line(call.out.style(names.printable(str(data["problem"])), "warn"))
    for one in data.get("gone") or []:
        text = f"The GPU {one.get('uuid')} of {one.get('project')} is not there any more."
        call.out.line(call.out.style(names.printable(text), "warn"))
    call.out.line(f"You hold {data.get('held')} of {data.get('limit')} GPUs. {_waiting(data)}".strip())
    return 0


def _row(device: Mapping[str, Any]) -> list[str]:
    return [
        str(device.get("index")),
        str(device.get("profile") or device.get("name")),
        format_size(int(device.get("memory") or 0)),
        _state(device),
        ", ".join(str(one) for one in device.get("projects") or []),
        str(device.get("uuid")),
    ]


def _state(device: Mapping[str, Any]) -> str:
    """Return what a device is to who asks: free, theirs, in use by others, or why it is of no use."""
    if device.get("problem"):
        return str(device["problem"])
    if device.get("use"):
        idle = device.get("idle")
        still = f", idle for {duration(idle)}" if isinstance(idle, int) and idle >= IDLE_WAITED else ""
        return str(device["use"]) + (", shared" if device.get("shared") else "") + still
    return "broken" if device.get("gpu") else "in instances"


def _waiting(data: Mapping[str, Any]) -> str:
    number = int(data.get("waiting") or 0)
    return f"{number} wait: gpu queue." if number else ""


def _gpu_queue(call: Call) -> int:
    if _is_admin():
        return cli_lab_gpus.show_queue(call)
    call.user()
    data = ask("gpu-queue")
    if call.json:
        call.answer(data)
        return 0
    rows = []
    for one in data.get("waiting") or []:
        seconds = one.get("estimate")
        rows.append(
            [
                str(one.get("place")),
                str(one.get("project") if one.get("yours") else "(another's)"),
                str(one.get("gpus")),
                duration(float(one.get("waited") or 0)),
                "unknown" if seconds is None else f"about {duration(float(seconds))}",
            ]
        )
    if rows:
        for line in table(["PLACE", "PROJECT", "GPUS", "WAITED", "TO GO"], rows, call.out.width):
            call.out.line(line)
    else:
        call.out.line("Nobody waits for GPUs.")
    if rows and data.get("idle"):
        call.out.sentence(
            f"Of the GPUs that others hold, {data['idle']} have done nothing for an hour or more. "
            "Your admins see whose they are."
        )
    for one in data.get("interrupted") or []:
        call.out.sentence(
            names.printable(
                f"{one.get('project')} waited for {one.get('gpus')} when the server went down; it goes on "
                f"with that by itself. Give it up: gpu release {one.get('project')}"
            )
        )
    return 0


def _gpu_release(call: Call) -> int:
    call.user()
    name = call.options.name
    data = ask("gpu-release", name, *(["check=yes"] if call.options.dry_run else []))
    if call.json:
        call.answer({**data, **({"dry_run": True} if call.options.dry_run else {})})
    elif call.options.dry_run:
        call.out.line(f"The place of {name} in the queue for GPUs would be given up.")
    else:
        call.out.line(f"{name} does not wait for GPUs any more.")
    return 0


def _gpu_why(call: Call) -> int:
    if _is_admin():
        raise Refused("Root has no limits of its own.", "Ask for a user: lab gpus USER --gpus WHAT.")
    call.user()
    wanted = gpus(call.options.gpus)
    data = ask("gpu-why", f"gpus={wanted}")
    if call.json:
        call.answer(data)
    elif data.get("now"):
        given = ", ".join(str(one) for one in data.get("devices") or [])
        call.out.line(f"You can have that now: {names.printable(given)}")
        call.out.command(f"project launch NAME --gpus {wanted}")
    else:
        call.out.line(names.printable(str(data.get("why"))))
        if data.get("hint"):
            call.out.line(names.printable(str(data["hint"])))
    if not call.json:
        for note in told(data, "notes"):
            call.out.sentence(note, "  note: ")
    return 0


def _gpu_reserve(call: Call) -> int:
    call.user()
    options = call.options
    making = (options.gpus, getattr(options, "from"), getattr(options, "for"))
    if sum((options.list, options.cancel is not None, any(making))) > 1:
        raise InvalidInput("--list, --cancel and what is to be reserved do not go together.", _RESERVE_HOW)
    if options.cancel is not None:
        return _unreserve(call)
    if not any(making):
        return _reserved(call)
    if not all(making):
        raise InvalidInput("--gpus, --from and --for are needed, all three.", _RESERVE_HOW)
    what, start, length = making
    words = [f"gpus={gpus(what)}", f"from={start}", f"for={length}"]
    data = ask("gpu-reserve-check" if options.dry_run else "gpu-reserve", *words)
    if call.json:
        call.answer({**data, **({"dry_run": True} if options.dry_run else {})})
        return 0
    say_reserved(call, data, dry_run=options.dry_run)
    return 0


def say_reserved(call: Call, data: Mapping[str, Any], *, dry_run: bool) -> None:
    """Say what was reserved, or would be, and what comes of it."""
    done = f"reserved: number {data.get('number')}."
    which = "would be reserved. Nothing was changed." if dry_run else done
    call.out.line(names.printable(f"{data.get('gpus')} {which}"))
    call.out.line(f"  from:   {names.printable(str(data.get('from')))}")
    call.out.line(f"  until:  {names.printable(str(data.get('until')))}; what has its GPUs is stopped then")
    call.out.line(f"  lapses: if nothing of it is used for {data.get('grace_minutes')} minutes")


def _unreserve(call: Call) -> int:
    number, dry_run = call.options.cancel, call.options.dry_run
    data = ask("gpu-unreserve-check" if dry_run else "gpu-unreserve", f"number={number}")
    if call.json:
        call.answer({**data, **({"dry_run": True} if dry_run else {})})
    else:
        call.out.line(f"Reservation {number} {'would be' if dry_run else 'is'} given up.")
    return 0


def _reserved(call: Call) -> int:
    data = ask("gpu-reserved")
    if call.json:
        call.answer(data)
        return 0
    show_reserved(call, data.get("reservations") or [])
    if data.get("gpus"):
        call.out.line(
            f"You may reserve {data['gpus']} GPUs for {data.get('hours')} hours at most, "
            f"{data.get('ahead_days')} days ahead."
        )
    else:
        call.out.line("You may reserve none; your admins can do it for you.")
    return 0


def show_reserved(call: Call, reservations: Sequence[Mapping[str, Any]]) -> None:
    """Show reservations, the next one first."""
    rows = [
        [
            str(one.get("number") or "-"),
            str(one.get("user") or ("you" if one.get("yours") else "(another)")),
            str(one.get("gpus")),
            str(one.get("from")),
            str(one.get("until")),
            str(one.get("state")),
        ]
        for one in reservations
    ]
    for line in table(["NO", "WHO", "GPUS", "FROM", "UNTIL", "STATE"], rows, call.out.width) if rows else ():
        call.out.line(line)
    if not rows:
        call.out.line("No GPUs are reserved.")


def reserve_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what names a reservation that is to be made, shown or given up."""
    parser.add_argument("--gpus", metavar="WHAT", help="a number, a MIG profile, memory=SIZE, shared, a uuid")
    parser.add_argument(
        "--from", metavar="TIME", help="when, in the server's time zone: 2026-12-01T09:00, or now"
    )
    parser.add_argument("--for", metavar="LENGTH", help="for how long: 90min, 8h, 2d")
    parser.add_argument("--list", action="store_true", help="list what is reserved; so does no option at all")
    parser.add_argument("--cancel", metavar="NUMBER", type=_number, help="give this reservation up")


def _number(value: str) -> int:
    if not value.isascii() or not value.isdigit() or not 0 < int(value[:10]) < 10**9:
        raise argparse.ArgumentTypeError("use the number that --list shows")
    return int(value)


def _why_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gpus", metavar="WHAT", default="1", help="a number, a MIG profile, memory=SIZE, shared, a uuid (1)"
    )


_RESERVE_HOW = "Such as: gpu reserve --gpus 2 --from 2026-12-01T09:00 --for 8h"

COMMANDS: tuple[Command, ...] = (
    Command(
        ("gpu", "list"),
        "list the GPUs, and which are free",
        "List the GPUs of this server and their MIG instances: which are free, which are yours, and by what "
        "project, and which others use. A container keeps its GPUs until it is retired. Root is told all "
        "names, as by lab gpus.",
        "gpu list",
        _gpu_list,
        named=False,
    ),
    Command(
        ("gpu", "queue"),
        "list who waits for GPUs",
        "List your projects, and those of others, that wait for GPUs, the next one first: first come those "
        "whose group, then who themselves, had the least of the GPUs lately. How long it takes is reckoned "
        "from how long containers lately had their GPUs.",
        "gpu queue --json",
        _gpu_queue,
        named=False,
    ),
    Command(
        ("gpu", "reserve"),
        "reserve GPUs for a time, or list what is reserved",
        "Reserve GPUs for a time; list what is reserved; give a reservation up. In its time the GPUs are "
        "kept for you: launch with --gpus as ever. Who has them before is told hours ahead, and stopped when "
        "your time begins; so is what you have of them when it ends. Nothing in a container is lost by that. "
        "A reservation that is not used lapses.",
        "gpu reserve --gpus 2 --from 2026-12-01T09:00 --for 8h",
        _gpu_reserve,
        named=False,
        dry_run=True,
        arguments=reserve_arguments,
    ),
    Command(
        ("gpu", "release"),
        "give up a project's place in the queue",
        "Give up the place of a project that waits for GPUs: its launch ends. To give up the GPUs that a "
        "container has, retire it.",
        "gpu release my-thesis",
        _gpu_release,
        dry_run=True,
    ),
    Command(
        ("gpu", "why"),
        "say why you can or cannot have GPUs now",
        "Say whether a new container of yours could have these GPUs now, and if not, why: the rules, what "
        "you hold, what others hold, or who waits before you.",
        "gpu why --gpus 1g.10gb",
        _gpu_why,
        named=False,
        arguments=_why_arguments,
    ),
)
