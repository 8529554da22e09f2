# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the commands of ``cli_storage`` do, in words for people; imported when one of them is run."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from . import names, objectkeys, transfer
from .calls import Call, stoppable
from .errors import HostError, InvalidInput, LabError, NotFound
from .objectrules import Endpoint
from .protocol import EXIT_CODES
from .rclone import SAME, Comparison, Listing, Rclone
from .sizes import format_size
from .terminal import Terminal, duration, fit, table
from .transfer import Local, Place, Plan

_SHOWN = 5
_stoppable = stoppable("Say the same again, and it goes on with what is not copied yet.")


class _Meter:
    """Shows how far a copy is, only on a line that updates itself."""

    def __init__(self, terminal: Terminal, files: int, size: int) -> None:
        self._terminal = terminal
        self._files, self._size = files, size
        self._started = time.monotonic()

    def __call__(self, stats: Mapping[str, Any]) -> None:
        if not self._terminal.updating:
            return
        elapsed = duration(time.monotonic() - self._started)
        done, files = int(stats.get("bytes") or 0), int(stats.get("transfers") or 0)
        speed = done / max(time.monotonic() - self._started, 0.1)
        self._terminal.status(
            f"[{elapsed}] {format_size(done)} of {format_size(self._size)}, {files} of {self._files} files, "
            f"{format_size(int(speed))}/s"
        )


def _tool(call: Call, endpoint: Endpoint) -> Rclone:
    """Return rclone with the caller's key for the endpoint; raise Refused where there is none."""
    user = call.user()
    path = objectkeys.path_of(user.name)
    objectkeys.check_held(endpoint, path)
    return Rclone(endpoint.name, path, user.home)


def _told_left_out(call: Call, paths: Sequence[str]) -> None:
    for path in paths[:_SHOWN]:
        call.err.line(fit(f"  left out, no plain file or name: {names.printable(path)}", call.err.width))
    if len(paths) > _SHOWN:
        call.err.line(f"  left out: {len(paths) - _SHOWN} more")


def _files(count: int) -> str:
    return f"{count} file{'' if count == 1 else 's'}"


def _looking(call: Call, what: str) -> None:
    if call.err.updating:
        call.err.status(f"looking what is in {what} ...")


def _unchecked(call: Call, compared: Comparison) -> None:
    if compared.unchecked and not call.json:
        call.out.line(
            f"The storage has no checksum of {_files(compared.unchecked)}: there the sizes were compared."
        )


# push


@_stoppable
def push(call: Call) -> int:
    """Copy files of the workspace to a bucket, and compare them."""
    policy, user = call.policy(), call.user()
    given = transfer.source(policy, user, call.options.path)
    place = transfer.place(policy, user, call.options.place, given.inside)
    tool = _tool(call, place.endpoint)
    if call.options.mirror and given.name:
        raise InvalidInput("--mirror is for folders, and this is one file.", "Leave it out.")
    listing, compared = _looked_at(call, tool, given, place)
    made = transfer.plan(listing, compared)
    if not made.new and not made.differing and not made.same:
        raise NotFound(f"{given.shown} has no files to push.", "Links and empty folders are not pushed.")
    extra = made.extra if call.options.mirror else ()
    if not call.json:
        _say_plan(call, made, f"{given.shown} to {place.root}", extra)
    if call.options.dry_run:
        return _pushed(call, given, place, made, extra)
    if extra:
        _agreed(call, len(extra))
    if made.copied:
        _sent(call, tool, given, place, made)
    if extra:
        tool.delete(place.root, extra)
    return _pushed(call, given, place, made, extra)


def _looked_at(call: Call, tool: Rclone, given: Local, place: Place) -> tuple[Listing, Comparison]:
    _looking(call, f"{given.shown} and {place.root}")
    try:
        if given.name:
            size = os.lstat(os.path.join(given.path, given.name)).st_size
            return Listing({given.name: size}), tool.compare(given.path, place.root, [given.name])
        return tool.listing(given.path), tool.compare(given.path, place.root)
    finally:
        call.err.clear()


def _say_plan(call: Call, made: Plan, way: str, extra: Sequence[str]) -> None:
    _told_left_out(call, made.left_out)
    parts = [f"{len(made.new)} new", f"{len(made.differing)} changed", f"{len(made.same)} there already"]
    call.out.line(f"{way}: {', '.join(parts)}; {format_size(made.size)} to copy.")
    for path in extra[:_SHOWN]:
        call.out.line(fit(f"  to be removed there: {names.printable(path)}", call.out.width))
    if len(extra) > _SHOWN:
        call.out.line(f"  to be removed there: {len(extra) - _SHOWN} more")


def _agreed(call: Call, count: int) -> None:
    """Ask before files are removed at the storage; raise LabError where the answer is no."""
    if call.options.yes:
        return
    if call.json or not sys.stdin.isatty():
        raise InvalidInput(
            f"{_files(count)} would be removed there, and nobody is here to answer.",
            "Say --yes to remove them unasked, or --dry-run to see which.",
        )
    call.err.line(f"Remove {_files(count)} there? [y/N]")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise LabError("Nothing was copied and nothing removed.", "Leave out --mirror to copy alone.")


def _sent(call: Call, tool: Rclone, given: Local, place: Place, made: Plan) -> None:
    """Copy, and look whether all arrived; raise LabError if not."""
    problem = tool.copy(given.path, place.root, made.copied, _Meter(call.err, len(made.copied), made.size))
    call.err.clear()
    if problem and len(made.copied) == 1:
        raise problem
    _looking(call, "what arrived")
    compared = tool.compare(given.path, place.root, [given.name] if given.name else None)
    call.err.clear()
    missing = [name for name in made.copied if compared.signs.get(name) != SAME]
    if missing:
        raise _incomplete(missing, len(made.copied), problem)
    _unchecked(call, compared)


def _incomplete(missing: Sequence[str], count: int, problem: LabError | None) -> LabError:
    """Return the error for files that did not arrive as they are."""
    first = f"{len(missing)} of {_files(count)} did not arrive, such as {names.printable(missing[0])}"
    if problem is None:
        return HostError(f"{first}: they changed meanwhile.", "Stop what writes to them, and say it again.")
    return type(problem)(f"{first}: {problem.message}", problem.hint)


def _pushed(call: Call, given: Local, place: Place, made: Plan, extra: Sequence[str]) -> int:
    changed = bool(made.copied or extra)
    if call.json:
        call.answer(
            {
                **transfer.facts(made),
                "changed": changed,
                "dry_run": call.options.dry_run,
                "from": given.shown,
                "to": place.root,
                "removed": list(extra),
            }
        )
    elif call.options.dry_run:
        call.out.line("Nothing was copied, as this only looks.")
    elif not changed:
        call.out.line("Nothing was to do.")
    else:
        gone = f" {_files(len(extra))} removed there." if extra else ""
        call.out.line(f"{_files(len(made.copied))} copied and compared.{gone}")
    return 0


# pull


@_stoppable
def pull(call: Call) -> int:
    """Copy files of a bucket into a folder of the workspace."""
    policy, user = call.policy(), call.user()
    place = transfer.place(policy, user, call.options.place)
    target = transfer.local(policy, user, call.options.path)
    tool = _tool(call, place.endpoint)
    _looking(call, place.root)
    only: list[str] | None = None
    if place.prefix and tool.is_file(place.root):
        only = [place.prefix.rpartition("/")[2]]
        place = place.holding
    listing = tool.listing(place.root) if only is None else _one(tool, place, only[0])
    call.err.clear()
    if not listing.files:
        raise NotFound(f"{place.root} has no files.", "Look at the name of the bucket and of the folder.")
    _looking(call, target.shown)
    compared = tool.compare(place.root, target.path, only)
    call.err.clear()
    made = transfer.plan(listing, compared, replace=call.options.overwrite)
    kept = [] if call.options.overwrite else list(made.differing)
    wanted = made.copied if call.options.overwrite else list(made.new)
    if not call.json:
        _say_plan(call, made, f"{place.root} to {target.shown}", ())
    if not call.options.dry_run and wanted:
        kept += _fetched(call, tool, (place, only), target, wanted, made.size)
    return _pulled(call, place, target, made, wanted, kept)


def _one(tool: Rclone, place: Place, name: str) -> Listing:
    found = tool.listing(Place(place.endpoint, place.bucket, f"{place.prefix}/{name}".lstrip("/")).root)
    return Listing({name: next(iter(found.files.values()), 0)})


def _fetched(
    call: Call,
    tool: Rclone,
    origin: tuple[Place, list[str] | None],
    target: Local,
    wanted: Sequence[str],
    size: int,
) -> list[str]:
    """Copy, compare and put in place; return what was kept as it is. Raises LabError.

    ``origin`` is a folder of the storage and, where one file of it was named, that.
    """
    place, only = origin
    policy, user = call.policy(), call.user()
    workspace = policy.workspace(user)
    with transfer.staged(workspace, place, target.path) as stage:
        transfer.check_room(policy, user, max(size - stage.size(), 0), len(wanted))
        problem = tool.copy(place.root, stage.path, wanted, _Meter(call.err, len(wanted), size))
        call.err.clear()
        _looking(call, "what arrived")
        compared = tool.compare(place.root, stage.path, only)
        # What an earlier pull left here and nobody wants now, and what did not arrive whole.
        left = [name for name in tool.listing(stage.path).files if compared.signs.get(name) != SAME]
        call.err.clear()
        if left:
            tool.delete(stage.path, left)
        missing = [name for name in wanted if compared.signs.get(name) != SAME]
        kept: list[str] = []
        if len(missing) < len(wanted):
            kept = transfer.settle(workspace, stage, target.path, replace=call.options.overwrite)
        if missing:
            raise _incomplete(missing, len(wanted), problem)
        # Those that were kept are at the storage still.
        transfer.put_away(stage)
    _unchecked(call, compared)
    return kept


def _pulled(
    call: Call, place: Place, target: Local, made: Plan, wanted: Sequence[str], kept: Sequence[str]
) -> int:
    if call.json:
        call.answer(
            {
                **transfer.facts(made),
                "changed": bool(wanted),
                "dry_run": call.options.dry_run,
                "from": place.root,
                "to": target.shown,
                "kept": list(kept),
            }
        )
    elif call.options.dry_run:
        call.out.line("Nothing was copied, as this only looks.")
    else:
        call.out.line(f"{_files(len(wanted))} copied and compared." if wanted else "Nothing was to do.")
    if kept and not call.json:
        for path in kept[:_SHOWN]:
            call.err.line(fit(f"  differs here, and stays: {names.printable(path)}", call.err.width))
        if len(kept) > _SHOWN:
            call.err.line(f"  differs here, and stays: {len(kept) - _SHOWN} more")
        call.err.line("Say --overwrite to replace them by those of the storage.")
    return EXIT_CODES["failed"] if kept and not call.options.dry_run else 0


# storage


def storage(call: Call) -> int:
    """Show the endpoints, whether the caller has a key, and the buckets."""
    policy, user = call.policy(), call.user()
    keys = objectkeys.held(objectkeys.path_of(user.name)) if policy.object_storage else frozenset()
    if call.json:
        call.answer(
            {
                "endpoints": [
                    {
                        "name": one.name,
                        "url": one.url,
                        "key": one.name in keys,
                        "buckets": list(one.buckets_of(user)),
                    }
                    for one in policy.object_storage
                ]
            }
        )
        return 0
    if not policy.object_storage:
        call.out.line("This server has no object storage.")
        return 0
    rows = [
        [
            one.name,
            "yes" if one.name in keys else "no",
            ", ".join(one.buckets_of(user)) or "as your key allows",
            one.url,
        ]
        for one in policy.object_storage
    ]
    for line in table(["NAME", "KEY", "BUCKETS", "ADDRESS"], rows, call.out.width):
        call.out.line(line)
    return 0
