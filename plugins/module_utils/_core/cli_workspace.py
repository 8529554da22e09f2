# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The commands ``workspace ...``: how much room is used, what is kept, what can go."""

from __future__ import annotations

import argparse
import math
import posixpath
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from . import names
from .calls import Call, Command, ask
from .errors import HostError, InvalidInput, LabError
from .policy import PERSISTENT_HOME
from .protocol import EXIT_CODES, INTERRUPTED
from .sizes import format_size
from .terminal import table

if TYPE_CHECKING:
    from . import cleaning

# Seconds: how much is used the kernel knows at once, and nobody is to wait for what takes it.
_GLANCE = 0.1


def _workspace_usage(call: Call) -> int:
    from . import mounts, privatetmp, quota, room, tree

    user = call.user()
    usage = quota.usage(call.policy(), user)
    workspace = call.policy().workspace(user)
    # Where they are the user's own, they are on the same disk and count as well.
    own = [mount.point for mount in mounts.read() if privatetmp.holds(mount)]
    seconds = math.inf if call.options.all else _GLANCE / (1 + len(own))
    try:
        found = tree.survey(workspace, seconds=seconds)
    except OSError as error:
        raise HostError(
            f"Your workspace {workspace} cannot be read: {error.strerror}.", "Tell your admins."
        ) from error
    temporary = [(point, *tree.total(point, seconds=seconds)) for point in own]
    complete = found.complete and all(whole for _point, _one, whole in temporary)
    limits = usage.quota
    beside = _beside(call)
    if call.json:
        call.answer(
            {
                **beside,
                "used": usage.used,
                "soft": limits.soft,
                "hard": limits.hard,
                "inodes": usage.inodes,
                "inodes_soft": limits.inodes_soft,
                "inodes_hard": limits.inodes_hard,
                "complete": complete,
                "largest": [
                    {"path": one.path, "bytes": one.size, "files": one.files} for one in found.largest
                ],
                "temporary": [
                    {"path": point, "bytes": one.size, "files": one.files} for point, one, _whole in temporary
                ],
            }
        )
        return 0
    for line in room.lines(call.out, usage):
        call.out.line(line)
    if own:
        call.out.sentence(f"Your home, your workspace, {' and '.join(own)} count together.")
    else:
        call.out.line("Your home and your workspace count together.")
    over = room.over(usage, time.time())
    if over:
        call.out.sentence(over, colour="warn")
    for line in room.beside(call.out, beside):
        call.out.line(line)
    shown = [(f"~/workspace/{one.path}", one) for one in found.largest]
    shown += [(point, one) for point, one, _whole in temporary if one.size]
    if shown:
        call.out.line()
        shown.sort(key=lambda pair: -pair[1].size)
        rows = [[format_size(one.size), str(one.files), path] for path, one in shown]
        for line in table(["SIZE", "FILES", "LARGEST DIRECTORIES"], rows, call.out.width):
            call.out.line(line)
    if not complete:
        call.out.line("Not all was looked at; there may be larger ones: workspace usage --all")
    return 0


def _beside(call: Call) -> dict[str, int | None]:
    """Return what the user holds on Docker's file system, and may; None where that is not known now."""
    from . import quota

    user = call.user()
    found: dict[str, int | None] = {"layers": None, "images": None}
    with suppress(LabError):
        # It is the homes' own where Docker has no file system, and was told already.
        docker, home = (
            quota.device_of(path) for path in (call.policy().docker_root, call.policy().home_root)
        )
        if docker != home and quota.enforced(docker):
            found["layers"] = quota.read(docker, quota.USER, user.uid).used
    # The engine is asked for it, which takes longer than all the rest.
    if user.limits.images_size or call.options.all:
        with suppress(LabError):
            together = ask("image-list").get("together")
            found["images"] = together if isinstance(together, int) else None
    return {
        **found,
        "layers_limit": user.limits.layers_size,
        "images_limit": user.limits.images_size,
    }


def _usage_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--all",
        action="store_true",
        help="look at all directories and at your images, however long that takes",
    )


def _workspace_where(call: Call) -> int:
    from . import mounts, where

    user, policy, table = call.user(), call.policy(), mounts.read()
    paths = call.options.paths or ["."]
    if "" in paths:
        raise InvalidInput(
            "An empty path names nothing.", "Name a file or a folder, or nothing for this folder."
        )
    found = [where.told(policy, user, path, table) for path in paths]
    if call.json:
        call.answer({"paths": found})
    else:
        for one in found:
            colour = _VERDICTS.get(one["verdict"], "faint")
            verdict = call.out.style(f"{one['verdict']:<9}", colour)
            call.out.line(f"{verdict}{names.printable(one['path'])}")
            for sentence in one["why"]:
                call.out.sentence(names.printable(sentence), " " * 9)
    return 0 if all(one["exists"] for one in found) else EXIT_CODES["not-found"]


_VERDICTS = {"kept": "good", "lost": "warn"}


def _cleanable(call: Call) -> list[cleaning.Root]:
    """Return where a user's caches can be: the workspace, and ``.cache`` of each home that is kept."""
    from . import cleaning

    user, policy = call.user(), call.policy()
    roots = [
        cleaning.Root(policy.workspace(user), "~/workspace", projects=True),
        cleaning.Root(posixpath.join(user.home, ".cache"), "~/.cache"),
    ]
    for project in policy.projects:
        if project.user == user.name and project.home == PERSISTENT_HOME:
            cache = posixpath.join(policy.home_source(user, project.name, project.home), ".cache")
            roots.append(cleaning.Root(cache, f"{project.name}: ~/.cache"))
    return roots


def _confirmed(call: Call, question: str) -> bool:
    """Ask on the terminal; raise InvalidInput where nobody can answer."""
    if call.json or not sys.stdin.isatty():
        raise InvalidInput(
            "Nothing was removed: it is asked first, and nobody is here to answer.",
            "Say --yes to remove it unasked, or --dry-run to see what it would be.",
        )
    call.err.line(f"{question} [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _grouped(found: Sequence[cleaning.Folder]) -> list[list[str]]:
    """Return the rows of a table; the many small folders of a project together."""
    from . import cleaning

    groups: dict[tuple[str, str], list[cleaning.Folder]] = {}
    for one in found:
        many = one.why in (cleaning.COMPILED, cleaning.CHECKPOINTS)
        where = posixpath.join(one.root.shown, one.path.split("/")[0]) if many else one.shown
        groups.setdefault((where, one.why), []).append(one)
    ranked = sorted(groups.items(), key=lambda pair: -sum(one.size for one in pair[1]))
    return [
        [format_size(sum(one.size for one in ones)), str(sum(one.files for one in ones)), why, where]
        for (where, why), ones in ranked
    ]


def _workspace_clean(call: Call) -> int:
    try:
        return _clean(call)
    except KeyboardInterrupt:
        call.err.clear()
        call.err.line("You stopped it. What is not removed by now stays.")
        return INTERRUPTED


def _clean(call: Call) -> int:
    from . import cleaning  # no other of these commands needs it

    found = cleaning.find(_cleanable(call), call.err.status if call.err.updating else lambda _text: None)
    call.err.clear()
    size = sum(one.size for one in found)
    if not call.json:
        if not found:
            call.out.line("There is nothing that can be made again: no caches, no compiled files.")
            return 0
        for line in table(["SIZE", "FILES", "WHAT", "WHERE"], _grouped(found), call.out.width):
            call.out.line(line)
        call.out.line(f"All of it can be made again; it takes {format_size(size)}.")
    wanted = bool(found) and not call.options.dry_run
    if wanted and not call.options.yes and not _confirmed(call, "Remove it?"):
        call.out.line("Nothing was removed.")
        return 1
    problems = _removed(call, found) if wanted else []
    if call.json:
        folders = [
            {"path": one.shown, "why": one.why, "bytes": one.size, "files": one.files} for one in found
        ]
        call.answer(
            {
                "changed": bool(found),
                "dry_run": call.options.dry_run,
                "bytes": size,
                "folders": folders,
                "problems": problems,
            }
        )
    elif wanted and not problems:
        call.out.line("It is removed.")
    elif not wanted:
        call.out.line("Nothing was removed, as this only looks.")
    return EXIT_CODES["failed"] if problems else 0


def _removed(call: Call, found: Sequence[cleaning.Folder]) -> list[str]:
    """Remove the folders, with progress; return sentences about what could not be."""
    from . import cleaning

    problems = []
    for number, one in enumerate(found, 1):
        if call.err.updating:
            call.err.status(f"removing {number} of {len(found)}: {one.shown}")
        problem = cleaning.remove(one)
        if problem:
            problems.append(problem)
            if not call.json:
                call.err.line(names.printable(problem))
    call.err.clear()
    return problems


def _clean_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do not ask first")


def _where_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="*", metavar="PATH", help="what to judge (this folder)")


COMMANDS: tuple[Command, ...] = (
    Command(
        ("workspace", "usage"),
        "show how much of your quota is used, and by what",
        "Show how much of your quota is used, as the kernel counts it, and the largest directories of your "
        "workspace, as far as they are seen at a glance; with --all, however long that takes.",
        "workspace usage",
        _workspace_usage,
        named=False,
        arguments=_usage_arguments,
    ),
    Command(
        ("workspace", "where"),
        "say of a path whether it is kept or lost, and why",
        "Say of each path whether it is kept or lost, and why: in your workspace, in your home, in shared "
        "data, or somewhere else. A link is followed: the verdict is that of the place where it leads. "
        "Inside of a container the same command judges by what is mounted there.",
        "workspace where ~/workspace/my-thesis /tmp/model.pt",
        _workspace_where,
        named=False,
        arguments=_where_arguments,
    ),
    Command(
        ("workspace", "clean"),
        "remove what can be made again: caches and compiled files",
        "Find what can be made again, say how much it takes, ask, and remove it: __pycache__ of Python, "
        ".ipynb_checkpoints of notebooks, the caches of pip and uv, and folders that their own maker has "
        "marked as a cache (CACHEDIR.TAG), in your workspace and in ~/.cache. Environments stay.",
        "workspace clean --dry-run",
        _workspace_clean,
        named=False,
        dry_run=True,
        arguments=_clean_arguments,
    ),
)
