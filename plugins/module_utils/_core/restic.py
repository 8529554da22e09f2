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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

from .errors import HostError
from .names import printable

PROGRAM = "restic"
CACHE = "/var/cache/lab-server-restic"
#: capabilities(7), <linux/capability.h>
CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER = 0, 1, 2, 3
_LAST_CAPABILITY = 63
# restic(1) backup: a snapshot was made, but some files could not be read.
INCOMPLETE = 3
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

    Raises HostError with restic's last line when it is missing, takes too long, or ends otherwise.
    """
    command, options = _prepared(repository, arguments, capabilities, trees)
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=timeout, **options)
    except (OSError, subprocess.SubprocessError) as error:
        raise _not_run(error) from error
    if done.returncode not in accept:
        raise _failed(arguments[0], done.returncode, done.stderr)
    result: subprocess.CompletedProcess[str] = done
    return result


def sparse(repository: Repository) -> list[str]:
    """Return the option by which long runs of zeros are restored as holes, where this restic has it."""
    match = _VERSION.match(run(repository, ["version"], timeout=60).stdout)
    return ["--sparse"] if match and (int(match[1]), int(match[2])) >= _SPARSE_SINCE else []


def lines(repository: Repository, arguments: Sequence[str]) -> Iterator[str]:
    """Yield the lines that restic writes, one after the other; raise HostError when it fails."""
    command, options = _prepared(repository, arguments, (), ())
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, **options)
        except (OSError, subprocess.SubprocessError) as error:
            raise _not_run(error) from error
        with process:
            try:
                yield from process.stdout or ()
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            said.seek(0)
            raise _failed(arguments[0], process.returncode, said.read())


def _prepared(
    repository: Repository, arguments: Sequence[str], capabilities: Sequence[int], trees: Sequence[str]
) -> tuple[list[str], dict[str, Any]]:
    """Return the command and the options of subprocess."""
    environment = {
        **dict(repository.environment),
        # ssh looks for its keys there.
        "HOME": "/root",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "RESTIC_REPOSITORY": repository.url,
        "RESTIC_PASSWORD": repository.password,
        "RESTIC_CACHE_DIR": CACHE,
        "RESTIC_PROGRESS_FPS": "0",
    }
    return [PROGRAM, *arguments], {
        "stdin": subprocess.DEVNULL,
        "env": environment,
        "encoding": "utf-8",
        "errors": "replace",
        "cwd": "/",
        "umask": 0o077,
        "preexec_fn": _confinement(tuple(capabilities), tuple(trees)),
    }


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
    if isinstance(error, subprocess.TimeoutExpired):
        return HostError("restic took too long and was ended.", "See whether the repository answers.")
    return HostError(f"restic could not be started: {type(error).__name__}.", "Run it as root.")


def _failed(verb: str, code: int, said: str) -> HostError:
    lines_said = [line.strip() for line in said.splitlines() if line.strip()]
    # The cause; hints may follow.
    causes = [line for line in lines_said if line.startswith("Fatal:")] or lines_said[-1:]
    words = causes[0] if causes else f"status {code}"
    return HostError(f"restic {verb} failed: {printable(words)[:400]}")
