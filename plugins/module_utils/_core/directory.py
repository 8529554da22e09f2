# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Lab users whose accounts exist already, such as those of LDAP. Pure functions.

Who they are is asked of the server by getent(1), whatever nsswitch.conf(5) lets answer there. ``asked`` says
which names to ask for, ``merge`` makes items of ``lab_users`` of the answer. An account that is not found is
left out, as if it had been taken out of ``lab_users``: its user is shut out, and nothing is removed. But a
directory that does not answer looks the same, so one that knows fewer than half of them is not believed.
A member of a group who was offboarded, or has the uid of who was, is left out as well.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import names
from .errors import InvalidInput, together
from .policy import EXISTING, FIRST_ID, HOME_ROOT, LAST_ID, _named, _Table
from .userfiles import Row

VARIABLE = "lab_directory_groups"


@dataclass(frozen=True)
class Account:
    """An account as the server knows it."""

    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True)
class Group:
    """A group of the directory (``name``) whose members are lab users of ``group`` and ``groups``."""

    where: str
    name: str
    group: str
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Merged:
    """The variables and further users with what the directory says, and sentences for IT."""

    variables: Mapping[str, Any]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def accounts(text: str) -> dict[str, Account]:
    """Return the accounts in the output of ``getent passwd`` by their names."""
    rows = (line.split(":") for line in text.splitlines())
    return {
        row[0]: Account(row[0], int(row[2]), int(row[3]), row[5])
        for row in rows
        if len(row) == 7 and row[2].isdigit() and row[3].isdigit()
    }


def members(text: str) -> dict[str, tuple[str, ...]]:
    """Return the members of the groups in the output of ``getent group`` by the groups' names."""
    rows = (line.split(":") for line in text.splitlines())
    return {row[0]: tuple(name for name in row[3].split(",") if name) for row in rows if len(row) == 4}


def groups(variables: Mapping[str, Any]) -> list[Group]:
    """Return what ``lab_directory_groups`` says; raise InvalidInput."""
    root = _Table({VARIABLE: variables.get(VARIABLE)}, "")
    found = []
    for table in root.tables(VARIABLE):
        name = str(table.required("name"))
        if not name.isprintable() or name.startswith("-") or any(c in name for c in ":,"):
            raise InvalidInput(f"{table.at('name')}: {names.printable(name)[:40]!r} names no group.", "")
        found.append(
            Group(
                table.where,
                name,
                names.group_name(table.required("group"), table.at("group")),
                table.texts("groups"),
            )
        )
        table.done()
    return found


def asked(variables: Mapping[str, Any], rows: Iterable[Row], group_text: str) -> list[str]:
    """Return the names of accounts to ask for: those declared, and the members of the groups."""
    wanted = dict.fromkeys(filter(None, map(_existing, _declared(variables, rows))))
    for one in members(group_text).values():
        wanted.update(dict.fromkeys(filter(_allowed, one)))
    return list(wanted)


def _allowed(name: str) -> bool:
    try:
        return bool(names.user_name(name))
    except InvalidInput:
        return False


def _declared(variables: Mapping[str, Any], rows: Iterable[Row]) -> list[Row]:
    """Return all declared users, those of ``lab_users`` first; what is none of them the policy refuses."""
    listed = variables.get("lab_users")
    items = listed if isinstance(listed, (list, tuple)) else ()
    return [*(Row(f"lab_users[{number}]{_named(item)}", item) for number, item in enumerate(items)), *rows]


def _existing(row: Row) -> str:
    """Return the name of a user whose account exists already, or ""."""
    item = row.user
    if not isinstance(item, Mapping) or item.get("account") != EXISTING:
        return ""
    name = str(item.get("name"))
    return name if _allowed(name) else ""


def merge(
    variables: Mapping[str, Any],
    rows: Sequence[Row],
    group_text: str,
    account_text: str,
    former: Mapping[int, str],
) -> Merged:
    """Return variables and users with what the directory answered; raise InvalidInput.

    ``former`` says whose the uids were that belong to who was offboarded: no member of a group with one of
    them is a lab user.
    """
    wanted_groups, wanted = groups(variables), asked(variables, rows, group_text)
    if not wanted_groups and not wanted:
        return Merged(variables, tuple(rows), ())
    there, found = members(group_text), accounts(account_text)
    lost = [name for name in wanted if name not in found]
    _check_answer(wanted_groups, there, wanted, lost)
    users: list[Row] = []
    notes: list[str] = []
    mistakes: list[InvalidInput] = []
    declared = _declared(variables, rows)
    for row in declared:
        name = _existing(row)
        if name in lost:
            notes.append(f"{name} is not in the directory: shut out, as if taken out of lab_users.")
            continue
        try:
            users.append(_filled(row, found[name]) if name else row)
        except InvalidInput as mistake:
            mistakes.append(mistake)
    known = {str(row.user.get("name")) for row in declared if isinstance(row.user, Mapping)}
    gone = set(lost) & known
    for row in _of_groups(wanted_groups, there, known):
        name = str(row.user["name"])
        account = found.get(name)
        why = _unfit(name, account, former)
        if account is not None and account.uid in former:
            gone.add(name)
        if why:
            notes.append(f"{row.where} is no lab user: {why}.")
        elif account is not None:
            try:
                users.append(_filled(row, account))
            except InvalidInput as mistake:
                mistakes.append(mistake)
    if mistakes:
        raise together(mistakes)
    changed = _without(variables, gone)
    if isinstance(changed.get("lab_users"), (list, tuple)):
        changed["lab_users"] = []
    return Merged(changed, tuple(users), tuple(notes))


def _check_answer(
    wanted_groups: Iterable[Group],
    there: Mapping[str, Sequence[str]],
    wanted: Sequence[str],
    lost: Sequence[str],
) -> None:
    """Raise InvalidInput where the directory knows so little that it seems not to answer."""
    for one in wanted_groups:
        if not there.get(one.name):
            raise InvalidInput(
                f"{one.where}: the server knows no members of the group {one.name}.",
                f"Look whether its directory answers: getent group {one.name}",
            )
    known = len(wanted) - len(lost)
    if len(lost) > known:
        raise InvalidInput(
            f"The directory of the server knows {known} of {len(wanted)} accounts that are to exist already, "
            "so it is not believed, and nobody is shut out.",
            f"Look whether it answers: getent passwd {lost[0]}",
        )


def _filled(row: Row, known: Account) -> Row:
    """Return a user with the numbers of the account; raise InvalidInput."""
    uid = row.user.get("uid")
    if uid not in (None, known.uid):
        raise InvalidInput(
            f"{row.where}.uid: {names.printable(str(uid))[:20]} is not that of {known.name}, {known.uid}.",
            "Leave it out: the directory says it.",
        )
    if known.home != posixpath.join(HOME_ROOT, known.name):
        raise InvalidInput(
            f"{row.where}: the home of {known.name} is {names.printable(known.home)[:80]!r} there, not "
            f"{HOME_ROOT}/{known.name}.",
            "Have the directory say so; for SSSD: override_homedir = /home/%u",
        )
    return Row(row.where, {**row.user, "uid": known.uid, "main_group": known.gid})


def _of_groups(
    wanted: Iterable[Group], there: Mapping[str, Sequence[str]], declared: set[str]
) -> Iterable[Row]:
    """Return the members of the groups as users; who is in several has the limits of the first."""
    users: dict[str, dict[str, Any]] = {}
    places: dict[str, str] = {}
    for one in wanted:
        for name in there[one.name]:
            if name in users:
                users[name]["groups"] += [one.group, *one.groups]
            elif name not in declared:
                places[name] = f"{one.where}: {names.printable(name)[:40]}"
                users[name] = {"name": name, "group": one.group, "groups": [*one.groups], "account": EXISTING}
    return [Row(places[name], user) for name, user in users.items()]


def _unfit(name: str, account: Account | None, former: Mapping[int, str]) -> str:
    """Return why a member of a group cannot be a lab user, or ""."""
    if not _allowed(name):
        return "the name is not allowed here"
    if account is None:
        return "the directory knows no such account"
    if not FIRST_ID <= account.uid <= LAST_ID:
        return f"the uid {account.uid} is not from {FIRST_ID} to {LAST_ID}"
    if account.uid in former:
        whose = former[account.uid]
        if whose == name:
            return f"{name} was offboarded; take {name} out of the directory's group"
        return f"the uid {account.uid} was {names.printable(whose)[:40]}'s, who was offboarded"
    return ""


def _without(variables: Mapping[str, Any], gone: set[str]) -> dict[str, Any]:
    """Return the variables without what is declared for people who are gone."""
    changed = dict(variables)
    projects, gpu = variables.get("lab_projects"), variables.get("lab_gpu")
    if gone and isinstance(projects, (list, tuple)):
        changed["lab_projects"] = [
            one for one in projects if not (isinstance(one, Mapping) and one.get("user") in gone)
        ]
    if gone and isinstance(gpu, Mapping) and isinstance(gpu.get("users"), Mapping):
        users = {name: rule for name, rule in gpu["users"].items() if name not in gone}
        changed["lab_gpu"] = {**gpu, "users": users}
    return changed
