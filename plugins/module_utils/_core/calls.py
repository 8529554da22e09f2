# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What all of the lab users' commands share: the call, the question to the broker, the progress of a build.

They run as the user. What needs root is asked of the broker; the commands turn its answers into words.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from . import PUBLIC_POLICY_PATH, names, notices
from .errors import HostError, InvalidInput, NotFound, Refused
from .policy import Policy, User, load
from .protocol import BROKER, INTERRUPTED, error_of
from .terminal import Terminal, clock, duration, fit, moment

SUDO = "/usr/bin/sudo"

_STEP = re.compile(r"Step ([0-9]+)/([0-9]+) : (.*)")
# What 'docker build' says of its own doings, and the steps that are ours.
_NOISE = re.compile(
    r"\s*--->|Removing intermediate container|Sending build context|Successfully (built|tagged)"
)
_OURS = re.compile(r"LABEL lab\.server\.|COPY \.lab-server-|ARG [A-Z_]+=/run/lab-server/")


@dataclass
class Call:
    """One command at work: its arguments, where to print, and, once asked for, whose it is."""

    options: argparse.Namespace
    out: Terminal
    err: Terminal
    _policy: Policy | None = field(default=None)

    @property
    def json(self) -> bool:
        """Whether the answer is to be one JSON object on the standard output."""
        return bool(self.options.json)

    def policy(self) -> Policy:
        """Return the policy of the server; raise HostError."""
        if self._policy is None:
            self._policy = load(PUBLIC_POLICY_PATH)
        return self._policy

    def user(self) -> User:
        """Return the lab user who calls; raise Refused for root and for everybody else."""
        uid = os.getuid()
        if uid == 0:
            raise Refused(
                "This command is for lab users, and you are root.",
                "Become the user with 'sudo -iu NAME', or change the inventory and run the playbook.",
            )
        try:
            return self.policy().user_by_uid(uid)
        except NotFound:
            raise Refused(
                "Your account is not a lab user of this server.",
                "Ask your admins to add it to the inventory.",
            ) from None

    def answer(self, data: Mapping[str, Any]) -> None:
        """Print the answer as JSON, on one line."""
        self.out.verbatim(json.dumps(data, sort_keys=True))


def _read(output: int, tick: Callable[[], None] | None) -> Iterator[str]:
    """Yield the lines of a descriptor to its end; ``tick`` is called in each second without any."""
    rest = b""
    while True:
        if tick is not None and not select.select([output], [], [], 1.0)[0]:
            tick()
            continue
        data = os.read(output, 1 << 16)
        if not data:
            break
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace")
    if rest:
        yield rest.decode("utf-8", "replace")


def _lines(output: int, tick: Callable[[], None] | None) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield (event, '') for each event of the broker and ({}, text) for every other line."""
    for line in _read(output, tick):
        event: Any = None
        with suppress(ValueError):
            event = json.loads(line)
        if isinstance(event, dict) and "event" in event:
            yield event, ""
        else:
            yield {}, names.printable(line.strip())


def _ignore(_text: str) -> None:
    """Show no progress."""


def ask(
    verb: str,
    *arguments: str,
    progress: Callable[[str], None] = _ignore,
    lines: Callable[[list[str]], None] | None = None,
) -> dict[str, Any]:
    """Ask the broker and return its answer; raise what it raised, or HostError if it gave none.

    ``lines`` gets the lines of a log, where that was asked for.
    """
    command = [SUDO, "-n", BROKER, verb, *arguments]
    noise = ""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except OSError as error:
        raise HostError(f"{SUDO} cannot be run: {error.strerror}.", "Tell your admins.") from error
    tick = progress.tick if isinstance(progress, Progress) else None
    with process:
        for event, text in _lines(process.stdout.fileno() if process.stdout else -1, tick):
            kind = event.get("event")
            if kind == "progress":
                progress(str(event.get("text", "")))
            elif kind == "lines":
                if lines is not None:
                    lines(told(event, "lines"))
            elif kind == "result":
                data = event.get("data")
                return data if isinstance(data, dict) else {}
            elif kind == "error":
                message, hint = str(event.get("message", "")), str(event.get("hint", ""))
                raise error_of(str(event.get("kind")), message, hint)
            else:
                noise = text or noise
    raise HostError(
        f"The server gave no answer{': ' + noise if noise else '.'}",
        "See how things stand with 'project list'; if this happens again, tell your admins.",
    )


def hand_over(verb: str, *words: str) -> None:
    """Become the broker, for a verb that takes this terminal; never returns. Raises HostError."""
    sys.stdout.flush()
    try:
        os.execv(SUDO, [SUDO, "-n", BROKER, verb, *words])  # noqa: S606  # no shell wanted
    except OSError as error:
        raise HostError(f"{SUDO} cannot be run: {error.strerror}.", "Tell your admins.") from error


def name_argument(value: str) -> str:
    """Take the name of a project from the command line."""
    try:
        return names.project_name(value, "NAME")
    except InvalidInput as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def lines_argument(value: str) -> int:
    """Take a number of lines from the command line."""
    if not value.isascii() or not value.isdigit() or len(value) > 4:
        raise argparse.ArgumentTypeError("use a number of lines, 0 to 9999")
    return int(value)


class Progress:
    """Shows the progress of a build: the step on one line that updates itself, or step by step as lines."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._step = self._text = ""
        self._started = time.monotonic()

    def __call__(self, text: str) -> None:
        match = _STEP.match(text)
        if _NOISE.match(text) or (match and _OURS.match(match.group(3))):
            return
        if match:
            self._step = f"step {match.group(1)} of {match.group(2)}: "
            text = match.group(3)
        if not self._terminal.updating:
            self._terminal.status(self._step + text if match else text)
            return
        self._text = text.strip()
        self.tick()

    def tick(self) -> None:
        """Show the time that has passed, on a terminal where there is something to be seen already."""
        if not self._text or not self._terminal.updating:
            return
        elapsed = clock(time.monotonic() - self._started)
        room = self._terminal.width - len(self._step) - len(elapsed) - 6
        self._terminal.status(f"[{elapsed}] {self._step}{fit(self._text, room)}")


def later(module: str, name: str) -> Callable[[Call], int]:
    """Return a command of a module of the library, imported when it is run, so that no other one waits."""

    def run(call: Call) -> int:
        command: Callable[[Call], int] = getattr(import_module(f".{module}", __package__), name)
        return command(call)

    return run


def stoppable(said: str) -> Callable[[Callable[[Call], int]], Callable[[Call], int]]:
    """Let Ctrl-C end a command with a sentence: all of it is done here, and nothing goes on by itself."""

    def decorate(run: Callable[[Call], int]) -> Callable[[Call], int]:
        @functools.wraps(run)
        def stopped(call: Call) -> int:
            try:
                return run(call)
            except KeyboardInterrupt:
                call.err.clear()
                call.err.line(f"Stopped. {said}")
                return INTERRUPTED

        return stopped

    return decorate


def say_end(out: Terminal, user: User, name: str) -> None:
    """Say when the container of a project comes to its end, where that was noticed, and how it is put off."""
    notice = notices.notices(user.uid).get(name)
    remark = notices.remark(notice)
    if remark:
        advice = names.printable(notices.advice(notice, name))
        out.sentence(f"This container is {remark}; {advice}", colour="warn")


def told(facts: Mapping[str, Any], key: str) -> list[str]:
    value = facts.get(key, [])
    return [names.printable(str(item)) for item in value] if isinstance(value, list) else []


def state(container: Mapping[str, Any] | None, unknown: bool = False) -> str:
    if container is None:
        return "unknown" if unknown else "no container"
    return {"running": "running", "paused": "paused", "restarting": "restarting"}.get(
        str(container.get("status")), "stopped"
    )


def remark_on(container: Mapping[str, Any] | None) -> str:
    newer = "newer image: retire, launch" if container and container.get("image_newer") else ""
    ends = (container or {}).get("ends")
    near = notices.remark(ends)
    far = "" if near else notices.outlook(ends)
    idle = (container or {}).get("gpu")
    gpu = f"its GPU {idle}" if idle else ""
    return ", ".join(filter(None, [near, gpu, on_job((container or {}).get("job")), newer, far]))


def on_job(job: Any) -> str:
    """Return how a job stands, in a few words; "" where there is none."""
    if not isinstance(job, dict):
        return ""
    if job.get("running"):
        return "a job runs"
    code = job.get("exit_code")
    return "its job was cut off" if code is None else f"its job ended ({code})"


def on_build(build: Any, name: str) -> str:
    """Return how the last build of a project stands or ended, in words; "" where none is known."""
    if not isinstance(build, dict):
        return ""
    outcome, seconds = names.printable(str(build.get("outcome"))), build.get("seconds")
    if outcome == "running":
        return f"at work since {moment(build.get('started'))}: image log {name} --follow"
    took = f" after {duration(seconds)}" if isinstance(seconds, (int, float)) else ""
    more = "" if outcome == "done" else f": image log {name}"
    return f"{outcome}{took}, begun {moment(build.get('started'))}{more}"


def age(container: Mapping[str, Any]) -> str:
    created = container.get("created")
    return duration(time.time() - created) if isinstance(created, (int, float)) else "?"


@dataclass(frozen=True)
class Command:
    """One command: what ``--help`` says of it, its arguments, and what it does.

    ``trailing``: what follows a ``--`` is a command of the user's own, and nothing of it is looked at; this
    is how that is written, "" where there is none.
    """

    words: tuple[str, ...]
    summary: str
    description: str
    example: str
    run: Callable[[Call], int]
    named: bool = True
    dry_run: bool = False
    asks: bool = False
    json: bool = True
    trailing: str = ""
    arguments: Callable[[argparse.ArgumentParser], None] | None = None
