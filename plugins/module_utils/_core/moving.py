# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The shared data move to another file system: copied, compared, switched, and the old one kept.

The inventory names the new file system in the place of the old (``lab_filesystems.data``). Most is copied and
compared while everybody works; only for the rest the containers are stopped and the old one is read-only.
The switch is the line of fstab. What was done is a record of root's, written before and after each step, so
that a run that was broken off at any point is simply repeated. The old one stays, read-only and root's alone,
until a later run releases it. Decisions are here; who carries them out is ``Deeds`` (``datamove.Host``).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Callable, Protocol

from .errors import HostError, Refused
from .items import ItemResult
from .sizes import format_size
from .steps import Step, carry_out

REASON = "the shared data move"
# What a preview reckons with, of disks that turn: bytes and files in a second.
_BYTES, _FILES = 100 << 20, 1000


@dataclass(frozen=True)
class Record:
    """What was done. ``source`` and ``target`` are UUIDs, ``fstype`` is the old one's.

    ``doing`` is the step that was begun and not ended. ``copied`` and ``compared`` are of the pass while
    everybody works, ``ready`` says that all was copied and found equal while nothing could change.
    ``stopped`` are the containers to start again, ``kept_since`` is in seconds since 1970.
    """

    source: str
    fstype: str
    target: str = ""
    doing: str = ""
    copied: bool = False
    compared: bool = False
    ready: bool = False
    stopped: tuple[str, ...] = ()
    kept_since: int = 0
    released: bool = False

    def render(self) -> str:
        """Return its text."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


def parse(text: str) -> Record:
    """Return the record of a text; raise HostError for one that is damaged."""
    try:
        data = json.loads(text)
        return Record(**{**data, "stopped": tuple(str(name) for name in data["stopped"])})
    except (ValueError, TypeError, KeyError) as error:
        raise HostError(
            "The record of the move of the shared data is damaged, so nothing more is done.",
            "Bring it back from a backup of /var/lib/lab-server/data-move.",
        ) from error


@dataclass(frozen=True)
class Situation:
    """Where the data are. ``source`` and ``fstype`` are of what is mounted, ``target`` of what is declared.

    ``here``: what is mounted is what is declared; ``written``: so says fstab. ``bytes`` and ``files`` are
    what the mounted file system holds.
    """

    source: str
    fstype: str
    target: str
    here: bool
    written: bool
    bytes: int = 0
    files: int = 0


class Deeds(Protocol):
    """What the steps need of a server. Each deed may be done again after it was broken off."""

    def look(self) -> Situation: ...

    def load(self) -> Record | None: ...

    def save(self, record: Record) -> None: ...

    def to_prepare(self, known: str) -> list[str]:
        """Return what makes the new file system ready; raise LabError where it cannot be used.

        One that holds something is used only if its UUID is ``known``.
        """

    def prepare(self) -> str:
        """Make and mount the new file system at a place of root's; return its UUID."""

    def to_number(self) -> list[str]: ...

    def number(self) -> None:
        """Give the folders of shares on the new file system to their projects, before anything is in them."""

    def copy(self, *, last: bool) -> None: ...

    def compare(self, *, last: bool) -> None:
        """Compare both sides; raise HostError in the ``last`` pass where they differ."""

    def running(self) -> list[str]: ...

    def is_paused(self) -> bool: ...

    def is_held(self) -> bool:
        """Say whether something of a pause is left."""

    def pause(self) -> None:
        """Let no container start, stop all that run, and make the old file system read-only."""

    def resume(self, names: tuple[str, ...]) -> list[str]:
        """Undo it; start these containers. Return sentences about those that do not start."""

    def to_limit(self) -> list[str]: ...

    def limit(self) -> None:
        """Set the limits of projects and users on the new file system."""

    def to_switch(self, record: Record) -> list[str]: ...

    def switch(self, record: Record) -> None: ...

    def to_release(self) -> list[str]: ...

    def release(self) -> None: ...


class _Work:
    def __init__(self, deeds: Deeds, now: float) -> None:
        self.deeds = deeds
        self.now = now
        self.notes: list[str] = []
        self.found = deeds.look()
        record = deeds.load()
        # Of an earlier run: what this one keeps it does not release.
        self.kept = record is not None and record.kept_since > 0 and not record.released
        self.moves = not self._is_switched(record)
        self.record = self._continued(record)

    def _is_switched(self, record: Record | None) -> bool:
        """Say whether nothing is to be copied any more."""
        if self.found.here:
            return True
        return (
            record is not None and record.ready and record.target == self.found.target and self.found.written
        )

    def _continued(self, old: Record | None) -> Record:
        """Return the record of this move, which is a new one if the one before is over or was another."""
        if old is None:
            return Record(self.found.source, self.found.fstype)
        if not self.moves or self.kept:
            return old
        same = old.source == self.found.source and old.target in ("", self.found.target)
        if same and not old.released:
            return old
        # Back to the file system that was released: what it holds is an older copy of the data.
        back = old.released and old.source == self.found.target
        target = self.found.target if back else ""
        return Record(self.found.source, self.found.fstype, target, stopped=old.stopped)

    def note(self, **changes: Any) -> None:
        self.record = replace(self.record, **changes)
        self.deeds.save(self.record)

    def steps(self, *, release: bool) -> list[Step]:
        """Return the steps in their order."""
        releasing = Step("release", self._to_release, self._release)
        if self.moves and self.kept:
            return [releasing if release else Step("new file system", self._refuse_kept, lambda: None)]
        steps = []
        if self.moves:
            steps = [
                Step("new file system", self._to_prepare, self._prepare),
                Step("projects", self.deeds.to_number, self.deeds.number),
                Step("copy", self._to_copy, self._copy),
                Step("compare", self._to_compare, self._compare),
                Step("pause", self._to_pause, self._safely(self._pause)),
                Step("copy the rest", self._to_finish, self._safely(self._finish)),
                # After the last copy: on XFS the limit of a project holds for root, too.
                Step("limits", self.deeds.to_limit, self._safely(self.deeds.limit)),
            ]
        if self._is_ours():
            steps.append(Step("switch", lambda: self.deeds.to_switch(self.record), self._switch))
        steps.append(Step("start", self._to_start, self._start))
        if self._is_ours():
            steps.append(Step("keep", self._to_keep, lambda: self.note(kept_since=int(self.now))))
        if release:
            steps.append(releasing)
        return steps

    def _is_ours(self) -> bool:
        """Say whether this move brought, or is to bring, the data to where they are declared."""
        done = self.record.ready and self.record.target == self.found.target
        return self.moves or (done and not self.record.released)

    def _refuse_kept(self) -> list[str]:
        raise Refused(
            "The old file system of the last move is still kept, so there is no place for another.",
            "Release it first, with data_move_release=true.",
        )

    def _safely(self, do: Callable[[], None]) -> Callable[[], None]:
        """Let the containers run again when a step fails before the switch."""

        def run() -> None:
            try:
                do()
            except Exception:
                self._go_back()
                raise

        return run

    def _go_back(self) -> None:
        self.note(ready=False)
        self._start()

    def _to_prepare(self) -> list[str]:
        wanted = self.deeds.to_prepare(self.record.target)
        # One that was made by a run that was broken off before it could note so.
        return wanted or ([] if self.record.target else ["note which file system is the new one"])

    def _prepare(self) -> None:
        self.note(target=self.deeds.prepare())

    def _to_copy(self) -> list[str]:
        if self.record.copied:
            return []
        size, files = self.found.bytes, self.found.files
        time = _time(expected(size, files))
        return [
            f"copy {format_size(size)} in {files} files while they are in use, "
            f"which takes about {time} at {format_size(_BYTES)} and {_FILES} files a second"
        ]

    def _copy(self) -> None:
        self.deeds.copy(last=False)
        self.note(copied=True)

    def _to_compare(self) -> list[str]:
        return [] if self.record.compared else ["compare what was copied by SHA-256, while it is in use"]

    def _compare(self) -> None:
        self.deeds.compare(last=False)
        self.note(compared=True)

    def _to_pause(self) -> list[str]:
        stops = [f"stop {name}" for name in self.deeds.running()]
        return [*stops, *([] if self.deeds.is_paused() else ["make the old file system read-only"])]

    def _pause(self) -> None:
        # Known before they are stopped, so that they are started whatever happens.
        self.note(stopped=tuple(sorted({*self.record.stopped, *self.deeds.running()})), ready=False)
        self.deeds.pause()

    def _to_finish(self) -> list[str]:
        return ["copy what was changed meanwhile, and compare all; what did not change is not read again"]

    def _finish(self) -> None:
        self.deeds.copy(last=True)
        self.deeds.compare(last=True)
        self.note(ready=True)

    def _switch(self) -> None:
        try:
            self.deeds.switch(self.record)
        except Exception:
            if not self.deeds.look().written:
                self._go_back()
            raise

    def _to_start(self) -> list[str]:
        names = {*self.record.stopped, *(self.deeds.running() if self.moves else ())}
        if not names and not self.moves and not self.deeds.is_held():
            return []
        return [f"start {name}" for name in sorted(names)] or ["let containers be started"]

    def _start(self) -> None:
        self.notes += self.deeds.resume(self.record.stopped)
        self.note(stopped=())

    def _to_keep(self) -> list[str]:
        return [] if self.record.kept_since else ["keep the old file system, read-only and for root alone"]

    def _to_release(self) -> list[str]:
        if not self._is_ours():
            return []
        if not self.kept:
            raise Refused(
                "The old file system is kept since this run, so it is not released in it.",
                "Look whether all is well, and release it in a later run.",
            )
        return self.deeds.to_release()

    def _release(self) -> None:
        self.deeds.release()
        self.note(released=True)


def expected(size: int, files: int) -> int:
    """Return in how many seconds a preview reckons with so many bytes and files to be copied."""
    return max(1, size // _BYTES + files // _FILES)


def _time(seconds: int) -> str:
    """Return a time for people, roughly."""
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{round(seconds / size)} {name}"
    return f"{seconds} seconds"


def reconcile(deeds: Deeds, *, release: bool, check: bool, now: float) -> list[ItemResult]:
    """Go through the steps, one result each, up to the first that fails; with ``check`` only say them.

    Raises HostError for a damaged record, or where nothing can be said of the data.
    """
    work = _Work(deeds, now)
    results = carry_out(work.steps(release=release), lambda step: work.note(doing=step), REASON, check=check)
    if work.notes:
        results[-1].facts["notes"] = work.notes
    return results
