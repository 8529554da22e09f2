# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filter that finds the files of the controller that an inventory names."""

from __future__ import annotations

from typing import Any, Callable

from ansible_collections.lab.server.plugins.module_utils._core import userfiles


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"on_controller": userfiles.on_controller}
