# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Brings the library, the programs that run from it and the policy to a server.

Every version has a directory of its own, named for its content, and the link ``current`` is switched last:
a command that starts at any instant sees one whole version.
"""

from __future__ import annotations

import compileall
import hashlib
import json
import os
import pkgutil
import posixpath
import shutil
import stat
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress

from . import POLICY_PATH, PUBLIC_POLICY_PATH, VERSION, cli, completion, greeting, hostfiles, manual
from .errors import HostError
from .items import ItemResult
from .policy import Policy, dump, public
from .protocol import BROKER

LIBRARY = "/usr/local/lib/lab-server"
CURRENT = posixpath.join(LIBRARY, "current")
PACKAGE = "_core"
BOOT_PROGRAM = "/usr/local/sbin/lab-boot"
CLEANUP_PROGRAM = "/usr/local/sbin/lab-cleanup"
LIFECYCLE_PROGRAM = "/usr/local/sbin/lab-lifecycle"
_PROGRAM_DIRECTORIES = ("/usr/local/bin", "/usr/local/sbin")
_COMPLETION_DIRECTORIES = (completion.BASH_DIRECTORY, completion.ZSH_DIRECTORY)
_PROFILE_DIRECTORIES = (posixpath.dirname(greeting.PROFILE_PATH),)
_MARK_WORDS = "Installed by lab.server: changes are lost."
_MARK = f"# {_MARK_WORDS}"
# Around our lines in a file of others.
_BEGIN, _END = "# BEGIN lab.server: changes up to its END are lost.", "# END lab.server"
_MARK_WITHIN = 4096  # bytes from the start of a file
# Python would look for cycles of objects again and again while it loads a library, which has none. Until it
# is loaded Ctrl-C ends the program at once: in places Python wraps an interrupt into an error of its own.
_PROGRAM = f"""#!/usr/bin/python3 {{flags}}
{_MARK}
import gc
import signal
import sys

gc.set_threshold(50000)
interrupted = signal.getsignal(signal.SIGINT)
if interrupted is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
sys.path.insert(0, "{CURRENT}")
try:
    from {PACKAGE}.{{module}} import main

    signal.signal(signal.SIGINT, interrupted)
    sys.exit(main(sys.argv))
except KeyboardInterrupt:
    sys.exit(130)
"""


def tree_digest(path: str) -> str:
    """Return the SHA-256 of a tree of files: names and contents; compiled files (__pycache__) left out.

    Raises OSError if it cannot be read whole.
    """
    files: dict[str, bytes] = {}
    waiting = [""]
    while waiting:
        directory = waiting.pop()
        for entry in os.scandir(os.path.join(path, directory)):
            name = posixpath.join(directory, entry.name)
            if entry.name == "__pycache__":
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(name)
            elif entry.is_file(follow_symlinks=False):
                with open(entry.path, "rb") as stream:
                    files[name] = stream.read()
            else:
                files[name] = b"not a regular file"
    return digest_of(files)


def digest_of(files: Mapping[str, bytes]) -> str:
    """Return what ``tree_digest`` gives for a tree of these files."""
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(f"{name}\0{len(files[name])}\0".encode() + files[name])
    return total.hexdigest()


def sources() -> dict[str, bytes]:
    """Return this very library, file by file, from wherever Python runs it: a directory or an archive.

    Raises HostError if a file of it cannot be had.
    """
    package = __name__.rpartition(".")[0]
    path = __import__(package, fromlist=["__path__"]).__path__
    found = {}
    for name in ["__init__", *(module.name for module in pkgutil.iter_modules(path))]:
        data = pkgutil.get_data(package, f"{name}.py")
        if data is None:
            raise HostError(f"{name}.py of the library cannot be read.", "Install the collection again.")
        found[f"{name}.py"] = data
    return found


def programs() -> dict[str, str]:
    """Return the text of each program that is installed, by its path."""
    # What users wait for needs no packages, and without looking for them it starts sooner. What admins call
    # talks to Docker itself.
    found = {
        posixpath.join("/usr/local/bin", name): _program("cli", "-I" if _for_admins(name) else "-IS")
        for name in cli.programs()
    }
    found[BROKER] = _program("broker")
    found[BOOT_PROGRAM] = _program("boot")
    found[CLEANUP_PROGRAM] = _program("cleanup")
    found[LIFECYCLE_PROGRAM] = _program("ending")
    found[greeting.PROGRAM] = _program("greeting", "-IS")
    return found


def _for_admins(program: str) -> bool:
    return program.partition("-")[0] == "lab"


def _program(module: str, flags: str = "-I") -> str:
    return _PROGRAM.format(module=module, flags=flags)


def profile() -> dict[str, str]:
    """Return the text that login shells read, by its path."""
    return {greeting.PROFILE_PATH: f"{_MARK}\n{greeting.PROFILE}"}


def policy_text(policy: Policy) -> str:
    """Return the policy file. The texts of declared files stay out: they are written once, and long."""
    plain = dump(policy)
    for project in plain["projects"]:
        project["files"] = {}
    return json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=True) + "\n"


def reconcile(policy: Policy, *, check: bool, root: str = "") -> list[ItemResult]:
    """Bring library, programs and policy to what they should be; ``root`` is put before every path.

    The policy comes last, when the programs that understand it are there. Raises HostError.
    """
    before = os.umask(0o022)  # everybody reads what is made here, whatever root's own umask is
    try:
        return [
            _library(sources(), check=check, root=root),
            _files("programs", programs(), _PROGRAM_DIRECTORIES, 0o755, check=check, root=root),
            _files("manual", manual.files(_MARK_WORDS), (manual.DIRECTORY,), 0o644, check=check, root=root),
            _files(
                "completion",
                completion.files(policy, _MARK),
                _COMPLETION_DIRECTORIES,
                0o644,
                check=check,
                root=root,
            ),
            _files("profile", profile(), _PROFILE_DIRECTORIES, 0o644, check=check, root=root),
            _zsh(check=check, root=root),
            # The environment of a project may be nobody else's business: all of it is for root alone.
            _policy(POLICY_PATH, policy_text(policy), 0o600, check=check, root=root),
            _policy(PUBLIC_POLICY_PATH, policy_text(public(policy)), 0o644, check=check, root=root),
        ]
    except OSError as error:
        raise HostError(f"{error.filename or LIBRARY} cannot be written: {error.strerror}.") from error
    finally:
        os.umask(before)


# ---- the library -----------------------------------------------------------------------------------------


def _library(files: Mapping[str, bytes], *, check: bool, root: str) -> ItemResult:
    item = ItemResult("library")
    current = root + CURRENT
    name = f"{VERSION}-{digest_of(files)[:12]}"
    before, after = _fingerprints(_installed(posixpath.join(current, PACKAGE))), _fingerprints(files)
    link = os.readlink(current) if os.path.islink(current) else ""
    if before == after and link == name:
        return item
    item.changed = True
    item.reason = "the library on the server differs" if before else "the library is not there"
    item.diff = {"before": {"current": link, **before}, "after": {"current": name, **after}}
    item.actions = [f"write {file}" for file in after if before.get(file) != after[file]]
    item.actions += [f"remove {file}" for file in before if file not in after]
    item.actions.append(f"switch {CURRENT} to {name}")
    if not check:
        _install(files, root + LIBRARY, name)
        _prune(root + LIBRARY, {name, link})
    return item


def _installed(path: str) -> dict[str, bytes]:
    """Return the files of an installed library; one with a wrong owner or mode counts as empty."""
    found: dict[str, bytes] = {}
    with suppress(FileNotFoundError, NotADirectoryError):
        for entry in os.scandir(path):
            if entry.name == "__pycache__":
                continue
            status = entry.stat(follow_symlinks=False)
            found[entry.name] = b""
            if stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o644 and _is_ours(status):
                with open(entry.path, "rb") as stream:
                    found[entry.name] = stream.read()
    return found


def _is_ours(status: os.stat_result) -> bool:
    return (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())


def _fingerprints(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest()[:16] for name, data in sorted(files.items())}


def _install(files: Mapping[str, bytes], library: str, name: str) -> None:
    os.makedirs(library, mode=0o755, exist_ok=True)
    temporary = tempfile.mkdtemp(prefix=".new-", dir=library)
    package = posixpath.join(temporary, PACKAGE)
    try:
        os.mkdir(package)
        for file, data in files.items():
            with open(posixpath.join(package, file), "wb") as stream:
                stream.write(data)
                os.fchmod(stream.fileno(), 0o644)
                # Where /usr/local is setgid for staff (Debian policy 9.1.2), new files get that group.
                os.fchown(stream.fileno(), os.geteuid(), os.getegid())
                stream.flush()
                os.fsync(stream.fileno())
        # Lab users cannot write compiled files there, and would compile the library at every command.
        final = posixpath.join(library, name)
        compileall.compile_dir(package, quiet=2, ddir=posixpath.join(final, PACKAGE))
        for directory in (package, temporary):
            os.chmod(directory, 0o755)  # noqa: S103  # everybody runs the commands
            hostfiles.sync_directory(directory)
        if os.path.lexists(final):  # damaged, or it would have been found to be in order
            os.rename(final, tempfile.mkdtemp(prefix=".old-", dir=library))
        os.rename(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    link = posixpath.join(library, ".current")
    with suppress(FileNotFoundError):
        os.unlink(link)
    os.symlink(name, link)
    if os.path.isdir(posixpath.join(library, "current")) and not os.path.islink(
        posixpath.join(library, "current")
    ):
        raise HostError(
            f"{library}/current is a directory, not a link.", "Remove it and run the playbook again."
        )
    os.replace(link, posixpath.join(library, "current"))
    hostfiles.sync_directory(library)


def _prune(library: str, keep: set[str]) -> None:
    """Remove all versions but the current one and the one before it, from which a command may still run."""
    for entry in list(os.scandir(library)):
        if entry.is_dir(follow_symlinks=False) and entry.name not in keep:
            shutil.rmtree(entry.path)


# ---- programs, profile and policy ------------------------------------------------------------------------


def _files(
    name: str, wanted: Mapping[str, str], directories: Sequence[str], mode: int, *, check: bool, root: str
) -> ItemResult:
    """Bring our files in some directories to what is wanted; those of others there are left alone."""
    item = ItemResult(name)
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    for path, text in wanted.items():
        found = _text(root + path)
        sound = found == text and _mode(root + path) == mode
        if not sound:
            item.actions.append(f"write {path}")
            before[path], after[path] = found or "", text
            if not check:
                _write(root + path, text, mode)
    for path in _stale(wanted, directories, root):
        item.actions.append(f"remove {path}")
        before[path], after[path] = _text(root + path) or "", ""
        if not check:
            os.unlink(root + path)
    if item.actions:
        item.changed = True
        item.diff = {"before": before, "after": after}
        item.reason = f"{name}: what is on the server differs"
    return item


def _stale(wanted: Mapping[str, str], directories: Sequence[str], root: str) -> Sequence[str]:
    """Return the files of ours in these directories that this version no longer has."""
    found = []
    for directory in directories:
        with suppress(FileNotFoundError):
            for entry in os.scandir(root + directory):
                path = posixpath.join(directory, entry.name)
                if path in wanted or not entry.is_file(follow_symlinks=False):
                    continue
                with open(entry.path, "rb") as stream:
                    if _MARK_WORDS.encode() in stream.read(_MARK_WITHIN):
                        found.append(path)
    return sorted(found)


def with_block(text: str, block: str) -> str:
    """Return a file of others' with our lines in it: where they were, else at its end. Raises HostError."""
    lines = text.splitlines(keepends=True)
    bare = [line.rstrip("\r\n") for line in lines]
    ours = f"{_BEGIN}\n{block}{_END}\n"
    if _BEGIN not in bare:
        return text + ("" if text.endswith("\n") or not text else "\n") + ours
    begin = bare.index(_BEGIN)
    if _END not in bare[begin:]:
        raise HostError(f"The line '{_BEGIN}' has no '{_END}' after it.", "Remove our lines by hand.")
    return "".join(lines[:begin]) + ours + "".join(lines[bare.index(_END, begin) + 1 :])


def _zsh(*, check: bool, root: str) -> ItemResult:
    """Let login shells of zsh greet and complete, where it is installed and has a file for this."""
    item = ItemResult("zsh")
    path = root + greeting.ZLOGIN_PATH
    before = _text(path) if os.path.lexists(root + greeting.ZSH) and not os.path.islink(path) else None
    if before is None:
        return item
    after = with_block(before, greeting.ZLOGIN)
    if after == before:
        return item
    item.changed = True
    item.actions = [f"write our lines to {greeting.ZLOGIN_PATH}"]
    item.diff = {"before": before, "after": after}
    item.reason = "login shells of zsh do not read /etc/profile.d"
    if not check:
        hostfiles.write_text(path, after)
    return item


def _policy(place: str, text: str, mode: int, *, check: bool, root: str) -> ItemResult:
    item = ItemResult(posixpath.basename(place))
    path = root + place
    before = _text(path)
    if before == text and _mode(path) == mode:
        return item
    item.changed = True
    item.actions = [f"write {place}"]
    item.diff = {"before": before or "", "after": text}
    item.reason = "the inventory says otherwise" if before else "the policy is not there"
    if not check:
        _write(path, text, mode)
    return item


def _text(path: str) -> str | None:
    return hostfiles.read_text(path)


def _mode(path: str) -> int:
    """Return the permissions of a regular file of ours, or -1 for anything else."""
    status = os.lstat(path)
    return stat.S_IMODE(status.st_mode) if stat.S_ISREG(status.st_mode) and _is_ours(status) else -1


def _write(path: str, text: str, mode: int) -> None:
    os.makedirs(posixpath.dirname(path), mode=0o755, exist_ok=True)
    with suppress(FileNotFoundError):
        if _mode(path) != mode:
            os.unlink(path)  # write_text keeps owner and mode of what it replaces
    hostfiles.write_text(path, text, mode)
    os.chown(path, os.geteuid(), os.getegid(), follow_symlinks=False)
