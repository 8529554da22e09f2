# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The uids of who was offboarded, in a record of root's: none of them is ever given again.

A file somewhere (a backup, a share, an image) may still have the number as its owner.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from . import STATE_DIRECTORY, state
from .errors import HostError

_RECORD = "former-uids.json"


def parse(text: str | None) -> dict[int, str]:
    """Return whose each uid was; raise HostError for a record that is damaged."""
    if text is None:
        return {}
    try:
        return {int(uid): str(name) for uid, name in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise HostError(
            f"{STATE_DIRECTORY}/{_RECORD} is damaged, so it is not known which uids were somebody's.",
            "Bring it back from a backup.",
        ) from error


def render(uids: Mapping[int, str]) -> str:
    """Return the text of the record."""
    return json.dumps({str(uid): name for uid, name in sorted(uids.items())}, indent=1) + "\n"


def read() -> dict[int, str]:
    """Return whose each uid was. Raises HostError."""
    return parse(state.read_record(_RECORD))


def add(uid: int, name: str) -> None:
    """Note a uid that is not given again. Raises HostError."""
    known = read()
    if known.get(uid) != name:
        state.write_record(_RECORD, render({**known, uid: name}))
