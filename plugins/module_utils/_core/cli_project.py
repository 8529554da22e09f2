# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The commands ``project ...``: lay out, launch, list."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from . import names, scaffold
from .calls import Call, Command, Progress, ask, hand_over, remark_on, say_end, state, told
from .errors import HostError, InvalidInput, NotFound, Refused
from .policy import User
from .protocol import ATTACH, JUPYTER_LOG, cores, gpus, job_command, memory
from .sizes import format_size
from .terminal import duration, fit, table

_JUPYTER_SECONDS = 90.0  # that it may take to start, on a slow computer


def _project_init(call: Call) -> int:
    user, name = call.user(), call.options.name
    bases = [base.name for base in call.policy().base_images]
    if not bases:
        raise Refused("This server offers no base images yet.", "Ask your admins for one.")
    base = call.options.base or bases[0]
    if base not in bases:
        raise InvalidInput(
            f"The base image '{names.printable(base)}' is not offered here.",
            f"Use one of: {', '.join(bases)}.",
        )
    workspace = call.policy().workspace(user)
    if not os.path.isdir(workspace):
        raise NotFound(f"Your workspace {workspace} is not there.", "Tell your admins.")
    dry_run = call.options.dry_run
    created = scaffold.init_project(
        workspace, name, kind=call.options.type, base=base, files={}, check=dry_run
    )
    if call.json:
        told_created = {"changed": bool(created), "created": created, "dry_run": dry_run}
        call.answer({**told_created, "project": name, "path": f"~/workspace/{name}"})
        return 0
    if not created:
        call.out.line(f"~/workspace/{name} has everything already; nothing was changed.")
        return 0
    if dry_run:
        call.out.line(f"These would be made in ~/workspace; nothing was made. ({len(created)})")
        for path in created:
            call.out.line(f"  {names.printable(path)}")
        return 0
    call.out.line(f"{call.out.style(name, 'strong')} is laid out in ~/workspace/{name} ({len(created)} new).")
    call.out.line("Nothing that was there has been changed. Next:")
    call.out.command(f"project launch {name}")
    return 0


def _warn_of_room(call: Call, user: User) -> None:
    """Say when the quota is nearly used up; where quotas are off, nothing."""
    from . import quota, room

    with suppress(HostError):
        for sentence, colour in room.warnings(quota.usage(call.policy(), user)).values():
            call.out.sentence(sentence, "  note: ", colour)


def _project_launch(call: Call) -> int:
    user = call.user()
    name, started = call.options.name, time.monotonic()
    if call.options.dry_run:
        return _launch_previewed(call)
    facts = ask("project-launch", name, *_launch_words(call), progress=Progress(call.err))
    call.err.clear()
    if call.options.jupyter:
        facts = {**facts, "jupyter": _jupyter(call, user)}
    if call.json:
        call.answer(facts)
        return 0
    _say_launched(call, facts, duration(time.monotonic() - started))
    _warn_of_room(call, user)
    say_end(call.out, user, name)
    if call.options.jupyter:
        return _say_jupyter(call, facts["jupyter"])
    job = facts.get("job")
    if isinstance(job, dict):
        log = names.printable(str(job.get("log")))
        call.out.line(f"The job is begun; it goes on when you log out. Its output: {log}")
        call.out.line(f"  watch it: container logs {name} --follow")
        call.out.line(f"  how it stands and ended: container list, container why {name}")
        return 0
    if call.options.detach or not (sys.stdin.isatty() and sys.stdout.isatty()):
        call.out.line(f"Enter it from a terminal: container attach {name}")
        return 0
    call.out.line("Type 'exit' to leave; the container goes on running.")
    hand_over(ATTACH, name)
    return 0


def _jupyter(call: Call, user: User) -> dict[str, Any]:
    """Have Jupyter run in the container, wait until it answers, and return where it is reached."""
    told_port = ask("project-jupyter", call.options.name)
    port, token = int(told_port.get("port") or 0), str(told_port.get("token"))
    call.err.status("Jupyter starts ...")
    ready = _answers(port)
    call.err.clear()
    return {
        "port": port,
        "ready": ready,
        "tunnel": f"ssh -N -L {port}:127.0.0.1:{port} {user.name}@{os.uname().nodename}",
        "url": f"http://127.0.0.1:{port}/lab?token={token}",
    }


def _answers(port: int) -> bool:
    """Wait until a web server answers at a port of this computer; say whether it does."""
    from http.client import HTTPConnection, HTTPException

    end = time.monotonic() + _JUPYTER_SECONDS
    while time.monotonic() < end:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        with suppress(OSError, HTTPException):
            connection.request("GET", "/api")
            if connection.getresponse().status < 500:
                return True
        connection.close()
        time.sleep(0.3)
    return False


def _say_jupyter(call: Call, where: Mapping[str, Any]) -> int:
    """Say how to reach Jupyter; exit code 1 while it does not answer."""
    name = call.options.name
    if not where["ready"]:
        call.out.line(call.out.style("Jupyter does not answer yet. What it says:", "warn"))
        call.out.command(f"container exec {name} -- cat {JUPYTER_LOG}")
        return 1
    call.out.line("Jupyter runs in it. On your own computer, leave this running:")
    call.out.command(where["tunnel"])
    call.out.line("and open this there; whoever has the address can run programs as you:")
    call.out.command(where["url"])
    call.out.line(f"It ends with the container: container stop {name}")
    return 0


def _launch_previewed(call: Call) -> int:
    """Say what a launch would do, from the plan that it would carry out."""
    name = call.options.name
    facts = ask("project-launch-check", name, *_launch_words(call), progress=Progress(call.err))
    call.err.clear()
    if call.json:
        call.answer({**facts, "dry_run": True})
        return 0
    would = {"created": "would be started in a new container", "started": "would be started again"}.get(
        str(facts.get("status")), "is running already"
    )
    call.out.line(f"{call.out.style(name, 'strong')} {would}. Nothing was changed.")
    build = names.printable(str(facts.get("build") or ""))
    if build:
        call.out.line(fit(f"  image:     would be built: {build}", call.out.width))
    elif facts.get("status") == "created":
        call.out.line("  image:     is up to date")
    _say_kept(call, facts)
    if call.options.command:
        call.out.line("  job:       the command would be begun in it")
    for note in told(facts, "notes"):
        call.out.sentence(note, "  note: ", "warn")
    return 0


def _launch_words(call: Call) -> list[str]:
    """Return what the broker is asked beside the project's name. Raises InvalidInput."""
    options = call.options
    asked = {key: getattr(options, key) for key in ("cpus", "memory", "gpus", "command")}
    for key, check in (("cpus", cores), ("memory", memory), ("gpus", gpus), ("command", job_command)):
        if asked[key] is not None:
            check(asked[key])
    words = [f"{key}={value}" for key, value in asked.items() if value is not None]
    flags = ("wait", "rebuild", "jupyter")
    return [*words, *(f"{flag}=yes" for flag in flags if getattr(options, flag))]


def _say_launched(call: Call, facts: Mapping[str, Any], took: str) -> None:
    """Say what runs now, and what of it is kept."""
    name = call.options.name
    verb = {"created": "is started in a new container", "started": "is started again"}.get(
        str(facts.get("status")), "is running already"
    )
    call.out.line(f"{call.out.style(name, 'good')} {verb} ({took}).")
    _say_kept(call, facts)
    brought = facts.get("brought")
    if isinstance(brought, dict):
        files = f"{brought.get('files')} files of the environment, to {brought.get('folder')}"
        call.out.sentence(files, "  brought:   ")
    for note in told(facts, "notes"):
        call.out.sentence(note, "  note: ", "warn")


def _say_kept(call: Call, facts: Mapping[str, Any]) -> None:
    """Say what of a container is kept and what is lost, its limits, and its ports."""
    call.out.sentence(", ".join(told(facts, "kept") or ["/workspace"]), "  kept:      ")
    if told(facts, "read_only"):
        call.out.sentence(", ".join(told(facts, "read_only")), "  read only: ")
    limits = facts.get("limits")
    if isinstance(limits, dict):
        size = format_size(int(limits.get("memory") or 0))
        call.out.line(f"  limits:    {limits.get('cpus')} cpus, {size} of memory")
    if told(facts, "gpus"):
        call.out.sentence(", ".join(told(facts, "gpus")), "  gpus:      ")
    for port in facts.get("ports") or []:
        call.out.line(f"  port:      127.0.0.1:{port.get('host')} is {port.get('container')} in it")
    lost = ", ".join(told(facts, "lost"))
    also = f" with {lost}," if lost else ""
    line = f"  lost when you retire the container:{also} everything else in it"
    call.out.line(fit(line, call.out.width))


def _project_list(call: Call) -> int:
    call.user()
    data = ask("project-list")
    if call.json:
        call.answer(data)
        return 0
    note = str(data.get("note", ""))
    rows = []
    for project in data.get("projects", []):
        container = project.get("container")
        remark = "the folder is gone" if not project.get("folder", True) else remark_on(container)
        if project.get("building"):
            remark = ", ".join(filter(None, ["its image is being built", remark]))
        if not remark and not project.get("dockerfile"):
            remark = "no Dockerfile"
        rows.append([str(project.get("name")), state(container, bool(note)), remark])
    if rows:
        for line in table(["PROJECT", "STATE", "REMARK"], rows, call.out.width):
            call.out.line(line)
    else:
        call.out.line("You have no projects yet. Make one: project init NAME")
    if note:
        call.err.sentence(names.printable(note), colour="warn")
    return 0


def _init_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--type", choices=scaffold.TYPES, default="custom", help="what the project is about (custom)"
    )
    parser.add_argument(
        "--base", default="", metavar="IMAGE", help="base image of the Dockerfile (the server's first)"
    )


def _launch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--detach", action="store_true", help="start it, but do not enter it")
    parser.add_argument("--cpus", metavar="N", help="so many cores for a new container (your limit)")
    parser.add_argument(
        "--memory", metavar="SIZE", help="so much memory for a new container, such as 8g (your limit)"
    )
    parser.add_argument(
        "--jupyter",
        action="store_true",
        help="run Jupyter in it, and say how to reach it from your own computer",
    )
    parser.add_argument(
        "--gpus",
        metavar="WHAT",
        help="GPUs for a new container: a number, a MIG profile such as 1g.10gb, memory=SIZE, shared, a uuid",
    )
    parser.add_argument(
        "--wait", action="store_true", help="wait for the GPUs where they are taken; goes on when you log out"
    )
    parser.add_argument("--rebuild", action="store_true", help="build the image though nothing changed")
    parser.add_argument(
        "--command",
        metavar="COMMAND",
        help="run this in it as a job that goes on when you log out; its output goes to a file",
    )


COMMANDS: tuple[Command, ...] = (
    Command(
        ("project", "init"),
        "lay out a new project in your workspace",
        "Lay out a project in ~/workspace/NAME: Dockerfile, requirements.txt, README.md and folders. A file "
        "that is there already is never changed.",
        "project init my-thesis --type ml",
        _project_init,
        dry_run=True,
        arguments=_init_arguments,
    ),
    Command(
        ("project", "launch"),
        "build, start and enter a project's container",
        "Build the project's image if its files changed, start its container and open a shell in "
        "/workspace/NAME. What is in /workspace is kept; everything else is lost when the container is "
        "retired. Losing the connection or pressing Ctrl-C does not stop the work. A new container has the "
        "cores, the memory and the GPUs that you ask for, up to your limits; one that is there keeps its "
        "own. It has the GPUs for itself until it is retired.",
        "project launch my-thesis",
        _project_launch,
        dry_run=True,
        arguments=_launch_arguments,
    ),
    Command(
        ("project", "list"),
        "list your projects and whether they run",
        "List the projects in your workspace and the state of their containers.",
        "project list --json",
        _project_list,
        named=False,
    ),
)
