# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the admins of a server see on logging in: the first thing that is bad, and how many more there are.

The look of every ten minutes and each backup and drill write it down, from root's own records and the disks;
a login only reads it. Where all is well there is no file, and nothing is said.
"""

from __future__ import annotations

import grp
import json
import os
import posixpath
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from . import names
from .errors import LabError
from .notices import NOTICES, publish
from .terminal import Terminal, fit

if TYPE_CHECKING:
    from .policy import Policy

#: For root, and for the group whose members become root by sudo; it is gone at every start.
PATH = posixpath.join(NOTICES, "admins")
#: That group in Debian and its kin, and in Red Hat's (sudoers of their packages).
_GROUPS = ("sudo", "wheel")
_MOST = 200  # that are written down


def bad(policy: Policy, now: float) -> list[str]:
    """Return what is bad, of what is known without asking Docker or a driver: as in ``lab status``."""
    from . import backup, damaged, overview

    found: list[str] = []
    if policy.backup is not None:
        found += backup.attention(policy.backup, backup.records(policy), now)[0]
    return [*found, *damaged.problems(), *overview.full(policy)]


def refresh(policy: Policy) -> None:
    """Write down what is bad now. It is beside the work of its callers: what goes wrong is left out."""
    with suppress(LabError, OSError):
        publish(PATH, [names.printable(one) for one in bad(policy, time.time())[:_MOST]], _gid())


def _gid() -> int:
    """Return the group that may read it; root's where there is none of those."""
    for name in _GROUPS:
        with suppress(KeyError):
            return grp.getgrnam(name).gr_gid
    return 0


def lines(out: Terminal) -> list[str]:
    """Return at most two lines for who logs in; none for who may not read them, or where all is well."""
    try:
        with open(PATH, encoding="ascii") as file:
            first, *more = map(str, json.load(file))
    except (OSError, ValueError, TypeError):
        return []
    width = min(out.width, 100)
    others = f"and {len(more)} more; " if more else ""
    command = "lab status" if os.getuid() == 0 else "sudo lab status"
    return [out.style(fit(f"bad   {first}", width), "bad"), fit(f"      {others}see: {command}", width)]
