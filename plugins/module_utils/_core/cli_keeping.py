# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The commands ``project ...`` for whole projects: archive, restore, export, import, rename, remove."""

from __future__ import annotations

import argparse

from .calls import Command, later

_HOME, _STORE, _TRASH = "~/workspace", ".archive", ".trash"


def _yes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _archive_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep", action="store_true", help="keep the folder, too")
    _yes(parser)


def _restore_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="KEPT", help=f"a project (the newest of it), or a name in {_STORE}")


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the file to write, or - for the standard output")
    parser.add_argument("--all", action="store_true", help="caches and virtual environments, too")


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="an archive, or - for the standard input")
    parser.add_argument(
        "project",
        metavar="NEW",
        nargs="?",
        default="",
        help="another name for it than the one in the archive",
    )


def _rename_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("new", metavar="NEW", help="the new name")


def _remove_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--for-good", action="store_true", help="at once, with its images and what is in the trash"
    )
    parser.add_argument("--container", action="store_true", help="retire its container, too")
    _yes(parser)


COMMANDS: tuple[Command, ...] = (
    Command(
        ("project", "archive"),
        "put a finished project into an archive",
        f"Pack the project's folder into {_HOME}/{_STORE}/NAME-<date>.tar.gz, with a SHA-256 of every file, "
        "compare it with the folder, and then, when you say yes, remove the folder. Links are kept as links. "
        "Owners, access control lists and extended attributes are not kept.",
        "project archive my-thesis",
        later("cli_keeping_work", "archive_project"),
        dry_run=True,
        arguments=_archive_arguments,
    ),
    Command(
        ("project", "restore"),
        "bring an archived or removed project back",
        f"Bring back the newest of what is kept of a project: from its archive in {_HOME}/{_STORE}, where "
        f"every checksum is looked at, or from {_HOME}/{_TRASH}. Nothing is overwritten.",
        "project restore my-thesis",
        later("cli_keeping_work", "restore_project"),
        named=False,
        dry_run=True,
        arguments=_restore_arguments,
    ),
    Command(
        ("project", "export"),
        "write a project to a file, to carry it to another server",
        "Write the project as an archive that 'project import' reads, without what is made anew by itself: "
        "__pycache__, .cache and other caches, and virtual environments.",
        "project export my-thesis - | ssh other-server project import -",
        later("cli_keeping_work", "export_project"),
        dry_run=True,
        arguments=_export_arguments,
    ),
    Command(
        ("project", "import"),
        "take a project over from a file",
        "Make a new project of an archive that 'project export' or 'project archive' wrote. Nothing is "
        "overwritten, and nothing is made that is not whole. Links that lead out of the project are told.",
        "project import my-thesis.tar.gz",
        later("cli_keeping_work", "import_project"),
        named=False,
        dry_run=True,
        arguments=_import_arguments,
    ),
    Command(
        ("project", "rename"),
        "give a project another name",
        "Rename the project's folder. Nothing in its files is changed. The container must be retired first; "
        "images stay under the old name, and the next launch builds a new one.",
        "project rename my-thesis my-paper",
        later("cli_keeping_work", "rename_project"),
        dry_run=True,
        arguments=_rename_arguments,
    ),
    Command(
        ("project", "remove"),
        "remove a project, so that it can be brought back",
        f"Say what would be lost, ask for the name, and move the project's folder to {_HOME}/{_TRASH}. From "
        "there 'project restore' brings it back for as long as you leave it. With --for-good it is gone at "
        "once, and so are its images and what the trash has of it.",
        "project remove my-thesis",
        later("cli_keeping_work", "remove_project"),
        dry_run=True,
        arguments=_remove_arguments,
    ),
)
