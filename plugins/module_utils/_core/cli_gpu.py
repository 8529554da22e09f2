# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The commands ``gpu ...``: what there is, who waits, and why something cannot be had."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from . import names
from .calls import Call, Command, ask
from .protocol import gpus
from .sizes import format_size
from .terminal import duration, table


def _gpu_list(call: Call) -> int:
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
        return str(device["use"]) + (", shared" if device.get("shared") else "")
    return "broken" if device.get("gpu") else "in instances"


def _waiting(data: Mapping[str, Any]) -> str:
    number = int(data.get("waiting") or 0)
    return f"{number} wait: gpu queue." if number else ""


def _gpu_queue(call: Call) -> int:
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
    if not rows:
        call.out.line("Nobody waits for GPUs.")
        return 0
    for line in table(["PLACE", "PROJECT", "GPUS", "WAITED", "TO GO"], rows, call.out.width):
        call.out.line(line)
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
    call.user()
    wanted = gpus(call.options.gpus)
    data = ask("gpu-why", f"gpus={wanted}")
    if call.json:
        call.answer(data)
    elif data.get("now"):
        given = ", ".join(str(one) for one in data.get("devices") or [])
        call.out.line(f"You can have that now: {names.printable(given)}")
        call.out.line(f"  project launch NAME --gpus {wanted}")
    else:
        call.out.line(names.printable(str(data.get("why"))))
        if data.get("hint"):
            call.out.line(names.printable(str(data["hint"])))
    return 0


def _why_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gpus", metavar="WHAT", default="1", help="a number, a MIG profile, memory=SIZE, shared, a uuid (1)"
    )


COMMANDS: tuple[Command, ...] = (
    Command(
        ("gpu", "list"),
        "list the GPUs, and which are free",
        "List the GPUs of this server and their MIG instances: which are free, which are yours, and by what "
        "project, and which others use. A container keeps its GPUs until it is retired.",
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
