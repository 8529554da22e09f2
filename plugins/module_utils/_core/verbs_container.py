# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the broker does with the containers that there are: start, measure, tell of them and of their jobs."""

from __future__ import annotations

import calendar
import contextlib
import re
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from . import names
from .errors import EngineError, InvalidInput, LabError, NotFound
from .verbs import Request, Verb, answer, connected, container, settings

_PAUSE = 0.5  # seconds between two looks at what is used
_LINES = re.compile(r"[0-9]{1,4}")
_HOURS = re.compile(r"[0-9]{1,4}")


def lines(word: str) -> int:
    """Take a number of lines, 0 to 9999; raise InvalidInput."""
    if not _LINES.fullmatch(word):
        raise InvalidInput("That is no number of lines.", "Use 0 to 9999.")
    return int(word)


def _start(request: Request, *, check: bool = False) -> dict[str, Any]:
    from .containers import start

    with connected() as engine:
        return answer(start(engine, request.policy, request.user, request.project, check=check))


def _own(engine: Any, request: Request) -> Any:
    """Return the project's container; raise NotFound, which says the same of another user's."""
    from .containers import listing

    for info in listing(engine, request.policy, request.user):
        if info.project == request.project:
            return info
    raise NotFound(
        f"You have no container of a project '{request.project}'.",
        f"Start it: project launch {request.project}",
    )


def _logs(request: Request) -> dict[str, Any]:
    """Tell of the last job, and what the container itself wrote; the job's file is the user's to read."""
    from .jobs import look

    with connected() as engine:
        job = look(engine, request.policy, request.user, request.project)
        try:
            said = engine.said(_own(engine, request).id, request.options.get("lines", 50))
        except NotFound:
            if job is None:
                raise
            said = []
    return {"job": None if job is None else job.shown(), "container": said}


def _stats(request: Request) -> dict[str, Any]:
    from .containers import listing, observe
    from .stats import measured

    with connected() as engine:
        found = [_own(engine, request)] if request.project else listing(engine, request.policy, request.user)
        there = observe(engine, *(info.name for info in found)).containers if found else {}
        before = {info.id: (time.monotonic(), engine.stats(info.id)) for info in found if info.running}
        time.sleep(_PAUSE if before else 0)
        told = []
        for info in found:
            used: dict[str, Any] = {"cpus": None, "memory": None, "pids": None}
            if info.id in before:
                then, first = before[info.id]
                last = engine.stats(info.id)
                used = measured(first, last, time.monotonic() - then)
            spec = there[info.name].spec if info.name in there else None
            limits = (spec.cpus, spec.memory, spec.pids) if spec else (None, None, None)
            told.append(
                {
                    **container(info),
                    **used,
                    **dict(zip(("cpus_limit", "memory_limit", "pids_limit"), limits)),
                }
            )
    return {"containers": told}


def _status(request: Request) -> dict[str, Any]:
    from . import buildlog, containers, images, jobs, retired, workspaces
    from .versions import current_of, described

    policy, user, project = request.policy, request.user, request.project
    found = [one for one in workspaces.projects(policy, user) if one["name"] == project]
    told: dict[str, Any] = {"project": project, "folder": bool(found), "note": ""}
    told["dockerfile"] = bool(found and found[0]["dockerfile"])
    build = buildlog.last(user.uid, project)
    told["build"] = None if build is None else build.shown()
    try:
        with connected() as engine:
            job = jobs.look(engine, policy, user, project)
            files = images.matches_files(engine, policy, user, project) if found else None
            info = next((i for i in containers.listing(engine, policy, user) if i.project == project), None)
            name = names.container_name(project, user.uid)
            actual = containers.observe(engine, name).containers.get(name) if info else None
            paths = containers.fates_of(engine, actual) if actual is not None and actual.ours else {}
            history = images.history(engine, user, project)
            kept = retired.kept(engine, container=name)
    except EngineError as error:
        return {**told, "note": str(error)}
    if not (found or info or history or kept):
        raise NotFound(f"You have no project '{project}'.", f"Make it: project init {project}")
    image = current_of(history)
    told.update(
        container=None if info is None else container(info),
        job=None if job is None else job.shown(),
        image=None if image is None else {**described(image), "matches_files": files},
        images=len(history),
        replaced=_replaced(user.uid, project),
        undo_until=retired.until(policy, kept[0].retired) if kept else None,
        drift={},
        kept=[],
    )
    if actual is not None and actual.ours:
        told["kept"] = paths.get("kept", [])
        told["drift"] = _drift(request, actual)
    return told


def _replaced(uid: int, project: str) -> dict[str, Any] | None:
    """Return when and why IT's run made the container anew that is there; None where it did not."""
    from .replacing import last

    event = last(uid, project)
    return None if event is None else {"time": int(event.time), "reason": event.reason}


def _drift(request: Request, actual: Any) -> dict[str, Any]:
    from .containers import drift

    try:
        found = drift(request.policy, request.user, request.project, actual)
    except LabError as error:
        return {"policy": {"is": "", "would_be": str(error)}}
    return {what: {"is": old, "would_be": new} for what, (old, new) in found.items()}


def _why(request: Request) -> dict[str, Any]:
    """Tell what happened to the project's container: what was written down, and what Docker knows itself."""
    from . import containers, events, jobs, retired, state

    policy, user, project = request.policy, request.user, request.project
    name = names.container_name(project, user.uid)
    with connected() as engine:
        # First: it may write down that a job has ended.
        job = jobs.look(engine, policy, user, project)
        info = next((i for i in containers.listing(engine, policy, user) if i.project == project), None)
        found = engine.inspect(info.id) if info is not None else {}
        kept = retired.kept(engine, container=name)
        holds = None
        # What could be brought back, as Docker knows it. No lock is held: it may be removed meanwhile.
        with contextlib.suppress(LabError):
            holds = retired.measured(engine, kept[0].actual) if kept else None
    happened = events.read(user.uid, project)
    if info is None and not kept and not happened:
        raise NotFound(
            f"You never had a container of a project '{project}'.", f"Start one: project launch {project}"
        )
    return {
        "project": project,
        "container": None if info is None else container(info),
        "state": docker_state(found),
        "stay_down": state.is_stopped(name),
        "rebooted": bool(happened) and happened[-1].boot != events.boot_id(),
        "job": None if job is None else job.shown(),
        "undo_until": retired.until(policy, kept[0].retired) if kept else None,
        "holds": holds,
        "events": [
            {
                "what": one.what,
                "by": one.by,
                "time": int(one.time),
                "reason": one.reason,
                "clock_changed": int(jump),
            }
            for one, jump in zip(happened, events.jumps(happened))
        ],
    }


def docker_state(inspected: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what Docker says of the life of a container; times are in seconds since 1970."""
    from .stats import oom_kills

    told = inspected.get("State")
    if not isinstance(told, dict):
        return None
    limit = (inspected.get("HostConfig") or {}).get("Memory")
    return {
        "running": bool(told.get("Running")),
        "exit_code": told.get("ExitCode"),
        "out_of_memory": bool(told.get("OOMKilled")) or oom_kills(int(told.get("Pid") or 0)) > 0,
        "error": names.printable(str(told.get("Error") or ""))[:300],
        "started": _seconds(told.get("StartedAt")),
        "finished": _seconds(told.get("FinishedAt")),
        "memory_limit": int(limit) if limit else None,
    }


def _seconds(when: Any) -> int | None:
    """Return the time that Docker writes as 2026-11-26T01:31:22.123456789Z; None for one that never was."""
    try:
        seconds = calendar.timegm(time.strptime(str(when)[:19], "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None
    return seconds if seconds > 0 else None


def hours(word: str) -> int:
    """Take a number of hours, 1 to 8760; raise InvalidInput."""
    if not _HOURS.fullmatch(word) or not 1 <= int(word) <= 8760:
        raise InvalidInput("That is no number of hours.", "Use 1 to 8760.")
    return int(word)


def _extend(request: Request, *, check: bool) -> dict[str, Any]:
    from .ending import put_off

    with connected() as engine:
        asked = request.options.get("hours")
        return put_off(engine, request.policy, request.user, request.project, asked, check=check)


VERBS: dict[str, Verb] = {
    "container-extend": Verb(True, partial(_extend, check=False), further=settings(hours=hours)),
    "container-extend-check": Verb(True, partial(_extend, check=True), further=settings(hours=hours)),
    "container-why": Verb(True, _why),
    "container-start": Verb(True, _start, needs_mounts=True),
    "container-start-check": Verb(True, partial(_start, check=True), needs_mounts=True),
    "container-logs": Verb(True, _logs, further=settings(lines=lines)),
    "container-stats": Verb(True, _stats),
    "container-stats-all": Verb(False, _stats),
    "project-status": Verb(True, _status),
}
