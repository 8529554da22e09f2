# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A hostile user's calls, made by that user: ``python3 -`` with this file and a batch as its input.

The test appends ``main(BATCH)``. Each call of the batch says what is planted, what the process is started
with, and what is done to it; the answer is one JSON object. What was planted is removed again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import pwd
import resource
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from typing import Any

PATIENCE = 90.0  # seconds until a call must have ended by itself, and until what it began has
GRACE = 5.0  # seconds from hanging up to killing
MARK = "hostile"  # in the name of all that is planted outside of the project
HOME = pwd.getpwuid(os.getuid()).pw_dir
WORKSPACE = os.path.realpath(os.path.join(HOME, "workspace"))
PROJECT = os.path.join(WORKSPACE, "hostile")
EVIL = os.path.join(HOME, "hostile-programs")
# Whoever runs this by mistake leaves a trace where only root can write.
TRACE = """
for place in ("/etc", "/srv/data", "/root"):
    try:
        open(place + "/hostile", "w").close()
    except OSError:
        pass
"""
TRACE_SHELL = "#!/bin/sh\nfor place in /etc /srv/data /root; do : > $place/hostile; done 2>/dev/null\n"

# ---- what is planted -------------------------------------------------------------------------------------


def _write(path: str, data: bytes = b"") -> None:
    with open(path, "wb") as file:
        file.write(data)


def _socket(path: str) -> None:
    # The path of a socket is at most 107 bytes long: unix(7).
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    os.close(folder)


def _sparse(path: str) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 40)


def _deep(path: str) -> None:
    for _level in range(40):
        os.mkdir(path)
        path = os.path.join(path, "deeper")


def _many(path: str) -> None:
    os.mkdir(path)
    for number in range(200):
        _write(os.path.join(path, "x" * 200 + str(number)))


def _forbidden(path: str) -> None:
    _write(path, b"FROM scratch\n")
    os.chmod(path, 0)


def _set_ids(path: str) -> None:
    shutil.copyfile("/bin/true", path)
    os.chmod(path, 0o6755)


def _link(target: str) -> Callable[[str], None]:
    return lambda path: os.symlink(target, path)


def _hard_link(target: str) -> Callable[[str], None]:
    return lambda path: os.link(target, path)


def _text(text: str) -> Callable[[str], None]:
    return lambda path: _write(path, text.encode())


KINDS: dict[str, Callable[[str], None]] = {
    "link to shadow": _link("/etc/shadow"),
    "link to sudoers": _link("/etc/sudoers.d"),
    "link to /": _link("/"),
    "link to another's home": _link("/home/alice"),
    "link to another's workspace": _link("/home/.workspaces/carol"),
    "link to data": _link("/srv/data"),
    "link to the state": _link("/var/lib/lab-server"),
    "link to itself": _link("Dockerfile"),
    "link to nothing": _link("/nonexistent"),
    "link to the engine": _link("/run/docker.sock"),
    "link to a process": _link("/proc/1/root"),
    "hard link to passwd": _hard_link("/etc/passwd"),
    "hard link to sudo": _hard_link("/usr/bin/sudo"),
    "fifo": os.mkfifo,
    "socket": _socket,
    "device": lambda path: os.mknod(path, 0o666 | stat.S_IFBLK, os.makedev(254, 0)),
    "sparse": _sparse,
    "folder": os.mkdir,
    "deep": _deep,
    "many": _many,
    "forbidden": _forbidden,
    "set ids": _set_ids,
    "empty": _text(""),
    "no text": lambda path: _write(path, bytes(range(256)) * 40),
    "broken": _text("FROM lab/debian\nRUN false\n"),
    "another base": _text("FROM lab/2001/my-thesis:latest\nUSER 0\nVOLUME /home\n"),
    "labels": _text(
        "FROM lab/debian\nLABEL lab.server.owner=2003 lab.server.project=vision\nUSER 0\nVOLUME /volume\n"
        "ENV LD_PRELOAD=/workspace/x.so PATH=/workspace\nHEALTHCHECK CMD touch /srv/data/hostile\n"
    ),
    "copies all": _text("FROM lab/debian\nCOPY --chown=2003:2003 . /all\nADD /etc/shadow /shadow\n"),
    "many lines": _text("FROM lab/debian\n" + "ENV A=1\n" * 3000),
    "packages": _text("six\n--index-url=http://127.0.0.1:1/\n-e /etc\n-r /etc/shadow\n./../../alice\n"),
    "settings": _text('{"cliPluginsExtraDirs": ["/home"], "credsStore": "x", "HttpHeaders": {"x": "y"}}\n'),
}


def _plant(place: str, kind: str) -> None:
    """Put something at a place below the project, the workspace or the home; what was there is set aside."""
    top, _slash, name = place.partition("/")
    folder = {"project": PROJECT, "workspace": WORKSPACE, "home": HOME}[top]
    path = os.path.join(folder, name)
    with contextlib.suppress(OSError):  # what a user may not make is not there
        if os.path.lexists(path):
            os.rename(path, f"{path}.{MARK}-aside")
        KINDS[kind](path)


def _remove(path: str) -> None:
    """Remove a file or a tree, also one that forbids it."""
    if os.path.isdir(path) and not os.path.islink(path):
        for folder, _folders, _files in os.walk(path):
            with contextlib.suppress(OSError):
                os.chmod(folder, 0o700)
        shutil.rmtree(path, ignore_errors=True)  # what others put there is theirs
    else:
        with contextlib.suppress(OSError):
            os.unlink(path)


class Own:
    """What was in the user's folders before; all else is removed again."""

    FOLDERS = (HOME, WORKSPACE, "/tmp", "/var/tmp", "/dev/shm")

    def __init__(self) -> None:
        self._before = {folder: set(os.listdir(folder)) for folder in self.FOLDERS}

    def restore(self) -> None:
        """Remove what was made and put back what was set aside."""
        for folder, before in self._before.items():
            for name in set(os.listdir(folder)) - before:
                if not name.endswith(f".{MARK}-aside"):
                    _remove(os.path.join(folder, name))
            for name in os.listdir(folder):
                if name.endswith(f".{MARK}-aside"):
                    path = os.path.join(folder, name)
                    _remove(path[: -len(f".{MARK}-aside")])
                    os.rename(path, path[: -len(f".{MARK}-aside")])


def _prepare(call: dict[str, Any]) -> None:
    """Lay out the project anew, and what the call plants."""
    _remove(PROJECT)
    if call["away"]:
        os.symlink("/home/.workspaces/alice/my-thesis", PROJECT)
    else:
        os.mkdir(PROJECT)
        _write(os.path.join(PROJECT, "Dockerfile"), b"FROM lab/debian\nCOPY word /word\n")
        _write(os.path.join(PROJECT, "word"), b"hello\n")
    os.makedirs(os.path.join(EVIL, "cli-plugins"), exist_ok=True)
    for name in ("sitecustomize.py", "usercustomize.py", "docker.py", "json.py"):
        _write(os.path.join(EVIL, name), TRACE.encode())
    for name in ("docker", "sudo", "python3", "setfacl", "tar", "cli-plugins/docker-exec", "evil.so"):
        _write(os.path.join(EVIL, name), TRACE_SHELL.encode())
        os.chmod(os.path.join(EVIL, name), 0o755)
    for place, kind in call["planted"].items():
        if not (call["away"] and place.startswith("project/")):
            _plant(place, kind)


# ---- a call ----------------------------------------------------------------------------------------------


def _words(call: dict[str, Any]) -> list[bytes]:
    """Return the words of a call; a long one is written as [word, times]."""
    words = [word if isinstance(word, str) else word[0] * word[1] for word in call["words"]]
    return [word.encode("utf-8", "surrogateescape") for word in words]


def _environment(call: dict[str, Any]) -> dict[bytes, bytes]:
    values = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": HOME, "USER": pwd.getpwuid(os.getuid()).pw_name}
    values.update({name: value.replace("EVIL", EVIL) for name, value in call["environment"].items()})
    return {
        name.encode("utf-8", "surrogateescape"): value.encode("utf-8", "surrogateescape")
        for name, value in values.items()
    }


class Running:
    """A process that was started in a strange state, what it says, and what is done to it."""

    def __init__(self, call: dict[str, Any]) -> None:
        self.call = call
        self.said = b""
        self._master = self._slave = -1
        self._open: list[int] = []
        streams = [self._stream(number, kind) for number, kind in enumerate(call["streams"])]
        self._process = subprocess.Popen(
            _words(call),
            env=_environment(call),
            cwd={"project": PROJECT, "root": "/"}.get(call["folder"], HOME)
            if os.access(PROJECT, os.X_OK)
            else HOME,
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
            close_fds=False,
            start_new_session=True,
            preexec_fn=self._enter,  # noqa: PLW1509  # no threads here
        )
        for descriptor in [*streams, *([self._slave] if self._slave >= 0 else [])]:
            os.close(descriptor)

    def _stream(self, number: int, kind: str) -> int:
        """Return a descriptor for input, output or errors; those that are to be closed are closed later."""
        if kind == "terminal":
            if self._master < 0:
                self._master, self._slave = pty.openpty()
                os.set_inheritable(self._master, False)
                self._open.append(self._master)
            return os.dup(self._slave)
        if kind in ("pipe", "nobody"):
            reader, writer = os.pipe()
            mine, theirs = (writer, reader) if number == 0 else (reader, writer)
            if kind == "nobody":
                os.close(mine)
            elif number:
                self._open.append(mine)
            else:
                os.write(mine, b"exit\n\x00\xff" * 20)
                os.close(mine)
            return theirs
        path = {"full": "/dev/full", "zero": "/dev/zero", "folder": "/"}.get(kind, os.devnull)
        return os.open(path, os.O_RDONLY if kind == "folder" or number == 0 else os.O_WRONLY)

    def _enter(self) -> None:
        """Become what the call wants, in the child."""
        if self._master >= 0:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._slave, termios.TIOCSCTTY, 0)
        if self.call["folder"] == "gone":
            os.mkdir(os.path.join(HOME, f"{MARK}-gone"))
            os.chdir(os.path.join(HOME, f"{MARK}-gone"))
            os.rmdir(os.path.join(HOME, f"{MARK}-gone"))
        for number in range(self.call["extra"]):
            path = ("/etc/passwd", "/", os.devnull, HOME)[number % 4]
            os.set_inheritable(os.open(path, os.O_RDONLY), True)
        for number, kind in enumerate(self.call["streams"]):
            if kind == "closed":
                os.close(number)
        for name, (limit, value) in {
            "files": (resource.RLIMIT_NOFILE, 40),
            "size": (resource.RLIMIT_FSIZE, 512),
            "cpu": (resource.RLIMIT_CPU, 40),
            "stack": (resource.RLIMIT_STACK, 1 << 20),
        }.items():
            if name in self.call["limits"]:
                resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))
        os.umask(self.call["umask"])
        os.nice(self.call["nice"])
        for ignored in self.call["ignored"]:
            signal.signal(ignored, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM, signal.SIGUSR1])

    def _read(self, seconds: float) -> None:
        """Read what there is, for at most so long."""
        if not self._open:
            time.sleep(min(seconds, 0.05))
            return
        for descriptor in select.select(self._open, [], [], min(seconds, 0.2))[0]:
            try:
                data = os.read(descriptor, 1 << 16)
            except OSError:  # a terminal that its process left: pty(7)
                data = b""
            if data:
                self.said = (self.said + data)[-(1 << 20) :]
            else:
                self._open.remove(descriptor)

    def _until(self, end: float) -> int | None:
        """Go on until the process has ended, or until that time."""
        while time.monotonic() < end:
            if self._process.poll() is not None:
                self._read(0.05)
                return self._process.returncode
            self._read(end - time.monotonic())
        return self._process.poll()

    def _signal(self, number: int) -> None:
        """Send a signal to all that the user may send it to."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _type(self, keys: str) -> None:
        """Type at the terminal; of some keys the kernel makes signals, also for processes of root's."""
        if self._master >= 0:
            with contextlib.suppress(OSError):
                os.write(self._master, keys.encode("latin-1"))

    def _hang_up(self) -> None:
        if self._master >= 0:
            with contextlib.suppress(OSError):
                os.close(self._master)
            self._open = [one for one in self._open if one != self._master]
            self._master = -1
        self._signal(signal.SIGHUP)
        self._signal(signal.SIGCONT)

    def finish(self) -> dict[str, Any]:
        """Do to it what the call wants, wait for its end, and return what came of it."""
        started = time.monotonic()
        for act in self.call["acts"]:
            self._until(started + act["after"])
            if "signal" in act:
                self._signal(act["signal"])
            self._type(act.get("keys", ""))
        waits = self.call["patience"]
        code = self._until(started + (waits or PATIENCE))
        late = code is None and not waits
        disturbed = bool(self.call["acts"]) or code is None
        if code is None:
            self._hang_up()
            code = self._until(time.monotonic() + GRACE)
        if code is None:
            self._signal(signal.SIGKILL)
            code = self._until(time.monotonic() + GRACE)
        for descriptor in self._open:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        return {
            "code": code,
            "late": late,
            "disturbed": disturbed,
            "seconds": round(time.monotonic() - started, 1),
        }


def _at_work() -> list[str]:
    """Return the calls of the broker that are at work."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
                words = file.read()
                if b"lab-broker" in words:
                    found.append(words.replace(b"\0", b" ").decode("utf-8", "replace"))
    return found


def _settle() -> list[str]:
    """Wait until nothing is at work; return what still is."""
    end = time.monotonic() + PATIENCE
    while _at_work() and time.monotonic() < end:
        time.sleep(0.2)
    return _at_work()


def _call(call: dict[str, Any], telling: list[str]) -> dict[str, Any]:
    """Make one call; return how it ended, the last it said, and what it said that it must not."""
    own = Own()
    try:
        _prepare(call)
        try:
            running = Running(call)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            return {"not_started": str(error)}  # too long for the kernel, say
        outcome = running.finish()
        text = running.said.decode("utf-8", "replace")
        told = [word for word in telling if word in text]
        return {**outcome, "told": told, "said": text[-600:], "at_work": _settle()}
    finally:
        own.restore()


# ---- sockets ---------------------------------------------------------------------------------------------


def _listening() -> list[Any]:
    """Return the addresses of sockets on which somebody listens: paths, and (host, port)."""
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as file:
        paths = {row.split(None, 7)[7].strip() for row in file if len(row.split(None, 7)) == 8}
    found: list[Any] = sorted(path for path in paths if path.startswith("/"))
    found += [path for path in ("/run/docker.sock", "/var/run/docker.sock") if path not in found]
    with open("/proc/net/tcp", encoding="ascii") as file:
        for row in [line.split() for line in file][1:]:
            host, port = row[1].split(":")
            # ssh shuts out who sends it anything else: PerSourcePenalties, sshd_config(5).
            if row[3] == "0A" and int(port, 16) != 22:
                found.append((socket.inet_ntoa(bytes.fromhex(host)[::-1]), int(port, 16)))
    return found


def _knock(address: Any, message: bytes) -> str | None:
    """Send a message; return what was answered, None where nobody let us in."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        with contextlib.suppress(OSError), socket.socket(family, kind) as knocking:
            knocking.settimeout(0.3)
            knocking.connect(address)
            with contextlib.suppress(OSError):
                knocking.send(message)
                return knocking.recv(1000).decode("utf-8", "replace")
            return ""
    return None


def _knocks(messages: list[str]) -> dict[str, Any]:
    """Send messages to all sockets that let the user in; return what these answered."""
    answers: dict[str, Any] = {}
    for address in _listening():
        for message in messages:
            answer = _knock(address, bytes.fromhex(message))
            if answer is None:
                break
            answers.setdefault(str(address), []).append(answer[:200])
    return answers


def main(batch: dict[str, Any]) -> None:
    """Make all calls of a batch and print what came of them."""
    calls = [_call(call, batch["telling"]) for call in batch["calls"]]
    answers = _knocks(batch["messages"]) if batch["messages"] else {}
    print(json.dumps({"calls": calls, "answers": answers}))
    sys.stdout.flush()
