# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The commands ``container ...`` that reach into one that runs: enter, run a command, read logs, measure.

The output of a job is a file of the user's own, and is read here, as the user.
"""

from __future__ import annotations

import argparse
import codecs
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from . import names
from .calls import (
    Call,
    Command,
    Progress,
    ask,
    hand_over,
    lines_argument,
    name_argument,
    on_job,
    say_end,
    state,
    told,
)
from .errors import InvalidInput, NotFound
from .protocol import ATTACH, EXEC, JOB_END
from .sizes import format_size
from .terminal import moment, table

_LINES = 50
_MOST_BYTES = 16 << 20  # of the end of a log that are looked at for its last lines
_LONGEST = 1 << 16  # characters of a line that is followed
_RUN_WOULD = {
    "created": "A container of {name} would be made and started first, then the command run in it.",
    "started": "The container of {name} would be started again first, then the command run in it.",
    "running": "The container of {name} runs already; the command would be run in it.",
}
_PAUSE = 0.5  # seconds between two looks at a log that is followed
_LOOK_AGAIN = 10.0  # seconds without a new line, after which the server is asked whether the job still runs


# Enter, run


def _container_attach(call: Call) -> int:
    user = call.user()
    say_end(call.out, user, call.options.name)
    if call.out.interactive:
        call.out.line("Type 'exit' to leave; the container goes on running.")
    hand_over(ATTACH, call.options.name)
    return 0


def _container_exec(call: Call) -> int:
    call.user()
    name, command = call.options.name, call.options.trailing
    if not command:
        raise InvalidInput(
            "The command is missing, or the -- before it.", f"Write: container exec {name} -- COMMAND..."
        )
    hand_over(EXEC, name, *command)
    return 0


def _container_run(call: Call) -> int:
    user = call.user()
    name, command = call.options.name, call.options.trailing
    if call.options.dry_run:
        would = ask("project-launch-check", name)
        call.out.line(_RUN_WOULD.get(str(would.get("status")), _RUN_WOULD["running"]).format(name=name))
        return 0
    if not command and not call.out.interactive:
        raise InvalidInput(
            "A shell needs a terminal, and no command is given.", f"Write: container run {name} -- COMMAND..."
        )
    facts = ask("project-launch", name, progress=Progress(call.err))
    call.err.clear()
    # Not on the output, which is the command's own.
    for note in told(facts, "notes"):
        call.err.sentence(note, "note: ")
    say_end(call.err, user, name)
    verb, words = (EXEC, command) if command else (ATTACH, ())
    hand_over(verb, name, *words)
    return 0


# Logs


def _container_logs(call: Call) -> int:
    user = call.user()
    name, count = call.options.name, call.options.lines
    if call.json and call.options.follow:
        raise InvalidInput("--follow never ends, and JSON is one answer.", "Use one of them.")
    data = ask("container-logs", name, f"lines={count}")
    job, said = data.get("job"), told(data, "container")
    if not isinstance(job, dict):
        return _say_output(call, said, [], None)
    log = str(job.get("log"))
    place = f"~/workspace/{name}/{names.printable(log)}"
    try:
        file = _open(call.policy().workspace(user), name, log)
    except (NotFound, InvalidInput, OSError) as error:
        from .asuser import explain

        raise NotFound(
            f"The output of the job in {place} cannot be read: "
            f"{explain(error) if isinstance(error, OSError) else error.message}",
            "It is a file of your project; was it moved?",
        ) from error
    with file:
        lines = _last_lines(file, count, whole=call.options.follow)
        if call.json or not call.options.follow:
            return _say_output(call, said, lines, job)
        call.out.line(call.out.style(f"{place}: {_told_of(job)}; Ctrl-C ends watching alone", "faint"))
        for line in lines:
            call.out.verbatim(_plain(line))
        return _follow(call, file, job)


def _say_output(call: Call, said: list[str], lines: list[str], job: Mapping[str, Any] | None) -> int:
    name = call.options.name
    if call.json:
        call.answer({"job": job, "lines": lines, "container": said})
        return 0
    if job is not None:
        log = names.printable(str(job.get("log")))
        call.out.line(call.out.style(f"~/workspace/{name}/{log}: {_told_of(job)}", "faint"))
        for line in lines:
            call.out.verbatim(_plain(line))
    if said:
        call.out.line(call.out.style("What the container itself wrote:", "faint"))
        for line in said:
            call.out.verbatim(line)
    if job is None and not said:
        call.out.line("Nothing was written. A job's output comes here:")
        call.out.command(f"project launch {name} --command ...")
    return 0


def _told_of(job: Mapping[str, Any]) -> str:
    return f"{on_job(job)}, begun {moment(job.get('started'))}"


def _open(workspace: str, project: str, log: str) -> BinaryIO:
    from . import safefs  # no other of these commands needs it

    root = safefs.open_directory(workspace)
    try:
        return os.fdopen(safefs.open_regular(root, f"{project}/{log}"), "rb")
    finally:
        os.close(root)


def _last_lines(file: BinaryIO, count: int, *, whole: bool) -> list[str]:
    """Return the last lines of a file, and leave it where they end; if ``whole``, those that have an end."""
    size = os.fstat(file.fileno()).st_size
    found = b""
    while len(found) < min(size, _MOST_BYTES) and found.count(b"\n") <= count:
        step = min(1 << 16, size - len(found))
        file.seek(size - len(found) - step)
        found = file.read(step) + found
    read = len(found)
    if whole:
        found = found[: found.rfind(b"\n") + 1]
    file.seek(size - (read - len(found)))
    lines = found.decode("utf-8", "replace").rstrip("\n").split("\n")
    return lines[-count:] if found and count else []


def _plain(line: str) -> str:
    """Return a line as a terminal would show it in the end, with nothing in it that steers the terminal."""
    return names.printable(line.rstrip("\r").rsplit("\r", 1)[-1].replace("\t", "    "))


def _follow(call: Call, file: BinaryIO, job: Mapping[str, Any]) -> int:
    """Print what comes until the job is over."""
    for line in _coming(call, file, running=bool(job.get("running"))):
        call.out.verbatim(_plain(line))
    return 0


def _coming(call: Call, file: BinaryIO, *, running: bool) -> Iterator[str]:
    rest, quiet = "", time.monotonic()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while True:
        new = decoder.decode(file.read(1 << 16))
        if new:
            *lines, rest = (rest + new).split("\n")
            quiet = time.monotonic()
            yield from lines
            if any(JOB_END.fullmatch(line) for line in lines[-1:]) and not rest:
                return
            rest = _end_of(rest)
            if rest and call.out.updating:
                call.out.status(_plain(rest))  # a bar of progress: a line that has no end yet
            continue
        if not running:
            break
        if time.monotonic() - quiet > _LOOK_AGAIN:
            quiet = time.monotonic()
            told_again = ask("container-logs", call.options.name, "lines=0").get("job")
            # Once more, for what was written before it ended.
            running = isinstance(told_again, dict) and bool(told_again.get("running"))
            continue
        time.sleep(_PAUSE)
    if rest:
        yield rest


def _end_of(line: str) -> str:
    """Return what shows of a line that has no end yet: the last state of a bar of progress."""
    shown = line.rstrip("\r").rsplit("\r", 1)[-1][-_LONGEST:]
    return shown + "\r" if line.endswith("\r") else shown


# What is used


def _container_stats(call: Call) -> int:
    call.user()
    name = call.options.name
    data = ask("container-stats", name) if name else ask("container-stats-all")
    if call.json:
        call.answer(data)
        return 0
    rows = []
    for one in data.get("containers", []):
        cpus, pids = one.get("cpus"), one.get("pids")
        rows.append(
            [
                str(one.get("container")),
                state(one) if cpus is None else f"{cpus:g} of {one.get('cpus_limit')}",
                _of(one.get("memory"), one.get("memory_limit")),
                "" if pids is None else f"{pids} of {one.get('pids_limit')}",
            ]
        )
    if not rows:
        call.out.line("You have no containers. Start one: project launch NAME")
        return 0
    for line in table(["CONTAINER", "CPUS", "MEMORY", "PROCESSES"], rows, call.out.width):
        call.out.line(line)
    return 0


def _of(used: Any, limit: Any) -> str:
    if not isinstance(used, int):
        return ""
    if not isinstance(limit, int) or not limit:
        return format_size(used)
    return f"{format_size(used)} of {format_size(limit)} ({round(100 * used / limit)} %)"


def _logs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--follow", action="store_true", help="go on printing what comes, until the job ends")
    parser.add_argument(
        "--lines",
        type=lines_argument,
        default=_LINES,
        metavar="N",
        help=f"so many of its last lines ({_LINES})",
    )


def _stats_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", nargs="?", type=name_argument, help="name of the project; else all of yours"
    )


COMMANDS: tuple[Command, ...] = (
    Command(
        ("container", "attach"),
        "enter a running container",
        "Open a shell in the project's running container, in /workspace/NAME. The container goes on running "
        "when you leave the shell.",
        "container attach my-thesis",
        _container_attach,
        json=False,
    ),
    Command(
        ("container", "exec"),
        "run one command in a running container",
        "Run a command in the project's running container, in /workspace/NAME, with your input and output, "
        "and end with its exit code. Where there is a terminal, the command has it too. For one that is to "
        "go on when you log out, and whose output is kept: project launch NAME --command ...",
        "container exec my-thesis -- python src/train.py --epochs 3",
        _container_exec,
        json=False,
        trailing="-- COMMAND...",
    ),
    Command(
        ("container", "run"),
        "run a command in a project's container, started if need be",
        "Start the project's container if it does not run, as project launch does, and run a command in it, "
        "in /workspace/NAME, with your input and output; end with its exit code. Without a command, open a "
        "shell. The container goes on running.",
        "container run my-thesis -- python src/train.py",
        _container_run,
        dry_run=True,
        json=False,
        trailing="[-- COMMAND...]",
    ),
    Command(
        ("container", "logs"),
        "show what the project's job wrote",
        "Show the end of what the project's last job wrote, and what the container itself wrote, if it did. "
        "The job's output is a file of the project, in results/logs or logs.",
        "container logs my-thesis --follow",
        _container_logs,
        arguments=_logs_arguments,
    ),
    Command(
        ("container", "stats"),
        "show what your containers use",
        "Show how many cores, how much memory and how many processes your running containers use, of what "
        "each may at most.",
        "container stats",
        _container_stats,
        named=False,
        arguments=_stats_arguments,
    ),
)
