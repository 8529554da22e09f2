# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The only bridge between Ansible and the library.

A module file is its documentation, its argument spec and one call of ``run_items`` or ``run_info``.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Callable, TypeVar

from ansible.module_utils.basic import AnsibleModule

from ._core import locks
from ._core.errors import LabError
from ._core.items import ItemResult

T = TypeVar("T")


def build_module(argument_spec: Mapping[str, Any]) -> AnsibleModule:
    """Return a module that supports check mode, as every module of this collection does."""
    # no_log concerns the invocation alone: whole lists of users and texts do not belong in the system's log.
    return AnsibleModule(argument_spec=dict(argument_spec), supports_check_mode=True, no_log=True)


def run_items(
    module: AnsibleModule, function: Callable[[], Sequence[ItemResult]], *, alone: bool = False
) -> None:
    """Call ``function``, report item by item, and leave the module.

    ``alone``: no other that changes the server itself does so meanwhile (``locks.host``). A check changes
    nothing and waits for nobody.
    Items that failed do not hide what was done to the others: the task fails at the end, with all reasons
    in its message and every result in ``results``. The ``notes`` of an item, sentences, become warnings.
    """

    def work() -> Sequence[ItemResult]:
        with locks.host() if alone and not module.check_mode else contextlib.nullcontext():
            return function()

    items = list(_told(module, work))
    for item in items:
        for note in item.facts.get("notes", []):
            module.warn(f"{item.name}: {note}")
    results = [item.as_dict() for item in items]
    answer: dict[str, Any] = {"changed": any(item.changed for item in items), "results": results}
    # module._diff is how AnsibleModule itself tells a module that --diff was asked for.
    if module._diff:
        answer["diff"] = [
            {
                "before_header": item.name,
                "after_header": item.name,
                "before": item.diff.get("before", ""),
                "after": item.diff.get("after", ""),
            }
            for item in items
            if item.changed and item.diff
        ]
    failed = [item for item in items if item.failed]
    if failed:
        module.fail_json(msg="; ".join(f"{item.name}: {item.message}" for item in failed), **answer)
    module.exit_json(**answer)


def run_info(module: AnsibleModule, key: str, function: Callable[[], Mapping[str, Any]]) -> None:
    """Call ``function``, which only reads, return what it says under ``key``, and leave the module."""
    module.exit_json(changed=False, **{key: dict(_told(module, function))})


def _told(module: AnsibleModule, function: Callable[[], T]) -> T:
    """Return what ``function`` does; leave the module with a sentence when it cannot go on."""
    try:
        return function()
    except LabError as error:
        said = str(error)
    except Exception as error:  # noqa: BLE001  # the last place where a person could be shown a stack trace
        module.log(traceback.format_exc())
        said = f"Unexpected {type(error).__name__}: {error}. The details are in the server's system log."
    # fail_json ends the process, which its lack of types hides.
    nothing: T = module.fail_json(msg=said)
    return nothing
