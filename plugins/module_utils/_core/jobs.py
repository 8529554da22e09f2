# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Jobs: a command of the user's that runs in the project's container while nobody is logged in.

One at a time for each project. It is the user's process in the container, held by Docker and by nobody's
session; what it writes goes to a file of the project, which a child that has become the user makes. That a
job was begun is a record of root's. How it ended is what Docker says of it, or, when Docker has forgotten
that, the last line of its file: the user could write another one there, and deceive nobody but the user.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from . import asuser, events, locks, names, safefs, state
from .engine import Engine
from .errors import HostError, LabError, Refused
from .policy import Policy, User
from .processes import ticks
from .protocol import JOB_END, job_command
from .spec import WORKSPACE
from .terminal import moment

#: Where its output goes, in the folder of the project; the first that is there.
FOLDERS = ("results/logs", "logs")
_SHOWN = 200
_RECORDS = 100  # of one user
# $1 is the file, $2 the command. The blank line: output need not end with a line's end.
_SCRIPT = (
    'exec </dev/null >>"$1" 2>&1; '
    'if [ -x /bin/bash ]; then /bin/bash -c "$2"; else /bin/sh -c "$2"; fi; '
    'code=$?; printf "\\n--- exit code %s ---\\n" "$code"; exit "$code"'
)


@dataclass(frozen=True)
class Job:
    """A job. ``log`` is relative to the project's folder; times are in seconds since 1970.

    ``container`` and ``execution`` are Docker's ids. ``pid`` on the host with its start (``ticks`` since the
    boot ``boot``) tells it from every other process. ``ended`` is 0 while it runs; ``exit_code`` is None when
    nobody knows it, as when the container was stopped over it.
    """

    container: str
    execution: str
    log: str
    command: str
    started: int
    boot: str = ""
    pid: int = 0
    ticks: int = 0
    ended: int = 0
    exit_code: int | None = None

    def shown(self) -> dict[str, Any]:
        """Return the job as it is told to its user."""
        return {
            "command": self.command,
            "log": self.log,
            "started": self.started,
            "running": not self.ended,
            "ended": self.ended or None,
            "exit_code": self.exit_code,
        }


def start(engine: Engine, policy: Policy, user: User, project: str, container: str, command: str) -> Job:
    """Start a job in a container that runs. The caller holds the container's lock.

    Raises Refused while another job of the project runs, and the errors of making its file.
    """
    job_command(command)
    running = look(engine, policy, user, project)
    if running is not None and not running.ended:
        raise Refused(
            f"A job of {project} runs already: {names.printable(running.command)}.",
            f"Watch it: container logs {project} --follow. End it: container stop {project}.",
        )
    now = time.time()
    stamp = time.strftime("%Y-%m-%d-%H%M%S", time.localtime(now))
    workspace = policy.workspace(user)
    log = asuser.run_as_user(asuser.identity(policy, user), lambda: _make_log(workspace, project, stamp))
    made = engine.prepare(
        container,
        ["/bin/sh", "-c", _SCRIPT, "lab-job", log, command],
        user=f"{user.uid}:{user.gid}",
        folder=f"{WORKSPACE}/{names.project_name(project)}",
    )
    job = Job(container, made, log, names.printable(command)[:_SHOWN], int(now), events.boot_id())
    # Before it starts: one that nobody knows of must not run.
    _write(user.uid, project, job)
    state.thin_out(f"jobs/{user.uid}", _RECORDS)
    try:
        engine.begin(made)
    except LabError:
        _write(user.uid, project, replace(job, ended=int(time.time())))
        raise
    pid = int((engine.execution(made) or {}).get("Pid") or 0)
    known = replace(job, pid=pid, ticks=ticks(pid))
    with contextlib.suppress(HostError):
        _write(user.uid, project, known)
    events.record(user.uid, project, events.JOB_BEGUN, events.USER, f"its output goes to {log}")
    return known


def look(engine: Engine, policy: Policy, user: User, project: str) -> Job | None:
    """Return the last job of a user's project, as it stands; None when there was none.

    Call it before any thread is started: it may look into the user's tree.
    """
    job = _read(user.uid, project)
    if job is None or job.ended:
        return job
    with locks.hold(f"jobs-{user.uid}"):
        job = _read(user.uid, project)
        if job is None or job.ended:
            return job
        code, alive = _told(engine, job)
        if alive:
            return job
        said, when = _said(policy, user, project, job)
        # The time of a file is what its owner says.
        ended = max(job.started, min(when, int(time.time())))
        over = replace(job, ended=ended, exit_code=said if code is None else code)
        with contextlib.suppress(HostError):
            _write(user.uid, project, over)
            how = "it was cut off" if over.exit_code is None else f"exit code {over.exit_code}"
            # The event is that it was seen; when it was may be long before.
            events.record(user.uid, project, events.JOB_ENDED, events.ITSELF, f"{how}, {moment(over.ended)}")
        return over


def _told(engine: Engine, job: Job) -> tuple[int | None, bool]:
    """Return what Docker and the kernel say of a job: (exit code or None, whether it runs)."""
    told = engine.execution(job.execution)
    if told is not None and told.get("Running"):
        return None, True
    if told is not None and told.get("ExitCode") is not None:
        return int(told["ExitCode"]), False
    # Docker forgot it, which it also does of one that runs when it is started anew itself.
    alive = job.pid > 0 and job.boot == events.boot_id() and ticks(job.pid) == job.ticks != 0
    return None, alive


def _said(policy: Policy, user: User, project: str, job: Job) -> tuple[int | None, int]:
    """Return (exit code or None, when it was written) by the last line of a job's file."""
    workspace = policy.workspace(user)
    try:
        code, when = asuser.run_as_user(
            asuser.identity(policy, user), lambda: _last_words(workspace, project, job.log)
        )
    except LabError:
        return None, int(time.time())
    return (None if code is None else int(code)), int(when)


# In the user's tree, as the user


def _make_log(workspace: str, project: str, stamp: str) -> str:
    folder = _project(workspace, project)
    try:
        place = next((one for one in FOLDERS if _is_folder(folder, one)), FOLDERS[-1])
        if place == FOLDERS[-1]:
            safefs.make_directory(folder, place)
        for number in range(1, 100):
            name = f"{place}/{stamp}{f'-{number}' if number > 1 else ''}.log"
            if safefs.create_file(folder, name, b""):
                return name
    finally:
        os.close(folder)
    raise HostError(f"There is no free name for a log in {place}.", "Try again.")


def _project(workspace: str, project: str) -> int:
    root = safefs.open_directory(workspace)
    try:
        return safefs.open_beneath(root, names.project_name(project), os.O_RDONLY | os.O_DIRECTORY)
    finally:
        os.close(root)


def _is_folder(folder: int, path: str) -> bool:
    try:
        os.close(safefs.open_beneath(folder, path, os.O_RDONLY | os.O_DIRECTORY))
    except (LabError, OSError):
        return False
    return True


def _last_words(workspace: str, project: str, log: str) -> tuple[int | None, float]:
    folder = _project(workspace, project)
    try:
        file = os.fdopen(safefs.open_regular(folder, log), "rb")
    finally:
        os.close(folder)
    with file:
        status = os.fstat(file.fileno())
        file.seek(max(0, status.st_size - 256))
        return exit_code(file.read(256).decode("utf-8", "replace")), status.st_mtime


def exit_code(text: str) -> int | None:
    """Return the exit code that the end of a job's output says; None where it says none."""
    lines = text.rstrip("\n").rsplit("\n", 1)
    match = JOB_END.fullmatch(lines[-1])
    return int(match[1]) if match else None


# The record


def _record(uid: int, project: str) -> str:
    return f"jobs/{int(uid)}/{names.project_name(project)}.json"


def _write(uid: int, project: str, job: Job) -> None:
    state.write_record(_record(uid, project), json.dumps(asdict(job), sort_keys=True))


def _read(uid: int, project: str) -> Job | None:
    """Return what was recorded; a record that is damaged is none."""
    try:
        data = json.loads(state.read_record(_record(uid, project)) or "null")
        return Job(**data) if isinstance(data, dict) else None
    except (ValueError, TypeError):
        return None
