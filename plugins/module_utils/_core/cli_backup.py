# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``lab backup``, ``lab restore`` and ``lab drill``, for the admins of a server; they run as root."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, NoReturn

from . import POLICY_PATH, journal
from .calls import Call, Command
from .errors import InvalidInput, NotFound, Refused
from .policy import Policy, User, load
from .terminal import moment

if TYPE_CHECKING:
    from .backup import Record


def _policy() -> Policy:
    """Return the whole policy, for root; raise Refused for everybody else, and where there are no backups."""
    from . import backup

    if os.getuid() != 0:
        raise Refused(
            "This command is for the admins of the server.",
            "Admins call it by sudo, such as: sudo lab backup.",
        )
    policy = load(POLICY_PATH)
    backup.rules_of(policy)
    return policy


def _users(policy: Policy, name: str) -> tuple[User, ...]:
    """Return the lab user of that name, all of them without one; raise NotFound."""
    try:
        return (policy.user(name),) if name else policy.users
    except NotFound as error:
        raise NotFound(
            error.message,
            "Who left is not backed up any more. Older backups: lab backup NAME --list, and lab restore.",
        ) from error


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the work as an error does, so that nothing that was restored is left."""
    numbers = [
        number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN
    ]

    def end(number: int, _frame: object) -> NoReturn:
        for one in numbers:  # a second one would break off what cleans up
            signal.signal(one, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _backup(call: Call) -> int:
    from . import adminnotes, backup

    policy = _policy()
    if call.options.list:
        return _list(call, policy)
    if call.options.server:
        raise InvalidInput("--server is for --list: what is backed up is this server's.", "Leave it out.")
    users = _users(policy, call.options.user)
    if call.options.dry_run:
        return _would(call, policy, users)
    found = []
    for user in users if call.options.user else backup.in_turn(policy):
        with journal.acted("backup", user.name, owner=user.uid) as noted:
            try:
                one = backup.back_up(policy, user)
            except Refused as error:
                # Somebody else is at work on it; the others have their turn all the same.
                one = replace(backup.record(user.name), problem=str(error))
            noted.update(problem=one.problem, snapshot=one.snapshot[:8])
        found.append(asdict(one))
        if not call.json:
            call.out.line(f"{one.user}: {_told(one)}")
    adminnotes.refresh(policy)
    if call.json:
        call.answer({"users": found})
    return 1 if any(one["problem"] for one in found) else 0


def _told(one: Record) -> str:
    if one.problem:
        return f"failed: {one.problem}"
    unread = "; some files could not be read" if one.incomplete else ""
    large = f"; larger than the quota, so left out: {', '.join(one.left_out)}" if one.left_out else ""
    return f"snapshot {one.snapshot[:8]}{unread}{large}"


def _would(call: Call, policy: Policy, users: tuple[User, ...]) -> int:
    from . import backup

    plan = [{"user": user.name, "folders": list(backup.places(policy, user))} for user in users]
    if call.json:
        call.answer({"would": plan})
        return 0
    for one in plan:
        call.out.line(f"{one['user']}: would back up {', '.join(one['folders'])}")
    return 0


def _list(call: Call, policy: Policy) -> int:
    from . import backup

    name, server = call.options.user, call.options.server
    found: dict[str, list[dict[str, Any]]] = {}
    problems: dict[str, str] = {}
    for user in (backup.somebody(policy, name),) if name else policy.users:
        try:
            found[user.name] = backup.snapshots(policy, user, server)
        except NotFound as error:
            if name:
                raise
            found[user.name], problems[user.name] = [], error.message
    if call.json:
        call.answer({"snapshots": found})
        return 0
    for name, taken in found.items():
        for one in taken:
            call.out.line(f"{name}  {one['id']}  {one['time']}")
        if not taken:
            call.out.line(problems.get(name, f"{name} has no snapshots."))
    return 0


def _user_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "user", metavar="USER", nargs="?", default="", help="one user; all of them without it"
    )


def _backup_arguments(parser: argparse.ArgumentParser) -> None:
    _user_argument(parser)
    parser.add_argument(
        "--list", action="store_true", help="list the snapshots that there are, and make none"
    )
    _server_argument(parser)


def _server_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--server",
        metavar="SERVER",
        default="",
        help="what another server, or this one's former name, backed up",
    )


def _restore(call: Call) -> int:
    from . import backup

    policy, options = _policy(), call.options
    user = backup.somebody(policy, options.user)
    if options.path is None:
        return _restore_all(call, policy, user)
    if options.back or options.replace:
        raise InvalidInput("--back and --replace are for all files of a user.", "Leave PATH out.")
    if options.dry_run:
        wanted = backup.locate(policy, user, options.path)
        if call.json:
            call.answer({"would": wanted})
        else:
            call.out.line(f"Would restore {wanted} of snapshot {options.snapshot} into {options.to}.")
        return 0
    what = f"{options.path} of {user.name}, snapshot {options.snapshot}, to {options.to}"
    with journal.acted("restore", what, owner=user.uid, server=options.server), _ended_in_order():
        place = backup.restore(policy, user, options.path, options.to, options.snapshot, options.server)
    if call.json:
        call.answer({"restored": place})
    else:
        call.out.line(f"Restored to {place}, for root alone.")
    return 0


def _restore_all(call: Call, policy: Policy, user: User) -> int:
    """Restore all files of a user, and give them back where that is asked for."""
    from . import backup

    options = call.options
    if options.replace and not options.back:
        raise InvalidInput("--replace says how files are given back.", "Add --back.")
    there = options.back and os.path.lexists(options.to)
    if options.dry_run:
        return _would_restore_all(call, list(backup.places(policy, user)), user, there=there)
    what = f"all of {user.name}, snapshot {options.snapshot}, to {options.to}"
    what += ", and back" if options.back else ""
    given: list[str] = []
    left: list[str] = []
    with journal.acted("restore", what, owner=user.uid, server=options.server), _ended_in_order():
        found = []
        if not there:
            found = backup.restore_all(policy, user, options.to, options.snapshot, options.server)
        if options.back:
            given, left = backup.give_back(policy, user, options.to, replace=options.replace)
    if call.json:
        call.answer({"restored": options.to, "holds": found, "given_back": given, "left_out": left})
        return 0
    if found:
        call.out.sentence(f"Restored to {options.to}, for root alone: {', '.join(found)}.")
    if given:
        kept = "" if options.replace else " What was there stays as it was."
        call.out.sentence(f"Given back to {user.name}: {', '.join(given)}.{kept}")
    if left:
        call.out.sentence(
            f"Left out, as there is no such folder of {user.name}: {', '.join(left)}. A kept home is made by "
            "the first launch of its project; then give the same command again."
        )
    if given and not left:
        call.out.sentence(f"When {user.name} has looked at it, remove {options.to}.")
    return 0


def _would_restore_all(call: Call, places: list[str], user: User, *, there: bool) -> int:
    options = call.options
    if call.json:
        call.answer({"would": places, "back": options.back})
        return 0
    if not there:
        shown = ", ".join(places)
        call.out.sentence(f"Would restore {shown} of snapshot {options.snapshot} into {options.to}.")
    if options.back:
        call.out.sentence(f"Would give back to {user.name} what is in {options.to}.")
    return 0


def _restore_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("user", metavar="USER", help="whose; also somebody who left")
    parser.add_argument(
        "path",
        metavar="PATH",
        nargs="?",
        help="a path in the workspace, or an absolute one; all files of the user where it is left out",
    )
    parser.add_argument(
        "--to",
        metavar="FOLDER",
        required=True,
        help="a folder that is not there yet; with --back also one into which all was restored before",
    )
    parser.add_argument(
        "--back", action="store_true", help="give all files back to the user; what is there already stays"
    )
    parser.add_argument(
        "--replace", action="store_true", help="with --back: what is there already is replaced"
    )
    parser.add_argument(
        "--snapshot", metavar="ID", default="latest", help="as lab backup USER --list tells it; %(default)s"
    )
    _server_argument(parser)


def _drill(call: Call) -> int:
    from . import adminnotes, drill

    policy = _policy()
    found = []
    for user in _users(policy, call.options.user):
        with journal.acted("drill", user.name, owner=user.uid) as noted, _ended_in_order():
            one = drill.drill(policy, user)
            noted.update(problem=one.drill_problem, compared=one.compared)
        found.append(asdict(one))
        if not call.json:
            words = f"{one.compared} files are as they were, {one.changed} changed since"
            call.out.line(f"{one.user}: {f'failed: {one.drill_problem}' if one.drill_problem else words}")
    adminnotes.refresh(policy)
    if call.json:
        call.answer({"users": found})
    return 1 if any(one["drill_problem"] for one in found) else 0


def fact(seen: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return the line of ``lab status``, none where there are no backups."""
    if seen is None:
        return []
    done = [one["done"] for one in seen["users"] if one["done"]]
    drilled = sum(1 for one in seen["users"] if one["drilled"] and not one["drill_problem"])
    oldest = f", the oldest of {moment(min(done))}" if done else ""
    everybody = len(seen["users"])
    return [("backups", f"{len(done)} of {everybody} users{oldest}; restored in a drill: {drilled}")]


COMMANDS: tuple[Command, ...] = (
    Command(
        ("lab", "backup"),
        "back up the users' files",
        "For root. Make an encrypted snapshot of home and workspace of each user, or of one, and drop the "
        "snapshots that are not kept any more. A timer does it each day. It ends with 1 if one failed. With "
        "--list show the snapshots that there are, also those of somebody who left.",
        "lab backup alice",
        _backup,
        named=False,
        dry_run=True,
        arguments=_backup_arguments,
    ),
    Command(
        ("lab", "restore"),
        "restore files of a user from the backup",
        "For root. Restore a file or folder of a user, or without PATH all files, from a snapshot into a new "
        "folder that only root can enter. Nothing of the user's is touched, unless --back gives all of it "
        "back. The user may have left, and the server have had another name.",
        "lab restore alice thesis/data --to /root/restored",
        _restore,
        named=False,
        dry_run=True,
        arguments=_restore_arguments,
    ),
    Command(
        ("lab", "drill"),
        "prove that the backups can be restored",
        "For root. Restore some files of each user's newest snapshot, chosen anew each time, compare them "
        "byte by byte with those that did not change since, and remove them again. A timer does it each "
        "week. It ends with 1 if one failed.",
        "lab drill alice",
        _drill,
        named=False,
        arguments=_user_argument,
    ),
)
