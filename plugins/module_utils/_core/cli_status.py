# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The command ``project status``: all that there is of one project."""

from __future__ import annotations

import posixpath
import textwrap
from collections.abc import Mapping
from typing import Any

from . import names
from .calls import Call, Command, age, ask, on_build, on_job, state, told
from .errors import LabError
from .sizes import format_size
from .terminal import gauge, moment


def _project_status(call: Call) -> int:
    call.user()
    name = call.options.name
    data = ask("project-status", name)
    data["usage"] = _usage(call)
    if call.json:
        call.answer(data)
        return 0
    call.out.line(call.out.style(name, "strong"))
    for label, text in _lines(name, data):
        first, *more = textwrap.wrap(names.printable(text), max(20, call.out.width - 13)) or [""]
        call.out.line(f"  {label + ':':<11}{first}")
        for line in more:
            call.out.line(f"{'':13}{line}")
    if data.get("drift"):
        call.out.line("To follow the policy:")
        call.out.command(f"container retire {name} && project launch {name}")
    return 0


def _usage(call: Call) -> dict[str, Any] | None:
    """Return the quota with the project's share of it; None where it cannot be told."""
    from . import quota, tree

    user = call.user()
    try:
        usage = quota.usage(call.policy(), user)
        own, complete = tree.total(posixpath.join(call.policy().workspace(user), call.options.name))
    except (LabError, OSError):
        return None
    return {
        "used": usage.used,
        "limit": usage.quota.hard or usage.quota.soft,
        "project": own.size,
        "files": own.files,
        "complete": complete,
    }


def _lines(name: str, data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (label, text) of each line."""
    folder = f"~/workspace/{name}" + ("" if data.get("dockerfile") else ", without a Dockerfile")
    found = [("folder", folder if data.get("folder") else "gone")]
    if data.get("note"):
        return [*found, ("container", f"not known: {data['note']}"), *_quota(data.get("usage"))]
    container = data.get("container")
    running = f", {age(container)} old" if isinstance(container, dict) else ""
    job = on_job(data.get("job"))
    found.append(("container", state(container) + running + (f"; {job}" if job else "")))
    found += _image(name, data)
    build = on_build(data.get("build"), name)
    if build:
        found.append(("build", build))
    drift = data.get("drift")
    for what, change in drift.items() if isinstance(drift, dict) else ():
        found.append(("differs", f"{what} is {change.get('is')}, and would be {change.get('would_be')}"))
    if container:
        kept = ", ".join(told(data, "kept") or ["/workspace"])
        found.append(("kept", f"{kept}; the rest goes with the container"))
    replaced = data.get("replaced")
    if container and isinstance(replaced, dict):
        why = f": {replaced['reason']}" if replaced.get("reason") else ""
        found.append(("made anew", f"by IT's run, {moment(replaced.get('time'))}{why}"))
    until = data.get("undo_until")
    if isinstance(until, int):
        first = f"container retire {name}, then " if container else ""
        how = f"{first}container undo {name}"
        found.append(("retired", f"one can be had back until {moment(until)}: {how}"))
    return [*found, *_quota(data.get("usage"))]


def _image(name: str, data: Mapping[str, Any]) -> list[tuple[str, str]]:
    image, container = data.get("image"), data.get("container")
    if not isinstance(image, dict):
        return [("image", "none yet")]
    size = format_size(int(image.get("size") or 0))
    found = [("image", f"{str(image.get('fingerprint'))[:12]}, {age(image)} old, {size}")]
    if image.get("matches_files") is False:
        found.append(("outdated", f"the files changed since: image update {name}"))
    elif isinstance(container, dict) and container.get("image_newer"):
        found.append(("newer", f"than the container: container retire {name}, then launch"))
    return found


def _quota(usage: Any) -> list[tuple[str, str]]:
    if not isinstance(usage, dict):
        return [("quota", "not known")]
    least = "" if usage["complete"] else "at least "
    own = f"{least}{format_size(usage['project'])} of it in this project"
    if not usage["limit"]:
        return [("quota", f"{format_size(usage['used'])} used, no limit; {own}")]
    share = usage["used"] / usage["limit"]
    shown = f"{gauge(share, 12)} {round(share * 100)} % of {format_size(usage['limit'])}"
    return [("quota", f"{shown}; {own}")]


COMMANDS: tuple[Command, ...] = (
    Command(
        ("project", "status"),
        "show all that there is of a project",
        "Show the project's container, its job, its image and whether that is still the one for its files, "
        "what differs from the policy of the server, what is kept, and the project's share of your quota.",
        "project status my-thesis",
        _project_status,
    ),
)
