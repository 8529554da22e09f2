# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""When a user's containers end, as the last look found it (``ending``): read as the user, or as root."""

from __future__ import annotations

import json
import posixpath
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from .terminal import duration

#: Where a user's file is; gone at every start, as it is made anew.
NOTICES = "/run/lab-server-notices"


def notices(uid: int) -> dict[str, dict[str, Any]]:
    """Return when and why each container of a user ends, by project; as the user, or as root."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        with open(posixpath.join(NOTICES, str(int(uid))), encoding="ascii") as file:
            found = json.load(file)
        return {str(one["project"]): one for one in found if isinstance(one["at"], int)}
    return {}


def remark(notice: Mapping[str, Any] | None) -> str:
    """Return in a few words when a container ends; "" where that is not known, or long to come."""
    if not isinstance(notice, dict) or not notice.get("noticed"):
        return ""
    what = {"retire": "retired", "stop": "stopped"}.get(str(notice.get("do")), "stopped")
    left = int(notice["at"]) - time.time()
    return f"to be {what} in {duration(left)}" if left > 0 else f"to be {what} now"


def advice(notice: Mapping[str, Any] | None, project: str) -> str:
    """Return what can be done about the end of a container, in a few words."""
    if notice and notice.get("firm"):
        return str(notice.get("why") or "")
    return f"put it off: container extend {project}"
