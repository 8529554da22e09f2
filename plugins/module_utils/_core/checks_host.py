# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Checks of the host itself: disks, quotas, accounts, sudo, the broker, limits, shared folders, time."""

from __future__ import annotations

import contextlib
import grp
import ipaddress
import os
import posixpath
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from . import (
    POLICY_PATH,
    PUBLIC_POLICY_PATH,
    STATE_DIRECTORY,
    accounts,
    capacity,
    damaged,
    hostfiles,
    install,
    mounts,
    privatetmp,
    quota,
    room,
    scratch,
    shares,
    slices,
    storage,
    units,
    watermarks,
)
from .boot import NOTICES
from .capacity import Capacity
from .errors import HostError, LabError
from .inspection import FAIL, PASS, PLAYBOOK, SKIP, WARN, Check, Outcome, Server, desired, judged
from .names import printable
from .policy import HOME_ROOT, WORKSPACES_ROOT, User
from .protocol import BROKER
from .sizes import format_size

SUDOERS = "/etc/sudoers.d/lab-server"
METADATA = "169.254.169.254"
_FIREWALL = ("LAB-SERVER", "LAB-SERVER-OUT")
_MAPPERS = ("/usr/bin/newuidmap", "/usr/bin/newgidmap")
_SUDO_RULE = f"(root) NOPASSWD: {BROKER}"
#: Units that must be active on every server; others of ours must be where they are enabled.
UNITS = (
    "docker.service",
    "lab-server-boot.service",
    "lab-server-firewall.service",
    "lab-server-cleanup.timer",
    "lab-server-lifecycle.timer",
)
_OURS = "lab-server-"
_SOCKET = "/run/docker.sock"
_ROOM = (
    "Make room: lab status tells who has most of the homes and of Docker's disk, and "
    "'du -xh -d 1 MOUNT | sort -h' what takes another one."
)
_JOURNAL = "/run/systemd/journal/socket"


# ---- disks and quotas ------------------------------------------------------------------------------------


def _mounts(server: Server) -> Outcome:
    problems, seen = [], []
    for filesystem in server.policy.filesystems:
        mount = mounts.at(filesystem.mount, server.mounts)
        if mount is None:
            problems.append(f"{filesystem.mount} is not mounted")
            continue
        if filesystem.device and mounts.device_number(filesystem.device) != mount.number:
            problems.append(f"{mount.point} is mounted from {mount.source}, not {filesystem.device}")
        absent = storage.missing_options(filesystem, mount)
        if absent:
            problems.append(f"{mount.point} is mounted without {','.join(absent)}")
        seen.append(mount.point)
    if not server.policy.filesystems:
        return Outcome(SKIP, "lab_filesystems declares none")
    return judged(problems, f"{', '.join(seen)}; nosuid,nodev where users write")


def _fstab(server: Server) -> Outcome:
    text = hostfiles.read_text(storage.FSTAB) or ""
    problems = []
    for filesystem in server.policy.filesystems:
        if not filesystem.device:
            continue
        lines = storage.fstab_lines(text, filesystem.mount)
        given = lines[0].split()[3].split(",") if len(lines) == 1 and len(lines[0].split()) > 3 else []
        absent = [option for option in storage.options(filesystem) if option not in given]
        if len(lines) != 1:
            problems.append(f"{storage.FSTAB} has {len(lines)} lines for {filesystem.mount}")
        elif absent:
            problems.append(f"the line of {filesystem.mount} lacks {','.join(absent)}")
    return judged(problems, "after the next boot they are mounted the same way")


def _quota_on(server: Server) -> Outcome:
    mount = mounts.holding(HOME_ROOT, server.mounts)
    if quota.USER in quota.enforced(mount.source):
        return Outcome(PASS, f"the kernel enforces user quotas on {mount.point}")
    return Outcome(FAIL, f"no user quotas are enforced on {mount.point} ({mount.source})", PLAYBOOK)


def _quota_limits(server: Server) -> Outcome:
    device = mounts.holding(HOME_ROOT, server.mounts).source
    if quota.USER not in quota.enforced(device):
        return Outcome(SKIP, "no user quotas are on; see the check quota-on")
    problems = []
    for user in server.policy.users:
        there, wanted = quota.read(device, quota.USER, user.uid).quota, quota.in_blocks(user.quota)
        if there != wanted:
            shown, should = quota.describe(there), quota.describe(wanted)
            words = [f"{key} {shown[key]}, not {should[key]}" for key in shown if shown[key] != should[key]]
            problems.append(f"{user.name} has {', '.join(words)}")
    return judged(problems, f"{len(server.policy.users)} users have the quota of the policy")


def _quota_write(server: Server) -> Outcome:
    device = mounts.holding(HOME_ROOT, server.mounts).source
    if quota.USER not in quota.enforced(device):
        return Outcome(SKIP, "no user quotas are on; see the check quota-on")
    written = scratch.write_beyond(device, {user.uid for user in server.policy.users})
    if written.stopped:
        return Outcome(PASS, f"a write of {format_size(written.asked)} ended at {format_size(written.limit)}")
    return Outcome(
        FAIL,
        f"somebody with a quota of {format_size(written.limit)} wrote {format_size(written.asked)}",
        PLAYBOOK,
    )


def overcommit(surveyed: Iterable[Capacity]) -> Outcome:
    """Judge what was promised of all disks whose size is known; a disk that is missing has its own check."""
    disks = [one for one in surveyed if one.space.size]
    too_large = [
        f"{capacity.some(one.too_large)} on {one.mount} ({format_size(one.space.size)})"
        for one in disks
        if one.too_large
    ]
    if too_large:
        detail = f"more was promised than the disk is to {'; '.join(too_large)}"
        return Outcome(FAIL, detail, "Lower it, or enlarge the disk.")
    said = "; ".join(f"{one.mount}: {one.given}{_unbounded(one)}" for one in disks)
    if any(one.overcommitted for one in disks):
        return Outcome(WARN, said, "Not all can use what they were promised at the same time.")
    if any(one.role == "home" and one.unbounded for one in disks):
        return Outcome(WARN, said, "Give everybody a hard quota.")
    return Outcome(PASS, said or "the size of no disk is known")


def _unbounded(one: Capacity) -> str:
    return f", no limit for {capacity.some(one.unbounded)}" if one.unbounded else ""


def _overcommit(server: Server) -> Outcome:
    return overcommit(capacity.survey(server.policy, storage.spaces(server.policy, server.mounts)))


def fullness(point: str) -> tuple[float, float]:
    """Return the shares (0 to 1) of the blocks and of the inodes of a file system that are used, as df(1)."""
    numbers = os.statvfs(point)
    inodes = 1 - numbers.f_favail / numbers.f_files if numbers.f_files else 0.0
    return watermarks.look(point).share, inodes


def _space(server: Server) -> Outcome:
    points = {"/": "/"}
    for place in ("/var", "/var/log", "/tmp", *(fs.mount for fs in server.policy.filesystems)):  # noqa: S108  # only looked at
        if os.path.exists(place):
            points[mounts.holding(place, server.mounts).point] = place
    full, filling = [], []
    for point in points:
        space, inodes = fullness(point)
        for share, what in ((space, ""), (inodes, " of the inodes")):
            text = f"{point} is {round(share * 100)} % full{what}"
            if share >= room.ALARM:
                full.append(text)
            elif share >= room.WARN:
                filling.append(text)
    if full or not filling:
        return judged(full, f"{', '.join(points)} have room", _ROOM)
    return Outcome(WARN, "; ".join(filling), _ROOM)


# ---- accounts --------------------------------------------------------------------------------------------


def _accounts(server: Server) -> Outcome:
    """Compare the accounts; what has a check of its own (homes, subids, slices) is left to that."""
    policy, there = server.policy, server.accounts
    wanted = desired(policy, dict(there.keys))
    texts = dict([slices.root_unit()])
    for user in policy.users:
        texts.update(unit_texts(user))
    actual = replace(
        there,
        subordinate=frozenset(),
        homes={user.name: accounts.Home(user.uid, 0o700) for user in policy.users},
        units=texts,
        stale={},
    )
    problems = list(accounts.conflicts(wanted, actual))
    if not problems:
        items = [planned.item for planned in accounts.plan(wanted, actual)]
        problems = [f"{item.name}: {', '.join(item.actions)}" for item in items if item.changed]
    return judged(problems, f"{len(policy.users)} users and {len(policy.groups)} groups are as declared")


def _docker_group(server: Server) -> Outcome:
    problems = []
    group = server.accounts.groups.get("docker")
    if group is not None:
        main = [one.name for one in server.accounts.users.values() if one.gid == group.gid]
        problems += [f"{name} is in the group docker" for name in sorted({*group.members, *main})]
    if os.path.exists(_SOCKET):
        status = os.stat(_SOCKET)
        if status.st_uid != 0 or status.st_mode & 0o007:
            problems.append(f"others than root can reach {_SOCKET}")
    started = hostfiles.run(
        ["systemctl", "show", "--property=ExecStart", "docker.service"], accept=range(256)
    )
    if "tcp://" in started.stdout:
        problems.append("dockerd listens on the network (docker.service)")
    return judged(problems, "nobody but root reaches Docker", "Take them out: gpasswd -d NAME docker.")


def _subids(server: Server) -> Outcome:
    owners = {owner for user in server.policy.users for owner in (user.name, str(user.uid))}
    found = sorted(owners & server.accounts.subordinate)
    problems = [f"{owner} has subordinate ids, which no quota counts" for owner in found]
    problems += [f"{path} is installed" for path in _MAPPERS if os.path.exists(path)]
    return judged(problems, "no lab user has any")


def _homes(server: Server) -> Outcome:
    problems = []
    for path in (HOME_ROOT, WORKSPACES_ROOT):
        problems += [] if _is_roots(path) else [f"{path} can be changed by others than root"]
    for user in server.policy.users:
        for path in (user.home, server.policy.workspace(user)):
            problems += _private(path, user)
    return judged(problems, f"{len(server.policy.users)} users, each alone in home and workspace")


def _temporary(server: Server) -> Outcome:
    if not server.policy.disks.private_tmp:
        return Outcome(PASS, "as is declared, those of all users lie together")
    if not privatetmp.can_be():
        return Outcome(SKIP, "there is no pam-auth-update, so those of all users lie together")
    return judged(
        privatetmp.problems(), f"each lab user has {' and '.join(privatetmp.FOLDERS)} of the own", PLAYBOOK
    )


def _private(path: str, user: User) -> list[str]:
    try:
        status = os.lstat(path)
    except OSError:
        return [f"{path} is not there"]
    if not stat.S_ISDIR(status.st_mode):
        return [f"{path} is no folder"]
    if status.st_uid != user.uid:
        return [f"{path} belongs to uid {status.st_uid}"]
    return (
        [f"{path} is open to others ({stat.S_IMODE(status.st_mode):04o})"] if status.st_mode & 0o077 else []
    )


# ---- the way to root -------------------------------------------------------------------------------------


def sudo_rules(told: str) -> list[str]:
    """Return the rules in what ``sudo -l -U`` tells of a user, without its Defaults."""
    _head, found, rules = told.partition("may run the following commands")
    return [line.strip() for line in rules.splitlines()[1:] if line.strip()] if found else []


def _sudo(server: Server) -> Outcome:
    problems = [] if _is_roots(SUDOERS) else [f"{SUDOERS} is missing, or not root's alone"]
    for user in server.policy.users:
        told = hostfiles.run(["sudo", "-n", "-l", "-U", user.name], accept=(0, 1))
        rules = sudo_rules(told.stdout)
        problems += [f"{user.name} may run {rule}" for rule in rules if rule != _SUDO_RULE]
        if _SUDO_RULE not in rules:
            problems.append(f"{user.name} cannot reach the broker")
    return judged(problems, f"each lab user has one rule, for {BROKER}", "Look at: sudo -l -U NAME.")


def _is_roots(path: str) -> bool:
    """Say whether a path is there, and nobody but root may change it or what it is reached by."""
    whole = posixpath.normpath(path)
    while True:
        try:
            status = os.lstat(whole)
        except OSError:
            return False
        loose = status.st_mode & 0o002 or (status.st_mode & 0o020 and not _is_empty(status.st_gid))
        if status.st_uid != 0 or (loose and not stat.S_ISLNK(status.st_mode)):
            return False
        if whole == "/":
            return True
        whole = posixpath.dirname(whole)


def _is_empty(gid: int) -> bool:
    """Say whether a group other than root's has no members: /usr/local is staff's (Debian policy 9.1.2)."""
    with contextlib.suppress(KeyError):
        return gid != 0 and not grp.getgrgid(gid).gr_mem
    return False


def _broker(_server: Server) -> Outcome:
    library = os.path.realpath(install.CURRENT)
    package = posixpath.join(library, install.PACKAGE)
    paths = [*install.programs(), install.CURRENT, package, STATE_DIRECTORY, POLICY_PATH, PUBLIC_POLICY_PATH]
    with os.scandir(package) as entries:
        paths += [entry.path for entry in entries]
    problems = [
        f"{path} is missing, or others than root can change it" for path in paths if not _is_roots(path)
    ]
    if stat.S_IMODE(os.stat(POLICY_PATH).st_mode) & 0o077:
        problems.append(f"{POLICY_PATH} can be read by others than root")
    return judged(problems, "broker, library and policy are root's, up to /")


def _commands(server: Server) -> Outcome:
    items = install.reconcile(server.policy, check=True)
    problems = [f"{item.name}: {item.actions[0]}" for item in items if item.changed and item.actions]
    return judged(problems, "library, programs and policy are those of this version")


# ---- limits ----------------------------------------------------------------------------------------------


def unit_texts(user: User) -> dict[str, str]:
    """Return the unit files that hold the limits of a user, by their names."""
    cpus, memory, pids = user.limits.cpus, user.limits.memory, user.limits.pids
    return dict(
        [
            slices.user_unit(
                user.name, user.uid, cpus=cpus, memory=memory, pids=pids, existing=user.existing
            ),
            slices.session_unit(user.uid, cpus=cpus, memory=memory, pids=pids),
        ]
    )


def _slices(server: Server) -> Outcome:
    problems = []
    live = 0
    there = server.accounts.units
    for user in server.policy.users:
        wanted = unit_texts(user)
        problems += [f"{name} is not as declared" for name, text in wanted.items() if there.get(name) != text]
        for unit, _name, read in slices.live(user.uid):
            live += 1
            wrong = slices.not_held(user.limits, read)
            if wrong:
                problems.append(f"{unit} of {user.name} does not hold its limit of {', '.join(wrong)}")
    return judged(problems, f"{len(server.policy.users)} users are declared, {live} slices run and hold")


# ---- the network -----------------------------------------------------------------------------------------


def closes(rules: Sequence[str], address: str, uids: Iterable[int] = ()) -> bool:
    """Say whether rules of a chain (``iptables -S``) refuse an address; with ``uids`` for all of these.

    DNS may be let through: some clouds answer it at the same address.
    """
    where = ipaddress.ip_address(address)
    for rule in rules:
        words = rule.split()
        if words[2:] in (["-j", "RETURN"], ["-j", "ACCEPT"]):
            return False
        if "-d" not in words or "--dport" in words or "!" in words:
            continue
        if where not in ipaddress.ip_network(words[words.index("-d") + 1], strict=False):
            continue
        if "--uid-owner" in words:
            first, _dash, last = words[words.index("--uid-owner") + 1].partition("-")
            if not all(int(first) <= uid <= int(last or first) for uid in uids):
                continue
        return words[words.index("-j") + 1] in ("REJECT", "DROP") if "-j" in words else False
    return False


def reached(rules: Sequence[str], chain: str) -> bool:
    """Say whether every packet in a chain (``iptables -S``) gets to ``chain``."""
    for rule in rules:
        words = rule.split()
        if words[:1] != ["-A"]:
            continue
        if words[2:] == ["-j", chain]:
            return True
        if words[2:3] == ["-j"] and words[3] in ("ACCEPT", "RETURN", "DROP", "REJECT"):
            return False
    return False


def _firewall(server: Server) -> Outcome:
    rules = {
        chain: hostfiles.run(["iptables", "-w", "-S", chain], accept=(0, 1)).stdout.splitlines()
        for chain in ("DOCKER-USER", "OUTPUT", *_FIREWALL)
    }
    inside, outside = _FIREWALL
    problems = []
    if not reached(rules["DOCKER-USER"], inside) or not closes(rules[inside], METADATA):
        problems.append(f"containers reach the metadata service ({METADATA})")
    uids = [user.uid for user in server.policy.users]
    if not reached(rules["OUTPUT"], outside) or not closes(rules[outside], METADATA, uids):
        problems.append(f"users on the host reach the metadata service ({METADATA})")
    if not any("-o lab0" in rule and rule.endswith("-j DROP") for rule in rules[inside]):
        problems.append("others than the server itself reach the containers' addresses")
    return judged(
        problems, f"{METADATA} is closed to containers and users", "systemctl restart lab-server-firewall"
    )


# ---- shared data, time, units ----------------------------------------------------------------------------


def _shares(server: Server) -> Outcome:
    policy = server.policy
    if not os.path.isdir(policy.data_root):
        return Outcome(FAIL, f"{policy.data_root} is not there", PLAYBOOK)
    items = shares.reconcile(policy.data_root, policy.shares, mounted=False, check=True)
    problems = [
        f"{item.name}: {item.message or ', '.join(item.actions)}"
        for item in items
        if item.changed or item.failed
    ]
    return judged(problems, f"{len(items)} folders of {policy.data_root}: owners, modes, default ACLs")


def _units(server: Server) -> Outcome:
    there = sorted(os.listdir(units.DIRECTORY))
    # A template, or what is added to another unit, has no state of its own (systemd.unit(5)).
    ours = [name for name in there if name.startswith(_OURS) and name.endswith((".service", ".timer"))]
    wanted = list(UNITS)
    if server.policy.package_cache is not None:
        wanted.append("lab-server-package-cache.service")
    known = list(dict.fromkeys([*wanted, *(name for name in ours if "@." not in name)]))
    return judged_units(units.states(known), wanted)


def judged_units(states: Mapping[str, Mapping[str, str]], wanted: Sequence[str]) -> Outcome:
    """Judge what systemd says of units: ``wanted`` and enabled ones must be active, none may have failed."""
    problems = []
    for name, state in states.items():
        active, enabled = state.get("ActiveState"), state.get("UnitFileState") == "enabled"
        if active == "failed":
            problems.append(f"{name} failed")
        elif (name in wanted or enabled) and active not in ("active", "activating", "reloading"):
            problems.append(f"{name} is not active")
        elif name in wanted and name.endswith(".timer") and not enabled:
            problems.append(f"{name} is not started at the next boot")
    return judged(problems, f"{len(states)} units, none failed", "Look at: systemctl status NAME.")


def _boot(_server: Server) -> Outcome:
    notice = hostfiles.read_text(NOTICES[0])
    if not notice:
        return Outcome(PASS, "nothing is missing since the last boot")
    said = " ".join(notice.split())
    return Outcome(FAIL, printable(said), "Look at: journalctl -b -u lab-server-boot.")


def _records(_server: Server) -> Outcome:
    fix = "Mend it as it is said."
    return judged(damaged.problems(), "reservations, times of containers, former uids, kept folders", fix)


def _time(_server: Server) -> Outcome:
    fix = "Install a time service, such as systemd-timesyncd or chrony."
    try:
        told = hostfiles.run(["timedatectl", "show", "--property=NTPSynchronized", "--value"], timeout=20)
    except HostError as error:
        return Outcome(WARN, f"it is not known: {error.message}", fix)
    if told.stdout.strip() == "yes":
        return Outcome(PASS, "the clock follows a time service")
    return Outcome(WARN, "the clock follows no time service", fix)


def _log(_server: Server) -> Outcome:
    """Say whether what the broker does is written down where users cannot read it."""
    problems = [] if os.path.exists(_JOURNAL) else ["the journal of the system does not run"]
    for path in ("/var/log/journal", "/run/log/journal"):
        try:
            status = os.stat(path)
        except OSError:
            continue
        if status.st_mode & 0o002 or status.st_uid != 0:
            problems.append(f"{path} can be written by others than root")
    try:
        hostfiles.run(
            ["journalctl", "--quiet", "--lines=1", "_UID=0", "SYSLOG_IDENTIFIER=lab-server"], timeout=60
        )
    except LabError as error:
        problems.append(f"the log cannot be read: {error}")
    return judged(
        problems, "privileged acts are in the journal", "Look at: systemctl status systemd-journald."
    )


CHECKS: tuple[Check, ...] = (
    Check("mounts", "each kind of data is on its own disk, nosuid,nodev where users write", _mounts),
    Check("fstab", "the disks come back the same way after a boot", _fstab),
    Check("space", "no disk is full", _space),
    Check("quota-on", "user quotas are enforced by the kernel", _quota_on),
    Check("quota-limits", "each user has the quota of the policy", _quota_limits),
    Check("quota-write", "a write beyond a quota is stopped", _quota_write, slow=True),
    Check("overcommit", "the quotas that are promised fit on the disk", _overcommit),
    Check("accounts", "users and groups are as declared, who left is shut out", _accounts),
    Check("homes", "homes and workspaces are open to their users alone", _homes),
    Check("tmp", "temporary files of a user are the user's alone, and within the quota", _temporary),
    Check("subids", "no lab user has subordinate ids", _subids),
    Check("docker-group", "nobody but root reaches Docker", _docker_group),
    Check("sudo", "lab users may run the broker as root and nothing else", _sudo),
    Check("broker", "what runs as root for users is root's, up to /", _broker),
    Check("commands", "the installed commands are those of this version", _commands, slow=True),
    Check("slices", "the limits of each user are held by systemd", _slices),
    Check("firewall", "metadata service and containers are closed to users", _firewall),
    Check("shares", "shared folders have their owners, modes and ACLs", _shares),
    Check("units", "timers and services of the server run", _units),
    Check("boot", "all that should run came back after the boot", _boot),
    Check("log", "privileged acts are written down where users cannot", _log),
    Check("records", "what only the server itself remembers can be read", _records),
    Check("time", "the clock is right", _time),
)
