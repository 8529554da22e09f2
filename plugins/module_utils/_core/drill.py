# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The restore drill: files of a user's newest snapshot are restored and compared with the user's own.

A backup that was never restored is a hope. The sample is drawn anew each time. The user's files are read by a
child that has become the user; what was restored is read by root, in a folder of root's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import posixpath
import random
import shutil
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from . import STATE_DIRECTORY, asuser, backup, locks, restic, safefs
from .backup import Record
from .errors import HostError, LabError
from .names import printable
from .policy import Policy, User

# Bytes of one file of the sample, and of all of it: it is restored to the system's disk.
_LARGEST = 64 << 20
_TOGETHER = 512 << 20
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Node:
    """A regular file of a snapshot; the times are nanoseconds."""

    path: str
    size: int
    mtime: int
    ctime: int


@dataclass(frozen=True)
class Seen:
    """A file as it is now; ``digest`` is empty where it could not be read."""

    size: int
    mtime: int
    ctime: int
    digest: str


def nanoseconds(text: str) -> int:
    """Return a time as restic writes it (RFC 3339 with up to nine digits), in nanoseconds since 1970."""
    head, zone = text, ""
    for mark in ("Z", "+", "-"):
        at = text.find(mark, 19)
        if at > 0:
            head, zone = text[:at], text[at:].replace("Z", "+00:00")
            break
    whole, _dot, part = head.partition(".")
    seconds = int(datetime.fromisoformat(whole + zone).timestamp())
    return seconds * 1_000_000_000 + int(part.ljust(9, "0")[:9] or 0)


def node(line: str) -> Node | None:
    """Return the regular file of a line of ``restic ls --json`` that fits a sample; None for all else."""
    try:
        data = json.loads(line)
        if data.get("struct_type") != "node" or data.get("type") != "file":
            return None
        path, size = str(data["path"]), int(data.get("size", 0))
        # restic writes U+FFFD for bytes of a name that are no UTF-8; such a name cannot be asked for.
        if size > _LARGEST or "\ufffd" in path or not path.startswith("/"):
            return None
        return Node(path, size, nanoseconds(data["mtime"]), nanoseconds(data["ctime"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def sample(lines: Iterable[str], count: int, chance: random.Random) -> list[Node]:
    """Return at most ``count`` files, each as likely as every other, of a bounded size together."""
    chosen: list[Node] = []
    for met, one in enumerate(filter(None, map(node, lines)), start=1):
        if len(chosen) < count:
            chosen.append(one)
        else:
            at = chance.randrange(met)
            if at < count:
                chosen[at] = one
    room, kept = _TOGETHER, []
    for one in chosen:
        if one.size <= room:
            kept.append(one)
            room -= one.size
    return kept


def verdict(one: Node, now: Seen | None, restored: str) -> str:
    """Return 'same', 'changed' (since the snapshot, or not readable by its user), or what is wrong."""
    if not restored:
        return "could not be restored"
    if now is None or not now.digest or (now.size, now.mtime, now.ctime) != (one.size, one.mtime, one.ctime):
        return "changed"
    return "same" if now.digest == restored else "differs from what was backed up"


def drill(policy: Policy, user: User) -> Record:
    """Restore a sample of a user's newest snapshot and compare it; return the record, which is kept."""
    with locks.hold(f"backup-{user.uid}", timeout=60, title=f"the backup of {user.name}"):
        known = backup.record(user.name)
        try:
            found = {**_drill(policy, user), "drill_problem": "", "drilled": time.time()}
        except LabError as error:
            found = {"drill_problem": printable(str(error))}
        return backup.keep(Record(**{**asdict(known), **found}))


def _drill(policy: Policy, user: User) -> dict[str, Any]:
    rules = backup.rules_of(policy)
    place = backup.repository(policy, user)
    # One snapshot all the time, also if there are newer ones meanwhile.
    taken = backup.snapshots(policy, user)
    if not taken:
        raise HostError("There is no snapshot.", f"Run: lab backup {user.name}")
    newest = max(taken, key=lambda one: str(one["time"]))["id"]
    chance = random.SystemRandom()
    # As long as a backup may take, so that a server that falls silent keeps no drill for ever.
    longest = float(rules.user_hours * backup.HOUR)
    listed = restic.lines(place, ["ls", "--json", "--no-lock", newest], longest)
    chosen = sample(listed, rules.drill_files, chance)
    if not chosen:
        return {"compared": 0, "changed": 0}
    scratch = posixpath.join(STATE_DIRECTORY, f"drill-{user.uid}")
    # One place under one lock: what a drill left that was killed is removed by the next.
    try:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(scratch)
        os.makedirs(scratch, mode=0o700)
    except OSError as error:
        raise HostError(f"{scratch} cannot be made anew: {error.strerror}.", "Look into it.") from error
    try:
        backup.extract(place, newest, [one.path for one in chosen], scratch, owned=True, timeout=longest)
        restored = {one.path: _digest_of(scratch + one.path) for one in chosen}
    finally:
        # What cannot be removed is root's alone; the error that led here is the one to tell.
        shutil.rmtree(scratch, ignore_errors=True)
    return judge(chosen, _now(policy, user, chosen), restored)


def judge(chosen: Iterable[Node], now: Mapping[str, Seen], restored: Mapping[str, str]) -> dict[str, Any]:
    """Return the counts of a drill; raise HostError that names the first file that is not as it was."""
    verdicts = {one.path: verdict(one, now.get(one.path), restored[one.path]) for one in chosen}
    wrong = [(path, what) for path, what in verdicts.items() if what not in ("same", "changed")]
    if wrong:
        path, what = wrong[0]
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise HostError(
            f"{printable(path)} {what}{more}.", "Check the repository with restic check --read-data."
        )
    words = list(verdicts.values())
    return {"compared": words.count("same"), "changed": words.count("changed")}


def _digest_of(path: str) -> str:
    """Return the SHA-256 of a restored file; empty without one. Only for a folder of root's own."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    return _digest(descriptor)


def _digest(descriptor: int) -> str:
    digest = hashlib.sha256()
    with os.fdopen(descriptor, "rb") as file:
        while True:
            chunk = file.read(_CHUNK)
            if not chunk:
                return digest.hexdigest()
            digest.update(chunk)


def _now(policy: Policy, user: User, chosen: list[Node]) -> dict[str, Seen]:
    """Return the files as they are now, without those that are gone, read by a child that is the user."""
    places = backup.places(policy, user)
    wanted = [(place, one.path) for one in chosen for place in places if one.path.startswith(place + "/")]

    def read() -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for place, path in wanted:
            # Not there any more, not for its user to read, a link by now: changed, whatever it is.
            with contextlib.suppress(OSError, LabError):
                found[path] = _look(place, posixpath.relpath(path, place))
        return found

    answer = asuser.run_as_user(asuser.identity(policy, user), read, timeout=600.0)
    return {path: Seen(*values) for path, values in answer.items()}


def _look(place: str, path: str) -> list[Any]:
    directory = safefs.open_directory(place)
    try:
        descriptor = safefs.open_regular(directory, path)
    finally:
        os.close(directory)
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode) or before.st_size > _LARGEST:
        os.close(descriptor)
        return [before.st_size, before.st_mtime_ns, before.st_ctime_ns, ""]
    copy = os.dup(descriptor)
    try:
        digest = _digest(descriptor)
        after = os.fstat(copy)
    finally:
        os.close(copy)
    # Written while it was read: of the later time, so that it counts as changed.
    return [after.st_size, after.st_mtime_ns, after.st_ctime_ns, digest]
