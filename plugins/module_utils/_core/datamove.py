# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The deeds of a move of the shared data on a server; ``moving`` decides which.

The new file system is mounted in a folder of root's, so nobody else reaches what is copied until the switch.
While users still write, rsync reads through a mount on which the kernel passes no link. What it copies is
seen by nobody, and is put right by the comparison of all files, which follows no link either (``sametree``)
and is repeated when nobody can write any more.
"""

from __future__ import annotations

import contextlib
import math
import os
import posixpath
import pwd
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TextIO

from . import (
    POLICY_PATH,
    PUBLIC_POLICY_PATH,
    STATE_DIRECTORY,
    containers,
    hostfiles,
    install,
    journal,
    locks,
    mounts,
    quota,
    safefs,
    sametree,
    sharesize,
    state,
    storage,
)
from . import policy as policies
from .engine import Engine
from .errors import HostError, InvalidInput, LabError, Refused
from .items import ItemResult
from .moving import REASON, Record, Situation, expected, parse, reconcile
from .names import printable
from .policy import Filesystem, Policy, Quota
from .quota import PROJECT, USER
from .sizes import format_size

_RECORD = "data-move/record.json"
_TIMEOUT = 20 * 86400.0  # seconds for one pass of rsync; poll(2) takes no more than 24 days
#: rsync(1): archive, hard links, access control lists, attributes, holes; owners by number.
# Times are compared to the nanosecond, which they are not by default.
RSYNC = ("rsync", "-aHAXS", "--numeric-ids", "--one-file-system", "--modify-window=-1")
# rsync(1), exit values: some files could not be read, or vanished, which in use they may.
_PARTLY = (23, 24)
# rsync sees the data by a mount of its own on which no link is passed (mount(8), nosymfollow, Linux 5.10):
# while users still write, one could put a link in the place of a folder that it is about to enter.
_SAFELY = (
    *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
    'mount --bind "$1" "$1" && mount -o remount,bind,ro,nosuid,nodev,noexec,nosymfollow "$1" && '
    'shift && exec "$@"',
    "sh",
)
# rsync reads a hole as the zeros that it stands for: so many bytes of them are read in minutes, not in weeks.
_MOST_HOLES = 1 << 40
# The rest, copied and compared while nobody works, may take this many times what all was reckoned to, and an
# hour; then everybody works again.
_TIMES = 4
# What a file system needs for itself, one part in so many.
_SPARE = 20
_FIRST_UID = 1000
# The mount options of the old file system while it is kept (systemd.mount(5): a missing disk stops no boot).
_KEPT = "ro,nosuid,nodev,nofail,x-systemd.device-timeout=150s"
_AT_ONCE = 4
_ROUNDS = 3
_MOST_REPAIRED = 1_000_000
_SHOWN = 3
# A look at what is on a file system that is not mounted: by nobody else, and without a write to its journal.
_LOOK = 'mount -n -t "$1" -o "$2" "$3" /mnt && ls -A /mnt'
_UNWRITTEN = {"ext4": "ro,noload", "xfs": "ro,norecovery"}


def move(
    engine: Engine | None, policy: Policy, to: Filesystem, *, release: bool, check: bool
) -> list[ItemResult]:
    """Go on with the move of the shared data to ``to``; one result a step. Raises LabError."""
    if not to.device:
        raise InvalidInput("It is not said where the data move to.", "Set lab_filesystems.data.device.")
    storage.check_options(to)
    host = Host(engine, policy, to)
    if check:
        return reconcile(host, release=release, check=True, now=time.time())
    with locks.hold("data-move", title="a move of the shared data"):
        return reconcile(host, release=release, check=False, now=time.time())


def place(name: str) -> str:
    """Return where root has the ``new`` or the ``old`` file system, or a file of a move."""
    return posixpath.join(STATE_DIRECTORY, "data-move", name)


class Host:
    """A server, and the file system ``to`` that its shared data are declared to be on."""

    def __init__(self, engine: Engine | None, policy: Policy, to: Filesystem) -> None:
        self._engine = engine
        self._policy = policy
        self._to = to
        self._root = to.mount
        self._new = place("new")
        self._staged = replace(to, mount=self._new)
        self._compared = place("compared")
        # By time.monotonic(): until when what is done in the pause may take.
        self._until = math.inf

    # Where the data are

    def look(self) -> Situation:
        """Return where the data are; raise HostError where nobody can say."""
        table = mounts.read()
        target = storage.probe(self._to.device)
        uuid = target.uuid if target is not None else ""
        written = self._line(uuid) in storage.fstab_lines(_fstab(), self._root)
        mount = mounts.at(self._root, table)
        if mount is None and written:
            return Situation("", "", uuid, here=False, written=True)
        if mount is None:
            raise HostError(
                f"{self._root} has no file system of its own, so there is nothing to move.",
                "If its disk is missing, bring it back; if there never was one, run lab.server.site.",
            )
        below = [one.point for one in table if one.point.startswith(f"{self._root}/")]
        here = target is not None and mount.number == target.number
        if (below or mount.root != "/") and not here:
            what = below[0] if below else mount.root
            raise HostError(f"{what} is mounted by itself in {self._root}.", f"Unmount it: umount {what}")
        source = storage.probe(mount.source)
        if source is None or not source.uuid:
            raise HostError(f"{self._root} is on {mount.source}, which is no disk of this server.")
        size, files = self._used()
        return Situation(
            source.uuid, source.fstype, uuid, here=here, written=written, bytes=size, files=files
        )

    def _used(self) -> tuple[int, int]:
        """Return how many bytes and files the mounted file system holds."""
        numbers = os.statvfs(self._root)
        size = (numbers.f_blocks - numbers.f_bfree) * numbers.f_frsize
        return size, numbers.f_files - numbers.f_ffree

    def _line(self, uuid: str) -> str:
        return storage.fstab_line(self._to, uuid)

    def load(self) -> Record | None:
        """Return what was done before."""
        text = state.read_record(_RECORD)
        return None if text is None else parse(text)

    def save(self, record: Record) -> None:
        """Keep the record; tell the audit log of a step that begins."""
        state.write_record(_RECORD, record.render())
        if record.doing:
            journal.record(uid=0, user="root", verb="move-data", step=record.doing)

    # The new file system

    def to_prepare(self, known: str) -> list[str]:
        """Return what makes the new file system ready; raise LabError where it cannot be used."""
        actual = storage.examine(self._staged, mounts.read(), "")
        problem = storage.problem(self._staged, actual)
        if problem or actual.device is None:
            raise HostError(problem or f"{self._to.device} is missing.")
        self._check_room()
        if not actual.device.fstype:
            return [f"make {self._to.fstype} on {self._to.device}", self._to_mount()]
        if actual.device.uuid != known:
            inside = self._inside(actual)
            if inside:
                raise Refused(
                    f"{self._to.device} is not empty: it holds {', '.join(inside[:_SHOWN])}.",
                    "Use another disk; if nothing on it is needed, and it is not mounted: "
                    f"wipefs -a {self._to.device}, and set create: true.",
                )
        return [] if actual.mount is not None else [self._to_mount()]

    def _to_mount(self) -> str:
        return f"mount {self._to.device} for root alone"

    def _inside(self, actual: storage.Actual) -> list[str]:
        """Return the names on the new file system."""
        if actual.mount is not None:
            found = os.listdir(self._new)
        else:
            options = _UNWRITTEN[self._to.fstype]
            command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _LOOK, "sh"]
            found = hostfiles.run([*command, self._to.fstype, options, self._to.device]).stdout.splitlines()
        return sorted(printable(name) for name in found if name != "lost+found")

    def _check_room(self) -> None:
        numbers = os.statvfs(self._root)
        used = (numbers.f_blocks - numbers.f_bfree) * numbers.f_frsize
        size = _device_size(self._to.device)
        if used + size // _SPARE > size:
            raise Refused(
                f"{self._root} holds {format_size(used)}, which does not fit on the {format_size(size)} of "
                f"{self._to.device}.",
                "Use a larger disk.",
            )

    def prepare(self) -> str:
        """Make and mount the new file system; return its UUID."""
        actual = storage.examine(self._staged, mounts.read(), "")
        if actual.device is not None and not actual.device.fstype:
            storage.make(self._to)
        if actual.mount is None:
            os.makedirs(self._new, mode=0o700, exist_ok=True)
            os.chmod(posixpath.dirname(self._new), 0o700)
            chosen = ",".join(
                one for one in storage.options(self._to) if not one.startswith(("nofail", "x-"))
            )
            hostfiles.run(["mount", "-t", self._to.fstype, "-o", chosen, self._to.device, self._new])
        device = self._new_device()
        quota.enforce(device, self._new)
        self._check_files()
        made = storage.probe(self._to.device)
        if made is None or not made.uuid:
            raise HostError(f"{self._to.device} has no UUID.", "Look at it: blkid -p " + self._to.device)
        return made.uuid

    def _check_files(self) -> None:
        """Raise Refused where ext4, which makes its inodes once, has too few of them."""
        mine, other = os.statvfs(self._root), os.statvfs(self._new)
        used = mine.f_files - mine.f_ffree
        if 0 < other.f_files < used:
            raise Refused(
                f"{self._root} holds {used} files, and {self._to.device} can hold {other.f_files}.",
                "Use a larger disk, or fstype: xfs.",
            )

    def _new_device(self) -> str:
        mount = mounts.at(self._new, mounts.read())
        if mount is None:
            raise HostError(f"{self._new} is not mounted.", "Run it again.")
        return mount.source

    # Shares with a size

    def _numbers(self) -> dict[str, int]:
        """Return the projects of the shares on the old file system."""
        if PROJECT not in quota.enforced(quota.device_of(self._root)):
            return {}
        with safefs.opened(self._root) as root:
            return sharesize.numbers(root)

    def to_number(self) -> list[str]:
        """Return which folders of shares are to be given to their projects."""
        done: dict[str, int] = {}
        if mounts.at(self._new, mounts.read()) is not None:
            with safefs.opened(self._new) as new:
                done = sharesize.numbers(new)
        return [
            f"give the folder {name} to project {number}"
            for name, number in self._numbers().items()
            if done.get(name) != number
        ]

    def number(self) -> None:
        """Give them: whatever is made in them then belongs to the project, too."""
        with safefs.opened(self._new) as new:
            for name, number in self._numbers().items():
                safefs.make_directory(new, name, 0o700)
                folder = safefs.open_beneath(new, name, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    quota.set_project(folder, number)
                finally:
                    os.close(folder)

    def _limits(self) -> dict[tuple[int, int], tuple[str, Quota]]:
        """Return whom the old file system limits: by (kind, number) what that is, and its limit."""
        device = quota.device_of(self._root)
        found: dict[tuple[int, int], tuple[str, Quota]] = {}
        for name, number in self._numbers().items():
            found[PROJECT, number] = (f"the folder {name}", quota.read(device, PROJECT, number).quota)
        if USER in quota.enforced(device):
            people = {one.pw_uid: one.pw_name for one in pwd.getpwall() if one.pw_uid >= _FIRST_UID}
            people.update({user.uid: user.name for user in self._policy.users})
            for uid, name in sorted(people.items()):
                found[USER, uid] = (name, quota.read(device, USER, uid).quota)
        return {key: pair for key, pair in found.items() if pair[1] != quota.NO_LIMIT}

    def to_limit(self) -> list[str]:
        """Return which limits are to be set."""
        return [
            f"limit {what} to {format_size(limit.hard or limit.soft)}"
            if limit.hard or limit.soft
            else f"limit the number of files of {what}"
            for what, limit in self._limits().values()
        ]

    def limit(self) -> None:
        """Set the limits that the old one has, and look whether they are set."""
        device = self._new_device()
        for (kind, number), (what, wanted) in self._limits().items():
            quota.write(device, kind, number, wanted)
            if quota.read(device, kind, number).quota != wanted:
                raise HostError(f"{self._to.device} does not keep the limit of {what}.")
        if USER in quota.enforced(quota.device_of(self._root)):
            quota.write_graces(device, quota.read_graces(quota.device_of(self._root))[0])

    # Copies

    def copy(self, *, last: bool) -> None:
        """Make the new one like the old one."""
        device = self._new_device()
        if last:
            self._until = time.monotonic() + 3600 + _TIMES * expected(*self._used())
        self._check_holes(in_use=not last)
        for number in self._numbers().values():
            # On XFS it would hold for root, too; it is set again before the switch.
            quota.write(device, PROJECT, number, quota.NO_LIMIT)
        self._rsync(["--delete", "--exclude=/lost+found"], partly=not last)

    def _rsync(self, further: list[str], *, partly: bool) -> None:
        self._check_source(frozen=not partly)
        command = [*_SAFELY, self._root, *RSYNC, *further, f"{self._root}/", f"{self._new}/"]
        try:
            left = max(1.0, self._until - time.monotonic())
            done = hostfiles.run(command, timeout=min(_TIMEOUT, left), accept=range(256))
        except HostError:
            self._check_time()
            raise
        if done.returncode and not (partly and done.returncode in _PARTLY):
            first = (done.stderr.strip() or f"status {done.returncode}").splitlines()[0]
            raise HostError(f"rsync failed: {printable(first)[:200]}")
        hostfiles.run(["sync", "-f", self._new], timeout=_TIMEOUT)

    def _check_time(self) -> None:
        if time.monotonic() >= self._until:
            raise HostError(
                "The rest took much longer than all was reckoned to take, so everybody works again.",
                "See what was changed since the first copy, and run it again.",
            )

    def _check_holes(self, *, in_use: bool) -> None:
        """Raise Refused where there are so many holes that they would be read for hours or weeks."""
        with safefs.opened(self._root) as root:
            together, worst = sametree.holes(root, in_use=in_use)
        if together > _MOST_HOLES:
            shown = ", ".join(f"{printable(path)[:80]} ({format_size(size)})" for size, path in worst)
            raise Refused(
                f"Files in {self._root} have {format_size(together)} of holes, which a copy reads like data; "
                f"most are in {shown}.",
                "Let their owners remove them or pack them (tar -S), and run it again.",
            )

    def _check_source(self, *, frozen: bool) -> None:
        """Raise HostError if what would be copied is not the old file system, or can still be changed."""
        mount = mounts.at(self._root, mounts.read())
        if mount is None or mount.number == mounts.device_number(self._to.device):
            raise HostError(f"{self._root} is not mounted as it was.", "Look at dmesg, and run it again.")
        if frozen and "ro" not in mount.options:
            raise HostError(f"{self._root} is not read-only any more.", "Run it again.")

    def compare(self, *, last: bool) -> None:
        """Compare both sides. In the last pass what differs is copied once more, whatever its time says."""
        verdict = self._verdict()
        if not last:
            return
        if 0 < len(verdict.different) <= _MOST_REPAIRED:
            listed = place("different")
            named = (os.fsencode(f"./{path}") + b"\0" for path in verdict.different)
            safefs.write_atomically(listed, b"".join(named))
            self._rsync(["--ignore-times", "--from0", f"--files-from={listed}"], partly=False)
            os.unlink(listed)
            verdict = self._verdict()
        if verdict.different:
            raise HostError(
                f"The copy is not like {self._root}: {sametree.told(verdict.different)}.",
                "Nothing is switched. Look at these, and run it again.",
            )
        self._check_source(frozen=True)

    def _verdict(self) -> sametree.Verdict:
        with (
            safefs.opened(self._root) as root,
            safefs.opened(self._new) as new,
            _lines(self._compared) as earlier,
            _written(self._compared) as file,
        ):
            try:
                return sametree.compare(root, new, earlier, lambda line: _put(file, line), self._until)
            except HostError:
                self._check_time()
                raise

    # Containers

    def running(self) -> list[str]:
        """Return the names of the containers that run: each shows the shared data."""
        return sorted(self._live())

    def _live(self) -> dict[str, str]:
        found = containers.observe(self._engine).containers
        return {name: actual.id for name, actual in found.items() if actual.ours and actual.live}

    def is_paused(self) -> bool:
        """Say whether no container may be started, and nobody can write any more."""
        mount = mounts.at(self._root, mounts.read())
        return state.is_moving() and mount is not None and "ro" in mount.options

    def is_held(self) -> bool:
        """Say whether containers cannot be started, or the data cannot be written, for a move."""
        return state.is_moving() or self._is_made_read_only()

    def _is_made_read_only(self) -> bool:
        mount = mounts.at(self._root, mounts.read())
        return mount is not None and "ro" in mount.options and "ro" not in self._to.options

    def pause(self) -> None:
        """Let no container start, stop those that run, and make the old file system read-only."""
        self._check_holes(in_use=not self.is_paused())
        state.set_moving()
        engine = self._engine
        if engine is not None:
            # Again for one whose start was under way.
            for _round in range(_ROUNDS):
                live = self._live()
                with ThreadPoolExecutor(_AT_ONCE) as pool:
                    halted = [pool.submit(containers.halt, engine, *one, REASON) for one in live.items()]
                for future in halted:
                    future.result()
        try:
            hostfiles.run(["mount", "-o", "remount,ro", self._root])
        except HostError as error:
            raise HostError(
                f"{self._root} cannot be made read-only: {error.message}",
                f"Programs of the server have files on it open for writing; see: fuser -vm {self._root}",
            ) from error

    def resume(self, names: tuple[str, ...]) -> list[str]:
        """Undo the pause; return sentences about containers that do not start."""
        if self._is_made_read_only():
            hostfiles.run(["mount", "-o", "remount,rw", self._root])
        state.clear_moving()
        if self._engine is None or not names:
            return []
        policy, mount = self._policy, mounts.at(self._root, mounts.read())
        if mount is not None and mount.number == mounts.device_number(self._to.device):
            policy = self._with_new(policy)
        failed = []
        for info in containers.listing_all(self._engine, policy):
            if info.name in names and not info.running:
                try:
                    containers.start_existing(self._engine, policy, info)
                except LabError as error:
                    failed.append(f"{info.name} does not start: {error}")
        return failed

    # The switch

    def to_switch(self, record: Record) -> list[str]:
        """Return what is missing until the data are on the new one, and the old one is kept."""
        fstab, table = _fstab(), mounts.read()
        device, mount = storage.probe(self._to.device), mounts.at(self._root, table)
        missing = []
        if self._wanted(fstab, record, device.uuid if device else "") != fstab:
            missing.append(f"write the lines of {self._root} and {place('old')} in {storage.FSTAB}")
        if device is None or mount is None or mount.number != device.number:
            missing.append(f"mount {self._to.device} at {self._root}")
        if mounts.at(place("old"), table) is None:
            missing.append(f"mount the old file system read-only at {place('old')}")
        if self._texts():
            missing.append("tell the policy of this server the new disk")
        return missing

    def _wanted(self, fstab: str, record: Record, uuid: str) -> str:
        old = f"UUID={record.source} {place('old')} {record.fstype} {_KEPT} 0 0"
        return storage.fstab_with(storage.fstab_with(fstab, self._root, self._line(uuid)), place("old"), old)

    def switch(self, record: Record) -> None:
        """Write fstab, and mount by it. Who still looks at the old one sees it, read-only, until the end."""
        with locks.host():
            self._switch(record)

    def _switch(self, record: Record) -> None:
        fstab = _fstab()
        if not self.look().written:
            self._check_source(frozen=True)
        wanted = self._wanted(fstab, record, record.target)
        os.makedirs(place("old"), mode=0o700, exist_ok=True)
        if wanted != fstab:
            storage.write_fstab(wanted)
        number = mounts.device_number(self._to.device)
        mount = mounts.at(self._root, mounts.read())
        if mount is None or mount.number != number:
            if mount is not None:
                hostfiles.run(["umount", "--lazy", self._root])
            hostfiles.run(["mount", self._root])
        if mounts.at(place("old"), mounts.read()) is None:
            hostfiles.run(["mount", place("old")])
        if mounts.at(self._new, mounts.read()) is not None:
            hostfiles.run(["umount", self._new])
        for path, text in self._texts().items():
            hostfiles.write_text(path, text)

    def _with_new(self, policy: Policy) -> Policy:
        others = tuple(one for one in policy.filesystems if one.role != "data")
        if len(others) == len(policy.filesystems):
            return replace(policy, filesystems=(*others, self._to))
        kept = tuple(self._to if one.role == "data" else one for one in policy.filesystems)
        return replace(policy, filesystems=kept)

    def _texts(self) -> dict[str, str]:
        """Return what the server's own policy is to be, by path, where it differs."""
        found = {}
        if os.path.exists(POLICY_PATH):
            policy = self._with_new(policies.load(POLICY_PATH))
            shown = {POLICY_PATH: policy, PUBLIC_POLICY_PATH: policies.public(policy)}
            for path, one in shown.items():
                text = install.policy_text(one)
                if hostfiles.read_text(path) not in (None, text):
                    found[path] = text
        return found

    # The old one

    def to_release(self) -> list[str]:
        """Return what there still is of the old one on this server."""
        return [
            f"unmount {place('old')} and remove its line in {storage.FSTAB}; what is on that disk stays on it"
        ]

    def release(self) -> None:
        """Take the old one from the server; its disk is not written."""
        if mounts.at(place("old"), mounts.read()) is not None:
            hostfiles.run(["umount", place("old")])
        with locks.host():
            fstab = _fstab()
            wanted = storage.fstab_without(fstab, place("old"))
            if wanted != fstab:
                storage.write_fstab(wanted)
        for name in ("old", "new"):
            with contextlib.suppress(OSError):
                os.rmdir(place(name))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._compared)


def _fstab() -> str:
    return hostfiles.read_text(storage.FSTAB) or ""


def _device_size(device: str) -> int:
    path = os.path.realpath(mounts.device_path(device))
    try:
        with open(path, "rb", buffering=0) as file:
            return file.seek(0, os.SEEK_END)
    except OSError as error:
        raise HostError(f"{device} cannot be read: {error.strerror}.", "Look at: dmesg") from error


@contextlib.contextmanager
def _lines(path: str) -> Iterator[Iterator[sametree.Line]]:
    """Yield the lines of an earlier comparison; of one that is damaged those before the damage."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, encoding="ascii"))
        except FileNotFoundError:
            yield iter(())
            return
        yield _sound(file)


def _sound(file: TextIO) -> Iterator[sametree.Line]:
    with contextlib.suppress(HostError, ValueError):
        for text in file:
            yield sametree.parse(text)


@contextlib.contextmanager
def _written(path: str) -> Iterator[TextIO]:
    """Yield a file of root's that gets its name when it is whole."""
    temporary = f"{path}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, 0o600), "w", encoding="ascii") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except OSError as error:
        raise HostError(
            f"The list of compared files could not be made: {error.strerror}.",
            "Look at the disks (dmesg), and whether there is room in /var.",
        ) from error


def _put(file: TextIO, line: sametree.Line) -> None:
    file.write(f"{line.render()}\n")
