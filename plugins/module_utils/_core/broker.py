# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The one program that lab users run as root: ``sudo lab-broker VERB [NAME [WORD...]]``.

It is told a verb of a fixed table, at most the name of a project, and what that verb takes beside it, each
word checked: never a user, a path of the host, or an option of Docker's. A command is for the container.
Who calls is what sudo says (SUDO_UID, sudo(8)), checked against the accounts and the policy. ``serve`` is the
whole of it and knows nothing of sudo, so that another way in can replace it.

The answer is one JSON object a line on the standard output: any number of ``{"event": "progress"}``, then one
``{"event": "result"}`` or ``{"event": "error"}``. The work is done by a process of its own session that does
not hold the caller's descriptors: a lost connection, a closed pipe, Ctrl-C, Ctrl-Z or a terminal that nobody
reads cannot stop it halfway, nor make it wait with a lock in its hands.
"""

from __future__ import annotations

import fcntl
import grp
import json
import os
import pwd
import re
import resource
import select
import signal
import sys
import syslog
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from . import RUN_DIRECTORY, apart, journal, names, verbs, verbs_container, verbs_gpu, verbs_image
from .errors import EngineError, HostError, InvalidInput, LabError, NotFound, Refused
from .policy import Policy, User, load
from .protocol import ATTACH, EXEC, EXIT_CODES, kind_of
from .verbs import Request, Verb, connected, nothing

#: All that the broker does, but for what hands the caller's descriptors to a container.
VERBS: dict[str, Verb] = {**verbs.VERBS, **verbs_image.VERBS, **verbs_container.VERBS, **verbs_gpu.VERBS}

DOCKER = "/usr/bin/docker"
GROUP = "lab"

#: What what runs as root for users has of an environment.
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
}
_TERM = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,31}")
_UID = re.compile(r"[0-9]{1,10}")
# Docker leaves an attached terminal at this sequence; its default begins with Ctrl-P, the shell's 'previous
# command'. It cannot be turned off, so it is one that nobody types.
_DETACH_KEYS = "ctrl-^,ctrl-_,ctrl-^,ctrl-_,ctrl-^"
_CALLS_AT_ONCE = 64
_WORDS, _COMMAND_LENGTH = 1000, 65536
_SLOW_READER = 30.0  # seconds that an answer waits for a reader before it is given up
_PIPE_BYTES = 1 << 20
_READING = 3600.0  # seconds that lines which were asked for wait for their reader, as nothing waits for that
_LINES_BYTES = 1 << 16  # of lines that are given at once
# Whatever the caller's are: neither may the work be cut off in the middle, nor grow without bounds.
_LIMITS = {
    resource.RLIMIT_CPU: resource.RLIM_INFINITY,
    resource.RLIMIT_FSIZE: resource.RLIM_INFINITY,
    resource.RLIMIT_AS: resource.RLIM_INFINITY,
    resource.RLIMIT_DATA: resource.RLIM_INFINITY,
    resource.RLIMIT_STACK: 8 << 20,
    resource.RLIMIT_NOFILE: 1024,
}


def _command(words: Sequence[str]) -> dict[str, Any]:
    """Take the words of a command for the container; raise InvalidInput."""
    if not words or len(words) > _WORDS or sum(map(len, words)) > _COMMAND_LENGTH:
        raise InvalidInput(
            "The command is missing, or too long.", "Put a long one into a script of the project."
        )
    return {"command": tuple(words)}


#: What hands the caller's descriptors to a process in the container: a shell, or a command.
HANDED: dict[str, Callable[[Sequence[str]], dict[str, Any]]] = {ATTACH: nothing, EXEC: _command}


class Events:
    """Writes events to a descriptor and never waits long for who reads them.

    A reader that has gone is forgotten; one that is slow loses progress, then after 30 seconds the answer.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._gone = False

    def _write(self, event: Mapping[str, Any], patience: float) -> None:
        data = json.dumps(event, ensure_ascii=True, sort_keys=True).encode("ascii") + b"\n"
        deadline = time.monotonic() + patience
        while data and not self._gone:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                left = deadline - time.monotonic()
                if left <= 0:
                    # An event that was cut would spoil the next one.
                    self._gone = patience > 0
                    return
                select.select([], [self._descriptor], [], left)
            except OSError:
                self._gone = True

    def progress(self, text: str) -> None:
        """Tell what is being done, in one line; dropped when nobody reads."""
        # At most PIPE_BUF bytes, so that the line is written whole or not at all (pipe(7)).
        self._write({"event": "progress", "text": names.printable(text)[:300]}, patience=0)

    def lines(self, lines: Sequence[str]) -> bool:
        """Give lines that were asked for, all of them; say whether somebody is there to read.

        It waits for the reader, so it is for what holds no lock.
        """
        batch: list[str] = []
        size = 0
        for line in lines:
            batch.append(line)
            size += len(line)
            if size > _LINES_BYTES:
                self._write({"event": "lines", "lines": batch}, _READING)
                batch, size = [], 0
        if batch:
            self._write({"event": "lines", "lines": batch}, _READING)
        return not self._gone and not self._is_closed()

    def _is_closed(self) -> bool:
        """Say whether nobody holds the other end of the pipe any more (poll(2), POLLERR)."""
        asked = select.poll()
        asked.register(self._descriptor, 0)
        return any(happened & select.POLLERR for _descriptor, happened in asked.poll(0))

    def result(self, data: Mapping[str, Any]) -> None:
        """Give the answer."""
        self._write({"event": "result", "data": data}, _SLOW_READER)

    def error(self, kind: str, message: str, hint: str = "") -> None:
        """Give the error that ends the call; ``kind`` is a key of EXIT_CODES."""
        event = {
            "event": "error",
            "kind": kind,
            "message": names.printable(message),
            "hint": names.printable(hint),
        }
        self._write(event, _SLOW_READER)


def parse(verb: str, arguments: Sequence[str]) -> tuple[str, str, dict[str, Any]]:
    """Return (verb, project or "", what else is asked); raise InvalidInput for what is not in the table."""
    if verb not in HANDED and verb not in VERBS:
        raise InvalidInput(
            "The broker does not know this verb.", "Use the commands project, container or workspace."
        )
    wanted = 1 if verb in HANDED or VERBS[verb].takes_name else 0
    if len(arguments) < wanted:
        raise InvalidInput(f"{verb}: the name of a project is missing.", "Use the commands.")
    project = names.project_name(arguments[0]) if wanted else ""
    further = HANDED[verb] if verb in HANDED else VERBS[verb].further
    return verb, project, further(arguments[wanted:])


def identify(uid: int, policy: Policy) -> User:
    """Return the lab user whose uid this is.

    The account must exist, bear the name of the policy, and be in the group of lab users; root is refused.
    Raises Refused.
    """
    if uid == 0:
        raise Refused(
            "Root is no lab user.",
            "Become the user with 'sudo -iu NAME', or change the inventory and run the playbook.",
        )
    try:
        account = pwd.getpwuid(uid)
        user = policy.user_by_uid(uid)
    except (KeyError, NotFound):
        raise Refused(
            f"uid {uid} is not a lab user of this server.", "Ask your admins to add the account."
        ) from None
    try:
        member = grp.getgrnam(GROUP).gr_gid == policy.lab_gid and policy.lab_gid in os.getgrouplist(
            account.pw_name, account.pw_gid
        )
    except KeyError:
        member = False
    if account.pw_name != user.name or not member:
        raise Refused(
            f"The account '{names.printable(account.pw_name)}' does not match the policy of this server.",
            "Ask your admins to run the playbook.",
        )
    return user


def _require_mounts(policy: Policy) -> None:
    from .storage import check_mounts

    missing = check_mounts(policy)
    if missing:
        raise HostError("The disks of this server are not ready: " + " ".join(missing), "Tell your admins.")


def _take_slot(uid: int) -> int:
    """Return the descriptor of a lock that counts one call of the user; raise Refused or HostError."""
    directory = os.path.join(RUN_DIRECTORY, "calls")
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        for number in range(_CALLS_AT_ONCE):
            path = os.path.join(directory, f"{uid}.{number}")
            slot = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(slot)
                continue
            return slot
    except OSError as error:
        raise HostError(f"{directory} cannot be used: {error.strerror}.", "Tell your admins.") from error
    raise Refused(f"You have {_CALLS_AT_ONCE} commands at work already.", "Wait for them to end.")


@contextmanager
def _counted(uid: int) -> Iterator[None]:
    """Count a call while it lasts, so that nobody can fill the server's memory with them; raise Refused."""
    slot = _take_slot(uid)
    try:
        yield
    finally:
        os.close(slot)


def _where(error: BaseException) -> str:
    import traceback  # what is rarely needed is not to be waited for

    frames = traceback.extract_tb(error.__traceback__)
    last = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}{last}"


def _reason(error: LabError) -> str:
    """Return the error in words for IT, with what caused it."""
    return f"{error} ({error.__cause__})" if error.__cause__ else str(error)


def _fault(error: Exception) -> tuple[str, str, str]:
    """Return (kind, message, hint) for people of any error; what is no LabError is a fault of ours."""
    if isinstance(error, LabError):
        return kind_of(error), error.message, error.hint
    return "failed", "Something went wrong that should not.", "Tell your admins; the system log says more."


def _enter(
    user: User,
    project: str,
    policy: Policy,
    descriptors: tuple[int, int, int],
    term: str,
    command: Sequence[str] = (),
) -> None:
    """Become a shell, or a command, in the running container, with the caller's descriptors.

    A shell needs a terminal. Raises LabError when it cannot.
    """
    from .containers import listing, shell_arguments

    tty = all(os.isatty(descriptor) for descriptor in descriptors[:2])
    if not command and not tty:
        raise Refused("attach needs a terminal.", "Log in with 'ssh -t'.")
    with connected() as engine:
        found = [info for info in listing(engine, policy, user) if info.project == project]
    if not found:
        raise NotFound(
            f"You have no container of a project '{project}'.", f"Start it: project launch {project}"
        )
    if found[0].status != "running":
        raise NotFound(f"The container of '{project}' is not running.", f"Start it: project launch {project}")
    arguments = shell_arguments(user, project, command=command, tty=tty)
    if tty:
        # Options of 'docker exec' go before the container; all of them are ours. What comes after it is the
        # command, whatever it looks like (https://docs.docker.com/reference/cli/docker/container/exec/).
        where = arguments.index("exec") + 1
        arguments[where:where] = ["--detach-keys", _DETACH_KEYS, "--env", f"TERM={term}"]
    _become(arguments, {**ENVIRONMENT, "TERM": term}, descriptors)


def _become(
    arguments: Sequence[str], environment: Mapping[str, str], descriptors: tuple[int, int, int]
) -> NoReturn:
    """Replace this process by Docker's client, with the caller's descriptors as its own."""
    for wanted, descriptor in enumerate(descriptors):
        os.dup2(descriptor, wanted)  # inheritable, as dup2 is by default
    # Python ignores SIGPIPE and SIGXFSZ from its start; the new program is to have the ordinary behaviour.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.execve(DOCKER, list(arguments), environment)  # noqa: S606  # a fixed program with our own arguments


def serve(
    uid: int, verb: str, arguments: Sequence[str], descriptors: tuple[int, int, int], term: str = "dumb"
) -> int:
    """Serve one call of the user ``uid`` and return its exit code (0, or one of EXIT_CODES).

    ``descriptors`` are the caller's input, output and errors: events go to the output, while a verb of
    ``HANDED`` becomes the process in the container and does not return. Nothing is raised: every error is an
    event and a line of the audit log.
    """
    events = Events(descriptors[1])
    who: dict[str, Any] = {"uid": uid}
    known, project = verb if verb in VERBS or verb in HANDED else "?", ""
    try:
        policy = load()
        user = identify(uid, policy)
        who["user"] = user.name
        verb, project, options = parse(verb, arguments)
        if verb in HANDED:
            # Without the command, in which there may be what is nobody's business.
            journal.record(**who, verb=verb, project=project, outcome="asked")
            _enter(user, project, policy, descriptors, term, options.get("command", ()))
        with _counted(uid):
            if VERBS[verb].needs_mounts:
                _require_mounts(policy)
            try:
                data = VERBS[verb].run(Request(policy, user, project, events.progress, options, events.lines))
            except EngineError:
                _require_mounts(policy)  # a missing disk keeps Docker down, and is the better thing to tell
                raise
    except Exception as error:  # noqa: BLE001  # the last place before the user, who gets a sentence
        kind, message, hint = _fault(error)
        detail = _reason(error) if isinstance(error, LabError) else _where(error)
        journal.record(syslog.LOG_WARNING, **who, verb=known, project=project, outcome=kind, detail=detail)
        if known in HANDED:
            with suppress(OSError):
                os.write(
                    descriptors[2],
                    f"{names.printable(message)} {names.printable(hint)}".strip().encode() + b"\n",
                )
        else:
            events.error(kind, message, hint)
        return EXIT_CODES[kind]
    journal.record(**who, verb=verb, project=project, outcome="done", changed=data.get("changed", False))
    events.result(data)
    return 0


def _harden() -> tuple[str, str]:
    """Forget all that the caller could have prepared; return (SUDO_UID, TERM) of the environment.

    sudo(8) keeps the working directory, umask, resource limits, signals and timers of its caller.
    """
    identity, term = os.environ.get("SUDO_UID", ""), os.environ.get("TERM", "")
    os.environ.clear()
    os.environ.update(ENVIRONMENT)
    time.tzset()
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest one that is free, which is this one (open(2))
    for descriptor in [int(name) for name in os.listdir("/proc/self/fd")]:
        if descriptor > 2:
            with suppress(OSError):  # the one that listed them is closed already
                os.close(descriptor)
    os.chdir("/")
    os.umask(0o077)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in signal.valid_signals():
        # SIGKILL and SIGSTOP cannot be set; neither can those that libc keeps for its threads.
        with suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        signal.setitimer(timer, 0)
    for limit, value in _LIMITS.items():
        # A root without CAP_SYS_RESOURCE, as in a container, has to stay below the hard limit (setrlimit(2)).
        with suppress(ValueError):
            resource.setrlimit(limit, (value, resource.RLIM_INFINITY))
            continue
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (hard if value == resource.RLIM_INFINITY else min(value, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.setpriority(os.PRIO_PROCESS, 0, 0)
    return identity, term if _TERM.fullmatch(term) else "dumb"


def _work(work: Callable[[int], int], writer: int) -> NoReturn:
    """Do the work in this process, cut off from the caller's session, terminal and descriptors."""
    status = EXIT_CODES["failed"]
    try:
        os.setsid()
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        os.set_blocking(writer, False)
        with suppress(OSError):  # a bigger pipe is only a convenience: fcntl(2), F_SETPIPE_SZ
            fcntl.fcntl(writer, getattr(fcntl, "F_SETPIPE_SZ", 1031), _PIPE_BYTES)
        status = work(writer)
    finally:
        os._exit(status)


def _relay(work: Callable[[int], int]) -> int:
    """Run ``work(descriptor)`` in a process of its own, copy what it writes to our output; its exit code."""
    reader, writer = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(reader)
        _work(work, writer)
    os.close(writer)
    while data := os.read(reader, 1 << 16):
        try:
            while data:
                data = data[os.write(1, data) :]
        except OSError:
            # The work goes on; what only reads for who has gone is to see that.
            break
    os.close(reader)
    status = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    return status if status >= 0 else EXIT_CODES["failed"]


def main(argv: Sequence[str] | None = None) -> int:
    """The program ``lab-broker``: harden, find out who calls, serve. Returns the exit code."""
    words = list(sys.argv if argv is None else argv)[1:]
    identity, term = _harden() if os.geteuid() == 0 else ("", "dumb")
    if not _UID.fullmatch(identity):
        message = "The broker is run by sudo for lab users."
        Events(1).error("refused", message, "Use the commands project, container or workspace.")
        return EXIT_CODES["refused"]
    verb, arguments = (words[0], words[1:]) if words else ("", [])
    if verb in HANDED:
        return serve(int(identity), verb, arguments, (0, 1, 2), term)
    return _relay(lambda output: _serve_apart(int(identity), verb, arguments, output))


def _serve_apart(uid: int, verb: str, arguments: Sequence[str], output: int) -> int:
    """Serve a call, out of the caller's reach before any lock is had."""
    try:
        apart.stand()
    except HostError as error:
        Events(output).error(kind_of(error), error.message, error.hint)
        return EXIT_CODES[kind_of(error)]
    return serve(uid, verb, arguments, (0, output, 2))
