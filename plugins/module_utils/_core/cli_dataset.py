# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The commands ``lab share ...``: what data managers publish, and what everybody may look up.

They run as whoever calls, and nothing of them goes through the broker: the group of a share may write in it.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from . import cli_share, journal, names
from .calls import Call, Command
from .consent import agreed, check_possible
from .errors import InvalidInput, NotFound, Refused
from .policy import Share
from .protocol import INTERRUPTED
from .sizes import format_size
from .terminal import moment, table

if TYPE_CHECKING:
    from .datasets import Dataset
    from .publishing import Outcome, Place, Version

_EVERY = 1.0  # seconds between two lines of progress


def _readable(call: Call) -> list[Share]:
    """Return the shares with datasets that the caller may read: those that are read-only for users."""
    user = None if os.getuid() == 0 else call.user()
    return [
        share
        for share in call.policy().shares
        if share.access == "read-only" and (user is None or cli_share.access(user, share))
    ]


def _share(call: Call) -> Share:
    for share in _readable(call):
        if share.name == call.options.share:
            return share
    raise NotFound(
        f"There is no share {names.printable(call.options.share)} with datasets.",
        "See 'lab share list'; datasets are in shares that users only read.",
    )


def _managed(call: Call) -> tuple[Share, str]:
    """Return the share that the caller may publish in, and the caller's name; raise Refused."""
    share = _share(call)
    if os.getuid() == 0:
        return share, "root"
    user = call.user()
    if cli_share.access(user, share) == cli_share.PUBLISH:
        return share, user.name
    who = f"members of the group {share.group}" if share.group else "root alone"
    raise Refused(f"In {share.name} publish {who}.", "Ask one of them, or your admins.")


def _logged(verb: str, who: str, share: Share, name: str, version: str) -> AbstractContextManager[object]:
    """Write down what root does; what data managers do they do as themselves."""
    if who != "root":
        return nullcontext()
    return journal.acted(verb, f"{name} {version} of {share.name}")


class _Reading:
    """Shows how far the reading of files has come, on the error output."""

    def __init__(self, call: Call, words: str, total: int = 0) -> None:
        self._terminal, self._words, self._total = call.err, words, total
        self._done, self._last = 0, time.monotonic()

    def __call__(self, size: int) -> None:
        self._done += size
        if time.monotonic() - self._last >= _EVERY and self._terminal.updating:
            self._last = time.monotonic()
            of = f" of {format_size(self._total)}" if self._total else ""
            self._terminal.status(f"{self._words}: {format_size(self._done)}{of}")


# ---- looking ---------------------------------------------------------------------------------------------


def _list(call: Call) -> int:
    from .datasets import CURRENT
    from .publishing import Place

    shares = [_share(call)] if call.options.share else _readable(call)
    found: list[tuple[Share, Version]] = []
    for share in shares:
        with Place(call.policy(), share) as place:
            found += [(share, one) for one in place.versions()]
    if call.json:
        call.answer({"datasets": [_shown(call, share, one) for share, one in found]})
        return 0
    if not found:
        call.out.line("Nothing is published yet.")
        return 0
    rows = [[share.name, one.name, *_cells(one)] for share, one in found]
    for line in table(["SHARE", "DATASET", "VERSION", "SIZE", "LICENCE", "PUBLISHED"], rows, call.out.width):
        call.out.line(line)
    call.out.line(f"* is the current version: in the share, DATASET/{CURRENT} leads there.")
    return 0


def _cells(one: Version) -> list[str]:
    mark = "*" if one.current else ""
    if one.dataset is None:
        return [one.version + mark, "?", "?", "its record is damaged"]
    dataset = one.dataset
    return [one.version + mark, format_size(dataset.size), dataset.licence, moment(dataset.published)]


def _shown(call: Call, share: Share, one: Version) -> dict[str, Any]:
    known: dict[str, Any] = one.dataset.shown() if one.dataset else {"problem": one.problem}
    path = f"{call.policy().share_path(share)}/{one.name}/{one.version}"
    return {
        **known,
        "share": share.name,
        "name": one.name,
        "version": one.version,
        "current": one.current,
        "path": path,
    }


def _chosen(call: Call, place: Place, name: str) -> list[Version]:
    """Return the versions of a dataset that the options mean; raise NotFound if there is none."""
    wanted = call.options.version
    found = [one for one in place.versions(name) if wanted in ("", one.version)]
    if not found:
        raise NotFound(
            f"There is no version {wanted} of {name}.", f"See 'lab share show {place.share.name} {name}'."
        )
    return found


def _show(call: Call) -> int:
    from .publishing import Place

    share = _share(call)
    with Place(call.policy(), share) as place:
        found = _chosen(call, place, call.options.dataset)
    if call.json:
        call.answer({"datasets": [_shown(call, share, one) for one in found]})
        return 0
    for number, one in enumerate(found):
        if number:
            call.out.line()
        _details(call, share, one)
    return 0


def _details(call: Call, share: Share, one: Version) -> None:
    from .datasets import MANIFEST

    title = f"{one.name} {one.version}{' (current)' if one.current else ''}"
    call.out.line(call.out.style(title, "strong"))
    lines = [("folder", f"{call.policy().share_path(share)}/{one.name}/{one.version}")]
    if one.dataset is None:
        lines.append(("problem", one.problem))
    else:
        dataset = one.dataset
        lines += [("what", dataset.description)] if dataset.description else []
        lines += [
            ("source", dataset.source),
            ("licence", dataset.licence),
            ("published", f"{moment(dataset.published)} by {dataset.publisher}"),
            ("holds", f"{_counted(dataset.files)}, {format_size(dataset.size)}"),
            ("sha256", f"{dataset.manifest} ({MANIFEST})"),
        ]
    for label, text in lines:
        call.out.sentence(names.printable(text), f"{label:<11}")


def _counted(files: int) -> str:
    return "1 file" if files == 1 else f"{files} files"


def _verify(call: Call) -> int:
    from .publishing import Place, verify

    results: list[tuple[Version, list[str]]] = []
    share = _share(call)
    with Place(call.policy(), share) as place:
        name = call.options.dataset
        if not name and call.options.version:
            raise InvalidInput(
                "A version is one of a dataset.", "Name the dataset: lab share verify SHARE DATASET."
            )
        for one in _chosen(call, place, name) if name else place.versions():
            reading = _Reading(call, f"{one.name} {one.version}", one.dataset.size if one.dataset else 0)
            problems = verify(place, one.name, one.version, reading)
            results.append((one, problems))
            if not call.json:
                _verdict(call, one, problems)
    if call.json:
        told = [{"name": one.name, "version": one.version, "problems": found} for one, found in results]
        call.answer({"verified": told})
    elif not results:
        call.out.line("Nothing is published yet.")
    return 1 if any(problems for _one, problems in results) else 0


def _verdict(call: Call, one: Version, problems: Iterable[str]) -> None:
    verdict = "as it was published"
    for problem in problems:
        call.out.sentence(f"{one.name} {one.version}: {problem}", colour="bad")
        verdict = ""
    if verdict:
        call.out.line(f"{one.name} {one.version} is {verdict}.")


# ---- publishing ------------------------------------------------------------------------------------------


def _wanted(call: Call, publisher: str) -> Dataset:
    from . import datasets

    options = call.options
    return datasets.Dataset(
        name=names.share_name(options.dataset, "DATASET"),
        version=datasets.version(options.version),
        description=datasets.description(options.description.strip()),
        source=datasets.source(options.source),
        licence=datasets.licence(options.licence),
        publisher=publisher,
        published=0,
        size=0,
        files=0,
        manifest="",
    )


def _publish(call: Call) -> int:
    from .datasets import CURRENT
    from .publishing import Place, existing, open_source, publish, survey

    share, publisher = _managed(call)
    wanted = _wanted(call, publisher)
    with Place(call.policy(), share) as place:
        source = open_source(call.options.folder, place.path)
        try:
            tree = survey(source)
            if call.options.dry_run:
                known = existing(place, wanted, source, _Reading(call, "compared", tree.size))
                files = {"files": len(tree.files), "size": tree.size}
                return _would(call, place, wanted, known, files)
            with _logged("share-publish", publisher, share, wanted.name, wanted.version):
                outcome = publish(place, wanted, source, _Reading(call, "copied", tree.size))
        except KeyboardInterrupt:
            return _stopped(call)
        finally:
            os.close(source)
    if call.json:
        call.answer(_answer(place, wanted, outcome))
        return 0
    where = f"{place.path}/{wanted.name}/{wanted.version}"
    if not outcome.changed:
        call.out.sentence(f"{wanted.name} {wanted.version} is already published: {where}")
        return 0
    call.out.sentence(f"{wanted.name} {wanted.version} is published: {where}")
    call.out.sentence(f"{place.path}/{wanted.name}/{CURRENT} leads there, in containers, too.")
    _warn(call, outcome)
    return 0


def _would(call: Call, place: Place, wanted: Dataset, known: Outcome | None, files: dict[str, int]) -> int:
    if call.json:
        call.answer(
            {"would": {"name": wanted.name, "version": wanted.version, "changed": known is None, **files}}
        )
        return 0
    if known:
        call.out.line(f"{wanted.name} {wanted.version} is already published; nothing would be done.")
        return 0
    call.out.sentence(
        f"Would publish {_counted(files['files'])}, {format_size(files['size'])}, as "
        f"{place.path}/{wanted.name}/{wanted.version}, and let it be current."
    )
    return 0


def _stopped(call: Call) -> int:
    """Answer Ctrl-C: unlike what the broker does, the work of these commands ends with them."""
    call.err.clear()
    call.err.line("You stopped it: it is done as a whole or not at all. See 'lab share list'.")
    return INTERRUPTED


def _answer(place: Place, wanted: Dataset, outcome: Outcome) -> dict[str, Any]:
    known = outcome.dataset.shown() if outcome.dataset else {}
    path = f"{place.path}/{wanted.name}/{wanted.version}"
    return {**known, "share": place.share.name, "path": path, **_outcome(outcome)}


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {"changed": outcome.changed, "current": outcome.current or None, "problem": outcome.problem}


def _warn(call: Call, outcome: Outcome) -> None:
    if outcome.problem:
        call.err.sentence(names.printable(outcome.problem), colour="warn")


def _retract(call: Call) -> int:
    from .publishing import Place, retract

    share, publisher = _managed(call)
    options = call.options
    with Place(call.policy(), share) as place:
        one = _chosen(call, place, options.dataset)[0]
        size = format_size(one.dataset.size) if one.dataset else "an unknown size"
        what = f"{one.name} {one.version} ({size}) of {share.name}"
        if options.dry_run:
            if call.json:
                call.answer({"would": _shown(call, share, one)})
            else:
                call.out.line(f"Would retract {what}.")
            return 0
        check_possible(call)
        if not agreed(call, f"Retract {what}? Whoever uses it loses it."):
            call.out.line("Nothing was retracted.")
            return 1
        try:
            with _logged("share-retract", publisher, share, one.name, one.version):
                outcome = retract(place, one.name, one.version)
        except KeyboardInterrupt:
            return _stopped(call)
    if call.json:
        call.answer({"share": share.name, "name": one.name, "version": one.version, **_outcome(outcome)})
        return 0
    current = f"current is {outcome.current}" if outcome.current else "no version is left"
    call.out.line(f"{one.name} {one.version} is retracted; {current}.")
    _warn(call, outcome)
    return 0


# ---- their arguments -------------------------------------------------------------------------------------


def _share_argument(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    parser.add_argument(
        "share", metavar="SHARE", nargs="?" if optional else None, default="", help="name of the share"
    )


def _dataset_arguments(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    _share_argument(parser)
    parser.add_argument(
        "dataset", metavar="DATASET", nargs="?" if optional else None, default="", help="name of the dataset"
    )


def _version_argument(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    parser.add_argument(
        "--version",
        metavar="VERSION",
        required=required,
        default="",
        help="which version" if required else "this version only; all of them without it",
    )


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    _share_argument(parser, optional=True)


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    _dataset_arguments(parser)
    _version_argument(parser)


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    _dataset_arguments(parser, optional=True)
    _version_argument(parser)


def _retract_arguments(parser: argparse.ArgumentParser) -> None:
    _dataset_arguments(parser)
    _version_argument(parser, required=True)


def _publish_arguments(parser: argparse.ArgumentParser) -> None:
    _dataset_arguments(parser)
    parser.add_argument("--version", metavar="VERSION", required=True, help="its version, such as 2.1")
    parser.add_argument(
        "--from", dest="folder", metavar="PATH", required=True, help="the folder that holds its files"
    )
    parser.add_argument(
        "--source", metavar="URL", required=True, help="where it comes from: a URL or doi:..."
    )
    parser.add_argument(
        "--licence", metavar="SPDX", required=True, help="its licence, such as CC-BY-4.0 (spdx.org/licenses)"
    )
    parser.add_argument("--description", metavar="TEXT", default="", help="a line that says what it is")


COMMANDS: tuple[Command, ...] = (
    Command(
        ("lab", "share", "list"),
        "list the published datasets",
        "List what is published in the shares that you may read, or in one of them: each version of each "
        "dataset, and which one is current.",
        "lab share list",
        _list,
        named=False,
        arguments=_list_arguments,
    ),
    Command(
        ("lab", "share", "show"),
        "show a dataset: its versions, sources and licences",
        "Show the versions of a dataset, each with its folder, source, licence, size, who published it, and "
        "the checksum of its manifest.",
        "lab share show datasets iris",
        _show,
        named=False,
        arguments=_show_arguments,
    ),
    Command(
        ("lab", "share", "publish"),
        "publish a folder as a version of a dataset",
        "For data managers, the group of the share, and root. Copy a folder into the share, with checksums "
        "and a record of its source and licence, and let 'current' lead to it once it is complete; nobody "
        "sees a part of it. A published version does not change: the same once more is left as it is, "
        "another is refused.",
        "lab share publish datasets iris --version 1.0 --from iris --source doi:10.24432/C56C76 "
        "--licence CC-BY-4.0",
        _publish,
        named=False,
        dry_run=True,
        arguments=_publish_arguments,
    ),
    Command(
        ("lab", "share", "verify"),
        "compare datasets with their checksums",
        "Read all files of a share, a dataset or one version, and compare them with the manifest. It ends "
        "with 1 if anything differs from what was published, or can be written.",
        "lab share verify datasets iris",
        _verify,
        named=False,
        arguments=_verify_arguments,
    ),
    Command(
        ("lab", "share", "retract"),
        "take a version of a dataset back",
        "For data managers, the group of the share, and root. Take a version away from its readers at once, "
        "then remove its files. 'current' leads to the newest version that is left.",
        "lab share retract datasets iris --version 1.0",
        _retract,
        named=False,
        dry_run=True,
        asks=True,
        arguments=_retract_arguments,
    ),
)
