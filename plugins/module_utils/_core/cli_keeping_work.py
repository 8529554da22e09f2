# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the commands of ``cli_keeping`` do, in words for people; imported when one of them is run."""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from . import archive, keeping, names
from .archive import Look
from .calls import Call, ask, state, stoppable, told
from .cli_container import say_would_lose
from .errors import HostError, InvalidInput, LabError, NotFound, Refused
from .keeping import STORE, TRASH
from .sizes import format_size
from .terminal import Terminal, duration, fit

_HOME = "~/workspace"
_SHOWN = 5
_stoppable = stoppable("Nothing is lost; what is half done is put right by the next call.")


# What the commands share


class _Meter:
    """Shows how far it is, several times a second and only on a line that updates itself."""

    def __init__(self, terminal: Terminal, doing: str, total: int = 0) -> None:
        self._terminal = terminal
        self._doing = doing
        self._total = f" of {format_size(total)}" if total else ""
        self._done = 0
        self._shown = self._started = time.monotonic()

    def __call__(self, more: int, path: str) -> None:
        self._done += more
        now = time.monotonic()
        if not self._terminal.updating or now < self._shown + 0.2:
            return
        self._shown = now
        line = (
            f"[{duration(now - self._started)}] {self._doing}: {format_size(self._done)}{self._total}  {path}"
        )
        self._terminal.status(line)


def _workspace(call: Call) -> str:
    return call.policy().workspace(call.user())


def _healed(call: Call, workspace: str) -> None:
    for sentence in keeping.heal(workspace):
        call.err.line(call.err.style(sentence, "warn"))


def _container(name: str) -> Mapping[str, Any] | None:
    """Return the container of a project, as the broker tells it; None when there is none."""
    listed = ask("container-list").get("containers", [])
    return next((one for one in listed if one.get("project") == name), None)


def _check_retired(name: str, what: str) -> None:
    container = _container(name)
    if container is not None:
        raise Refused(
            f"{name} has a container ({state(container)}), so it cannot be {what}.",
            f"Retire it first: container retire {name}",
        )


def _check_can_ask(call: Call, otherwise: str) -> None:
    if not call.options.yes and (call.json or not sys.stdin.isatty()):
        raise InvalidInput("Nobody can be asked here.", otherwise)


def _typed(call: Call, question: str) -> str:
    call.err.line(question)
    return sys.stdin.readline().strip()


def _shown(call: Call, terminal: Terminal, label: str, paths: Sequence[str]) -> None:
    """Print some of many paths, each on its line."""
    for path in paths[:_SHOWN]:
        terminal.line(fit(f"  {label}: {names.printable(path)}", call.out.width))
    if len(paths) > _SHOWN:
        terminal.line(f"  {label}: {len(paths) - _SHOWN} more")


def _files(count: int, size: int) -> str:
    return f"{count} file{'' if count == 1 else 's'}, {format_size(size)}"


def _facts(look: Look) -> dict[str, Any]:
    return {
        "files": look.files,
        "bytes": look.bytes,
        "left_out": list(look.special),
        "unreadable": list(look.blocked),
    }


# archive


@_stoppable
def archive_project(call: Call) -> int:
    """Pack a project into an archive, and remove its folder when that is agreed to."""
    workspace, name = _workspace(call), call.options.name
    if call.options.dry_run:
        return _archive_previewed(call, workspace)
    if not call.options.keep:
        _check_can_ask(call, "Add --yes to remove the folder when it is archived, or --keep to keep it.")
    _healed(call, workspace)
    if not call.options.keep:
        _check_retired(name, "put away")
    with keeping.project(workspace, name) as work:
        total = keeping.peek(workspace, name).bytes
        archived = keeping.put_away(work, progress=_Meter(call.err, "packing and comparing", 2 * total))
        call.err.clear()
        if not call.json:
            _say_archived(call, archived)
        removed = False
        if not call.options.keep and archived.complete:
            removed = _agreed(call, name)
            if removed:
                keeping.let_go(work, archived)
    return _archived(call, archived, removed)


def _agreed(call: Call, name: str) -> bool:
    if call.options.yes:
        return True
    question = f"Remove the folder {_HOME}/{name} now that it is in the archive? [y/N]"
    return _typed(call, question).lower() in ("y", "yes")


def _say_archived(call: Call, archived: keeping.Archived) -> None:
    look = archived.look
    call.out.line(f"{call.out.style(call.options.name, 'good')} is in {_HOME}/{archived.path}")
    call.out.line(
        f"  {_files(look.files, look.bytes)}; the archive has {format_size(archived.size)}."
        " It was compared with the folder."
    )
    _shown(call, call.out, "no file, left out", look.special)


def _archived(call: Call, archived: keeping.Archived, removed: bool) -> int:
    name, look = call.options.name, archived.look
    whole = archived.complete or (call.options.keep and not archived.blocked)
    if call.json:
        facts = {**_facts(look), "unreadable": list(archived.blocked), "others": list(look.foreign)}
        path = f"{_HOME}/{archived.path}"
        call.answer({"changed": True, "archive": path, "size": archived.size, "removed": removed, **facts})
        return 0 if whole else 1
    _shown(call, call.err, "not in the archive", archived.blocked)
    if not call.options.keep:
        _shown(call, call.err, "a folder of somebody else", look.foreign)
    if removed:
        call.out.line(f"The folder is removed. Bring it back: project restore {name}")
    elif whole:
        call.out.line(f"The folder {_HOME}/{name} is as it was.")
    else:
        call.err.line(call.err.style(f"The folder {_HOME}/{name} stays, because of these.", "warn"))
        call.err.line(
            "Give yourself access to them (chmod -R u+rwX), or have them removed; then archive again."
        )
    return 0 if whole else 1


def _archive_previewed(call: Call, workspace: str) -> int:
    name = call.options.name
    look = keeping.peek(workspace, name)
    container = None if call.options.keep else _container(name)
    if call.json:
        call.answer({"changed": True, "dry_run": True, "container": container is not None, **_facts(look)})
        return 0
    call.out.line(f"{_HOME}/{name} would be put into an archive in {_HOME}/{STORE}.")
    call.out.line(f"  {_files(look.files, look.bytes)}")
    _shown(call, call.out, "no file, left out", look.special)
    _shown(call, call.out, "cannot be read", look.blocked)
    if container is not None:
        call.out.line(f"  its container must be retired first: container retire {name}")
    elif not call.options.keep:
        call.out.line("  The folder would be removed after it was compared with the archive.")
    return 0


# restore


@_stoppable
def restore_project(call: Call) -> int:
    """Bring a project back from its archive or from the trash."""
    workspace, wanted = _workspace(call), call.options.what
    if not call.options.dry_run:
        _healed(call, workspace)
    one = keeping.find(workspace, _in_store(workspace, wanted))
    if call.options.dry_run:
        return _restore_previewed(call, workspace, one)
    if one.trash:
        keeping.from_trash(workspace, one)
        facts: dict[str, Any] = {}
    else:
        with keeping.open_kept(workspace, one) as file:
            meter = _Meter(call.err, "unpacking")
            whole = keeping.bring_in(workspace, file, one.project, own=True, progress=meter)
        call.err.clear()
        facts = {"files": whole.files, "bytes": whole.bytes}
    if call.json:
        call.answer({"changed": True, "project": one.project, "from": f"{_HOME}/{one.path}", **facts})
        return 0
    call.out.line(f"{call.out.style(one.project, 'good')} is back in {_HOME}/{one.project}")
    if not one.trash:
        call.out.line(f"  {_files(facts['files'], facts['bytes'])}; every checksum is right")
        call.out.line("  The archive stays, and counts for your quota. When you need it no more:")
        call.out.command(f"rm {_HOME}/{one.path}")
    call.out.line(f"Go on with it: project launch {one.project}")
    return 0


def _in_store(workspace: str, wanted: str) -> str:
    """Return what is to be found; raise InvalidInput for a file that is kept elsewhere."""
    if "/" in wanted.rstrip("/"):
        folder = os.path.realpath(posixpath.dirname(wanted.rstrip("/")))
        if folder not in [os.path.realpath(posixpath.join(workspace, place)) for place in (STORE, TRASH)]:
            raise InvalidInput(
                f"{names.printable(wanted)[:80]} is not in {_HOME}/{STORE}.", "Use: project import FILE"
            )
    return wanted


def _restore_previewed(call: Call, workspace: str, one: keeping.Kept) -> int:
    facts: dict[str, Any] = {}
    if not one.trash:
        with keeping.open_kept(workspace, one) as file:
            whole = archive.read(file, archive.Visitor(), progress=_Meter(call.err, "checking"))
        call.err.clear()
        facts = {"files": whole.files, "bytes": whole.bytes}
    there = os.path.lexists(posixpath.join(workspace, one.project))
    if call.json:
        path = f"{_HOME}/{one.path}"
        call.answer(
            {
                "changed": not there,
                "dry_run": True,
                "project": one.project,
                "from": path,
                "there": there,
                **facts,
            }
        )
        return 0
    call.out.line(f"{_HOME}/{one.path} would be {_HOME}/{one.project} again.")
    if facts:
        call.out.line(f"  {_files(facts['files'], facts['bytes'])}; the archive is whole")
    if there:
        call.out.line(f"  But {_HOME}/{one.project} is there already, and nothing is overwritten.")
    return 0


# export


@_stoppable
def export_project(call: Call) -> int:
    """Write a project to a file or a pipe."""
    workspace, name, target = _workspace(call), call.options.name, call.options.file
    leave_out = archive.nothing if call.options.all else archive.caches
    if target == "-" and call.json and not call.options.dry_run:
        raise InvalidInput("The archive itself goes to the standard output.", "Leave out --json.")
    total = keeping.peek(workspace, name, leave_out)
    if call.options.dry_run:
        return _export_previewed(call, total)
    _healed(call, workspace)
    with keeping.project(workspace, name) as work, _sink(target) as file:
        meter = _Meter(call.err, "packing", total.bytes)
        look = archive.pack(work.folder, name, file, leave_out=leave_out, progress=meter)
        file.flush()
    call.err.clear()
    terminal = call.err if target == "-" else call.out
    if call.json:
        call.answer({"changed": True, "file": target, **_facts(look)})
    else:
        where = "written" if target == "-" else f"in {names.printable(target)}"
        terminal.line(f"{terminal.style(name, 'good')} is {where}: {_files(look.files, look.bytes)}")
        _shown(call, terminal, "no file, left out", look.special)
        _shown(call, call.err, "cannot be read, not in it", look.blocked)
        if target != "-":
            terminal.line(
                f"On the other server: project import {names.printable(posixpath.basename(target))}"
            )
    return 1 if look.blocked else 0


def _export_previewed(call: Call, look: Look) -> int:
    if call.json:
        call.answer({"changed": True, "dry_run": True, "file": call.options.file, **_facts(look)})
        return 0
    call.out.line(f"{call.options.name} would be written: {_files(look.files, look.bytes)}")
    _shown(call, call.out, "no file, left out", look.special)
    _shown(call, call.out, "cannot be read", look.blocked)
    return 0


@contextlib.contextmanager
def _sink(target: str) -> Iterator[BinaryIO]:
    """Yield what an export is written to. A file gets its name when it is whole, and replaces none."""
    if target == "-":
        if sys.stdout.isatty():
            raise InvalidInput("An archive is nothing for a terminal.", "Send it on: ... - | ssh SERVER ...")
        yield sys.stdout.buffer
        return
    folder, base = posixpath.split(posixpath.abspath(target))
    if os.path.lexists(target):
        raise Refused(f"{names.printable(target)} is there already.", "Name another file.")
    part = posixpath.join(folder, f".{base}.{os.getpid()}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            # link(2) replaces nothing, whatever came there meanwhile.
            os.link(part, target)
        finally:
            os.unlink(part)
    except FileExistsError as error:
        raise Refused(f"{names.printable(target)} is there already.", "Name another file.") from error


# import


@_stoppable
def import_project(call: Call) -> int:
    """Make a project of what was exported."""
    workspace, name = _workspace(call), call.options.project or ""
    if name:
        names.project_name(name, "NAME")
    with _source(call.options.file) as file:
        if call.options.dry_run:
            whole = archive.read(file, archive.Visitor(), progress=_Meter(call.err, "checking"))
        else:
            _healed(call, workspace)
            meter = _Meter(call.err, "unpacking")
            whole = keeping.bring_in(workspace, file, name, own=False, progress=meter)
    call.err.clear()
    name = name or whole.project
    if call.json:
        call.answer(
            {
                "changed": True,
                "dry_run": call.options.dry_run,
                "project": name,
                "files": whole.files,
                "bytes": whole.bytes,
                "links_out": list(whole.links_out),
                "left_out": list(whole.left_out),
            }
        )
        return 0
    would = "would be" if call.options.dry_run else "is"
    call.out.line(
        f"{call.out.style(name, 'good')} {would} in {_HOME}/{name}: {_files(whole.files, whole.bytes)}"
    )
    call.out.line("  every checksum is right")
    _shown(call, call.out, "link to outside of the project, kept as it is", whole.links_out)
    _shown(call, call.out, "was not in the archive", whole.left_out)
    if not call.options.dry_run:
        call.out.line(f"Look at its Dockerfile, then: project launch {name}")
    return 0


@contextlib.contextmanager
def _source(path: str) -> Iterator[BinaryIO]:
    if path == "-":
        if sys.stdin.isatty():
            raise InvalidInput(
                "An archive cannot be typed.", "Send it: ssh SERVER project export NAME - | ..."
            )
        yield sys.stdin.buffer
        return
    try:
        # O_NONBLOCK: opening a FIFO would wait for a writer (open(2)).
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"There is no file {names.printable(path)}.", "Look with: ls") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidInput(f"{names.printable(path)} is not a file.", "Name an archive, or - for a pipe.")
    with os.fdopen(descriptor, "rb") as file:
        yield file


# rename


@_stoppable
def rename_project(call: Call) -> int:
    """Give a project another name."""
    workspace, old, new = _workspace(call), call.options.name, call.options.new
    names.project_name(new, "NEW")
    look = keeping.peek(workspace, old)
    _check_retired(old, "renamed")
    there = os.path.lexists(posixpath.join(workspace, new))
    if not call.options.dry_run:
        _healed(call, workspace)
        keeping.rename(workspace, old, new)
    mentions = keeping.mentions(workspace, old if call.options.dry_run else new, old)
    declared = any((one.user, one.name) == (call.user().name, old) for one in call.policy().projects)
    if call.json:
        call.answer(
            {
                "changed": not there,
                "dry_run": call.options.dry_run,
                "project": new,
                "mentions": mentions,
                "declared": declared,
                "files": look.files,
            }
        )
        return 0
    if call.options.dry_run and there:
        call.out.line(f"{_HOME}/{new} is there already, so {old} could not be renamed to it.")
        return 0
    would = "would be" if call.options.dry_run else "is"
    call.out.line(f"{_HOME}/{old} {would} {call.out.style(new, 'good')} now.")
    for path in mentions:
        call.out.line(f"  {path} still says '{old}'; change it as you like")
    if declared:
        call.out.line(f"  The admins declared {old}: their next run lays it out anew. Tell them.")
    call.out.line("Images stay under the old name: the next launch builds one, from known steps.")
    call.out.line(f"  links that lead nowhere now: project doctor {new}")
    call.out.line(f"  when it runs:                project remove {old} --for-good")
    return 0


# remove


@_stoppable
def remove_project(call: Call) -> int:
    """Move a project to the trash, or remove it for good."""
    workspace, name = _workspace(call), call.options.name
    for_good = call.options.for_good
    try:
        look = keeping.peek(workspace, name)
    except NotFound:
        if not for_good:
            raise
        look = None
    trashed = keeping.trashed(workspace, name) if for_good else []
    container = _container(name)
    if container is not None and not call.options.container and not call.options.dry_run:
        raise Refused(
            f"{name} has a container ({state(container)}), so it cannot be removed.",
            f"Retire it first (container retire {name}), or add --container.",
        )
    if not call.json:
        _say_removal(call, look, len(trashed), container)
        if container is not None:
            say_would_lose(call, ask("container-retire-check", name))
    if call.options.dry_run:
        if call.json:
            facts = _facts(look) if look else {}
            call.answer(
                {
                    "changed": True,
                    "dry_run": True,
                    "container": container is not None,
                    "trash": len(trashed),
                    **facts,
                }
            )
        return 0
    _check_can_ask(call, "Add --yes to remove it all the same.")
    if not call.options.yes and _typed(call, f"Type the project's name to remove it ({name}):") != name:
        raise LabError("That was not its name; nothing was removed.", "Type it exactly.")
    _healed(call, workspace)
    if container is not None:
        ask("container-retire", name)
    return _removed(call, workspace, look, trashed)


def _say_removal(call: Call, look: Look | None, trashed: int, container: Mapping[str, Any] | None) -> None:
    """Say what would be lost, before anybody is asked."""
    name, for_good = call.options.name, call.options.for_good
    if look is not None:
        call.out.line(f"{_HOME}/{name}: {_files(look.files, look.bytes)}. Changed last:")
        for when, path in look.newest_files(_SHOWN):
            day = time.strftime("%Y-%m-%d %H:%M", time.localtime(when / 1e9))
            call.out.line(fit(f"  {day}  {names.printable(path)}", call.out.width))
    if trashed:
        call.out.line(f"In the trash: {trashed} of that name; for good means those, too.")
    if container is not None:
        call.out.line(f"Its container is retired ({state(container)}):")
    if for_good:
        call.out.line(call.out.style("Its files and images will be gone for good.", "warn"))
    else:
        call.out.line(f"It goes to {_HOME}/{TRASH}, still counts for your quota, and its images stay.")


def _removed(call: Call, workspace: str, look: Look | None, trashed: list[keeping.Kept]) -> int:
    name = call.options.name
    if not call.options.for_good:
        with keeping.project(workspace, name) as work:
            path = f"{_HOME}/{keeping.to_trash(work)}"
        if call.json:
            call.answer({"changed": True, "project": name, "trash": path})
            return 0
        call.out.line(f"{name} is removed. It is in {path}")
        call.out.line(f"  bring it back: project restore {name}")
        call.out.line(f"  make room:     project remove {name} --for-good")
        return 0
    if look is not None:
        with keeping.project(workspace, name) as work:
            keeping.remove_folder(work)
    keeping.empty_trash(workspace, trashed)
    images = _forgotten(name, look is not None or bool(trashed))
    if look is None and not trashed and not images:
        raise NotFound(f"There is nothing of a project {name}.", "See what there is with 'project list'.")
    if call.json:
        call.answer({"changed": True, "project": name, "images": images, "trash": ""})
        return 0
    call.out.line(f"{name} is gone for good: folder, trash and images ({len(images)}).")
    return 0


def _forgotten(name: str, gone: bool) -> list[str]:
    """Have the images of a project removed whose folder is gone; return their names."""
    try:
        return told(ask("project-forget", name), "removed")
    except LabError as error:
        if not gone:
            raise
        raise HostError(
            f"The folder of {name} is gone for good, but its images are still there: {error.message}",
            f"Try again later: project remove {name} --for-good",
        ) from error
