# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``lab gpus``, for the admins of a server: who has which GPU, what runs on it, who waits, and why."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from . import POLICY_PATH, names
from .calls import Call, Command
from .errors import InvalidInput, Refused
from .notices import IDLE_WAITED
from .policy import Policy, load
from .protocol import gpus
from .sizes import format_size
from .terminal import duration, table

_WHO = 3  # of those who hold a device, as many are named in its line


def _policy() -> Policy:
    """Return the whole policy of the server, for root; raise Refused for everybody else."""
    if os.getuid() != 0:
        raise Refused(
            "This command is for the admins of the server.",
            "Admins call it by sudo: sudo lab gpus. For your own: gpu list.",
        )
    return load(POLICY_PATH)


def _gpus(call: Call) -> int:
    if call.options.user:
        return _person(call)
    if call.options.gpus:
        raise InvalidInput("--gpus needs the name of a user.", "Write: lab gpus USER --gpus 2.")
    return show(call)


def show(call: Call) -> int:
    """Show all GPUs with those who hold and use them, and who waits."""
    from . import gpuview

    seen = gpuview.look(_policy())
    if call.json:
        call.answer(seen)
        return 0
    devices = seen["devices"]
    _table(call, ("GPU", "WHAT", "MEMORY", "LOAD", "STATE", "WHO"), [_row(one) for one in devices])
    processes = [_process(one, process) for one in devices for process in one["processes"]]
    _table(call, ("GPU", "PID", "USER", "PROJECT", "MEMORY", "COMMAND"), processes)
    bad, warn = gpuview.attention(seen)
    for text, colour in (*((text, "bad") for text in bad), *((text, "warn") for text in warn)):
        call.out.sentence(names.printable(text), colour=colour)
    if not seen["docker"]["answers"]:
        call.out.sentence(f"Who has them is not known: {names.printable(seen['docker']['problem'])}")
        return 0
    return show_queue(call, seen)


def show_queue(call: Call, seen: Mapping[str, Any] | None = None) -> int:
    """Show who waits for GPUs, next one first."""
    from . import gpuview

    found = gpuview.look(_policy()) if seen is None else seen
    if call.json:
        call.answer({"waiting": found["waiting"]})
        return 0
    rows = [
        (
            str(one["place"]),
            one["user"] or str(one["uid"]),
            one["project"],
            one["gpus"],
            duration(one["waited"]),
            "unknown" if one["estimate"] is None else f"about {duration(one['estimate'])}",
        )
        for one in found["waiting"]
    ]
    _table(call, ("PLACE", "USER", "PROJECT", "GPUS", "WAITED", "TO GO"), rows)
    if not rows:
        call.out.line("Nobody waits for GPUs.")
    return 0


def _table(call: Call, headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table; nothing where it has no rows."""
    for number, line in enumerate(table(headings, rows, call.out.width) if rows else ()):
        call.out.line(call.out.style(line, "strong") if number == 0 else line)


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    from . import gpuview

    holders = one["holders"]
    who = [f"{gpuview.owner(each)}, {_how(each)}" for each in holders[:_WHO]]
    more = [f"and {len(holders) - _WHO} more"] if len(holders) > _WHO else []
    return (
        one["index"],
        one["profile"] or one["name"],
        f"{format_size(one['used'])} of {format_size(one['memory'])}",
        "-" if one["load"] is None else f"{one['load']} %",
        _state(one),
        "; ".join(who + more),
    )


def _how(holder: Mapping[str, Any]) -> str:
    """Return since when somebody holds a device, how its container stands, and whether it does nothing."""
    held = duration(time.time() - holder["since"])
    # One that is stopped does nothing, which need not be said.
    idle = holder.get("idle") if holder["state"] == "running" else None
    still = f", idle for {duration(idle)}" if idle is not None and idle >= IDLE_WAITED else ""
    return f"{held}{still}" if holder["state"] == "running" else f"{holder['state']}, {held}"


def _state(one: Mapping[str, Any]) -> str:
    if one["out_of_service"]:
        return "out of service"
    if one["problem"]:
        return "ill"
    if one["holders"]:
        return "shared" if one["shared"] else "given"
    # Set aside by the lease of another part of the same GPU, or with nothing of it that could be given.
    return "free" if one["free"] else "not free"


def _process(one: Mapping[str, Any], process: Mapping[str, Any]) -> tuple[str, ...]:
    memory = process["memory"]
    return (
        one["index"],
        str(process["pid"]),
        process["user"] or ("?" if process["uid"] is None else str(process["uid"])),
        process["project"] or process["container"] or "(the host)",
        "?" if memory is None else format_size(memory),
        process["command"] or "?",
    )


def _person(call: Call) -> int:
    from . import gpuview

    policy = _policy()
    user = policy.user(call.options.user)
    one = gpuview.person(policy, user, gpus(call.options.gpus or "1"))
    if call.json:
        call.answer(one)
        return 0
    call.out.line(call.out.style(f"{one['user']} ({one['uid']}), {one['group']}", "strong"))
    limits = one["limits"]
    bounds = [f"{one['held']} of {limits['equivalents']} GPUs held"]
    for key, words in (("devices", "devices at once"), ("container", "in one container")):
        bounds += [] if limits[key] is None else [f"{limits[key]} {words}"]
    bounds += [] if limits["whole"] else ["no whole ones"]
    call.out.sentence(", ".join(bounds), "limits:   ")
    for held in one["holds"]:
        call.out.sentence(f"{held['project']}, {_how(held)}: {', '.join(held['uuids'])}", "holds:    ")
    for waits in one["waiting"]:
        call.out.sentence(
            f"{waits['project']}, place {waits['place']}: {waits['gpus']}, for {duration(waits['waited'])}",
            "waits:    ",
        )
    asked = f"{one['gpus']}: "
    call.out.sentence(
        asked + ("could be had now" if one["now"] else names.printable(one["why"])), "a launch: "
    )
    return 0


def fact(seen: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return the line of ``lab status``: how many are given and to whom; none where there are to be none."""
    from . import gpuview

    if seen is None:
        return []
    devices = seen["devices"]
    if not devices:
        return [("gpus", "none that answers")]
    if not seen["docker"]["answers"]:
        return [("gpus", f"{len(devices)}; who has them is not known")]
    given = sum(1 for one in devices if one["holders"])
    held: dict[str, list[str]] = {}
    for one in devices:
        for holder in one["holders"]:
            held.setdefault(gpuview.owner(holder), []).append(one["index"])
    who = "; ".join(f"{name}: {', '.join(indexes)}" for name, indexes in sorted(held.items()))
    queue = f", {len(seen['waiting'])} wait (lab gpus)" if seen["waiting"] else ""
    return [("gpus", f"{given} of {len(devices)} given{queue}" + (f"; {who}" if who else ""))]


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "user", metavar="USER", nargs="?", default="", help="what this user holds, and could have now"
    )
    parser.add_argument(
        "--gpus",
        metavar="WHAT",
        default="",
        help="what USER would ask for, as in project launch; 1 GPU if left out",
    )


COMMANDS: tuple[Command, ...] = (
    Command(
        ("lab", "gpus"),
        "show who has which GPU, what runs on it, and who waits",
        "For root. List the GPUs and MIG instances with load, health, the projects that hold them and for "
        "how long, the processes that compute on them, and who waits, next one first. With a name what that "
        "user holds, and whether a new container could have GPUs now or why not. --json tells uuids, too.",
        "lab gpus alice --gpus 2",
        _gpus,
        named=False,
        arguments=_arguments,
    ),
)
