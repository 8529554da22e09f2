# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A user leaves: shut out, containers retired, files archived and read again, projects handed over, purged.

What was done is a record of root's, written before and after each step, so that a run that was broken off
at any point is simply repeated. The account is shut first: afterwards nobody changes what is archived. A
purge is a run of its own, after the days, and only while every archive is whole. Decisions are here; who
carries them out is ``Deeds`` (``departing.Host`` on a server).
"""

from __future__ import annotations

import json
import posixpath
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from typing import Any, Protocol

from . import archive
from .errors import HostError, InvalidInput, LabError, NotFound, Refused
from .items import ItemResult
from .names import printable, project_name, share_name, user_name
from .sizes import format_size
from .steps import Step, carry_out

ARCHIVES = "/home/.offboarded"
#: What the name of a share begins with, where a user could be named, too.
SHARE = "share:"
_DAY = 86400


@dataclass(frozen=True)
class HandOver:
    """A project that another user, or a share, gets a copy of, under ``name``."""

    project: str
    to: str
    name: str

    @property
    def share(self) -> str:
        """The name of the share that gets it; "" where a user does."""
        return self.to[len(SHARE) :] if self.to.startswith(SHARE) else ""

    @property
    def whom(self) -> str:
        """Who gets it, in words."""
        return f"the share {self.share}" if self.share else self.to


@dataclass(frozen=True)
class Request:
    """What IT asks for. ``directory`` holds the archives; the files stay for ``keep_days`` after them."""

    user: str
    directory: str = ARCHIVES
    keep_days: int = 30
    purge: bool = False
    hand_over: tuple[HandOver, ...] = ()


def request(
    user: str, hand_over: Sequence[Mapping[str, Any]], *, directory: str, keep_days: int, purge: bool
) -> Request:
    """Return what a module was told; raise InvalidInput."""
    user_name(user, "user")
    if keep_days < 0:
        raise InvalidInput(f"keep_days: {keep_days} is less than none.", "Give a number of days.")
    if not directory.startswith("/") or posixpath.normpath(directory) != directory:
        raise InvalidInput(
            f"directory: {printable(directory)[:80]!r} is no absolute path.", "Write it whole."
        )
    overs = tuple(_hand_over(user, one) for one in hand_over)
    if len({(one.to, one.name) for one in overs}) < len(overs):
        raise InvalidInput("hand_over: two projects would get one name.", "Give one of them another 'name'.")
    return Request(user, directory, keep_days, purge, overs)


def _hand_over(user: str, given: Mapping[str, Any]) -> HandOver:
    project = project_name(given["project"], "hand_over: project")
    to = given["to"]
    if to.startswith(SHARE):
        share_name(to[len(SHARE) :], "hand_over: to")
    else:
        user_name(to, "hand_over: to")
    if to == user:
        raise InvalidInput(f"hand_over: {project} would go to {user}, who leaves.", "Name somebody else.")
    return HandOver(project, to, project_name(given.get("name") or project, "hand_over: name"))


# The record


@dataclass(frozen=True)
class Packed:
    """An archive: its path, its SHA-256, and what its tree looked like (``archive.Look.digest``)."""

    path: str
    sha256: str
    digest: str
    size: int
    verified: bool = False


@dataclass(frozen=True)
class Record:
    """What was done. ``doing`` is the step that was begun and not ended; times in seconds since 1970.

    ``archives`` are by the path of their tree, ``earlier`` are those, verified too, of how a tree was before.
    ``handed`` holds "project/user or share/name", and ``handing`` the one that was begun and not ended.
    """

    user: str
    uid: int
    doing: str = ""
    archives: Mapping[str, Packed] = field(default_factory=dict)
    earlier: tuple[Packed, ...] = ()
    handed: tuple[str, ...] = ()
    handing: str = ""
    kept_since: int = 0
    purging: bool = False
    purged: bool = False

    def render(self) -> str:
        """Return its text."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


def parse(text: str) -> Record:
    """Return the record of a text; raise HostError for one that is damaged."""
    try:
        data = json.loads(text)
        archives = {str(path): Packed(**one) for path, one in data.pop("archives").items()}
        # Records of older versions have no earlier ones.
        earlier = tuple(Packed(**one) for one in data.pop("earlier", ()))
        handed = tuple(data["handed"])
        return Record(**{**data, "archives": archives, "earlier": earlier, "handed": handed})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise HostError(
            "The record of this offboarding is damaged, so nothing more is done.",
            "Bring it back from a backup of /var/lib/lab-server/offboarding.",
        ) from error


# The steps


@dataclass(frozen=True)
class Tree:
    """A folder of the user's in a folder of root's; ``label`` is its name in the archive and of its file."""

    path: str
    label: str


class Deeds(Protocol):
    """What the steps need of a server. Each deed may be done again after it was broken off."""

    def find(self, user: str) -> int:
        """Return the uid; raise NotFound for a name that is no lab user's."""

    def load(self, uid: int) -> Record | None: ...

    def save(self, record: Record) -> None: ...

    def to_shut(self) -> list[str]:
        """Return what has to be done to shut the account, in words."""

    def shut(self) -> None: ...

    def containers(self) -> list[str]: ...

    def retire(self) -> None: ...

    def processes(self) -> int:
        """Return how many processes of the user run outside of containers."""

    def end_processes(self) -> None: ...

    def trees(self) -> list[Tree]: ...

    def digest(self, tree: Tree) -> str: ...

    def pack(self, tree: Tree, path: str) -> Packed: ...

    def verify(self, tree: Tree, packed: Packed) -> None:
        """Read an archive again and compare it with its tree; raise LabError."""

    def check_hand_over(self, over: HandOver, *, begun: bool) -> None:
        """Raise LabError when it cannot be done."""

    def hand_over(self, over: HandOver, directory: str, *, begun: bool) -> None: ...

    def has_file(self, packed: Packed) -> bool:
        """Say whether the file of an archive is there."""

    def check_archive(self, packed: Packed) -> None:
        """Raise HostError unless the file is the one that was verified."""

    def remains(self) -> list[str]:
        """Return what a purge removes, in words."""

    def remove(self) -> None: ...


class _Work:
    def __init__(self, deeds: Deeds, asked: Request, record: Record, now: float) -> None:
        self.deeds = deeds
        self.asked = asked
        self.record = record
        self.now = now
        # Of an earlier run: what this one keeps it does not purge.
        self.kept_since = record.kept_since
        self.repacks = False
        self.replaced: tuple[Packed, ...] = ()

    def note(self, **changes: Any) -> None:
        self.record = replace(self.record, **changes)
        self.deeds.save(self.record)

    def steps(self) -> list[Step]:
        """Return the steps in their order. A purge that was begun is gone on with, and nothing else."""
        if self.record.purged:
            return []
        steps = [
            Step("account", self.deeds.to_shut, self.deeds.shut),
            Step(
                "containers",
                lambda: [f"retire {name}" for name in self.deeds.containers()],
                self.deeds.retire,
            ),
            Step("processes", self._processes, self.deeds.end_processes),
        ]
        if not self.record.purging:
            steps += [self._archive(tree) for tree in self.deeds.trees()]
            steps += [self._over(over) for over in self.asked.hand_over]
            steps.append(Step("keep", self._to_keep, lambda: self.note(kept_since=int(self.now))))
        if self.asked.purge:
            steps.append(Step("purge", self._to_purge, self._purge))
        return steps

    def _processes(self) -> list[str]:
        count = self.deeds.processes()
        return [f"end {count} processes of {self.record.user}"] if count else []

    def _archive(self, tree: Tree) -> Step:
        def plan() -> list[str]:
            packed = self.record.archives.get(tree.path)
            again = "read the archive again, and compare it"
            if packed and packed.digest == self.deeds.digest(tree):
                return [] if packed.verified else [again]
            self.repacks = True
            if packed and packed.verified:
                self.replaced += (packed,)
            return [f"archive {tree.path} as {self._file(tree)}", again]

        def do() -> None:
            packed = self.record.archives.get(tree.path)
            if packed is None or packed.digest != self.deeds.digest(tree):
                # What was verified stays, with its file: it may hold what is in the tree no more.
                before = (packed,) if packed and packed.verified else ()
                packed = self.deeds.pack(tree, self._file(tree))
                archives = {**self.record.archives, tree.path: packed}
                self.note(archives=archives, earlier=(*self.record.earlier, *before), kept_since=0)
            try:
                self.deeds.verify(tree, packed)
            except LabError:
                # Not believed again: the next run makes it anew.
                rest = {path: one for path, one in self.record.archives.items() if path != tree.path}
                self.note(archives=rest)
                raise
            sound = replace(packed, verified=True)
            self.note(archives={**self.record.archives, tree.path: sound})

        return Step(f"archive {tree.label}", plan, do)

    def _file(self, tree: Tree) -> str:
        """Return the path of a new archive: the first one that is of none that was verified."""
        name = posixpath.join(self.asked.directory, f"{self.record.user}-{self.record.uid}-{tree.label}")
        known = (*self.record.archives.values(), *self.record.earlier)
        taken = {one.path for one in known if one.verified}
        # No label has a "~" in it.
        paths = (f"{name}{f'~{number}' if number > 1 else ''}{archive.SUFFIX}" for number in count(1))
        return next(path for path in paths if path not in taken)

    def notes(self) -> list[str]:
        """Return what else a person should know."""
        found = []
        if self.record.purging and not self.asked.purge:
            found.append("The purge was begun and not ended. Run it with purge to go on.")
        earlier = {one.path: one for one in (*self.record.earlier, *self.replaced)}
        shown = ", ".join(path for path, one in sorted(earlier.items()) if self.deeds.has_file(one))
        if shown:
            found.append(f"Older archives hold what was there before the files changed, and stay: {shown}.")
        return found

    def _over(self, over: HandOver) -> Step:
        key = f"{over.project}/{over.to}/{over.name}"

        def plan() -> list[str]:
            if key in self.record.handed:
                return []
            self.deeds.check_hand_over(over, begun=self.record.handing == key)
            return [f"copy {over.project} to {over.whom} as {over.name}"]

        def do() -> None:
            begun = self.record.handing == key
            self.note(handing=key)
            self.deeds.hand_over(over, self.asked.directory, begun=begun)
            self.note(handed=(*self.record.handed, key), handing="")

        return Step(f"hand over {over.project} to {over.whom}", plan, do)

    def _to_keep(self) -> list[str]:
        if self.record.kept_since and not self.repacks:
            return []
        return [f"keep the files of {self.record.user} for {self.asked.keep_days} days"]

    def _to_purge(self) -> list[str]:
        if not self.record.purging:
            self._check_time()
        for tree in self.deeds.trees():
            packed = self.record.archives.get(tree.path)
            if packed is None or not packed.verified:
                hint = "Move it away." if self.record.purging else "Run it without purge."
                raise Refused(f"{tree.path} is in no archive that was verified.", hint)
        for packed in self.record.archives.values():
            self.deeds.check_archive(packed)
        return self.deeds.remains() or [f"note that {self.record.user} is gone"]

    def _check_time(self) -> None:
        if not self.kept_since or self.repacks:
            raise Refused(
                f"The files of {self.record.user} were not archived before this run, so nothing is purged.",
                "Look at the archives, and purge in a later run.",
            )
        until = self.kept_since + self.asked.keep_days * _DAY
        if self.now < until:
            day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(until))
            raise Refused(f"The files of {self.record.user} are kept until {day}.", "Purge them then.")

    def _purge(self) -> None:
        self.note(purging=True)
        self.deeds.remove()
        self.note(purged=True)


def reconcile(deeds: Deeds, asked: Request, *, check: bool, now: float) -> list[ItemResult]:
    """Go through the steps, one result each, up to the first that fails; with ``check`` only say them.

    Raises NotFound when the name is no lab user's, HostError for a damaged record.
    """
    uid = deeds.find(asked.user)
    record = deeds.load(uid) or Record(asked.user, uid)
    work = _Work(deeds, asked, record, now)
    results = carry_out(work.steps(), lambda step: work.note(doing=step), f"{asked.user} leaves", check=check)
    if results and (notes := work.notes()):
        results[0].facts["notes"] = notes
    return results or [ItemResult("purge")]


def missing(user: str) -> NotFound:
    """Return the error of a name that is no lab user's."""
    return NotFound(f"'{printable(user)}' is not a lab user of this server.", "Correct the name.")


def told_blocked(user: str, path: str, blocked: Sequence[str]) -> Refused:
    """Return the error of a tree of which something cannot be read."""
    shown = ", ".join(printable(one)[:100] for one in blocked[:3])
    return Refused(
        f"{path} cannot be archived whole: {shown}{' and more' if len(blocked) > 3 else ''}.",
        f"Give it back to {user}, or open it: runuser -u {user} -- chmod -R u+rwX {path}",
    )


def told_room(path: str, room: int) -> Refused:
    """Return the error of an archive that does not fit."""
    return Refused(
        f"The archive of {path} needs more than the {format_size(room)} that are free.",
        "Make room, or name another 'directory'.",
    )
