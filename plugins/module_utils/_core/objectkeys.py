# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The users' keys of object storage: for each user a file of rclone's settings in a folder of root's.

Root writes it and the user's private group reads it. It is not in the user's home, where a link could lead
what root writes elsewhere, where a backup would keep it, and where a container might see it.
"""

from __future__ import annotations

import configparser
import os
import posixpath
import re
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from . import hostfiles
from .errors import HostError, InvalidInput, Refused
from .items import ItemResult
from .names import printable
from .objectrules import Endpoint
from .policy import Policy, User

#: Everybody may pass through it, and nobody list it.
FOLDER = "/etc/lab-server/object-storage"
_FOLDER_MODE, _FILE_MODE = 0o711, 0o640
_SUFFIX = ".conf"
_MARK = "# Installed by lab.server: changes are lost."
_HIDDEN, _ANOTHER = "(hidden)", "(hidden, another one)"
_SECRETS = re.compile(r"(?m)^(access_key_id|secret_access_key) = .*$")
# What rclone's parser of settings takes as it stands: no quotes, no '%', no comment.
_KEY = re.compile(r"[A-Za-z0-9/+=_.~-]{3,256}")
_LEAST_SECRET = 8


@dataclass(frozen=True)
class Key:
    """What an S3 server knows a user by."""

    access: str = field(repr=False)
    secret: str = field(repr=False)


def path_of(user: str) -> str:
    """Return the file that holds the keys of a user."""
    return posixpath.join(FOLDER, user + _SUFFIX)


def held(path: str) -> frozenset[str]:
    """Return the names of the endpoints for which the file at ``path`` has a key; raise HostError."""
    settings = configparser.RawConfigParser()
    try:
        with open(path, encoding="utf-8") as stream:
            settings.read_file(stream)
    except FileNotFoundError:
        return frozenset()
    except (OSError, ValueError, configparser.Error) as error:
        # What is in the file is not to be seen in a message.
        raise HostError(
            f"Your keys of the object storage cannot be read ({type(error).__name__}).", "Tell your admins."
        ) from None
    return frozenset(settings.sections())


def check_held(endpoint: Endpoint, path: str) -> None:
    """Raise Refused if the file at ``path`` has no key for the endpoint, or HostError."""
    if endpoint.name not in held(path):
        raise Refused(f"You have no key for the object storage {endpoint.name}.", "Ask your admins for one.")


def read(given: object, policy: Policy) -> dict[str, dict[str, Key]]:
    """Return the keys by user and endpoint; raise InvalidInput, which shows none of them.

    ``given`` maps the names of users to a mapping of endpoints to ``access_key`` and ``secret_key``.
    """
    where = "object_storage_credentials"
    users = {user.name for user in policy.users}
    endpoints = {one.name for one in policy.object_storage}
    found: dict[str, dict[str, Key]] = {}
    for user, of_user in _pairs(given, where, users, "lab_users"):
        place = f"{where}.{user}"
        found[user] = {
            endpoint: _key(key, f"{place}.{endpoint}")
            for endpoint, key in _pairs(of_user, place, endpoints, "lab_object_storage")
        }
    return found


def _pairs(value: object, where: str, known: set[str], variable: str) -> list[tuple[str, object]]:
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{where}: expected a mapping.", "See docs/variables.md.")
    for name in value:
        if name not in known:
            raise InvalidInput(f"{where}: {printable(str(name))[:40]!r} is not in {variable}.", "Correct it.")
    return [(str(name), item) for name, item in value.items()]


def _key(value: object, where: str) -> Key:
    if not isinstance(value, Mapping) or set(value) != {"access_key", "secret_key"}:
        raise InvalidInput(f"{where}: expected access_key and secret_key, and nothing else.", "Correct it.")
    for name, least in (("access_key", 1), ("secret_key", _LEAST_SECRET)):
        text = value[name]
        if not isinstance(text, str) or len(text) < least or not _KEY.fullmatch(text):
            raise InvalidInput(
                f"{where}.{name} is no key that is supported.",
                f"It has 3 to 256 of A-Z, a-z, 0-9 and / + = _ . ~ -, a secret {_LEAST_SECRET} at least; "
                "quote it, or have another one made.",
            )
    return Key(str(value["access_key"]), str(value["secret_key"]))


def text_of(policy: Policy, keys: Mapping[str, Key]) -> str:
    """Return the settings of rclone for a user's keys (rclone(1), "Amazon S3 Storage Providers")."""
    return "\n".join(
        [_MARK, *(_section(one, keys[one.name]) for one in policy.object_storage if one.name in keys)]
    )


def _section(endpoint: Endpoint, key: Key) -> str:
    return f"""[{endpoint.name}]
type = s3
provider = {endpoint.provider}
env_auth = false
access_key_id = {key.access}
secret_access_key = {key.secret}
endpoint = {endpoint.url}
region = {endpoint.region}
force_path_style = {"true" if endpoint.path_style else "false"}
no_check_bucket = true
"""


def reconcile(policy: Policy, given: object, *, check: bool) -> list[ItemResult]:
    """Bring the files of all users to what is declared, and remove those of others; raise LabError."""
    keys = read(given, policy)
    wanted = {user.name: text_of(policy, keys[user.name]) for user in policy.users if keys.get(user.name)}
    there = _there()
    stale = sorted(there - set(wanted))
    try:
        items = [_folder(check=check)] if wanted else []
    except OSError as error:
        raise HostError(f"{FOLDER} cannot be made: {error.strerror}.") from error
    items += [_file(user, wanted[user.name], check=check) for user in policy.users if user.name in wanted]
    items += [_gone(name, check=check) for name in stale]
    return items


def _there() -> set[str]:
    with suppress(FileNotFoundError):
        return {entry[: -len(_SUFFIX)] for entry in os.listdir(FOLDER) if entry.endswith(_SUFFIX)}
    return set()


def _folder(*, check: bool) -> ItemResult:
    item = ItemResult(FOLDER)
    status = None
    with suppress(FileNotFoundError):
        status = os.lstat(FOLDER)
    if status and not stat.S_ISDIR(status.st_mode):
        raise HostError(f"{FOLDER} is no folder.", "Remove what is in its place.")
    if status and (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (_FOLDER_MODE, 0, 0):
        return item
    item.changed, item.reason = True, "the folder is not there, or not root's alone"
    item.actions = [f"make {FOLDER}" if status is None else f"set owner and mode of {FOLDER}"]
    if not check:
        os.makedirs(FOLDER, exist_ok=True)
        os.chown(FOLDER, 0, 0)
        os.chmod(FOLDER, _FOLDER_MODE)
        # Others find public.json in its parent.
        os.chmod(posixpath.dirname(FOLDER), 0o755)  # noqa: S103  # everybody reads the public policy
    return item


def _file(user: User, text: str, *, check: bool) -> ItemResult:
    item, path = ItemResult(user.name), path_of(user.name)
    before = _safe(path, user)
    if before == text:
        return item
    item.changed, item.actions = True, [f"write {path}"]
    item.reason = "the keys are not there" if before is None else "the file differs"
    item.diff = _masked(before or "", text)
    if not check:
        _carried_out(item, lambda: _write(path, text, user, anew=before is None))
    return item


def _write(path: str, text: str, user: User, *, anew: bool) -> None:
    if anew:
        with suppress(FileNotFoundError):
            os.unlink(path)  # one that others could read, or no file at all
    # Root's alone until it is whole and its group is set.
    hostfiles.write_text(path, text, 0o600 if anew else _FILE_MODE)
    os.chown(path, 0, user.gid, follow_symlinks=False)
    os.chmod(path, _FILE_MODE)


def _carried_out(item: ItemResult, work: Callable[[], None]) -> None:
    """Do the work of one item; one that fails does not hinder the others."""
    try:
        work()
    except HostError as error:
        item.failed, item.message = True, str(error)
    except OSError as error:
        item.failed, item.message = True, f"{error.filename or FOLDER} cannot be written: {error.strerror}."


def _safe(path: str, user: User) -> str | None:
    """Return the text of a user's file; None if there is none, or one with another owner or mode."""
    with suppress(FileNotFoundError):
        status = os.lstat(path)
        ours = (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, user.gid, _FILE_MODE)
        if ours and stat.S_ISREG(status.st_mode):
            return hostfiles.read_text(path)
    return None


def _masked(before: str, after: str) -> dict[str, str]:
    """Return both texts without their secrets, but so that it shows whether these differ."""
    hidden = {
        "before": _SECRETS.sub(rf"\1 = {_HIDDEN}", before),
        "after": _SECRETS.sub(rf"\1 = {_HIDDEN}", after),
    }
    if hidden["before"] == hidden["after"]:
        hidden["after"] = _SECRETS.sub(rf"\1 = {_ANOTHER}", after)
    return hidden


def _gone(name: str, *, check: bool) -> ItemResult:
    item, path = ItemResult(name), path_of(name)
    item.changed, item.reason, item.actions = True, "no keys are declared any more", [f"remove {path}"]
    item.diff = {"before": f"keys of {name}\n", "after": ""}
    if not check:
        _carried_out(item, lambda: os.unlink(path))
    return item
