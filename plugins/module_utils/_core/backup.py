# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Backups of the lab users: one repository for each, which restic encrypts; their records; restoring.

A user's repository is ``<repository>/<name of the server>/<user>``, its password derived from the one that IT
set, so that who has one user's has no other's. Times are seconds since 1970.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import hmac
import json
import os
import posixpath
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from . import STATE_DIRECTORY, archive, asuser, hostfiles, locks, quota, restic, safefs, state
from . import policy as policies
from .backuprules import BackupRules
from .errors import HostError, InvalidInput, LabError, NotFound, Refused
from .names import printable, user_name
from .policy import Limits, Policy, User
from .quota import NO_LIMIT
from .restic import Repository

PASSWORD_PATH = "/etc/lab-server/backup/password"  # noqa: S105  # the path of one
ENVIRONMENT_PATH = "/etc/lab-server/backup/environment"
LATEST = "latest"
#: What the folder holds into which all of a user is restored: each of ``places``, in that order.
WHOLE = ("home", "workspace", "kept-homes")
HOUR = 3600

_TAR = "/usr/bin/tar"
_LEAST_PASSWORD = 16
_SNAPSHOT = re.compile(r"latest|[0-9a-f]{8,64}")
_SERVER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
_VARIABLE = re.compile(r"([A-Z][A-Z0-9_]*)=(.*)")
# What can be made anew. Folders with a CACHEDIR.TAG are left out by restic itself.
_CACHES = ("__pycache__", ".cache/pip", ".cache/uv")
# Seconds in which a repository answers, wherever it is; restic itself goes on trying for 15 minutes.
_PATIENCE = 60.0
# So many files that were left out are named.
_NAMED = 20


@dataclass(frozen=True)
class Record:
    """What is known of one user's backup and drill; times are 0 for never.

    ``made``: where a repository was made; it is not made anew where one was. ``tried`` is when the last
    backup began, ``left_out`` names files that are larger than their user's quota.
    """

    user: str
    made: str = ""
    tried: float = 0.0
    done: float = 0.0
    problem: str = ""
    snapshot: str = ""
    incomplete: bool = False
    left_out: tuple[str, ...] = ()
    drilled: float = 0.0
    drill_problem: str = ""
    compared: int = 0
    changed: int = 0


def rules_of(policy: Policy) -> BackupRules:
    """Return the rules; raise Refused where there are none."""
    if policy.backup is None:
        raise Refused("This server makes no backups.", "Set lab_backup in the inventory; see docs/backup.md.")
    return policy.backup


# ---- decisions -------------------------------------------------------------------------------------------


def password(master: str, user: str) -> str:
    """Return the password of a user's repository: HMAC-SHA256 of the name, with IT's password as the key."""
    return hmac.new(master.encode(), f"lab.server backup {user}".encode(), hashlib.sha256).hexdigest()


def url(rules: BackupRules, server: str, user: str) -> str:
    """Return where a user's repository is."""
    return f"{rules.repository.rstrip('/')}/{server}/{user}"


def somebody(policy: Policy, name: str) -> User:
    """Return a lab user, or who may have been one: what is restored is found by the name alone.

    Raises InvalidInput for what is no name.
    """
    with contextlib.suppress(NotFound):
        return policy.user(name)
    return User(user_name(name), -1, "", (), "", Limits(0, 0, 0, 0, 0, 0), NO_LIMIT)


def places(policy: Policy, user: User) -> tuple[str, ...]:
    """Return what is backed up: home, workspace, kept homes of containers. The parents are root's."""
    return (user.home, policy.workspace(user), posixpath.join(policies.HOMES_ROOT, user.name))


def backup_arguments(rules: BackupRules, user: User, trees: Sequence[str], largest: int = 0) -> list[str]:
    """Return the words of ``restic backup``; files of more than ``largest`` bytes are left out, if not 0.

    restic reads a hole as the zeros that it stands for.
    """
    homes = posixpath.join(policies.HOMES_ROOT, user.name)
    excluded = [*_CACHES, posixpath.join(user.home, ".cache"), posixpath.join(homes, "*", ".cache")]
    return [
        *("backup", "--json", "--one-file-system", "--exclude-caches", "--tag=lab-server"),
        *([f"--exclude-larger-than={largest}"] if largest else []),
        *(f"--exclude={pattern}" for pattern in (*excluded, *rules.exclude)),
        *("--", *trees),
    ]


def forget_arguments(rules: BackupRules) -> list[str]:
    """Return the words of ``restic forget``; what was backed up may change, so it makes no groups."""
    kept = (("daily", rules.keep_daily), ("weekly", rules.keep_weekly), ("monthly", rules.keep_monthly))
    return ["forget", "--prune", "--group-by=", *(f"--keep-{name}={count}" for name, count in kept if count)]


def literal(path: str) -> str:
    """Return the pattern that matches this path alone (Go's filepath.Match)."""
    return re.sub(r"([\\*?\[\]])", r"\\\1", path)


def locate(policy: Policy, user: User, path: str) -> str:
    """Return where a path of a user is in a snapshot; a relative one begins in the workspace.

    Raises InvalidInput for one that is written in another way than plainly, or is not the user's.
    """
    workspace = policy.workspace(user)
    shown = posixpath.join(user.home, "workspace")
    found = posixpath.join(workspace, path)
    if not path or posixpath.normpath(found) != found or not found.isprintable():
        raise InvalidInput(
            f"{printable(path)[:80]!r} is no plain path.",
            f"Write it as thesis/data, without '..' and a last '/'; the whole workspace is {shown}.",
        )
    if found == shown or found.startswith(shown + "/"):
        found = workspace + found[len(shown) :]
    if not any(found == place or found.startswith(place + "/") for place in places(policy, user)):
        raise InvalidInput(
            f"{printable(path)[:80]} is not in a folder of {user.name}'s that is backed up.",
            f"It is relative to the workspace, or begins with {user.home}/.",
        )
    return found


def attention(rules: BackupRules, records: Sequence[Record], now: float) -> tuple[list[str], list[str]]:
    """Return what needs a hand, (bad, warn): backups and drills that failed, or are too old."""
    bad: list[str] = []
    warn: list[str] = []
    for one in records:
        if one.problem:
            bad.append(f"the backup of {one.user} failed: {one.problem}")
        elif not one.done:
            warn.append(f"{one.user} has no backup yet")
        elif now - one.done > rules.alarm_hours * HOUR:
            bad.append(f"the backup of {one.user} is {round((now - one.done) / HOUR)} hours old")
        if one.drill_problem:
            bad.append(f"the restore drill of {one.user} failed: {one.drill_problem}")
        elif one.done and not one.drilled:
            warn.append(f"no drill has restored the backup of {one.user} yet")
        elif one.drilled and now - one.drilled > rules.drill_days * 24 * HOUR:
            warn.append(
                f"the restore drill of {one.user} is {round((now - one.drilled) / HOUR / 24)} days old"
            )
    return bad, warn


# ---- records ---------------------------------------------------------------------------------------------


def _name(user: str) -> str:
    return posixpath.join("backup", f"{user}.json")


def record(user: str) -> Record:
    """Return what is known of a user's backup; one that is damaged is a problem of its own."""
    try:
        data = json.loads(state.read_record(_name(user)) or "{}")
        return Record(**{**data, "user": user, "left_out": tuple(data.get("left_out", ()))})
    except (ValueError, TypeError, AttributeError):
        return Record(user, problem="its record is damaged; the next backup writes a new one")


def keep(one: Record) -> Record:
    """Write a record and return it."""
    state.write_record(_name(one.user), json.dumps(asdict(one), sort_keys=True))
    return one


def records(policy: Policy) -> list[Record]:
    """Return the records of all users."""
    return [record(user.name) for user in policy.users]


# ---- the repository --------------------------------------------------------------------------------------


def _secret(path: str) -> str | None:
    """Return the text of a file that only root can read; None without one."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o077:
        raise HostError(
            f"{path} can be read by others than root.", f"Run: chown root {path}; chmod 600 {path}"
        )
    return hostfiles.read_text(path)


def repository(policy: Policy, user: User, server: str = "") -> Repository:
    """Return a user's repository of a server, this one unless it is named.

    Raises InvalidInput for what is no server's name, HostError without a password.
    """
    rules = rules_of(policy)
    if server and not _SERVER.fullmatch(server):
        raise InvalidInput(
            f"{printable(server)[:40]!r} is no name of a server.", "Use what uname -n says on it."
        )
    master = (_secret(PASSWORD_PATH) or "").strip()
    if len(master) < _LEAST_PASSWORD:
        raise HostError(
            f"{PASSWORD_PATH} holds no password of {_LEAST_PASSWORD} characters.",
            "Set backup_password, and run the playbook with --tags backup.",
        )
    lines = [line for line in (_secret(ENVIRONMENT_PATH) or "").splitlines() if line.strip()]
    matches = [_VARIABLE.fullmatch(line) for line in lines]
    if not all(matches):
        raise HostError(f"{ENVIRONMENT_PATH} holds a line that is not NAME=value.", "Run the playbook again.")
    environment = tuple((match.group(1), match.group(2)) for match in matches if match)
    where = url(rules, server or os.uname().nodename, user.name)
    return Repository(where, password(master, user.name), environment)


def _check_place(rules: BackupRules) -> None:
    """Refuse a folder for repositories that is missing, or that somebody else than root can write."""
    if not rules.path:
        return
    try:
        status = os.lstat(rules.path)
    except OSError as error:
        raise HostError(
            f"{rules.path} for the backups cannot be looked at: {error.strerror}.", "Mount or make it."
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
        raise HostError(
            f"{rules.path} for the backups is no folder that only root writes.",
            f"Run: chown root {rules.path}; chmod 700 {rules.path}",
        )


def _probe(place: Repository) -> None:
    """Raise restic.Missing where there is no repository, HostError where it is not reached in time."""
    restic.run(place, ["cat", "config", "--no-lock"], timeout=_PATIENCE)


def _there(place: Repository) -> bool:
    """Say whether the repository is there and its password right; raise HostError where that is not told."""
    try:
        _probe(place)
    except restic.Missing:
        return False
    return True


@contextlib.contextmanager
def _read(rules: BackupRules, place: Repository, user: User) -> Iterator[None]:
    """Raise NotFound, with what to do, where a repository that is read is not there."""
    try:
        yield
    except restic.Missing as error:
        raise NotFound(f"There is no backup of {user.name} at {place.url}.", _others(rules, user)) from error


def _others(rules: BackupRules, user: User) -> str:
    """Return where else a repository of a user is, as far as a folder tells it."""
    found = glob.glob(f"{glob.escape(rules.path)}/*/{user.name}/config") if rules.path else []
    servers = sorted(path.split("/")[-3] for path in found)
    if servers:
        return f"There is one of another server, or of this one's former name: add --server {servers[0]}."
    mounted = (
        f"See whether the disk of {rules.path} is mounted" if rules.path else "See how the name is written"
    )
    return f"{mounted}; what was backed up under another name of the server is read with --server NAME."


def _make(place: Repository, known: Record) -> Record:
    """Make the repository where there is none; where there was one, its disk may not be mounted."""
    if _there(place):
        return Record(**{**asdict(known), "made": place.url})
    if known.made == place.url:
        raise HostError(
            f"The repository of {known.user} was there and is gone.",
            f"Mount its disk; to begin a new one remove {STATE_DIRECTORY}/{_name(known.user)}.",
        )
    restic.run(place, ["init"], timeout=600)
    return keep(Record(**{**asdict(known), "made": place.url}))


# ---- backups ---------------------------------------------------------------------------------------------


def in_turn(policy: Policy) -> tuple[User, ...]:
    """Return all users, first whose last try is the longest ago.

    So everybody has a turn however long others take. By the last success those would come first each day who
    never have one.
    """
    return tuple(sorted(policy.users, key=lambda user: record(user.name).tried))


def back_up(policy: Policy, user: User) -> Record:
    """Back a user up and drop what is not kept any more; what goes wrong is in the record, not raised."""
    rules = rules_of(policy)
    with locks.hold(f"backup-{user.uid}", timeout=5, title=f"the backup of {user.name}"):
        # Kept before it begins: who is at work when all of it is ended has had the turn.
        known = keep(replace(record(user.name), tried=time.time()))
        until = time.monotonic() + rules.user_hours * HOUR
        try:
            found = _back_up(policy, user, known, until)
        except LabError as error:
            late = time.monotonic() >= until
            return keep(replace(known, problem=printable(str(_too_long(rules) if late else error))))
        return keep(replace(found, done=time.time(), problem=""))


def _too_long(rules: BackupRules) -> HostError:
    return HostError(
        f"It took longer than lab_backup.user_hours, {rules.user_hours}, and was ended.",
        "Look for files that are mostly holes (du against du --apparent-size), "
        "or raise it; the next one goes on with what came into the repository.",
    )


def _left(until: float) -> float:
    return max(1.0, until - time.monotonic())


def _back_up(policy: Policy, user: User, known: Record, until: float) -> Record:
    rules = rules_of(policy)
    _check_place(rules)
    trees = [place for place in places(policy, user) if _is_folder(place)]
    if not trees:
        raise HostError(f"{user.name} has no home and no workspace.", "Run the playbook lab.server.site.")
    place = repository(policy, user)
    known = _make(place, known)
    # Locks of processes that are gone.
    restic.run(place, ["unlock"], timeout=600)
    largest = _largest(policy, user)
    done = restic.run(
        place,
        backup_arguments(rules, user, trees, largest),
        capabilities=(restic.DAC_READ_SEARCH,),
        trees=trees,
        accept=(0, restic.INCOMPLETE),
        timeout=_left(until),
    )
    restic.run(place, forget_arguments(rules), timeout=_left(until))
    return replace(
        known,
        snapshot=_snapshot_of(done.stdout),
        incomplete=done.returncode == restic.INCOMPLETE,
        left_out=_larger(policy, user, trees, largest, _left(until)) if largest else (),
    )


def _largest(policy: Policy, user: User) -> int:
    """Return how many bytes a file of the user's can hold that has no holes; 0 where nothing limits it.

    A limit may have been set below what was used.
    """
    with contextlib.suppress(LabError):
        usage = quota.usage(policy, user)
        return max(usage.quota.hard, usage.used) if usage.quota.hard else 0
    return 0


def _larger(
    policy: Policy, user: User, trees: Sequence[str], largest: int, timeout: float
) -> tuple[str, ...]:
    """Return some files of more than ``largest`` bytes, looked for by a child that is the user."""

    def look() -> list[str]:
        found: list[str] = []
        for tree in trees:
            # What cannot be looked into has no names to tell.
            with contextlib.suppress(OSError, LabError), safefs.opened(tree) as folder:
                for one in archive.walk(folder, in_use=True):
                    if stat.S_ISREG(one.status.st_mode) and one.status.st_size > largest:
                        found.append(printable(posixpath.join(tree, one.path))[:200])
                    if len(found) >= _NAMED:
                        return found
        return found

    with contextlib.suppress(LabError):
        return tuple(asuser.run_as_user(asuser.identity(policy, user), look, timeout=min(timeout, 600.0)))
    return ()


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def _snapshot_of(output: str) -> str:
    """Return the id in the summary that ``restic backup --json`` ends with."""
    for line in reversed(output.splitlines()):
        try:
            message = json.loads(line)
        except ValueError:
            continue
        if isinstance(message, Mapping) and message.get("message_type") == "summary":
            return str(message.get("snapshot_id", ""))[:64]
    raise HostError("restic backup told of no snapshot.", "Look at it with: lab backup USER --list.")


def snapshots(policy: Policy, user: User, server: str = "") -> list[dict[str, Any]]:
    """Return a user's snapshots, the oldest first: id and time as restic tells it.

    Raises NotFound where there is no repository.
    """
    place = repository(policy, user, server)
    with _read(rules_of(policy), place, user):
        done = restic.run(place, ["snapshots", "--json", "--no-lock"], timeout=_PATIENCE)
    found = json.loads(done.stdout) or []
    return [
        {"id": str(one["short_id"]), "time": str(one["time"])[:19], "paths": one["paths"]} for one in found
    ]


# ---- restoring -------------------------------------------------------------------------------------------


def restore(
    policy: Policy, user: User, path: str, target: str, snapshot: str = LATEST, server: str = ""
) -> str:
    """Restore a path of a user's into the new folder ``target``, for root alone; return where it is now.

    ``server`` is the one that it was backed up on, if not this one.
    Raises InvalidInput, Refused, NotFound and HostError; nothing is left behind then.
    """
    wanted = locate(policy, user, path)
    with _extracted(policy, user, [wanted], target, snapshot, server) as (scratch, new):
        found = scratch + wanted
        if not os.path.lexists(found):
            raise _not_there(user, path)
        os.mkdir(new, 0o700)
        final = os.path.join(new, posixpath.basename(wanted))
        os.rename(found, final)
    return final


def restore_all(
    policy: Policy, user: User, target: str, snapshot: str = LATEST, server: str = ""
) -> list[str]:
    """Restore all that a snapshot has of a user, as ``restore`` does; return what is in ``target`` now.

    That is what of WHOLE the snapshot has.
    """
    wanted = places(policy, user)
    with _extracted(policy, user, wanted, target, snapshot, server) as (scratch, new):
        found = [(name, scratch + place) for name, place in zip(WHOLE, wanted)]
        found = [(name, path) for name, path in found if os.path.lexists(path)]
        if not found:
            raise _not_there(user, user.home)
        os.mkdir(new, 0o700)
        for name, path in found:
            os.rename(path, os.path.join(new, name))
    return [name for name, _path in found]


def _not_there(user: User, path: str) -> NotFound:
    return NotFound(
        f"{printable(path)} is not in that snapshot.", f"See others: lab backup {user.name} --list."
    )


@contextlib.contextmanager
def _extracted(
    policy: Policy, user: User, paths: Sequence[str], target: str, snapshot: str, server: str
) -> Iterator[tuple[str, str]]:
    """Yield a folder of root's with these paths of a snapshot in it, and the whole path of the new folder.

    The first is gone afterwards.
    """
    if not _SNAPSHOT.fullmatch(snapshot):
        raise InvalidInput(f"{printable(snapshot)[:40]!r} is no snapshot.", "See: lab backup USER --list.")
    target = os.path.abspath(target)
    _check_target(target)
    place = repository(policy, user, server)
    scratch = tempfile.mkdtemp(prefix=".lab-restore-", dir=os.path.dirname(target))
    try:
        with _read(rules_of(policy), place, user):
            _probe(place)
            extract(place, snapshot, paths, scratch, owned=True)
        yield scratch, target
    finally:
        # What cannot be removed is root's alone; the error that led here is the one to tell.
        shutil.rmtree(scratch, ignore_errors=True)


def give_back(
    policy: Policy, user: User, folder: str, *, replace: bool = False
) -> tuple[list[str], list[str]]:
    """Copy what ``restore_all`` left in a folder to where it was; return (those places, those left out).

    A process that is the user writes it, so that owner and quota are right and no link leads root anywhere.
    What is there already stays, unless ``replace``. A place that is not there is left out. It may be called
    again. Raises Refused, NotFound and HostError.
    """
    if user.uid < 0:
        raise Refused(
            f"{user.name} is no lab user of this server.",
            "Leave --back out, and give the files to somebody else as docs/backup.md says.",
        )
    folder = os.path.abspath(folder)
    _check_parents(folder)
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o077:
        raise Refused(
            f"{printable(folder)} is no folder that root alone can enter.", "Name another one, not there yet."
        )
    home, workspace, kept = places(policy, user)
    pairs = [(os.path.join(folder, WHOLE[0]), home), (os.path.join(folder, WHOLE[1]), workspace)]
    with contextlib.suppress(FileNotFoundError):
        above = os.path.join(folder, WHOLE[2])
        pairs += [(os.path.join(above, name), os.path.join(kept, name)) for name in sorted(os.listdir(above))]
    pairs = [(source, place) for source, place in pairs if _owner_of_folder(source) is not None]
    if not pairs:
        raise NotFound(f"There is nothing of {user.name} in {printable(folder)}.", "Name another one.")
    given, left = [], []
    for source, place in pairs:
        if _owner_of_folder(place) == user.uid:
            # The workspace has a place of its own, which shows in the home.
            without = ("./workspace",) if place == home else ()
            _copy_as(user, source, place, without, replace=replace)
            given.append(place)
        else:
            left.append(place)
    return given, left


def _owner_of_folder(path: str) -> int | None:
    """Return the uid of a folder's owner; None where there is none, or a link in its place."""
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        return status.st_uid if stat.S_ISDIR(status.st_mode) else None
    return None


def _copy_as(user: User, source: str, place: str, without: Sequence[str], *, replace: bool) -> None:
    """Copy a folder of root's into one of the user's; the user's process reads it from a pipe alone."""
    read = [_TAR, "--create", "--sparse", "--anchored", "--no-wildcards"]
    read += [f"--exclude={path}" for path in without]
    read += ["--file=-", f"--directory={source}", "."]
    write = [_TAR, "--extract", "--file=-", f"--directory={place}", "--same-permissions"]
    write += [] if replace else ["--skip-old-files"]
    plain: dict[str, Any] = {"cwd": "/", "env": {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}}
    with tempfile.TemporaryFile() as wrong:
        plain["stderr"] = wrong
        reader = subprocess.Popen(read, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, **plain)
        try:
            done = subprocess.run(
                write,
                stdin=reader.stdout,
                stdout=subprocess.DEVNULL,
                user=user.uid,
                group=user.gid,
                extra_groups=[],
                umask=0o077,
                check=False,
                **plain,
            )
        finally:
            if reader.stdout is not None:
                reader.stdout.close()
            code = reader.wait()
        if done.returncode or code:
            wrong.seek(0)
            lines = wrong.read(1 << 16).decode("utf-8", "replace").splitlines()
            said = next((line for line in lines if line.strip()), "tar failed")
            raise HostError(
                f"Not all came back to {place}: {printable(said)[:200]}",
                "What came back stays. Make room, or raise the quota, and give the same command again.",
            )


def extract(
    place: Repository,
    snapshot: str,
    paths: Sequence[str],
    target: str,
    *,
    owned: bool,
    timeout: float = 86400.0,
) -> None:
    """Restore paths into a folder of root's; ``owned``: with their owners, which needs capabilities."""
    included = [f"--include={literal(path)}" for path in paths]
    words = ["restore", f"--target={target}", *restic.sparse(place), *included, "--", snapshot]
    needed = (restic.CHOWN, restic.DAC_OVERRIDE, restic.FOWNER)
    restic.run(place, words, capabilities=needed if owned else (), timeout=timeout)


def _check_target(target: str) -> None:
    """Refuse a target that is there, or below a folder that somebody else than root can write."""
    if os.path.lexists(target):
        raise Refused(f"{printable(target)} is there already.", "Name a folder that is not there yet.")
    _check_parents(target)


def _check_parents(target: str) -> None:
    parent = os.path.dirname(target)
    while True:
        try:
            status = os.lstat(parent)
        except OSError as error:
            raise InvalidInput(f"{printable(parent)}: {error.strerror}.", "Make it first.") from error
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
            raise Refused(
                f"{printable(parent)} is no folder that only root writes.",
                "Restore below one such as /root, then hand it to the user.",
            )
        if parent == "/":
            return
        parent = os.path.dirname(parent)
