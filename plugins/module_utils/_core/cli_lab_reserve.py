# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``lab reserve``, for the admins of a server: GPUs reserved for a user for a time. It runs as root."""

from __future__ import annotations

import argparse
import os
import time

from . import POLICY_PATH, journal
from .calls import Call, Command
from .cli_gpu import reserve_arguments, say_reserved, show_reserved
from .errors import InvalidInput, Refused
from .policy import Policy, load
from .protocol import gpus

_HOW = "Such as: lab reserve alice --gpus 2 --from 2026-12-01T09:00 --for 8h"


def _policy() -> Policy:
    if os.getuid() != 0:
        raise Refused(
            "This command is for the admins of the server.",
            "Admins call it by sudo, such as: sudo lab reserve. For your own: gpu reserve.",
        )
    # sudo(8) keeps TZ; times are those of the server.
    os.environ.pop("TZ", None)
    time.tzset()
    return load(POLICY_PATH)


def _reserve(call: Call) -> int:
    options = call.options
    making = (options.user, options.gpus, getattr(options, "from"), getattr(options, "for"))
    if sum((options.list, options.cancel is not None, any(making))) > 1:
        raise InvalidInput("--list, --cancel and what is to be reserved do not go together.", _HOW)
    policy = _policy()
    if options.cancel is not None:
        return _cancel(call, policy)
    if not any(making):
        return _list(call, policy)
    if not all(making):
        raise InvalidInput("USER, --gpus, --from and --for are needed, all four.", _HOW)
    return _make(call, policy)


def _make(call: Call, policy: Policy) -> int:
    from . import gpuleases, gpurequests, gpureservations, gpureserve
    from .verbs import connected

    options = call.options
    user, wanted = policy.user(options.user), gpurequests.parse(gpus(options.gpus))
    start = gpureservations.parse_start(getattr(options, "from"), time.time())
    length = gpureservations.parse_length(getattr(options, "for"))
    with connected() as engine:
        data = gpureserve.reserve(
            engine,
            policy,
            user,
            wanted,
            start,
            length,
            lambda: gpuleases.inventory(policy),
            admin=True,
            check=options.dry_run,
        )
    data["user"] = user.name
    if not options.dry_run:
        journal.record(
            uid=0, user="root", verb="reserve", owner=user.uid, number=data["number"], outcome="done"
        )
    if call.json:
        call.answer({**data, **({"dry_run": True} if options.dry_run else {})})
    else:
        say_reserved(call, data, dry_run=options.dry_run)
    return 0


def _cancel(call: Call, policy: Policy) -> int:
    from . import gpureserve
    from .verbs import connected

    number, dry_run = call.options.cancel, call.options.dry_run
    with connected() as engine:
        data = gpureserve.cancel(engine, policy, number, check=dry_run)
    if not dry_run:
        journal.record(uid=0, user="root", verb="unreserve", number=number, outcome="done")
    if call.json:
        call.answer({**data, **({"dry_run": True} if dry_run else {})})
    else:
        call.out.line(f"Reservation {number} {'would be' if dry_run else 'is'} given up.")
    return 0


def _list(call: Call, policy: Policy) -> int:
    from . import gpureserve

    found = gpureserve.listed(policy)
    if call.json:
        call.answer({"reservations": found})
    else:
        show_reserved(call, found)
    return 0


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("user", metavar="USER", nargs="?", default="", help="for whom")
    reserve_arguments(parser)


COMMANDS: tuple[Command, ...] = (
    Command(
        ("lab", "reserve"),
        "reserve GPUs for a user for a time",
        "For root. Reserve GPUs for a user, list what is reserved with whose it is, or give a reservation of "
        "anybody's up. The bounds of lab_gpu.reserve hold for users alone; what the user may have at once "
        "(limit gpus) holds here, too.",
        "lab reserve alice --gpus 2 --from 2026-12-01T09:00 --for 8h",
        _reserve,
        named=False,
        dry_run=True,
        arguments=_arguments,
    ),
)
