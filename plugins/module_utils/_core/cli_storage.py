# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The commands ``workspace push``, ``pull`` and ``storage``: files to object storage and back."""

from __future__ import annotations

import argparse

from .calls import Command, later

_WHERE = "[ENDPOINT:]BUCKET[/FOLDER]"


def _push_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a project, or a folder or file of your workspace")
    parser.add_argument(
        "place", metavar="PLACE", nargs="?", default="", help=f"{_WHERE} (a folder of your first bucket)"
    )
    parser.add_argument("--mirror", action="store_true", help="remove there what is not here")
    parser.add_argument("--yes", action="store_true", help="do not ask before something is removed")


def _pull_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("place", metavar="PLACE", help=_WHERE)
    parser.add_argument("path", metavar="PATH", help="the folder of your workspace that it goes into")
    parser.add_argument("--overwrite", action="store_true", help="replace files here that differ")


COMMANDS: tuple[Command, ...] = (
    Command(
        ("workspace", "push"),
        "copy files to object storage",
        "Copy a project, or a folder or file of your workspace, to a bucket of an S3 server, and compare all "
        "by checksum. Files that are there already are not copied again, so a push that was stopped goes "
        "on when it is said again. Nothing is removed there without --mirror. Links are left out, and told.",
        "workspace push my-thesis/results lab-alice/results",
        later("cli_storage_work", "push"),
        named=False,
        dry_run=True,
        arguments=_push_arguments,
    ),
    Command(
        ("workspace", "pull"),
        "copy files from object storage",
        "Copy a folder or file of a bucket into a folder of your workspace. All is compared by checksum "
        "before it takes its place. Files that are here and differ stay as they are without --overwrite; "
        "nothing is removed. A pull that was stopped goes on when it is said again.",
        "workspace pull lab-alice/results my-thesis/results",
        later("cli_storage_work", "pull"),
        named=False,
        dry_run=True,
        arguments=_pull_arguments,
    ),
    Command(
        ("workspace", "storage"),
        "show the object storage that you can push to",
        "Show each S3 server of the inventory, whether you have a key for it, and your buckets there.",
        "workspace storage",
        later("cli_storage_work", "storage"),
        named=False,
    ),
)
