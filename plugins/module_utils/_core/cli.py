# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The lab users' commands: ``project``, ``container``, ``image-...`` and ``workspace``.

They run as the user. What needs root is asked of the broker; here its answers are turned into words.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from . import PUBLIC_POLICY_PATH, image_install, names, scaffold
from .asuser import explain
from .errors import HostError, InvalidInput, LabError, NotFound, Refused
from .policy import Policy, User, load
from .protocol import ATTACH, BROKER, EXIT_CODES, error_of, kind_of
from .sizes import format_size
from .terminal import Terminal, duration, fit, gauge, table

SUDO = "/usr/bin/sudo"

_HELP_ON_CODES = """exit codes:
  0  done, or nothing was to do
  1  it failed; the message says why
  2  the command line is wrong
  3  the rules of this server do not allow it
  4  there is no such project or container
  130  you stopped watching with Ctrl-C
"""
_INTERRUPTED = 130  # what shells give for SIGINT, 128 + 2
_WARN, _ALARM = 0.80, 0.95  # of a quota
_STEP = re.compile(r"Step ([0-9]+)/([0-9]+) : (.*)")
# What 'docker build' says of its own doings, and the labels that are ours.
_NOISE = re.compile(
    r"\s*--->|Removing intermediate container|Sending build context|Successfully (built|tagged)"
)
_OURS = "LABEL lab.server."


class _Parser(argparse.ArgumentParser):
    """argparse with one sentence, the rule, and where to read on, instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        message = message.replace("argument NAME: NAME:", "NAME:")
        sys.stderr.write(f"{self.prog}: {names.printable(message)}\nTry '{self.prog} --help'.\n")
        raise SystemExit(2)


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
        self.out.line(json.dumps(data, sort_keys=True))


def _lines(process: subprocess.Popen[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield (event, '') for each event of the broker and ({}, text) for every other line."""
    for line in process.stdout or ():
        event: Any = None
        with suppress(ValueError):
            event = json.loads(line)
        if isinstance(event, dict) and "event" in event:
            yield event, ""
        else:
            yield {}, names.printable(line.strip())


def _ignore(_text: str) -> None:
    """Show no progress."""


def ask(verb: str, *arguments: str, progress: Callable[[str], None] = _ignore) -> dict[str, Any]:
    """Ask the broker and return its answer; raise what it raised, or HostError if it gave none."""
    command = [SUDO, "-n", BROKER, verb, *arguments]
    noise = ""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise HostError(f"{SUDO} cannot be run: {error.strerror}.", "Tell your admins.") from error
    with process:
        for event, text in _lines(process):
            kind = event.get("event")
            if kind == "progress":
                progress(str(event.get("text", "")))
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


# ---- project ---------------------------------------------------------------------------------------------


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
    created = scaffold.init_project(workspace, name, kind=call.options.type, base=base, files={})
    if call.json:
        call.answer(
            {"changed": bool(created), "created": created, "project": name, "path": f"~/workspace/{name}"}
        )
        return 0
    if not created:
        call.out.line(f"~/workspace/{name} has everything already; nothing was changed.")
        return 0
    call.out.line(f"{call.out.style(name, 'strong')} is laid out in ~/workspace/{name} ({len(created)} new).")
    call.out.line("Nothing that was there has been changed. Next:")
    call.out.line(f"  project launch {name}")
    return 0


class _Progress:
    """Shows the progress of a build: the step on one line that updates itself, or step by step as lines."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._step = ""
        self._started = time.monotonic()

    def __call__(self, text: str) -> None:
        match = _STEP.match(text)
        if _NOISE.match(text) or (match and match.group(3).startswith(_OURS)):
            return
        if match:
            self._step = f"step {match.group(1)} of {match.group(2)}: "
            text = match.group(3)
        if not self._terminal.updating:
            self._terminal.status(self._step + text if match else text)
            return
        elapsed = duration(time.monotonic() - self._started)
        room = self._terminal.width - len(self._step) - len(elapsed) - 6
        self._terminal.status(f"[{elapsed}] {self._step}{fit(text.strip(), room)}")


def _told(facts: Mapping[str, Any], key: str) -> list[str]:
    value = facts.get(key, [])
    return [names.printable(str(item)) for item in value] if isinstance(value, list) else []


def _project_launch(call: Call) -> int:
    call.user()
    name, started = call.options.name, time.monotonic()
    facts = ask("project-launch", name, progress=_Progress(call.err))
    call.err.clear()
    attach = not call.json and not call.options.detach and sys.stdin.isatty() and sys.stdout.isatty()
    if call.json:
        call.answer(facts)
        return 0
    verb = {"created": "is started in a new container", "started": "is started again"}.get(
        str(facts.get("status")), "is running already"
    )
    took = duration(time.monotonic() - started)
    call.out.line(f"{call.out.style(name, 'good')} {verb} ({took}).")
    call.out.line(f"  kept:      {', '.join(_told(facts, 'kept') or ['/workspace'])}")
    if _told(facts, "read_only"):
        call.out.line(f"  read only: {', '.join(_told(facts, 'read_only'))}")
    for port in facts.get("ports") or []:
        call.out.line(f"  port:      127.0.0.1:{port.get('host')} is {port.get('container')} in it")
    call.out.line("  lost when you retire the container: everything else in it")
    brought = facts.get("brought")
    if isinstance(brought, dict):
        call.out.line(
            f"  brought:   {brought.get('files')} files of the environment, to {brought.get('folder')}"
        )
    for note in _told(facts, "notes"):
        call.out.line(call.out.style(f"  note: {note}", "warn"))
    if not attach:
        call.out.line(f"Enter it from a terminal: project launch {name}")
        return 0
    call.out.line("Type 'exit' to leave; the container goes on running.")
    sys.stdout.flush()
    try:
        os.execv(SUDO, [SUDO, "-n", BROKER, ATTACH, name])  # noqa: S606  # no shell wanted
    except OSError as error:
        raise HostError(f"{SUDO} cannot be run: {error.strerror}.", "Tell your admins.") from error


def _state(container: Mapping[str, Any] | None, unknown: bool = False) -> str:
    if container is None:
        return "unknown" if unknown else "no container"
    return {"running": "running", "paused": "paused", "restarting": "restarting"}.get(
        str(container.get("status")), "stopped"
    )


def _remark(container: Mapping[str, Any] | None) -> str:
    return "newer image: retire, launch" if container and container.get("image_newer") else ""


def _age(container: Mapping[str, Any]) -> str:
    created = container.get("created")
    return duration(time.time() - created) if isinstance(created, (int, float)) else "?"


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
        remark = "the folder is gone" if not project.get("folder", True) else _remark(container)
        if not remark and not project.get("dockerfile"):
            remark = "no Dockerfile"
        rows.append([str(project.get("name")), _state(container, bool(note)), remark])
    if rows:
        for line in table(["PROJECT", "STATE", "REMARK"], rows, call.out.width):
            call.out.line(line)
    else:
        call.out.line("You have no projects yet. Make one: project init NAME")
    if note:
        call.err.line(call.err.style(names.printable(note), "warn"))
    return 0


# ---- container -------------------------------------------------------------------------------------------


def _container_list(call: Call) -> int:
    call.user()
    data = ask("container-list")
    if call.json:
        call.answer(data)
        return 0
    rows = [
        [str(one.get("container")), _state(one), _age(one), _remark(one)]
        for one in data.get("containers", [])
    ]
    if not rows:
        call.out.line("You have no containers. Start one: project launch NAME")
        return 0
    for line in table(["CONTAINER", "STATE", "AGE", "REMARK"], rows, call.out.width):
        call.out.line(line)
    return 0


def _previewed(call: Call, done: str, lost: str) -> int:
    """Say what a stop or retire would do, from the list of containers."""
    name = call.options.name
    found = [one for one in ask("container-list").get("containers", []) if one.get("project") == name]
    affected = [one for one in found if done == "retired" or _state(one) != "stopped"]
    if call.json:
        call.answer({"changed": bool(affected), "containers": found, "dry_run": True})
    elif affected:
        call.out.line(
            f"The container {affected[0].get('container')} ({_state(affected[0])}) would be {done}. {lost}"
        )
    else:
        call.out.line(
            f"Nothing to do: there is no {'' if done == 'retired' else 'running '}container of {name}."
        )
    return 0


_STOP_LOSES = "What runs in it would end; its files would stay."
_RETIRE_LOSES = "Your workspace would stay as it is."


def _container_stop(call: Call) -> int:
    call.user()
    if call.options.dry_run:
        return _previewed(call, "stopped", _STOP_LOSES)
    name = call.options.name
    facts = ask("container-stop", name)
    if call.json:
        call.answer(facts)
    elif facts.get("changed"):
        call.out.line(
            f"The container of {name} is stopped; its files stay. Start it again: project launch {name}"
        )
    else:
        call.out.line(f"The container of {name} was stopped already.")
    return 0


def _container_retire(call: Call) -> int:
    call.user()
    name = call.options.name
    if call.options.dry_run:
        return _retire_previewed(call)
    facts = ask("container-retire", name)
    if call.json:
        call.answer(facts)
    elif facts.get("changed"):
        call.out.line(f"The container of {name} is retired. Your workspace is untouched: ~/workspace/{name}")
        _say_lost(call, facts)
        if not _say_until(call, facts):
            call.out.line("  It is gone for good" + _because(facts))
        call.out.line(f"Start a new one: project launch {name}")
    else:
        call.out.line(f"There is no container of {name}; nothing to do. Your workspace is untouched.")
    return 0


def _retire_previewed(call: Call) -> int:
    """Say what a retire would lose, and whether it could be undone."""
    if call.json:
        return _previewed(call, "retired", _RETIRE_LOSES)
    code = _previewed(call, "retired", _RETIRE_LOSES)
    try:
        facts = ask("container-lost", call.options.name)
    except NotFound:
        return code
    _say_lost(call, facts)
    if not _say_until(call, facts):
        call.out.line("  It could not be brought back" + _because(facts))
    return code


def _because(facts: Mapping[str, Any]) -> str:
    why = names.printable(str(facts.get("not_kept") or ""))
    return f": {why}." if why else "."


def _say_lost(call: Call, facts: Mapping[str, Any]) -> None:
    """Say what is in the container and not in the workspace."""
    lost = facts.get("lost")
    if not isinstance(lost, dict):
        return
    more = "" if lost.get("complete") else "at least "
    files, size = lost.get("files", 0), lost.get("bytes", 0)
    for path in _told(lost, "volumes"):
        call.out.line(fit(f"  lost: all in {path}", call.out.width))
    if not files and not more:
        call.out.line("  lost: nothing; no file in it differs from its image")
        return
    call.out.line(f"  lost: {more}{files} file{'' if files == 1 else 's'}, {format_size(int(size))}")
    for label, key, least in (("packages", "packages", 8), ("such as", "paths", 3)):
        shown = _told(lost, key)
        rest = len(shown) - least
        if shown:
            line = ", ".join(shown[:least]) + (f" and {rest} more" if rest > 0 and key == "packages" else "")
            call.out.line(fit(f"  {label}: {line}", call.out.width))


def _say_until(call: Call, facts: Mapping[str, Any]) -> bool:
    """Say until when a retire can be undone, if it can; say whether it can."""
    until = facts.get("undo_until")
    if not isinstance(until, int):
        return False
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(until))
    call.out.line(f"  until {when} you can have it back: container undo {call.options.name}")
    return True


def _container_undo(call: Call) -> int:
    call.user()
    name = call.options.name
    facts = ask("container-undo", name)
    if call.json:
        call.answer(facts)
    elif facts.get("changed"):
        call.out.line(f"The container of {name} is back and runs. Enter it: project launch {name}")
    else:
        call.out.line(f"The container of {name} was brought back already.")
    return 0


# ---- image and workspace ---------------------------------------------------------------------------------


def _image_update(call: Call) -> int:
    call.user()
    name, started = call.options.name, time.monotonic()
    facts = ask("image-update", name, progress=_Progress(call.err))
    call.err.clear()
    if call.json:
        call.answer(facts)
        return 0
    if facts.get("changed"):
        call.out.line(
            f"The image of {name} is built ({duration(time.monotonic() - started)}): {facts.get('image')}"
        )
    else:
        call.out.line(f"The image of {name} is up to date; nothing was built.")
    if facts.get("in_use"):
        call.out.line("Your container still runs the image before it. To change over:")
        call.out.line(f"  container retire {name} && project launch {name}")
    return 0


def _image_install(call: Call) -> int:
    call.user()
    name, packages, started = call.options.name, call.options.packages, time.monotonic()
    try:
        image_install.check(packages)
    except image_install.Problem as problem:
        raise InvalidInput(str(problem)) from None
    verb = "image-install-check" if call.options.dry_run else "image-install"
    facts = ask(verb, name, *packages, progress=call.err.status)
    call.err.clear()
    bake = call.options.bake and not call.options.dry_run
    if bake:
        facts = {**facts, "image": ask("image-update", name, progress=_Progress(call.err)).get("image")}
        call.err.clear()
    if call.json:
        call.answer(facts)
        return 0
    if call.options.dry_run:
        call.out.line("pip could install it; nothing was installed or recorded.")
        return 0
    versions = facts.get("packages")
    for requirement, version in (versions if isinstance(versions, dict) else {}).items():
        call.out.line(names.printable(f"{requirement}: {version} is installed in the container now"))
    call.out.line(f"It is recorded in ~/workspace/{name}/requirements.txt.")
    took = duration(time.monotonic() - started)
    if bake:
        call.out.line(f"The image has it too ({took}): {facts.get('image')}")
    else:
        call.out.line(f"The next image has it; at once with: image-update {name}")
    if facts.get("dockerfile") is False:
        note = "The Dockerfile does not mention requirements.txt; let it install it."
        call.out.line(call.out.style(f"  note: {note}", "warn"))
    return 0


def _shown_limit(call: Call, label: str, used: int, soft: int, hard: int, show: Callable[[int], str]) -> str:
    limit = hard or soft
    if not limit:
        return f"{label:<6} {show(used)} used, no limit"
    share = used / limit
    colour = "bad" if share >= _ALARM else "warn" if share >= _WARN else "good"
    shown = f"{round(share * 100):>3} %  {show(used)} of {show(limit)}"
    return f"{label:<6} {call.out.style(gauge(share), colour)} {shown}"


def _workspace_usage(call: Call) -> int:
    from . import quota, tree

    user = call.user()
    usage = quota.usage(call.policy(), user)
    workspace = call.policy().workspace(user)
    try:
        found = tree.survey(workspace)
    except OSError as error:
        raise HostError(
            f"Your workspace {workspace} cannot be read: {error.strerror}.", "Tell your admins."
        ) from error
    limits = usage.quota
    if call.json:
        call.answer(
            {
                "used": usage.used,
                "soft": limits.soft,
                "hard": limits.hard,
                "inodes": usage.inodes,
                "inodes_soft": limits.inodes_soft,
                "inodes_hard": limits.inodes_hard,
                "complete": found.complete,
                "largest": [
                    {"path": one.path, "bytes": one.size, "files": one.files} for one in found.largest
                ],
            }
        )
        return 0
    call.out.line(_shown_limit(call, "space", usage.used, limits.soft, limits.hard, format_size))
    call.out.line(_shown_limit(call, "files", usage.inodes, limits.inodes_soft, limits.inodes_hard, str))
    call.out.line("Your home and your workspace count together.")
    if limits.soft and usage.used > limits.soft:
        over = f"You are above the soft limit of {format_size(limits.soft)}: make room before the grace ends."
        call.out.line(call.out.style(over, "warn"))
    if found.largest:
        call.out.line()
        rows = [[format_size(one.size), str(one.files), f"~/workspace/{one.path}"] for one in found.largest]
        for line in table(["SIZE", "FILES", "LARGEST DIRECTORIES"], rows, call.out.width):
            call.out.line(line)
    if not found.complete:
        call.out.line("There was not time to look at everything; there may be larger ones.")
    return 0


# ---- the table of commands -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """One command: what ``--help`` says of it, its arguments, and what it does."""

    words: tuple[str, ...]
    summary: str
    description: str
    example: str
    run: Callable[[Call], int]
    named: bool = True
    dry_run: bool = False
    arguments: Callable[[argparse.ArgumentParser], None] | None = None


def _name(value: str) -> str:
    try:
        return names.project_name(value, "NAME")
    except InvalidInput as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _init_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--type", choices=scaffold.TYPES, default="custom", help="what the project is about (custom)"
    )
    parser.add_argument(
        "--base", default="", metavar="IMAGE", help="base image of the Dockerfile (the server's first)"
    )


def _launch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--detach", action="store_true", help="start it, but do not enter it")


def _install_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "packages", nargs="+", metavar="PACKAGE", help="a name and, if need be, a version: 'numpy>=1.26'"
    )
    parser.add_argument("--bake", action="store_true", help="build the image with them at once")


COMMANDS: tuple[Command, ...] = (
    Command(
        ("project", "init"),
        "lay out a new project in your workspace",
        "Lay out a project in ~/workspace/NAME: Dockerfile, requirements.txt, README.md and folders. A file "
        "that is there already is never changed.",
        "project init my-thesis --type ml",
        _project_init,
        arguments=_init_arguments,
    ),
    Command(
        ("project", "launch"),
        "build, start and enter a project's container",
        "Build the project's image if its files changed, start its container and open a shell in "
        "/workspace/NAME. What is in /workspace is kept; everything else is lost when the container is "
        "retired. Losing the connection or pressing Ctrl-C does not stop the work.",
        "project launch my-thesis",
        _project_launch,
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
    Command(
        ("container", "list"),
        "list your containers",
        "List your containers, whether they run, and how old they are.",
        "container list",
        _container_list,
        named=False,
    ),
    Command(
        ("container", "stop"),
        "stop a container and keep its files",
        "Stop the project's container. Its files stay until it is retired. It stays stopped after a reboot.",
        "container stop my-thesis",
        _container_stop,
        dry_run=True,
    ),
    Command(
        ("container", "retire"),
        "give a container up; your workspace stays",
        "Give the project's container up, with all that is not in /workspace. Your workspace is untouched. "
        "For some days it can be brought back: container undo NAME. With --dry-run, say what would be lost.",
        "container retire my-thesis --dry-run",
        _container_retire,
        dry_run=True,
    ),
    Command(
        ("container", "undo"),
        "bring a retired container back",
        "Bring back the container of the project that was retired last, with all that was in it, and start "
        "it. There must be no other container of the project meanwhile.",
        "container undo my-thesis",
        _container_undo,
    ),
    Command(
        ("image-update",),
        "build a project's image anew from its files",
        "Build the project's image if its Dockerfile, another of its files or the base image changed. "
        "A running container is left as it is.",
        "image-update my-thesis",
        _image_update,
    ),
    Command(
        ("image-install",),
        "install Python packages at once, and for every image to come",
        "Install Python packages in the project's running container, and record them with their versions in "
        "the project's requirements.txt, so that its next image has them too. Inside of the container the "
        "same command takes the packages alone.",
        "image-install my-thesis pandas 'scikit-learn>=1.4'",
        _image_install,
        dry_run=True,
        arguments=_install_arguments,
    ),
    Command(
        ("workspace", "usage"),
        "show how much of your quota is used, and by what",
        "Show how much of your quota is used, and the largest directories of your workspace.",
        "workspace usage",
        _workspace_usage,
        named=False,
    ),
)

_GROUPS = {
    "project": "Your projects: folders of ~/workspace, each with a container of its own.",
    "container": "Your containers: one for each project that was launched.",
    "workspace": "Your workspace: what is kept, and how much room it has.",
}


def programs() -> list[str]:
    """Return the names of all programs: each group, and each command written with a hyphen."""
    return sorted({*_GROUPS, *("-".join(command.words) for command in COMMANDS)})


def _fill(parser: argparse.ArgumentParser, command: Command) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"example:\n  {command.example}\n\n{_HELP_ON_CODES}"
    if command.named:
        parser.add_argument("name", metavar="NAME", type=_name, help="name of the project: a-z, 0-9 and '-'")
    if command.arguments:
        command.arguments(parser)
    if command.dry_run:
        parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument("--json", action="store_true", help="answer with one JSON object")
    parser.set_defaults(run=command.run, prog=parser.prog)


def _wrapped(text: str) -> str:
    import textwrap

    return textwrap.fill(text, 76)


def build_parser(program: str) -> argparse.ArgumentParser:
    """Return the parser of one of ``programs()``; raise InvalidInput for another."""
    for command in COMMANDS:
        if "-".join(command.words) == program:
            parser = _Parser(prog=program, description=_wrapped(command.description), allow_abbrev=False)
            _fill(parser, command)
            return parser
    if program not in _GROUPS:
        raise InvalidInput(f"{names.printable(program)} is not a command of lab.server.")
    parser = _Parser(prog=program, description=_GROUPS[program], allow_abbrev=False)
    verbs = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    for command in COMMANDS:
        if command.words[0] == program:
            _fill(
                verbs.add_parser(
                    command.words[1],
                    help=command.summary,
                    description=_wrapped(command.description),
                    allow_abbrev=False,
                ),
                command,
            )
    return parser


def _failed(call: Call, error: LabError) -> int:
    kind = kind_of(error)
    if call.json:
        call.answer({"error": {"kind": kind, "message": error.message, "hint": error.hint}})
    else:
        call.err.line(f"{call.options.prog}: {call.err.style(names.printable(error.message), 'bad')}")
        if error.hint:
            call.err.line(names.printable(error.hint))
    return EXIT_CODES[kind]


def _reopen() -> None:
    """Give the standard streams that the caller closed a place to go: Python leaves them None."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # Opened in the order of the descriptors, so that each takes its own number (open(2)).
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # open until we end


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that ``argv`` names (program first) and return its exit code."""
    words = list(sys.argv if argv is None else argv)
    _reopen()
    program = os.path.basename(words[0])
    call = Call(
        argparse.Namespace(json=False, prog=program),
        Terminal(sys.stdout, os.environ),
        Terminal(sys.stderr, os.environ, lossy=True),
    )
    try:
        call.options = build_parser(program).parse_args(words[1:])
        run: Callable[[Call], int] = call.options.run
        return run(call)
    except LabError as error:
        return _failed(call, error)
    except KeyboardInterrupt:
        call.err.clear()
        call.err.line("You stopped watching. What was begun goes on; see how it stands with 'project list'.")
        return _INTERRUPTED
    except BrokenPipeError:
        return EXIT_CODES["failed"]  # whoever read us has gone
    except OSError as error:
        return _failed(call, HostError(explain(error)))
