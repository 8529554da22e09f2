# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Accounts: groups, users, homes, ssh keys and slices, all in one pass.

What is there is read from the files of passwd(5), group(5), shadow(5) and subuid(5), so that two hundred
unchanged users cost milliseconds; changes are made by the distribution's useradd, usermod and groupadd.
Accounts that are not declared are left alone. One that exists already and is to be a lab user's all the same,
such as that of a directory, is neither made nor changed nor closed; it has its home, keys, groups and slice.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import posixpath
import pwd
import re
import stat
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from . import formeruids, hostfiles, mounts, slices, units
from .errors import HostError, InvalidInput
from .items import ItemResult
from .names import group_name, slice_name, user_name
from .policy import HOME_ROOT, LAB_GROUP, LOCAL, Limits, User
from .quota import quota_from_options
from .sizes import parse_size

KEY_DIRECTORY = "/etc/ssh/lab_authorized_keys"
SHELL = "/bin/bash"
SKELETON = "/etc/skel"
_SUBORDINATE = ("/etc/subuid", "/etc/subgid")
_SHADOW, _GSHADOW = "/etc/shadow", "/etc/gshadow"
# What the tools of shadow make beside the files that they change (commonio_lock in its lib/commonio.c).
_LEFT = re.compile(r"(?:passwd|shadow|group|gshadow|subuid|subgid)(?:\.lock|\.[0-9]+|\+)")
_FILES_LOCK = "/etc/.pwd.lock"
_LOCKED_FOR = 15.0  # seconds, as lckpwdf(3) waits
# The day on which an account that is closed expired, counted from 1970: nobody else chooses it (shadow(5)).
_CLOSED = "1"


@dataclass(frozen=True)
class Wanted:
    """A lab user as declared, with the public keys that open the account."""

    user: User
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Desired:
    """Everything that is declared. ``groups`` are (name, gid) of the lab groups, without lab itself."""

    lab_gid: int
    groups: tuple[tuple[str, int], ...]
    users: tuple[Wanted, ...]
    closed_groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Account:
    """An account of the host; one that is not ``local`` comes from a directory service (nsswitch.conf(5))."""

    name: str
    uid: int
    gid: int
    comment: str = ""
    home: str = ""
    shell: str = SHELL
    locked: bool = True
    local: bool = True
    closed: bool = False
    """Whether we closed it, because it was not declared any more."""


@dataclass(frozen=True)
class UnixGroup:
    """A group of the host."""

    name: str
    gid: int
    members: tuple[str, ...] = ()
    local: bool = True


@dataclass(frozen=True)
class Home:
    """What is at the path of a home; ``directory`` is false for a link or a file."""

    owner: int
    mode: int
    directory: bool = True


@dataclass(frozen=True)
class Actual:
    """What is on the host; ``subordinate`` holds the owners (name or uid as text) of subordinate ids.

    ``left_over`` names files of a tool that was killed, or is just at work; ``torn`` the groups that
    gshadow(5) has otherwise, and ``unshadowed`` the declared users that shadow(5) does not have.
    ``known`` holds the uids that are or were declared here: those with a slice of ours. ``left`` says whose
    the uids were that belong to who was offboarded. ``stale`` says which limits of a unit file the slice that
    runs does not hold.
    """

    users: Mapping[str, Account] = field(default_factory=dict)
    groups: Mapping[str, UnixGroup] = field(default_factory=dict)
    subordinate: frozenset[str] = frozenset()
    homes: Mapping[str, Home] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    known: frozenset[int] = frozenset()
    left: Mapping[int, str] = field(default_factory=dict)
    stale: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_over: tuple[str, ...] = ()
    torn: tuple[str, ...] = ()
    unshadowed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One thing to do. ``verb`` chooses how; ``arguments`` are a command line or what the verb needs."""

    verb: str
    arguments: tuple[str, ...]


@dataclass
class Planned:
    """An item with the steps that carry it out."""

    item: ItemResult
    steps: list[Step] = field(default_factory=list)

    def add(self, text: str, step: Step, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        """Note one change: what is said, what is done, and what differs."""
        self.item.changed = True
        self.item.actions.append(text)
        self.item.diff.setdefault("before", {}).update(before)
        self.item.diff.setdefault("after", {}).update(after)
        self.steps.append(step)


def conflicts(desired: Desired, actual: Actual) -> list[str]:
    """Return why the declared accounts cannot be made here, a sentence each with the fix."""
    gids = {group.gid: group.name for group in actual.groups.values()}
    uids = {account.uid: account.name for account in actual.users.values()}
    declared = ((LAB_GROUP, desired.lab_gid), *desired.groups)
    sentences = [text for name, gid in declared for text in _group_conflicts(name, gid, actual, gids)]
    for wanted in desired.users:
        # The first reason is enough: the others would follow from it.
        user = wanted.user
        sentences += (
            _account_conflicts(user, actual, uids)
            or _own_group_conflicts(user, actual, gids)
            or _home_conflicts(user, actual)
        )
    for name in desired.closed_groups:
        group = actual.groups.get(name)
        main = sorted(a.name for a in actual.users.values() if group is not None and a.gid == group.gid)
        if main:
            sentences.append(
                f"{name} is the main group of {', '.join(main)}. Run: usermod -g OTHER {main[0]}"
            )
    return sentences


def _group_conflicts(name: str, gid: int, actual: Actual, gids: Mapping[int, str]) -> list[str]:
    there = actual.groups.get(name)
    if there is not None and there.gid != gid:
        return [f"The group {name} exists with gid {there.gid}, not {gid}. Declare {there.gid}."]
    if there is None and gid in actual.left:
        return [
            f"gid {gid} for the group {name} was {actual.left[gid]}'s, who was offboarded. Choose another."
        ]
    if there is None and gid in gids:
        return [f"gid {gid} for the group {name} is taken by {gids[gid]}. Choose another."]
    return []


def _own_group_conflicts(user: User, actual: Actual, gids: Mapping[int, str]) -> list[str]:
    """Return what is wrong with the private group, or for an account that exists with the lab's groups."""
    if not user.existing:
        return _group_conflicts(user.name, user.gid, actual, gids)
    elsewhere = [
        name
        for name in sorted({LAB_GROUP, user.group, *user.groups})
        if name in actual.groups and not actual.groups[name].local and not _is_in(user, name, actual)
    ]
    return [
        f"{name} is a group of the directory, and {user.name} is not in it. Add {user.name} to it there."
        for name in elsewhere
    ]


def _is_in(user: User, name: str, actual: Actual) -> bool:
    group = actual.groups.get(name)
    return group is not None and (user.name in group.members or group.gid == user.gid)


def _account_conflicts(user: User, actual: Actual, uids: Mapping[int, str]) -> list[str]:
    account = actual.users.get(user.name)
    if user.uid in actual.left:
        return [_offboarded(user, actual.left[user.uid])]
    if account is not None:
        return _unlike(user, account, grouped=user.name in actual.groups)
    if user.uid in uids:
        return [
            f"uid {user.uid} for {user.name} is taken by {uids[user.uid]}. Choose one that was never used."
        ]
    # The slice of a user stays when the account is gone, as files with the number may (backups, shares).
    former = slices.holder(actual.units.get(slice_name(user.uid), ""))
    if former not in ("", user.name):
        return [f"uid {user.uid} for {user.name} was {former}'s. Choose one that was never used."]
    if user.existing:
        return [f"{user.name} is to exist already, and does not. Run: getent passwd {user.name}"]
    return []


def _offboarded(user: User, former: str) -> str:
    if former == user.name:
        group = ", or out of the directory's group in lab_directory_groups" if user.existing else ""
        return f"{user.name} (uid {user.uid}) was offboarded. Take {user.name} out of lab_users{group}."
    return (
        f"uid {user.uid} for {user.name} was {former}'s, who was offboarded. Choose one that was never used."
    )


def _home_conflicts(user: User, actual: Actual) -> list[str]:
    home = actual.homes.get(user.name)
    if home is not None and not home.directory:
        return [f"{user.home} is a link or a file. Move it away."]
    if home is not None and home.owner != user.uid:
        return [
            f"{user.home} belongs to uid {home.owner}, not to {user.name} ({user.uid}). "
            "Move it away, or give it to the user while nobody uses it."
        ]
    return []


def _unlike(user: User, account: Account, *, grouped: bool) -> list[str]:
    """Return in which ways an account of that name cannot become the declared user's."""
    if user.existing:
        same = (account.uid, account.gid, account.home) == (user.uid, user.gid, user.home)
        is_now = f"uid {account.uid}, gid {account.gid}, home {account.home}"
        return [] if same else [f"{user.name} has {is_now} now. Run the playbook again."]
    if not account.local:
        return [
            f"{user.name} comes from a directory service. Declare it with account: existing, or choose "
            "another name."
        ]
    if account.uid != user.uid:
        return [f"{user.name} exists with uid {account.uid}, not {user.uid}. Correct the uid or the name."]
    if account.gid != user.gid:
        # groupmod(8) takes along the accounts whose main group it is; files keep the old number.
        way = f"groupmod -g {user.gid} {user.name}"
        if not grouped:
            way = f"groupadd -g {user.gid} {user.name}; usermod -g {user.gid} {user.name}"
        return [
            f"{user.name} exists with the main group {account.gid}, not the private group {user.gid}. "
            f"Run: {way}; chown -hR --from=:{account.gid} :{user.gid} {user.home}"
        ]
    if account.home != user.home:
        return [f"{user.name} has the home {account.home}. Run: usermod -m -d {user.home} {user.name}"]
    return []


def plan(desired: Desired, actual: Actual) -> list[Planned]:
    """Return what is to be done, item by item; the accounts have no conflicts."""
    planned = _plan_files(actual)
    planned += [
        _plan_group(name, gid, actual) for name, gid in ((LAB_GROUP, desired.lab_gid), *desired.groups)
    ]
    planned.append(_plan_root_slice(actual))
    managed = {LAB_GROUP, *(name for name, _gid in desired.groups)}
    membership = _membership(actual)
    planned += [
        _plan_user(wanted, managed, membership.get(wanted.user.name, frozenset()), actual)
        for wanted in desired.users
    ]
    departed = actual.known - {wanted.user.uid for wanted in desired.users}
    planned += [
        _plan_departed(account, managed & membership.get(account.name, frozenset()), actual)
        for account in sorted(actual.users.values(), key=lambda account: account.uid)
        if account.uid in departed
    ]
    planned += [_plan_closed(name, actual) for name in desired.closed_groups]
    return planned


def _plan_files(actual: Actual) -> list[Planned]:
    """Return an item for what a tool left undone that was killed, if one was."""
    planned = Planned(ItemResult("account files"))
    if actual.left_over:
        left = {"left over": ", ".join(actual.left_over)}
        planned.add("remove what a killed tool left", Step("left", ()), left, {"left over": ""})
    if actual.torn:
        torn = ", ".join(actual.torn)
        text = f"have {_GSHADOW} agree about {torn}"
        planned.add(text, Step("run", ("grpconv",)), {torn: "differs"}, {torn: "agrees"})
    if actual.unshadowed:
        text = f"complete {_SHADOW}"
        planned.add(text, Step("run", ("pwconv",)), {}, {})
    for name in actual.unshadowed:
        # As in _plan_new: pwconv(8) takes over what stands in passwd(5), which is no password at all.
        command = ("usermod", "-p", "*", name)
        planned.add(f"lock the password of {name}", Step("run", command), {name: "absent"}, {name: "there"})
    if planned.item.changed:
        planned.item.reason = "a tool that changes accounts was cut off"
    return [planned] if planned.item.changed else []


def _membership(actual: Actual) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for group in actual.groups.values():
        for member in group.members:
            found.setdefault(member, set()).add(group.name)
    return {member: frozenset(groups) for member, groups in found.items()}


def _plan_group(name: str, gid: int, actual: Actual) -> Planned:
    planned = Planned(ItemResult(f"group {name}"))
    if name not in actual.groups:
        planned.item.reason = "there is no such group"
        planned.add(
            f"make the group {name}", Step("run", ("groupadd", "-g", str(gid), name)), {}, {"gid": str(gid)}
        )
    return planned


def _plan_root_slice(actual: Actual) -> Planned:
    name, text = slices.root_unit()
    planned = Planned(ItemResult(name))
    _plan_unit(planned, name, text, actual)
    return planned


def _plan_unit(planned: Planned, name: str, text: str, actual: Actual) -> None:
    old = actual.units.get(name, "")
    if old != text:
        planned.add(f"write {name}", Step("unit", (name, text)), {name: old}, {name: text})
    elif name in actual.stale:
        what = ", ".join(actual.stale[name])
        planned.add(
            f"let what runs hold the limit of {what} in {name}",
            Step("unit", (name, text)),
            {f"{name}, {what}": "not held"},
            {f"{name}, {what}": "held"},
        )


def _plan_departed(account: Account, groups: Iterable[str], actual: Actual) -> Planned:
    """Close the account of a user who is not declared any more. The home and all files stay as they are."""
    planned = Planned(ItemResult(account.name))
    name = account.name
    if name in actual.keys:
        keys = {"ssh keys": actual.keys[name]}
        planned.add(f"remove the ssh keys of {name}", Step("unlock", (name,)), keys, {"ssh keys": ""})
    foreign = slices.foreign(actual.units.get(slice_name(account.uid), ""))
    if account.local and not account.closed and not foreign:
        command = ("usermod", "-e", _CLOSED, name)
        planned.add(
            f"close the account {name}", Step("run", command), {"account": "open"}, {"account": "closed"}
        )
    for group in sorted(one for one in groups if actual.groups[one].local):
        command = ("gpasswd", "-d", name, group)
        planned.add(f"take {name} out of {group}", Step("run", command), {group: "member"}, {group: ""})
    if planned.item.changed:
        planned.item.reason = "the user is not declared any more; the home and its files stay"
    return planned


def departure(name: str, managed: Iterable[str]) -> Planned:
    """Return what is to be done so that the account ``name`` is closed and in none of the ``managed`` groups.

    Nothing where there is no such account. Raises HostError.
    """
    actual = read_actual(Desired(0, (), ()))
    account = actual.users.get(name)
    if account is None:
        return Planned(ItemResult(name))
    groups = {LAB_GROUP, *managed} & _membership(actual).get(name, frozenset())
    keys = _texts(KEY_DIRECTORY, [name])
    return _plan_departed(account, groups, replace(actual, keys=keys))


def _plan_closed(name: str, actual: Actual) -> Planned:
    planned = Planned(ItemResult(f"group {name}"))
    group = actual.groups.get(name)
    if group is not None and group.members:
        planned.item.reason = f"whoever is in {name} is root on this server"
        planned.add(
            f"take {', '.join(group.members)} out of {name}",
            Step("run", ("gpasswd", "-M", "", name)),
            {"members": ", ".join(group.members)},
            {"members": ""},
        )
    return planned


def _plan_user(wanted: Wanted, managed: set[str], memberships: frozenset[str], actual: Actual) -> Planned:
    user = wanted.user
    planned = Planned(ItemResult(user.name))
    account = actual.users.get(user.name)
    groups = (memberships - managed) | {LAB_GROUP, user.group, *user.groups}
    if user.name not in actual.groups and not user.existing:
        planned.add(
            f"make the private group {user.name}",
            Step("run", ("groupadd", "-g", str(user.gid), user.name)),
            {},
            {"gid": str(user.gid)},
        )
    if user.existing:
        _plan_groups(planned, user, managed, memberships, actual)
    elif account is None:
        _plan_new(planned, user, groups)
    else:
        _plan_existing(planned, user, account, memberships, groups)
    owners = {user.name, str(user.uid)} & actual.subordinate
    if owners:
        planned.add(
            "take the subordinate ids away",
            Step("subordinate", tuple(sorted(owners))),
            {"subids": "yes"},
            {"subids": "no"},
        )
    _plan_home(planned, user, actual.homes.get(user.name))
    _plan_keys(planned, wanted, actual)
    limits = user.limits
    for name, text in (
        slices.user_unit(
            user.name,
            user.uid,
            cpus=limits.cpus,
            memory=limits.memory,
            pids=limits.pids,
            existing=user.existing,
        ),
        slices.session_unit(user.uid, cpus=limits.cpus, memory=limits.memory, pids=limits.pids),
    ):
        _plan_unit(planned, name, text, actual)
    if planned.item.changed:
        planned.item.reason = "there is no such user" if account is None else "the account differs"
    return planned


def _plan_groups(
    planned: Planned, user: User, managed: set[str], memberships: frozenset[str], actual: Actual
) -> None:
    """Put an account that exists into the lab's groups, and out of those that are not declared any more.

    gpasswd(1) takes a name that only the directory knows into a local group, which usermod(8) does not.
    """
    wanted = {LAB_GROUP, user.group, *user.groups}
    for name in sorted(wanted):
        if not _is_in(user, name, actual):
            command = ("gpasswd", "-a", user.name, name)
            planned.add(f"put {user.name} into {name}", Step("run", command), {name: ""}, {name: "member"})
    for name in sorted((managed & memberships) - wanted):
        if actual.groups[name].local:
            command = ("gpasswd", "-d", user.name, name)
            planned.add(f"take {user.name} out of {name}", Step("run", command), {name: "member"}, {name: ""})


def _plan_new(planned: Planned, user: User, groups: Iterable[str]) -> None:
    # No subordinate ids: they would evade the quota. The password '*' matches nothing, and unlike '!' it
    # leaves the account open to ssh keys where sshd runs without PAM (sshd(8)).
    command = ["useradd", "-M", "-N", "-u", str(user.uid), "-g", str(user.gid), "-d", user.home, "-s", SHELL]
    command += ["-c", user.comment, "-G", ",".join(sorted(groups)), "-p", "*"]
    command += ["-K", "SUB_UID_COUNT=0", "-K", "SUB_GID_COUNT=0", user.name]
    after = {"uid": str(user.uid), "groups": ", ".join(sorted(groups)), "shell": SHELL}
    if user.comment:
        after["comment"] = user.comment
    planned.add(f"make the user {user.name}", Step("run", tuple(command)), {}, after)


def _plan_existing(
    planned: Planned, user: User, account: Account, memberships: frozenset[str], groups: Iterable[str]
) -> None:
    arguments: list[str] = []
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    for key, option, old, new in (
        ("comment", "-c", account.comment, user.comment or account.comment),
        ("shell", "-s", account.shell, SHELL),
        ("groups", "-G", ",".join(sorted(memberships)), ",".join(sorted(groups))),
    ):
        if old != new:
            arguments += [option, new]
            before[key], after[key] = old, new
    if account.closed:
        arguments += ["-e", ""]
        before["account"], after["account"] = "closed", "open"
    if not account.locked:
        arguments.append("-L")
        before["password"], after["password"] = "set", "locked"
    if arguments:
        text = f"change {', '.join(after)} of {user.name}"
        planned.add(text, Step("run", ("usermod", *arguments, user.name)), before, after)


def _plan_home(planned: Planned, user: User, home: Home | None) -> None:
    if home is None:
        made = Step("home", (user.name, str(user.uid), str(user.gid)))
        planned.add(f"make {user.home}", made, {}, {"home": user.home})
    elif home.mode & 0o077:
        planned.add(
            f"close {user.home} to others",
            Step("close", (user.name, str(user.uid))),
            {"home mode": f"{home.mode:04o}"},
            {"home mode": "0700"},
        )


def _plan_keys(planned: Planned, wanted: Wanted, actual: Actual) -> None:
    name = wanted.user.name
    text = "".join(f"{key}\n" for key in wanted.keys)
    old = actual.keys.get(name, "")
    if old != text:
        planned.add(
            f"write the ssh keys of {name}", Step("keys", (name, text)), {"ssh keys": old}, {"ssh keys": text}
        )


def from_options(
    lab_gid: int,
    groups: Sequence[Mapping[str, Any]],
    users: Sequence[Mapping[str, Any]],
    closed_groups: Sequence[str] = (),
) -> Desired:
    """Return what a module was told; raise InvalidInput for a name, a size or a key that is not allowed."""
    wanted = []
    for user in users:
        keys = tuple(str(key) for key in user.get("ssh_keys") or ())
        for key in keys:
            if not key.isprintable() or not key.strip():
                raise InvalidInput(f"A ssh key of {user['name']} is not one line of text.", "Correct it.")
        wanted.append(Wanted(user_from_options(user), keys))
    return Desired(
        lab_gid=lab_gid,
        groups=tuple((group_name(group["name"]), int(group["gid"])) for group in groups),
        users=tuple(wanted),
        closed_groups=tuple(closed_groups),
    )


def user_from_options(user: Mapping[str, Any]) -> User:
    """Return one user of a module's list; raise InvalidInput."""
    name = user_name(user["name"])
    limits, quota = user["limits"], user.get("quota") or {}
    return User(
        name=name,
        uid=int(user["uid"]),
        group=group_name(user["group"]),
        groups=tuple(group_name(group) for group in user.get("groups") or ()),
        comment=str(user.get("comment") or ""),
        limits=Limits(
            containers=int(limits.get("containers") or 0),
            cpus=float(limits["cpus"]),
            memory=parse_size(limits["memory"], f"limits.memory of {name}"),
            pids=int(limits["pids"]),
            shm=parse_size(limits.get("shm") or 0, f"limits.shm of {name}"),
            gpus=int(limits.get("gpus") or 0),
        ),
        quota=quota_from_options(quota, name),
        account=str(user.get("account") or LOCAL),
        main_group=int(user.get("main_group") or 0),
    )


def read_actual(desired: Desired) -> Actual:
    """Read what is on the host; change nothing. Raises HostError."""
    shadow = _rows(_SHADOW, 2)
    passwords = {row[0]: row[1] for row in shadow}
    closed = {row[0] for row in shadow if len(row) > 7 and row[7] == _CLOSED}
    users = {
        row[0]: Account(
            name=row[0],
            uid=int(row[2]),
            gid=int(row[3]),
            comment=row[4],
            home=row[5],
            shell=row[6],
            locked=passwords.get(row[0], "*").startswith(("!", "*")),
            closed=row[0] in closed,
        )
        for row in _rows("/etc/passwd", 7)
    }
    groups = {
        row[0]: UnixGroup(row[0], int(row[2]), tuple(name for name in row[3].split(",") if name))
        for row in _rows("/etc/group", 4)
    }
    names = [wanted.user.name for wanted in desired.users]
    ours = {LAB_GROUP, *(name for name, _gid in desired.groups), *desired.closed_groups, *names}
    torn = _torn(group for group in groups.values() if group.name in ours)
    made = [wanted.user.name for wanted in desired.users if not wanted.user.existing]
    unshadowed = tuple(name for name in made if passwords and name in users and name not in passwords)
    _add_foreign(desired, users, groups)
    uids = [wanted.user.uid for wanted in desired.users]
    known = frozenset(filter(None, map(slices.owner, _listed(units.DIRECTORY))))
    unit_names = [slices.root_unit()[0], *map(slice_name, {*uids, *known}), *map(slices.session_name, uids)]
    unit_texts = _texts(units.DIRECTORY, unit_names)
    _add_departed(known - set(uids), unit_texts, users)
    return Actual(
        users=users,
        groups=groups,
        subordinate=frozenset(row[0] for path in _SUBORDINATE for row in _rows(path, 3)),
        homes={name: home for name, home in ((name, _home(name)) for name in names) if home is not None},
        keys=_texts(KEY_DIRECTORY, {*names, *_listed(KEY_DIRECTORY)}),
        units=unit_texts,
        known=known,
        left=formeruids.read(),
        stale={
            name: wrong
            for wanted in desired.users
            for name, wrong in slices.stale(wanted.user.limits, wanted.user.uid).items()
        },
        left_over=_left_over(),
        torn=torn,
        unshadowed=unshadowed,
    )


def _left_over() -> tuple[str, ...]:
    return tuple(posixpath.join("/etc", name) for name in sorted(_listed("/etc")) if _LEFT.fullmatch(name))


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _rows(path: str, columns: int) -> list[list[str]]:
    text = hostfiles.read_text(path) or ""
    rows = [line.split(":") for line in text.splitlines()]
    return [row for row in rows if len(row) >= columns]


def _torn(groups: Iterable[UnixGroup]) -> tuple[str, ...]:
    """Return those of group(5) of which gshadow(5), where there is one, has other members."""
    shadow = {row[0]: set(filter(None, row[3].split(","))) for row in _rows(_GSHADOW, 4)}
    return tuple(
        sorted(group.name for group in groups if shadow and shadow.get(group.name) != set(group.members))
    )


def _texts(directory: str, names: Iterable[str]) -> dict[str, str]:
    found = ((name, hostfiles.read_text(posixpath.join(directory, name))) for name in names)
    return {name: text for name, text in found if text is not None}


def _home(name: str) -> Home | None:
    try:
        status = os.lstat(posixpath.join(HOME_ROOT, name))
    except OSError:
        return None
    return Home(status.st_uid, stat.S_IMODE(status.st_mode), stat.S_ISDIR(status.st_mode))


def _add_foreign(desired: Desired, users: dict[str, Account], groups: dict[str, UnixGroup]) -> None:
    """Add the accounts of a directory service that have a declared name or number."""
    local_uids = {account.uid for account in users.values()}
    local_gids = {group.gid for group in groups.values()}
    for wanted in desired.users:
        user = wanted.user
        with contextlib.suppress(KeyError):
            if user.name not in users:
                found = pwd.getpwnam(user.name)
                users[user.name] = _foreign(found)
        with contextlib.suppress(KeyError):
            if user.uid not in local_uids:
                found = pwd.getpwuid(user.uid)
                users.setdefault(found.pw_name, _foreign(found))
    private = [(wanted.user.name, wanted.user.gid) for wanted in desired.users]
    for name, gid in ((LAB_GROUP, desired.lab_gid), *desired.groups, *private):
        with contextlib.suppress(KeyError):
            if name not in groups:
                there = grp.getgrnam(name)
                groups[name] = UnixGroup(name, there.gr_gid, tuple(there.gr_mem), local=False)
        with contextlib.suppress(KeyError):
            if gid not in local_gids:
                there = grp.getgrgid(gid)
                foreign = UnixGroup(there.gr_name, there.gr_gid, tuple(there.gr_mem), local=False)
                groups.setdefault(there.gr_name, foreign)


def _foreign(found: pwd.struct_passwd) -> Account:
    return Account(
        found.pw_name, found.pw_uid, found.pw_gid, found.pw_gecos, found.pw_dir, found.pw_shell, local=False
    )


def _add_departed(uids: Iterable[int], texts: Mapping[str, str], users: dict[str, Account]) -> None:
    """Add who was a lab user with an account of somebody else's, whether that still exists or not."""
    for uid in uids:
        text = texts.get(slice_name(uid), "")
        name = slices.holder(text)
        if slices.foreign(text) and name and name not in users:
            users[name] = Account(name, uid, uid, home=posixpath.join(HOME_ROOT, name), local=False)


def reconcile(desired: Desired, *, mounted: bool, check: bool) -> list[ItemResult]:
    """Bring the accounts of the host to what is declared, item by item.

    ``mounted`` says that the homes have a file system of their own, without which no home is made.
    Raises HostError, before anything is changed, if a name, a number or a home is somebody else's.
    """
    if mounted and not check and mounts.at(HOME_ROOT, mounts.read()) is None:
        raise HostError(f"{HOME_ROOT} is not mounted.", "Run the role storage first, or look for its disk.")
    actual = read_actual(desired)
    found = conflicts(desired, actual)
    if found:
        raise HostError(" ".join(found))
    planned = plan(desired, actual)
    owed = units.plan_unread()
    if not check:
        carry_out(planned, reload=bool(owed))
    return [*(one.item for one in planned), *owed]


def carry_out(planned: Sequence[Planned], *, reload: bool = False) -> None:
    """Do the steps of all items; one that fails is marked so and does not stop the others.

    ``reload``: systemd reads its unit files anew in any case.
    """
    for one in planned:
        try:
            for step in one.steps:
                _DO[step.verb](step.arguments)
                reload = reload or step.verb == "unit"
        except (HostError, OSError, subprocess.SubprocessError) as error:
            one.item.failed, one.item.message = True, str(error)
    if reload:
        units.reload()


def _run(arguments: tuple[str, ...]) -> None:
    hostfiles.run(arguments)


def _write_unit(arguments: tuple[str, ...]) -> None:
    units.write(*arguments)
    slices.apply(*arguments)


def _write_keys(arguments: tuple[str, ...]) -> None:
    name, text = arguments
    os.makedirs(KEY_DIRECTORY, mode=0o755, exist_ok=True)
    hostfiles.write_text(posixpath.join(KEY_DIRECTORY, name), text)


def _remove_keys(arguments: tuple[str, ...]) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(posixpath.join(KEY_DIRECTORY, arguments[0]))


@contextlib.contextmanager
def _account_files() -> Iterator[None]:
    """Hold the lock that the tools of shadow hold while they change any of their files (lckpwdf(3))."""
    with os.fdopen(os.open(_FILES_LOCK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "w") as lock:
        deadline = time.monotonic() + _LOCKED_FOR
        while True:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() >= deadline:
                    raise HostError(
                        "Somebody else is changing accounts, such as by vipw.",
                        "Wait until that is done, then try again.",
                    ) from error
            time.sleep(0.1)
        yield


def _remove_left(_none: tuple[str, ...]) -> None:
    # With the lock no tool is at work; a file that says so is of one that was killed. Its process number,
    # by which the tools themselves tell, is somebody else's after a boot.
    with _account_files():
        for path in _left_over():
            os.unlink(path)


def _remove_subordinate(owners: tuple[str, ...]) -> None:
    with _account_files():
        for path in _SUBORDINATE:
            text = hostfiles.read_text(path) or ""
            kept = "".join(
                line for line in text.splitlines(keepends=True) if line.split(":")[0] not in owners
            )
            if kept != text:
                hostfiles.write_text(path, kept)


def _open_homes() -> int:
    descriptor = os.open(HOME_ROOT, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if status.st_uid != 0 or stat.S_IMODE(status.st_mode) & 0o022:
        os.close(descriptor)
        raise HostError(
            f"{HOME_ROOT} can be changed by others than root.", f"Run: chown root:root {HOME_ROOT}"
        )
    return descriptor


def _make_home(arguments: tuple[str, ...]) -> None:
    """Make a home under another name and rename it at last, so that it is never there without its files.

    Root makes the empty folder and gives it away by its descriptor; everything in it is written by the user.
    """
    name, temporary, uid, gid = arguments[0], f".new-{arguments[0]}", int(arguments[1]), int(arguments[2])
    homes = _open_homes()
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(temporary, 0o700, dir_fd=homes)
        descriptor = os.open(
            temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=homes
        )
        try:
            os.fchown(descriptor, uid, gid)
        finally:
            os.close(descriptor)
        if os.path.isdir(SKELETON):
            target = posixpath.join(HOME_ROOT, temporary)
            command = ["cp", "-R", "-P", "--no-target-directory", SKELETON, target]
            done = subprocess.run(
                command,
                user=uid,
                group=gid,
                extra_groups=[],
                umask=0o077,
                cwd="/",
                env={"PATH": "/usr/bin:/bin"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                encoding="utf-8",
                errors="replace",
                timeout=60,
            )
            if done.returncode != 0:
                raise HostError(f"{SKELETON} could not be copied: {done.stderr.strip()[:200]}")
        os.rename(temporary, name, src_dir_fd=homes, dst_dir_fd=homes)
        os.fsync(homes)
    finally:
        os.close(homes)


def _close_home(arguments: tuple[str, ...]) -> None:
    name, number = arguments
    homes = _open_homes()
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=homes)
        try:
            if os.fstat(descriptor).st_uid != int(number):
                raise HostError(f"{HOME_ROOT}/{name} does not belong to {name}.", "Look at who changed it.")
            os.fchmod(descriptor, 0o700)
        finally:
            os.close(descriptor)
    finally:
        os.close(homes)


_DO = {
    "run": _run,
    "unit": _write_unit,
    "keys": _write_keys,
    "unlock": _remove_keys,
    "left": _remove_left,
    "subordinate": _remove_subordinate,
    "home": _make_home,
    "close": _close_home,
}
