# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Each lab user's own /tmp and /var/tmp: folders below /home, and so within the user's quota.

pam_namespace(8) gives every session of a lab user (ssh, sudo, cron, the user's systemd) a view of the file
system in which these two are the user's own. Root and all other accounts see those of the server. A session
that cannot have them goes on with the server's. What nobody used for long is removed (tmpfiles.d(5)).
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
from collections.abc import Mapping

from . import hostfiles
from . import policy as policies
from .errors import HostError, LabError
from .items import ItemResult
from .mounts import Mount

#: The folders that are each user's own, with its name below ``folder`` and for how many days
#: what is not used stays.
FOLDERS: Mapping[str, tuple[str, int]] = {"/tmp": ("tmp", 10), "/var/tmp": ("var-tmp", 30)}  # noqa: S108  # told of, not written to
#: Where the sessions of Debian's services are put together (pam-auth-update(8)).
STACKS = ("/etc/pam.d/common-session", "/etc/pam.d/common-session-noninteractive")

_PROFILE = "lab-server"
_NOTE = "# Written by the Ansible collection lab.server; changes are lost at its next run.\n"
_MODULES = (
    f"[success=1 default=ignore]\tpam_succeed_if.so quiet user notingroup {policies.LAB_GROUP}",
    "optional\tpam_namespace.so",
)
_UPDATE = "/usr/sbin/pam-auth-update"
_NAME = "private /tmp"


def folder() -> str:
    """Return the folder of root's that holds those of all users.

    With mode 0000, as pam_namespace(8) demands, so that nobody reaches another's.
    """
    return posixpath.join(policies.HOME_ROOT, ".tmp")


def files() -> dict[str, str]:
    """Return the text of each file, by its path."""
    top = folder()
    rules = [f"{path} {top}/{name}- user\n" for path, (name, _days) in FOLDERS.items()]
    ages = [f"e {top}/{name}-* - - - {days}d\n" for name, days in FOLDERS.values()]
    modules = "".join(f"\t{line}\n" for line in _MODULES)
    return {
        "/etc/security/namespace.d/lab-server.conf": _NOTE + "".join(rules),
        "/etc/tmpfiles.d/lab-server-tmp.conf": _NOTE + "".join(ages),
        f"/usr/share/pam-configs/{_PROFILE}": (
            "Name: Lab users have /tmp and /var/tmp of their own (lab.server)\n"
            f"Default: yes\nPriority: 0\nSession-Type: Additional\nSession:\n{modules}"
        ),
    }


def can_be() -> bool:
    """Say whether this distribution puts its sessions together in a way that we know."""
    return os.path.exists(_UPDATE)


def own(user: str) -> list[str]:
    """Return the folders of a user, which are root's with what is in them the user's."""
    return [posixpath.join(folder(), f"{name}-{user}") for name, _days in FOLDERS.values()]


def holds(mount: Mount) -> bool:
    """Say whether a mount is a user's own /tmp or /var/tmp, as a session of the user sees it."""
    name = FOLDERS.get(mount.point, ("", 0))[0]
    return bool(name) and posixpath.basename(mount.root).startswith(f"{name}-") and "/.tmp/" in mount.root


def asked(text: str) -> bool:
    """Say whether the text of a stack (STACKS) asks for our two modules, one right after the other."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip() and line[:1] != "#"]
    wanted = [" ".join(f"session {line}".split()) for line in _MODULES]
    return any(lines[at : at + len(wanted)] == wanted for at in range(len(lines)))


def problems() -> list[str]:
    """Return what is missing for lab users to have their own, a sentence each. Raises HostError."""
    found = [] if _is_right(folder()) else [f"{folder()} is not a folder of root's with mode 0000"]
    found += [
        f"{path} is not as written" for path, text in files().items() if hostfiles.read_text(path) != text
    ]
    found += [f"{path} does not ask for it" for path in STACKS if not asked(hostfiles.read_text(path) or "")]
    return found


def reconcile(*, wanted: bool, check: bool) -> ItemResult:
    """Let each lab user have /tmp and /var/tmp of the own, from the next session on; or no user any more.

    Where it is not wanted the folders stay, as sessions may have them.
    """
    item = ItemResult(_NAME)
    before, after = item.diff.setdefault("before", {}), item.diff.setdefault("after", {})
    top = folder()
    if wanted and not _is_right(top):
        item.actions.append(f"make {top}")
        before[top], after[top] = "", "0000"
    texts = files()
    there = {path: hostfiles.read_text(path) for path in texts}
    stale = [path for path, text in texts.items() if there[path] != (text if wanted else None)]
    for path in stale:
        item.actions.append(f"{'write' if wanted else 'remove'} {path}")
        before[path], after[path] = there[path] or "", texts[path] if wanted else ""
    stacks = [path for path in STACKS if asked(hostfiles.read_text(path) or "") != wanted]
    for path in stacks:
        item.actions.append(f"{'ask' if wanted else 'do not ask'} for it in {path}")
        before[path], after[path] = str(not wanted), str(wanted)
    item.changed = bool(item.actions)
    if not item.changed:
        item.diff = {}
        return item
    item.reason = "lab users are to have /tmp and /var/tmp of their own" if wanted else "it is not wanted"
    if not check:
        try:
            if wanted:
                _make(texts, stale, stacks)
            else:
                _undo(stale, stacks)
        except (LabError, OSError) as error:
            item.failed, item.message = True, str(error)
    return item


def _make(texts: Mapping[str, str], stale: list[str], stacks: list[str]) -> None:
    """Make the folder, the files, and last the stacks: no session asks for what is not there."""
    from . import homes  # what commands load at each login must not load this

    homes.root_folder(folder(), 0)
    for path in stale:
        os.makedirs(posixpath.dirname(path), mode=0o755, exist_ok=True)
        hostfiles.write_text(path, texts[path])
    if stacks or any(path.startswith("/usr/share/pam-configs/") for path in stale):
        _update("--enable", wanted=True)


def _undo(stale: list[str], stacks: list[str]) -> None:
    if stacks:
        _update("--remove", wanted=False)
    for path in stale:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _update(option: str, *, wanted: bool) -> None:
    hostfiles.run((_UPDATE, "--package", option, _PROFILE), environment={"DEBIAN_FRONTEND": "noninteractive"})
    # It leaves alone, without an error, what was changed by hand.
    left = [path for path in STACKS if asked(hostfiles.read_text(path) or "") != wanted]
    if left:
        raise HostError(
            f"{' and '.join(left)} was changed by hand, so pam-auth-update leaves it alone.",
            f"{'Add' if wanted else 'Take out'} these lines: "
            + "; ".join(" ".join(f"session {line}".split()) for line in _MODULES)
            + (". Or set lab_private_tmp: false." if wanted else "."),
        )


def _is_right(path: str) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == 0 and stat.S_IMODE(status.st_mode) == 0
