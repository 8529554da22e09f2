# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a lab user sees on logging in: containers, quota, what is kept, news. Admins see what is bad.

All of it is the real state, and none of it costs a question to root or Docker, which would take several times
as long: a user's containers are control groups that everybody sees (cgroups(7)), and what runs in them is the
user's own, so that the kernel tells its user since when it runs and what is mounted there (proc(5)).
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from . import PUBLIC_POLICY_PATH, WORKSPACE, adminnotes, mounts, names, notices, quota, room, where
from .errors import HostError, NotFound
from .policy import WORKSPACES_ROOT, Policy, User, load
from .terminal import Terminal, duration, fit

#: Where control groups are: of version 2, and of version 1 those that count processes.
CGROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/pids")
PROC = "/proc"
#: Where the shell reads PROFILE (Debian policy 9.9; profile.d of bash, dash and others).
PROFILE_PATH = "/etc/profile.d/lab-server.sh"
PROGRAM = "/usr/local/bin/lab-greeting"
#: For terminals alone, so that nothing is said to scp, rsync and sftp; once, and not in every pane of tmux.
#: Whatever happens, a login goes on: it waits five seconds at most, and Ctrl-C ends that.
PROFILE = f"""\
# The greeting of lab users; admins see what needs a hand. 'touch ~/.hushlogin' turns it off.
case $- in
    *i*)
        if [ -z "${{LAB_SERVER_GREETED-}}" ] && [ -t 1 ] && [ -n "${{USER-}}" ] &&
            {{ [ -d "{WORKSPACES_ROOT}/$USER" ] || [ -r "{adminnotes.PATH}" ]; }} &&
            ! [ -e "${{HOME-}}/.hushlogin" ]; then
            export LAB_SERVER_GREETED=1
            timeout --foreground -k 1 5 {PROGRAM} 2>/dev/null || :
        fi
        ;;
esac
"""
#: Debian's zsh reads this last as a login shell, and never /etc/profile.d (STARTUP/SHUTDOWN FILES in zsh(1)).
ZLOGIN_PATH = "/etc/zsh/zlogin"
ZSH = "/usr/bin/zsh"
#: Completion is not on by itself, as it is in bash; a user's own ~/.zshrc that turns it on came before.
ZLOGIN = f"""\
if [[ -r {PROFILE_PATH} ]]; then
    emulate sh -c '. {PROFILE_PATH}'
fi
if [[ -o interactive && -t 1 ]] && ! (( $+functions[compdef] )); then
    autoload -Uz compinit && compinit -i 2>/dev/null
fi
"""
# Most mounts of a container are of these, and nothing of theirs is kept.
_NO_DISK = frozenset((*where.KERNEL_TYPES, *where.MEMORY_TYPES))
_PARTS, _PART = 32, 1 << 12
_MANY = 1000  # processes of one container that are looked at


@dataclass(frozen=True)
class Running:
    """A container that runs: its project, for how many seconds, and where files outlive it or are shared."""

    project: str
    age: float
    kept: tuple[str, ...]
    read_only: tuple[str, ...]


def running(uid: int) -> list[Running]:
    """Return the containers of this process' own user, by project."""
    found = []
    up = _up()
    for group in _groups(uid):
        process = _first_process(group)
        if process:
            with suppress(OSError, HostError, ValueError, IndexError):
                found.append(_look(process, up))
    # What is built runs in the same control group, but without a workspace.
    return sorted((one for one in found if WORKSPACE in one.kept), key=lambda one: one.project)


def _groups(uid: int) -> Iterator[str]:
    """Yield the control group of each container of a user, whichever driver the engine has (spec.py)."""
    for root in CGROUPS:
        for parent in (f"{root}/lab.slice/{names.slice_name(uid)}", f"{root}/lab/{uid}"):
            with suppress(OSError), os.scandir(parent) as entries:
                yield from (entry.path for entry in entries if entry.is_dir(follow_symlinks=False))


def _first_process(group: str) -> str:
    """Return the folder below /proc of the process with which a container began, or ""."""
    with suppress(OSError):
        for number in _read(f"{group}/cgroup.procs").split()[:_MANY]:
            process = f"{PROC}/{number}"
            with suppress(OSError):
                # Its last number is that in the container itself.
                _before, _name, numbers = _read(f"{process}/status").partition("\nNSpid:")
                if numbers.partition("\n")[0].split()[-1:] == ["1"]:
                    return process
    return ""


def _read(path: str) -> str:
    """Return what the kernel tells in a file, at most the first 128 KiB; raise OSError.

    With many containers there are a thousand of them, and Python's own files take longer than the kernel.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts: list[bytes] = []
        # One read gives a page of some of these files, however much is asked for.
        while len(parts) < _PARTS and (part := os.read(descriptor, _PART)):
            parts.append(part)
    finally:
        os.close(descriptor)
    return b"".join(parts).decode("utf-8", "replace")


def _look(process: str, up: float) -> Running:
    kinds: dict[str, list[str]] = {"kept": [], "shared": []}
    for mount in mounts.parse(_read(f"{process}/mountinfo"), _NO_DISK):
        # The container's own layer is no place to look at.
        folder = mount.point == "/" or os.path.isdir(f"{process}/root{mount.point}")
        kind = where.kind_inside(mount, folder)
        which = "shared" if kind == "shared" else where.KINDS[kind][0]
        if which in kinds and mount.point not in kinds[which]:
            kinds[which].append(mount.point)
    return Running(_project(process), _age(process, up), tuple(kinds["kept"]), tuple(kinds["shared"]))


def _project(process: str) -> str:
    """Return the project: the host name of its container, which Docker puts into the environment."""
    for entry in _read(f"{process}/environ").split("\0"):
        if entry.startswith("HOSTNAME="):
            return entry[9:]
    return "?"


def _up() -> float:
    """Return for how many seconds the server has been running; 0 where that is not told."""
    with suppress(OSError, ValueError, IndexError):
        return float(_read(f"{PROC}/uptime").split()[0])
    return 0.0


def _age(process: str, up: float) -> float:
    """Return for how many seconds a process has been running, on a server that has for ``up`` of them."""
    # The name of the program, in parentheses, may hold anything; field 22 is the 20th after it.
    started = int(_read(f"{process}/stat").rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return max(0.0, up - started)


def lines(out: Terminal, policy: Policy, user: User, held: Sequence[Running]) -> list[str]:
    """Return the lines of the message."""
    width = min(out.width, 100)
    told = ["", f"Welcome to {names.printable(os.uname().nodename)}, {user.comment or user.name}.", ""]
    told += _of_containers(held, notices.notices(user.uid), width) or [
        "Nothing of yours is running. Start a project: project launch NAME"
    ]
    told += _of_gpus(out, notices.idle_gpus(user.uid), width)
    told += _of_room(out, policy, user, width)
    told += _of_keeping(policy, user, held, width)
    if policy.news:
        told += ["", out.style("News:", "strong")]
        for line in policy.news.splitlines():
            told += _wrapped(names.printable(line), width, "  ") or [""]
    return [*told, ""]


def _of_containers(held: Sequence[Running], ends: Mapping[str, Mapping[str, Any]], width: int) -> list[str]:
    room_for = max((len(one.project) for one in held), default=0)
    told = []
    for label, one in zip(["running", *[""] * len(held)], held):
        text = f"{names.printable(one.project):<{room_for}}  for {duration(one.age)}"
        told += _wrapped(text + _end(ends.get(one.project)), width, f"{label:<8}")
    return told


def _end(notice: Mapping[str, Any] | None) -> str:
    """Say when a container is to be stopped, and, where that was noticed, how it is put off."""
    remark = notices.remark(notice)
    if notice and remark:
        return f", {remark}; {notices.advice(notice, str(notice['project']))}"
    far = notices.outlook(notice)
    return f", {far}" if far else ""


def _of_gpus(out: Terminal, idle: Mapping[str, str], width: int) -> list[str]:
    """Say which GPUs are held and do nothing, also those of containers that are stopped."""
    told = []
    for project, said in sorted(idle.items()):
        text = names.printable(f"that of {project} {said}; give it back: container retire {project}")
        told += [out.style(line, "warn") for line in _wrapped(text, width, "GPU     ")]
    return told


def _of_room(out: Terminal, policy: Policy, user: User, width: int) -> list[str]:
    try:
        usage = quota.usage(policy, user)
    except HostError:
        return []
    space, files = room.lines(out, usage)
    warned = room.warnings(usage)
    told = [space, files] if "files" in warned else [space]
    for sentence, colour in warned.values():
        told += [out.style(line, colour) for line in _wrapped(sentence, width, " " * 8)]
    return told


def _of_keeping(policy: Policy, user: User, held: Sequence[Running], width: int) -> list[str]:
    """Say what outlives a container, as it is mounted; where they differ, for each."""
    shares = tuple(policy.share_path(share) for share in policy.shares_for(user))
    kept = {(one.kept, one.read_only): "" for one in held} or {
        ((WORKSPACE, *shares), (policy.data_root,)): ""
    }
    if len(kept) > 1:
        kept = {(one.kept, one.read_only): f" (in {one.project})" for one in held}
    told = []
    for (own, read_only), which in kept.items():
        told.append(_listed("kept", own, which, width))
        if read_only:
            told.append(_listed("shared", read_only, " (read only)" + which, width))
    told += _wrapped(
        "all else in a container, when you retire it; ask: workspace where PATH", width, "lost    "
    )
    return told


def _listed(label: str, paths: Iterable[str], which: str, width: int) -> str:
    shown = (f"{WORKSPACE} (here: ~/workspace)" if path == WORKSPACE else path for path in paths)
    return fit(f"{label:<8}{names.printable(', '.join(shown))}{names.printable(which)}", width)


def _wrapped(text: str, width: int, label: str) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=label, subsequent_indent=" " * len(label), break_on_hyphens=False
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Greet the lab user who logs in, tell an admin what is bad, and nobody else anything. Returns 0."""
    del argv
    uid = os.getuid()
    out = Terminal(sys.stdout, os.environ, lossy=True)
    for line in adminnotes.lines(out):
        out.line(line)
    with suppress(NotFound, HostError):
        policy = load(PUBLIC_POLICY_PATH)
        for line in lines(out, policy, policy.user_by_uid(uid), running(uid)):
            out.line(line)
    return 0
