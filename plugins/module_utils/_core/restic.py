# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""restic, run so that nothing a lab user makes can lead it anywhere.

It has root's uid with few capabilities, and no way to get more. The trees that it reads are mounted once more
for it alone: read-only, without what is mounted below them, and with ``nosymfollow`` (mount(8), Linux 5.10),
so that the kernel refuses to pass a symbolic link in them, whenever it was put there. Links are stored as
links.
Source of restic's commands, options and exit codes: restic(1), https://restic.readthedocs.io/.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

from .backuprules import sftp_server
from .errors import HostError
from .names import printable

PROGRAM = "restic"
CACHE = "/var/cache/lab-server-restic"
#: For sftp: root's key and the host keys of the server, where IT gave them; else those of root's ~/.ssh.
SSH_KEY = "/etc/lab-server/backup/ssh_key"
KNOWN_HOSTS = "/etc/lab-server/backup/known_hosts"
#: capabilities(7), <linux/capability.h>
CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER = 0, 1, 2, 3
_LAST_CAPABILITY = 63
# restic(1) backup: a snapshot was made, but some files could not be read.
INCOMPLETE = 3
# The same, since 0.17: there is no repository.
_NO_REPOSITORY = 10
# Before 0.17 there are only words, and the first of these are said of whatever keeps it from being opened.
# S3, sftp and rest say "does not exist", a folder ENOENT.
_UNOPENED = "unable to open config file"
_ABSENT = re.compile(r"does not exist|no such file or directory", re.IGNORECASE)
# Seconds: ssh_config(5). A server that is silent is given up after ServerAliveInterval * ServerAliveCountMax.
_SSH_OPTIONS = (
    *("BatchMode=yes", "ConnectTimeout=20", "ServerAliveInterval=20", "ServerAliveCountMax=6"),
    *("ControlMaster=no", "ControlPath=none"),
)
# restic's changelog: restore --sparse is there since 0.15.0.
_SPARSE_SINCE = (0, 15)
_VERSION = re.compile(r"restic (\d+)\.(\d+)")

_CLONE_NEWNS = 0x00020000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_MS_NOSYMFOLLOW, _MS_BIND, _MS_REC, _MS_PRIVATE = 256, 4096, 16384, 1 << 18
_SAFE = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | _MS_NOSYMFOLLOW
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_PDEATHSIG = 1
_SIGKILL = 9


# What keeps a repository from being reached, in the words of restic, Go, S3 and ssh(1), and what to do.
_CAUSES = (
    (
        re.compile(
            r"Access Denied|AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|signature we calculated"
            r"|Access Key Id you provided|no credentials found|\(401\)|\(403\)|Forbidden",
            re.IGNORECASE,
        ),
        "The server of the backups does not accept the credentials, or does not let them do that there",
        "Look at backup_environment, and at what its key may do.",
    ),
    (
        re.compile(r"Host key verification failed|host key is known for", re.IGNORECASE),
        "The host key of the backups' server is not the one that is known",
        "Look at backup_known_hosts; ask whoever runs that server whether its key has changed.",
    ),
    (
        re.compile(r"Permission denied \([a-z,-]+\)|no such identity|Load key|Too many authentication"),
        "The server of the backups does not accept the key of this server",
        "Look at backup_ssh_key, and at authorized_keys of its user there.",
    ),
    (
        re.compile(r"x509:"),
        "This server does not trust the certificate of the backups' server",
        "Put the authority's into lab_ca_certificates.",
    ),
    (
        re.compile(
            r"connection refused|no such host|could not resolve|network is unreachable|no route to host"
            r"|timed? ?out|connection reset|connection closed|server misbehaving|deadline exceeded|: EOF$",
            re.IGNORECASE,
        ),
        "The server of the backups cannot be reached, or does not answer",
        "See whether it runs and whether its address in lab_backup.repository is right.",
    ),
)
# Names of variables whose values are told nobody, wherever restic may put them.
_TELLTALE = re.compile(r"KEY|SECRET|PASS|TOKEN|CREDENTIAL", re.IGNORECASE)
# restic: what it says of a server while it goes on trying.
_RETRY = re.compile(r"returned error, retrying after [^:]*: ")
_MOST_OF_SSH = 1 << 16
# Shorter ones would be found in plain words.
_LEAST_SECRET = 6


class Missing(HostError):
    """There is no repository at that place, which answered."""


@dataclass(frozen=True)
class Repository:
    """A repository, its password, and the environment that reaches it (credentials of S3)."""

    url: str
    password: str = field(repr=False)
    environment: tuple[tuple[str, str], ...] = field(default=(), repr=False)


def run(
    repository: Repository,
    arguments: Sequence[str],
    *,
    capabilities: Sequence[int] = (),
    trees: Sequence[str] = (),
    accept: Sequence[int] = (0,),
    timeout: float = 86400.0,
) -> subprocess.CompletedProcess[str]:
    """Run restic and return what it answered; ``trees`` are mounted safely for it, and all else is as it is.

    Raises Missing where there is no repository, and HostError with the cause when restic is missing, takes
    too long (seconds), or ends otherwise.
    """
    with _log_of_ssh(repository.url) as log:
        command, options = _prepared(repository, arguments, capabilities, trees, log)
        try:
            done = subprocess.run(command, capture_output=True, check=False, timeout=timeout, **options)
        except subprocess.TimeoutExpired as error:
            # Bytes, whatever the encoding is (subprocess).
            said = error.stderr.decode(errors="replace") if isinstance(error.stderr, bytes) else ""
            raise _too_long(repository, arguments[0], timeout, said, log) from error
        except (OSError, subprocess.SubprocessError) as error:
            raise _not_run(error) from error
        if done.returncode not in accept:
            raise _failed(repository, arguments[0], done.returncode, done.stderr, log)
        result: subprocess.CompletedProcess[str] = done
        return result


def sparse(repository: Repository) -> list[str]:
    """Return the option by which long runs of zeros are restored as holes, where this restic has it."""
    match = _VERSION.match(run(repository, ["version"], timeout=60).stdout)
    return ["--sparse"] if match and (int(match[1]), int(match[2])) >= _SPARSE_SINCE else []


def lines(repository: Repository, arguments: Sequence[str], timeout: float = 86400.0) -> Iterator[str]:
    """Yield the lines that restic writes, one after the other; raise HostError as ``run`` does."""
    late = threading.Event()
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(_log_of_ssh(repository.url))
        said = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace"))
        command, options = _prepared(repository, arguments, (), (), log)
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, **options)
        except (OSError, subprocess.SubprocessError) as error:
            raise _not_run(error) from error

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(timeout, end)
        timer.daemon = True
        timer.start()
        with process:
            try:
                yield from process.stdout or ()
            except BaseException:
                process.kill()
                raise
            finally:
                timer.cancel()
        if process.returncode != 0:
            said.seek(0)
            if late.is_set():
                raise _too_long(repository, arguments[0], timeout, said.read(), log)
            raise _failed(repository, arguments[0], process.returncode, said.read(), log)


@contextlib.contextmanager
def _log_of_ssh(url: str) -> Iterator[str]:
    """Yield the path of an empty file for what ssh says; an empty one where no ssh is started.

    restic passes it on, but not when ssh ends before restic has read it.
    """
    if sftp_server(url) is None:
        yield ""
        return
    with tempfile.NamedTemporaryFile(prefix="lab-ssh-") as file:
        yield file.name


def _prepared(
    repository: Repository,
    arguments: Sequence[str],
    capabilities: Sequence[int],
    trees: Sequence[str],
    log: str = "",
) -> tuple[list[str], dict[str, Any]]:
    """Return the command and the options of subprocess; ``log`` is a file for what ssh says."""
    environment = {
        **dict(repository.environment),
        "HOME": "/root",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "RESTIC_REPOSITORY": repository.url,
        "RESTIC_PASSWORD": repository.password,
        "RESTIC_CACHE_DIR": CACHE,
        "RESTIC_PROGRESS_FPS": "0",
    }
    return [PROGRAM, *_sftp_options(repository.url, log), *arguments], {
        "stdin": subprocess.DEVNULL,
        "env": environment,
        "encoding": "utf-8",
        "errors": "replace",
        "cwd": "/",
        "umask": 0o077,
        "preexec_fn": _confinement(tuple(capabilities), tuple(trees)),
    }


def _sftp_options(url: str, log: str) -> list[str]:
    """Return the option that names the ssh command; none where the repository is no server of sftp.

    restic's own command asks at a terminal and waits for ever. All versions know ``sftp.command``, not all
    ``sftp.args``; none of the words holds a blank.
    """
    server = sftp_server(url)
    if server is None:
        return []
    options = list(_SSH_OPTIONS)
    if os.path.exists(SSH_KEY):
        options += [f"IdentityFile={SSH_KEY}", "IdentitiesOnly=yes"]
    if os.path.exists(KNOWN_HOSTS):
        known = ("StrictHostKeyChecking=yes", "UpdateHostKeys=no", "GlobalKnownHostsFile=/dev/null")
        options += [f"UserKnownHostsFile={KNOWN_HOSTS}", *known]
    words = ["ssh", *(word for option in options for word in ("-o", option))]
    words += ["-E", log] if log else []
    words += ["-p", server.port] if server.port else []
    words += ["-l", server.user] if server.user else []
    return ["-o", "sftp.command=" + " ".join([*words, server.host, "-s", "sftp"])]


def _confinement(capabilities: tuple[int, ...], trees: tuple[str, ...]) -> Callable[[], None]:
    """Return what the child does before it becomes restic. Everything is loaded before the fork."""
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def mount(source: bytes, target: bytes, flags: int) -> None:
        check(libc.mount(source, target, None, ctypes.c_ulong(flags), None))

    def confine() -> None:
        check(libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0))
        if trees:
            check(libc.unshare(_CLONE_NEWNS))
            mount(b"none", b"/", _MS_REC | _MS_PRIVATE)
        for tree in map(os.fsencode, trees):
            mount(tree, tree, _MS_BIND)
            mount(b"none", tree, _MS_REMOUNT | _MS_BIND | _SAFE)
        for number in range(_LAST_CAPABILITY + 1):
            # What the kernel does not know is refused, and need not be dropped.
            if number not in capabilities and libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
                with contextlib.suppress(OSError):
                    check(-1)
        # A program that root starts gets what is left in the bounding set, and no more (capabilities(7)).
        check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))

    return confine


def _not_run(error: Exception) -> HostError:
    if isinstance(error, FileNotFoundError):
        return HostError("The tool restic is missing.", "Run the playbook lab.server.site with lab_backup.")
    return HostError(f"restic could not be started: {type(error).__name__}.", "Run it as root.")


def _too_long(repository: Repository, verb: str, seconds: float, said: str, log: str) -> HostError:
    retried = [_RETRY.split(line, 1)[-1] for line in _lines(said) if _RETRY.search(line)]
    cause = _cause(repository, f"restic {verb}", [*_of_ssh(log), *retried])
    words = f"restic {verb} took longer than {seconds:.0f} s and was ended."
    return cause or HostError(words, "See whether the server of the repository answers.")


def _failed(repository: Repository, verb: str, code: int, said: str, log: str) -> HostError:
    """Return the error that the last words of restic, and of the ssh that it started, stand for."""
    lines_said = _lines(said)
    # The cause; hints may follow.
    fatal = [line for line in lines_said if line.startswith("Fatal:")] or lines_said[-1:]
    words = fatal[0] if fatal else f"status {code}"
    if code == _NO_REPOSITORY or (_UNOPENED in words and _ABSENT.search(words.partition(_UNOPENED)[2])):
        return Missing(f"restic {verb} failed: {_plain(repository, words)}")
    cause = _cause(repository, f"restic {verb}", [*_of_ssh(log), *fatal[:1]])
    return cause or HostError(f"restic {verb} failed: {_plain(repository, words)}")


def _of_ssh(log: str) -> list[str]:
    """Return what ssh said, in lines; none where it cannot be read."""
    if not log:
        return []
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            return _lines(file.read(_MOST_OF_SSH))
    except OSError:
        return []


def _cause(repository: Repository, who: str, said: Sequence[str]) -> HostError | None:
    """Return the error for the first cause that is known in what was said; None without one.

    None for a folder, whose server is this one: what is said there may be a name.
    """
    if repository.url.startswith("/"):
        return None
    for pattern, sentence, hint in _CAUSES:
        found = [line for line in said if pattern.search(line)]
        if found:
            return HostError(f"{sentence} ({who}: {_plain(repository, found[-1])}).", hint)
    return None


def _lines(said: str) -> list[str]:
    return [line.strip() for line in said.splitlines() if line.strip()]


def _plain(repository: Repository, words: str) -> str:
    """Return words of restic without any secret, of a bounded length, fit for a record and a terminal."""
    secrets = [value for name, value in repository.environment if _TELLTALE.search(name)]
    for secret in (repository.password, *secrets):
        if len(secret) >= _LEAST_SECRET:
            words = words.replace(secret, "***")
    return printable(words.removeprefix("Fatal: ")).rstrip(".")[:400]
