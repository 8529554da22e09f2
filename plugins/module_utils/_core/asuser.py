# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Work in a user's tree, done by a child process that has become that user.

Root never follows a path that a lab user controls: a link there would lead root anywhere. The child drops
its identity for good before it touches anything, so the kernel's own permission checks are the wall.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import json
import os
import resource
import select
import signal
import time
from dataclasses import dataclass
from typing import Any, BinaryIO, Callable, TypeVar, cast

from .errors import EngineError, HostError, InvalidInput, LabError, NotFound, Refused
from .policy import Policy, User

T = TypeVar("T")
R = TypeVar("R")

# prctl(2), <linux/prctl.h>
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38

_RESULT_LIMIT = 16 << 20
_MEMORY_LIMIT = 2 << 30
_FILE_LIMIT = 64 << 20
_CHUNK = 1 << 16
_ERRORS = {
    kind.__name__: kind for kind in (LabError, InvalidInput, Refused, NotFound, EngineError, HostError)
}


@dataclass(frozen=True)
class Identity:
    """A numeric identity: uid, gid and supplementary groups. Never root's."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def identity(policy: Policy, user: User) -> Identity:
    """Return the identity of a lab user, with the gids of the lab's groups that the user is in."""
    own = [policy.group(name).gid for name in (user.group, *user.groups)]
    return Identity(user.uid, user.gid, tuple(sorted({policy.lab_gid, *own})))


def run_as_user(
    who: Identity,
    function: Callable[[], T],
    timeout: float = 30.0,
    *,
    keep: tuple[int, ...] = (),
    file_limit: int = _FILE_LIMIT,
) -> T:
    """Call ``function`` in a child that has become ``who``; return its result.

    The result crosses a pipe as JSON, so it must be made of what JSON has (tuples come back as lists).
    Of this process's descriptors the child has those in ``keep``, for it to read, and no others. No file that
    it writes gets larger than ``file_limit`` bytes.
    A LabError that the function raises is raised here. Raises HostError when the child fails otherwise or
    takes more than ``timeout`` seconds. Call it before any thread is started (fork(2) and threads).
    """
    result: T = _run(who, lambda _output: function(), _nothing, timeout, 0, keep, file_limit)[0]
    return result


def stream_as_user(
    who: Identity, function: Callable[[BinaryIO], T], output: BinaryIO, *, timeout: float, limit: int
) -> T:
    """Like ``run_as_user``, for a function that writes bytes: they are copied to ``output`` as they come.

    Raises Refused when there are more than ``limit`` bytes; ``output`` then holds a part of them.
    """
    result: T = _run(who, function, lambda coming: _copy(coming, output), timeout, limit)[0]
    return result


def read_as_user(
    who: Identity,
    function: Callable[[BinaryIO], T],
    take: Callable[[BinaryIO], R],
    *,
    timeout: float,
    limit: int,
) -> tuple[T, R]:
    """Like ``stream_as_user``, but ``take`` reads the bytes as they come, and nothing keeps them.

    It reads forwards only. Returns both results. Where both fail, the child's error is raised: it says why
    its bytes broke off.
    """
    result: tuple[T, R] = _run(who, function, take, timeout, limit)
    return result


def _nothing(_coming: BinaryIO) -> None:
    """Take none of the bytes."""


def _copy(coming: BinaryIO, output: BinaryIO) -> None:
    while chunk := coming.read(_CHUNK):
        output.write(chunk)


def _run(
    who: Identity,
    function: Callable[[BinaryIO], Any],
    take: Callable[[BinaryIO], Any],
    timeout: float,
    limit: int,
    keep: tuple[int, ...] = (),
    file_limit: int = _FILE_LIMIT,
) -> tuple[Any, Any]:
    if who.uid == 0 or who.gid == 0 or 0 in who.groups:
        raise HostError("Work in a user's tree was asked for as root, which is never done.")
    # Loaded before the fork: the child must not import, it may not be allowed to read the library's files.
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()
    result_in, result_out = os.pipe()
    data_in, data_out = os.pipe()
    child = os.fork()
    if child == 0:
        _child(libc, parent, who, function, result_out, data_out, timeout, keep, file_limit)
    os.close(result_out)
    os.close(data_out)
    coming = _Coming(result_in, data_in, time.monotonic() + timeout, limit)
    taken, problem = None, None
    try:
        try:
            taken = take(cast(BinaryIO, coming))
        except LabError as error:
            problem = error
        while coming.read(_CHUNK):
            pass
    finally:
        os.close(result_in)
        os.close(data_in)
        # The child has said all that it had to say, or is not trusted to end by itself.
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    if not coming.answer:
        cause = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "no reason given"
        raise HostError(f"The work as uid {who.uid} was broken off ({cause}).", "Try again.")
    value = _decode(bytes(coming.answer))
    if problem is not None:
        raise problem
    return value, taken


class _Coming(io.RawIOBase):
    """What a child writes, as a file that is read forwards only; its answer is gathered beside it.

    It ends when both pipes have. Raises HostError past the deadline, Refused for too much.
    """

    def __init__(self, result_in: int, data_in: int, deadline: float, limit: int) -> None:
        super().__init__()
        self.answer = bytearray()
        self._result_in, self._deadline, self._left = result_in, deadline, limit
        self._poller = select.poll()
        self._waiting = {result_in, data_in}
        for descriptor in self._waiting:
            self._poller.register(descriptor, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._waiting:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise HostError(
                    "The work in the user's folder took too long.", "Make the folder smaller, or try again."
                )
            for descriptor, _event in self._poller.poll(min(left, 60.0) * 1000):
                is_answer = descriptor == self._result_in
                chunk = os.read(descriptor, _CHUNK if is_answer else len(buffer))
                if not chunk:
                    self._poller.unregister(descriptor)
                    self._waiting.discard(descriptor)
                elif is_answer:
                    self._answered(chunk)
                else:
                    self._count(len(chunk))
                    buffer[: len(chunk)] = chunk
                    return len(chunk)
        return 0

    def _answered(self, chunk: bytes) -> None:
        self.answer += chunk
        if len(self.answer) > _RESULT_LIMIT:
            raise HostError("The folder holds more than can be listed.", "Remove what is not needed.")

    def _count(self, length: int) -> None:
        self._left -= length
        if self._left < 0:
            raise Refused(
                "The folder is too large to be sent.", "Name large folders in the file .dockerignore."
            )


def _decode(answer: bytes) -> Any:
    try:
        message = json.loads(answer)
        if "value" in message:
            return message["value"]
        kind = _ERRORS.get(message["error"], HostError)
        error = kind(message["message"], message["hint"])
    except (ValueError, KeyError, TypeError) as wrong:
        raise HostError("The work in the user's folder was broken off.", "Try again.") from wrong
    raise error


def _child(
    libc: Any,
    parent: int,
    who: Identity,
    function: Callable[[BinaryIO], Any],
    result_out: int,
    data_out: int,
    timeout: float,
    keep: tuple[int, ...],
    file_limit: int,
) -> None:
    """Become ``who``, call the function, write the answer, and end. Never returns."""
    code = 1
    try:
        _confine(libc, parent, who, (result_out, data_out, *keep), timeout, file_limit)
        try:
            with os.fdopen(data_out, "wb", buffering=_CHUNK) as output:
                value = function(output)
            answer: dict[str, Any] = {"value": value}
        except LabError as error:
            answer = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
        except OSError as error:
            answer = {"error": "HostError", "message": explain(error), "hint": ""}
        except RecursionError:
            answer = {"error": "Refused", "message": "The folders are nested too deep.", "hint": ""}
        _write_all(result_out, json.dumps(answer).encode("utf-8"))
        code = 0
    except BaseException as error:  # noqa: BLE001  # a forked child that unwinds would run its parent's code
        with contextlib.suppress(BaseException):
            said = f"The work in the user's folder failed: {type(error).__name__}: {error}."
            _write_all(result_out, json.dumps({"error": "HostError", "message": said, "hint": ""}).encode())
    finally:
        os._exit(code)


def _confine(
    libc: Any, parent: int, who: Identity, keep: tuple[int, ...], timeout: float, file_limit: int
) -> None:
    """Drop identity, privileges, descriptors and resources; raise HostError if anything of it fails."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    os.chdir("/")
    os.umask(0o022)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    _close_others(keep)
    seconds = int(timeout) + 1
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, _MEMORY_LIMIT),
        (resource.RLIMIT_FSIZE, file_limit),
        (resource.RLIMIT_NOFILE, 512),
        (resource.RLIMIT_NPROC, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        lowered = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (lowered, lowered))
    # The kernel raises SIGXFSZ at RLIMIT_FSIZE; ignored, the write fails with EFBIG (setrlimit(2)).
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if os.geteuid() == 0:
        os.setgroups(who.groups)
        os.setresgid(who.gid, who.gid, who.gid)
        os.setresuid(who.uid, who.uid, who.uid)
    if os.getresuid() != (who.uid,) * 3 or os.getresgid() != (who.gid,) * 3:
        raise HostError(f"This process cannot become uid {who.uid}.", "Run it as root.")
    # After the change of identity, which clears both (prctl(2)). Not dumpable: the user cannot trace it.
    for option, value in (
        (_PR_SET_NO_NEW_PRIVS, 1),
        (_PR_SET_DUMPABLE, 0),
        (_PR_SET_PDEATHSIG, signal.SIGKILL),
    ):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise HostError(f"prctl {option} failed: {os.strerror(ctypes.get_errno())}.")
    if os.getppid() != parent:
        raise HostError("The parent process is gone.")


def _close_others(keep: tuple[int, ...]) -> None:
    """Close every descriptor above 2 that is not in ``keep`` (proc(5): /proc/self/fd lists them all)."""
    for descriptor in [int(name) for name in os.listdir("/proc/self/fd")]:
        if descriptor > 2 and descriptor not in keep:
            # The listing holds the descriptor that read it, closed by now.
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def explain(error: OSError) -> str:
    """Return a sentence for an error of the file system."""
    name = f"{error.filename}: " if isinstance(error.filename, str) else ""
    if error.errno == errno.EDQUOT:
        return (
            f"{name}the disk quota is used up. Remove files (workspace usage shows the largest), or ask IT."
        )
    if error.errno == errno.ENOSPC:
        return f"{name}the disk is full. Tell IT."
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{name}permission denied. Give yourself access to it (chmod u+rwX)."
    return f"{name}{error.strerror or error}."
