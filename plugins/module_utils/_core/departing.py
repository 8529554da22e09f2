# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The deeds of an offboarding on a server; ``offboarding`` decides which.

What is in a user's tree is read, written and removed by a child that has become that user. Root itself only
looks at names in folders of its own, keeps the archives, and removes the folder of a tree when it is empty.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import pwd
import re
import signal
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO, Callable, TypeVar

from . import (
    accounts,
    archive,
    asuser,
    buildlog,
    containers,
    events,
    formeruids,
    homes,
    hostfiles,
    journal,
    keeping,
    locks,
    names,
    privatetmp,
    retired,
    safefs,
    sharehandover,
    slices,
    state,
    tree,
    units,
    workspaces,
)
from . import policy as policies
from .engine import Engine
from .errors import HostError, InvalidInput, LabError, NotFound, Refused
from .items import ItemResult
from .names import printable
from .offboarding import (
    HandOver,
    Packed,
    Record,
    Request,
    Tree,
    missing,
    parse,
    reconcile,
    told_blocked,
    told_room,
)
from .policy import Limits, Policy, User
from .quota import NO_LIMIT

_TIMEOUT = 24 * 3600.0  # seconds for one tree
_CHUNK = 1 << 20
_NO_FILE_LIMIT = 1 << 50  # bytes; the quota and the disk are the bound
_SPARE = 50  # one part in so many of a file system stays free
_FIRST_UID = 1000
_SHOWN = 10
# Below the kept homes; no user has the name.
_HANDED = ".handed"

T = TypeVar("T")


def offboard(engine: Engine | None, policy: Policy, asked: Request, *, check: bool) -> list[ItemResult]:
    """Go on with a user's offboarding as far as it is asked for; one result a step. Raises LabError."""
    host = Host(engine, policy, asked.user)
    if check:
        return reconcile(host, asked, check=True, now=time.time())
    with locks.hold("offboarding", title="an offboarding"):
        return reconcile(host, asked, check=False, now=time.time())


class Host:
    """A server, and the user who leaves it."""

    def __init__(self, engine: Engine | None, policy: Policy, user: str) -> None:
        self._engine = engine
        self._policy = policy
        self._name = user
        self._uid = -1

    def find(self, user: str) -> int:
        """Return the uid of who has the name, or had it last."""
        former = [uid for uid, name in formeruids.read().items() if name == user]
        with contextlib.suppress(KeyError):
            uid = pwd.getpwnam(user).pw_uid
            if uid >= _FIRST_UID and (uid in former or self._is_ours(uid)):
                self._uid = uid
                return uid
            raise missing(user)
        self._uid = self._without_account(former)
        return self._uid

    def _without_account(self, former: list[int]) -> int:
        """Return the uid of who had the name and has no account: noted, or in a slice that says the name."""
        uids = {uid for uid in map(slices.owner, _listed(units.DIRECTORY)) if uid >= _FIRST_UID}
        held = {uid for uid in uids if slices.holder(_unit(uid)) == self._name}
        records = {uid: self.load(uid) for uid in sorted({*former, *held})}
        if not records:
            raise missing(self._name)
        # Of several it is one who is not gone wholly, and who began to leave before who did not.
        left = [uid for uid, record in records.items() if record and not record.purged][:1]
        left = left or [uid for uid, record in records.items() if record is None]
        if len(left) > 1:
            raise Refused(
                f"{self._name} had the uids {', '.join(map(str, left))}, and no account says which is meant.",
                "Bring the account back until the offboarding is done.",
            )
        for uid in left:
            self._check_free(uid)
        return left[0] if left else max(records)

    def _check_free(self, uid: int) -> None:
        """Raise HostError where the uid of who has no account is another account's now."""
        with contextlib.suppress(KeyError):
            other = pwd.getpwuid(uid).pw_name
            if other != self._name:
                raise HostError(
                    f"uid {uid} was {self._name}'s and is {printable(other)[:40]}'s now, so nothing is done.",
                    "Give that account another uid.",
                )

    def _is_ours(self, uid: int) -> bool:
        with contextlib.suppress(NotFound):
            return self._policy.user(self._name).uid == uid
        return slices.holder(_unit(uid)) == self._name

    def _is_foreign(self) -> bool:
        return slices.foreign(_unit(self._uid))

    def load(self, uid: int) -> Record | None:
        """Return what was done before."""
        text = state.read_record(_record(uid))
        return None if text is None else parse(text)

    def save(self, record: Record) -> None:
        """Keep the record; tell the audit log of a step that begins."""
        state.write_record(_record(record.uid), record.render())
        if record.doing:
            journal.record(uid=0, user="root", verb="offboard", owner=record.uid, step=record.doing)

    # The account

    def _shutting(self) -> accounts.Planned:
        return accounts.departure(self._name, [group.name for group in self._policy.groups])

    def to_shut(self) -> list[str]:
        """Return what is missing until nobody can log in or be made with this uid."""
        noted = formeruids.read().get(self._uid) == self._name
        return [*([] if noted else [f"never give uid {self._uid} again"]), *self._shutting().item.actions]

    def shut(self) -> None:
        """Note the uid, and close the account."""
        formeruids.add(self._uid, self._name)
        with locks.host():
            planned = self._shutting()
            accounts.carry_out([planned])
        if planned.item.failed:
            raise HostError(planned.item.message)

    # Containers and processes

    def containers(self) -> list[str]:
        """Return the names of the user's containers."""
        found = containers.observe(self._engine).containers
        return sorted(name for name, actual in found.items() if actual.ours and _owner(name) == self._uid)

    def retire(self) -> None:
        """Retire all of them."""
        if self._engine is None:
            return
        for name in self.containers():
            project, _uid = names.parse_container_name(name)
            why = "its user leaves"
            containers.retire(self._engine, self._policy, self._user(), project, by=events.IT, why=why)

    def _user(self) -> User:
        """Return the user, who need not be in the policy any more."""
        return User(self._name, self._uid, "", (), "", Limits(0, 0, 0, 0, 0, 0), NO_LIMIT)

    def processes(self) -> int:
        """Return how many processes run with the uid, without those in containers."""
        return sum(1 for number in filter(str.isdigit, os.listdir("/proc")) if self._runs(number))

    def _runs(self, number: str) -> bool:
        # By its status: the folder in /proc of what cannot be traced (sshd, ssh-agent) is root's (proc(5)).
        with contextlib.suppress(OSError):
            uids, status = _status(number)
            # One that has ended and waits for its parent to notice (Z) is no process any more.
            if str(self._uid) in uids and status != "Z":
                with open(f"/proc/{number}/cgroup", encoding="utf-8", errors="replace") as file:
                    return f"/{names.slice_name(self._uid)}/" not in file.read()
        return False

    def end_processes(self) -> None:
        """End them all at once, as the user: so nobody else's can be meant (kill(2) with -1)."""

        def end() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)

        asuser.run_as_user(self._who(), end)
        deadline = time.monotonic() + 10
        while self.processes():
            if time.monotonic() > deadline:
                raise HostError(f"Processes of {self._name} do not end.", "Look: ps -u " + str(self._uid))
            time.sleep(0.1)

    # Archives

    def _who(self) -> asuser.Identity:
        return asuser.Identity(self._uid, self._uid)

    def trees(self) -> list[Tree]:
        """Return the folders of the user: home, workspace, and the kept homes and folders of projects."""
        return [one for one in self._places() if self._is_there(one.path)]

    def _places(self) -> list[Tree]:
        kept = self._kept_root()
        return [
            Tree(posixpath.join(policies.HOME_ROOT, self._name), "home"),
            Tree(posixpath.join(policies.WORKSPACES_ROOT, self._name), "workspace"),
            *(Tree(posixpath.join(kept, name), _label(kept, name)) for name in _listed(kept)),
        ]

    def _kept_root(self) -> str:
        return posixpath.join(policies.HOMES_ROOT, self._name)

    def _is_there(self, path: str) -> bool:
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return False
        # One that is root's is one whose making was broken off, with nothing in it.
        if (
            not stat.S_ISDIR(status.st_mode)
            or status.st_uid not in (0, self._uid)
            or (status.st_uid == 0 and _listed(path))
        ):
            raise HostError(
                f"{path} is not a folder of {self._name} (uid {self._uid}).", "Move it away, or give it back."
            )
        return status.st_uid == self._uid

    def digest(self, tree: Tree) -> str:
        """Return what changes with every change in the tree."""
        return asuser.run_as_user(self._who(), lambda: _digest(tree.path), _TIMEOUT)

    def pack(self, tree: Tree, path: str) -> Packed:
        """Write the archive of a tree; it gets its name when it is whole."""
        with _written(path, tree.path) as file:
            name = _top(tree.label)
            look = asuser.stream_as_user(
                self._who(),
                lambda output: _pack(tree.path, name, output),
                file,  # type: ignore[arg-type]  # of a binary file only write is used
                timeout=_TIMEOUT,
                limit=_NO_FILE_LIMIT,
            )
            if look["blocked"]:
                raise told_blocked(self._name, tree.path, look["blocked"])
        return Packed(path, file.sha256, look["digest"], file.size)

    def verify(self, tree: Tree, packed: Packed) -> None:
        """Read the archive as the user, and compare it with the tree byte by byte."""
        self.check_archive(packed)
        with open(packed.path, "rb") as file:
            number = file.fileno()
            digest = asuser.run_as_user(
                self._who(), lambda: _verify(tree.path, number), _TIMEOUT, keep=(number,)
            )
        if digest != packed.digest:
            raise HostError(f"{tree.path} changed after it was archived.", "Run it again.")

    def has_file(self, packed: Packed) -> bool:
        """Say whether the file of an archive is there."""
        return os.path.lexists(packed.path)

    def check_archive(self, packed: Packed) -> None:
        """Compare the file with the digest that was noted when it was written."""
        digest = hashlib.sha256()
        try:
            with open(packed.path, "rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        except OSError as error:
            raise HostError(f"{packed.path} cannot be read: {error.strerror}.", "Look for it.") from error
        if digest.hexdigest() != packed.sha256:
            raise HostError(
                f"{packed.path} is not as it was written.", "Bring it back from a backup; nothing is purged."
            )

    # Projects that are handed over

    def check_hand_over(self, over: HandOver, *, begun: bool) -> None:
        """Look whether the project is there, and its new name is free."""
        share = sharehandover.share_of(self._policy, over.share) if over.share else None
        to = None if share else self._policy.user(over.to)
        if not workspaces.has_project(self._policy, self._user(), over.project):
            raise NotFound(f"{self._name} has no project {over.project}.", "Correct hand_over.")
        if share and not begun:
            sharehandover.check(self._policy, share, over.name, self._uid, self._size(over.project))
        if to is None:
            return
        if not begun and os.path.lexists(posixpath.join(self._policy.workspace(to), over.name)):
            raise Refused(f"{over.to} has a project {over.name} already.", "Give this one another 'name'.")
        for _folder, target in self._kept_folders(over):
            if not begun and os.path.lexists(target):
                raise _taken(target)

    def _kept_folders(self, over: HandOver) -> list[tuple[Tree, str]]:
        """Return the kept folders of a project, each with its place at the other user."""
        to, found = self._policy.user(over.to), []
        for one in self.trees():
            with contextlib.suppress(InvalidInput):
                project, path = policies.kept_name(posixpath.basename(one.path))
                if project == over.project:
                    found.append((one, self._policy.kept_source(to, over.name, path)))
        return found

    def hand_over(self, over: HandOver, directory: str, *, begun: bool) -> None:
        """Pack the project as the one user, and unpack it as the other, within that one's quota."""
        source = posixpath.join(policies.WORKSPACES_ROOT, self._name, over.project)
        if over.share:
            share = sharehandover.share_of(self._policy, over.share)
            size = self._size(over.project)
            with self._packed_for(Tree(source, over.project), directory) as number:
                sharehandover.take_over(self._policy, share, over.name, self._uid, number, size, begun=begun)
            return
        to = self._policy.user(over.to)
        who = asuser.identity(self._policy, to)
        # Its kept folders first: where the project is, they are.
        for kept, place in self._kept_folders(over):
            with self._packed_for(kept, directory) as number:
                self._hand_over_kept(to, place, number, begun=begun)
        target = self._policy.workspace(to)
        with self._packed_for(Tree(source, over.project), directory) as number:
            _become(who, lambda: _take_over(target, over.name, number, begun=begun), number)

    def _size(self, project: str) -> int:
        """Return how many bytes are in a project."""
        workspace = posixpath.join(policies.WORKSPACES_ROOT, self._name)
        return asuser.run_as_user(self._who(), lambda: keeping.peek(workspace, project).bytes, _TIMEOUT)

    @contextlib.contextmanager
    def _packed_for(self, tree: Tree, directory: str) -> Iterator[int]:
        """Yield the descriptor of an archive of a tree that is there for so long."""
        path = posixpath.join(directory, f".{self._name}-{self._uid}-handed{archive.SUFFIX}")
        self.pack(tree, path)
        try:
            with open(path, "rb") as file:
                yield file.fileno()
        finally:
            os.unlink(path)

    def _hand_over_kept(self, to: User, place: str, number: int, *, begun: bool) -> None:
        """Unpack a kept folder where no container has it, and give it its place when it is whole."""
        who = asuser.identity(self._policy, to)
        if os.path.lexists(place):
            if begun and _become(who, lambda: _is_copy(place, number), number):
                return  # it was done, and the run broken off before that was noted
            raise _taken(place)
        making = posixpath.join(policies.HOMES_ROOT, _HANDED, f"{self._uid}-{to.uid}")
        _remove_tree(who, making)  # the half of a run that was broken off
        homes.make_folder(self._policy, to, making)
        try:
            _become(who, lambda: _unpack(making, number), number)
            _move(making, place)
        finally:
            _remove_tree(who, making)

    # The purge

    def remains(self) -> list[str]:
        """Return what is still there."""
        found = [f"remove the retired container {one.container}" for one in self._kept()]
        found += [f"remove the image {name}" for name in self._images()]
        found += [f"remove {one.path}" for one in self.trees()]
        found += [f"remove {path}" for path in privatetmp.own(self._name) if os.path.lexists(path)]
        return [*found, *([f"remove the account {self._name}"] if self._has_account() else [])]

    def _kept(self) -> list[retired.Kept]:
        return [] if self._engine is None else retired.kept(self._engine, uid=self._uid)

    def _images(self) -> list[str]:
        listed = [] if self._engine is None else self._engine.images(f"lab/{self._uid}/*")
        return sorted(tag for image in listed for tag in image.get("RepoTags") or [])

    def _has_account(self) -> bool:
        """Whether there is an account that is ours to remove."""
        if self._is_foreign():
            return False
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(self._name).pw_uid == self._uid
        return False

    def remove(self) -> None:
        """Remove all of it, the account last."""
        if self._engine is not None:
            with locks.hold(f"user-{self._uid}"):
                for one in self._kept():
                    self._engine.remove(one.actual.id)
            for name in self._images():
                self._engine.remove_image(name)
        buildlog.forget_all(self._uid)
        self.trees()  # raises, before any is removed, where one is somebody else's
        for tree_ in self._places():
            _remove_tree(self._who(), tree_.path)
        _remove_folder(self._kept_root())
        for path in privatetmp.own(self._name):
            self._remove_temporary(path)
        if self._has_account():
            hostfiles.run(("userdel", self._name))
        # userdel(8) leaves the private group where login.defs says so.
        if not self._is_foreign() and self._has_group():
            hostfiles.run(("groupdel", self._name))

    def _remove_temporary(self, path: str) -> None:
        """Remove a folder of root's, and what the user has in it, if it is there.

        The user's process gets it as a descriptor, as only root passes through the folder above.
        """
        with contextlib.suppress(NotFound, FileNotFoundError), safefs.opened(path) as folder:
            asuser.run_as_user(self._who(), lambda: tree.empty(folder), _TIMEOUT, keep=(folder,))
        _remove_folder(path)

    def _has_group(self) -> bool:
        """Whether the private group is there, which has the number of its user."""
        line = hostfiles.run(("getent", "group", self._name), accept=(0, 2)).stdout
        return line.split(":")[2:3] == [str(self._uid)]


def _status(number: str) -> tuple[list[str], str]:
    """Return the uids of a process, and the letter of its state."""
    with open(f"/proc/{number}/status", encoding="utf-8", errors="replace") as file:
        found = dict(line.split(":", 1) for line in file if ":" in line)
    return found.get("Uid", "").split(), found.get("State", "").strip()[:1]


def _unit(uid: int) -> str:
    """Return the text of the slice of a uid, or ""."""
    return hostfiles.read_text(posixpath.join(units.DIRECTORY, names.slice_name(uid))) or ""


def _record(uid: int) -> str:
    return f"offboarding/{uid}.json"


def _owner(name: str) -> int:
    with contextlib.suppress(InvalidInput):
        return names.parse_container_name(name)[1]
    return -1


def _listed(path: str) -> list[str]:
    """Return the names in a folder of root's."""
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise HostError(f"{path} cannot be read: {error.strerror}.", "Look at it.") from error


def _label(above: str, name: str) -> str:
    """Return the label of the kept home or folder of that name; raise HostError where it is neither."""
    with contextlib.suppress(InvalidInput):
        return f"home-of-{names.project_name(name)}"
    try:
        policies.kept_name(name)
    except InvalidInput as error:
        raise HostError(
            f"{printable(posixpath.join(above, name))[:200]} is nothing that lab.server makes.",
            "Look into it, and move it away.",
        ) from error
    return f"keep-of-{name}"


def _top(label: str) -> str:
    """Return the name of the folder in an archive, which is one of a project, and one label's alone."""
    with contextlib.suppress(InvalidInput):
        return names.project_name(label)
    left = re.sub("[^a-z0-9]+", "-", label.lower())[-23:].strip("-")
    return f"{left}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"


# Folders of a user in folders of root's


def _become(who: asuser.Identity, function: Callable[[], T], number: int) -> T:
    """Call a function in a child that has become the user, and that reads the descriptor."""
    return asuser.run_as_user(who, function, _TIMEOUT, keep=(number,), file_limit=_NO_FILE_LIMIT)


def _remove_tree(who: asuser.Identity, path: str) -> None:
    """Remove a folder of the user's, or one of root's with nothing in it, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        if os.lstat(path).st_uid == who.uid:
            asuser.run_as_user(who, lambda: _empty(path), _TIMEOUT)
        _remove_folder(path)


def _remove_folder(path: str) -> None:
    """Remove a folder with nothing in it, if it is there."""
    try:
        with safefs.opened(posixpath.dirname(path)) as above:
            os.rmdir(posixpath.basename(path), dir_fd=above)
    except (FileNotFoundError, NotFound):
        return
    except OSError as error:
        raise HostError(f"{path} cannot be removed: {error.strerror}.", "Look into it.") from error


def _move(path: str, place: str) -> None:
    """Give a folder its place below another folder of root's; replace nothing."""
    above, name = posixpath.split(place)
    try:
        homes.root_folder(above)
        with safefs.opened(posixpath.dirname(path)) as source, safefs.opened(above) as target:
            safefs.move(source, posixpath.basename(path), target, name)
    except FileExistsError as error:
        raise _taken(place) from error
    except OSError as error:
        raise HostError(f"{place} could not be made: {error.strerror}.", "Look at it.") from error


def _taken(place: str) -> Refused:
    return Refused(f"{place} is there already.", "Give the project another 'name', or move that away.")


# The file of an archive


class _File:
    """A file of root's that is written; it counts and hashes, and leaves room on the disk."""

    def __init__(self, file: BinaryIO, of: str) -> None:
        self._file = file
        self._of = of
        self._hash = hashlib.sha256()
        room = os.fstatvfs(file.fileno())
        self._room = room.f_frsize * max(0, room.f_bavail - room.f_blocks // _SPARE)
        self.size = 0

    @property
    def sha256(self) -> str:
        """The digest of what was written."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> int:
        """Write bytes; raise Refused when there is no more room."""
        self.size += len(data)
        if self.size > self._room:
            raise told_room(self._of, self._room)
        self._hash.update(data)
        return self._file.write(data)


@contextlib.contextmanager
def _written(path: str, of: str) -> Iterator[_File]:
    """Yield a new file, which gets its name, in place of an older one, when all went well."""
    directory, name = posixpath.split(path)
    folder = _own_folder(directory)
    part = f".{name.lstrip('.')}.part"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part, dir_fd=folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(part, flags, 0o600, dir_fd=folder), "wb") as file:
                yield _File(file, of)
                file.flush()
                os.fsync(file.fileno())
            os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part, dir_fd=folder)
    except OSError as error:
        raise HostError(f"{path} cannot be written: {error.strerror}.", "Nothing was lost.") from error
    finally:
        os.close(folder)


def _own_folder(path: str) -> int:
    """Open the folder of the archives, and make it if it is missing; nobody but root may change its way."""
    way = path
    while way != "/":
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(way)
            loose = status.st_mode & 0o022 and not (status.st_mode & stat.S_ISVTX and way != path)
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or loose:
                raise HostError(
                    f"{way} is no folder that root alone can change.", "Name another 'directory'."
                )
        way = posixpath.dirname(way)
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        return safefs.open_directory(path)
    except OSError as error:
        raise HostError(f"{path} cannot be made: {error.strerror}.") from error


# In the child, which is the user


def _digest(path: str) -> str:
    with safefs.opened(path) as folder:
        return archive.look(folder).digest


def _pack(path: str, name: str, output: BinaryIO) -> dict[str, Any]:
    with safefs.opened(path) as folder:
        before = archive.look(folder)
        # Two changes within one tick of the kernel's clock can have one time; a tick is at most 10 ms.
        time.sleep(0.1)
        packed = archive.pack(folder, name, output)
        return {"digest": before.digest, "blocked": packed.blocked[:_SHOWN]}


def _verify(path: str, number: int) -> str:
    with safefs.opened(path) as folder, os.fdopen(number, "rb", closefd=False) as file:
        archive.read(file, archive.Comparing(folder))
        return archive.look(folder).digest


def _take_over(workspace: str, name: str, number: int, *, begun: bool) -> None:
    keeping.heal(workspace)
    place = posixpath.join(workspace, name)
    with os.fdopen(number, "rb", closefd=False) as file:
        if begun and os.path.lexists(place) and _is_same(place, file):
            return  # it was done, and the run broken off before that was noted
        file.seek(0)
        keeping.bring_in(workspace, file, name, own=False)


def _unpack(path: str, number: int) -> None:
    with safefs.opened(path) as folder, os.fdopen(number, "rb", closefd=False) as file:
        visitor = archive.Unpacking(folder, own=False)
        archive.read(file, visitor)
        visitor.finish()


def _is_copy(path: str, number: int) -> bool:
    with os.fdopen(number, "rb", closefd=False) as file:
        return _is_same(path, file)


class _Handed(archive.Comparing):
    """Compares with a project that was handed over: setuid, setgid and sticky bits were not."""

    def folder(self, entry: archive.Entry) -> None:
        super().folder(replace(entry, mode=entry.mode & 0o777))

    def file(self, entry: archive.Entry, source: Any) -> None:
        super().file(replace(entry, mode=entry.mode & 0o777), source)


def _is_same(path: str, file: BinaryIO) -> bool:
    try:
        with safefs.opened(path) as folder:
            archive.read(file, _Handed(folder))
    except (LabError, OSError):
        return False
    return True


def _empty(path: str) -> None:
    """Remove all that is in a folder, which itself is in a folder of root's."""
    with safefs.opened(path) as folder:
        os.fchmod(folder, 0o700)
    with safefs.opened(path) as folder:
        tree.empty(folder)
