# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The commands ``image ...``: build a project's image, install packages, list images, go back, remove."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

from . import names
from .calls import Call, Command, Progress, age, ask, lines_argument, on_build, told
from .consent import agreed, check_possible
from .errors import InvalidInput
from .protocol import EXIT_CODES
from .sizes import format_size
from .terminal import duration, moment, table


def _image_update(call: Call) -> int:
    call.user()
    name, started = call.options.name, time.monotonic()
    if call.options.dry_run:
        return _update_previewed(call)
    # The broker takes no options here: each way to build is a verb of its own.
    verb = ("image-rebuild" if call.options.rebuild else "image-update") + (
        "-locked" if call.options.locked else ""
    )
    facts = ask(verb, name, progress=Progress(call.err))
    call.err.clear()
    if call.json:
        call.answer(facts)
        return 0
    if facts.get("changed"):
        call.out.line(
            f"The image of {name} is built ({duration(time.monotonic() - started)}): {facts.get('image')}"
        )
    else:
        call.out.line(f"The image of {name} is up to date; nothing was built.")
    lock = facts.get("lock")
    if isinstance(lock, dict):
        versions = f"the versions of {lock.get('packages')} packages, as in {lock.get('image')}"
        call.out.sentence(versions, "  locked: ")
    for note in told(facts, "notes"):
        call.out.sentence(note, "  note: ", "warn")
    _say_change(call, facts)
    return 0


def _update_previewed(call: Call) -> int:
    """Say whether an image would be built, and why; ``--locked`` changes neither."""
    name = call.options.name
    facts = ask("image-rebuild-check" if call.options.rebuild else "image-update-check", name)
    if call.json:
        call.answer({**facts, "dry_run": True})
    elif facts.get("changed"):
        reason = names.printable(str(facts.get("reason")))
        call.out.line(f"The image of {name} would be built: {reason}. Nothing was changed.")
    else:
        call.out.line(f"The image of {name} is up to date; nothing would be built.")
    return 0


def _say_change(call: Call, facts: Mapping[str, Any]) -> None:
    """Say how the container gets the image that is the current one."""
    name = call.options.name
    if facts.get("in_use"):
        call.out.line("Your container was made of another image. To change over:")
        call.out.command(f"container retire {name} && project launch {name}")


def _marked(call: Call, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return an answer that says whether it is only what would be done."""
    return {**facts, "dry_run": True} if call.options.dry_run else dict(facts)


def _image_install(call: Call) -> int:
    from . import image_install  # no other of these commands needs it

    call.user()
    name, packages, started = call.options.name, call.options.packages, time.monotonic()
    try:
        image_install.check(packages)
    except image_install.Problem as problem:
        raise InvalidInput(str(problem)) from None
    verb = "image-install-check" if call.options.dry_run else "image-install"
    facts = _marked(call, ask(verb, name, *packages, progress=call.err.status))
    call.err.clear()
    bake = call.options.bake and not call.options.dry_run
    if bake:
        facts = {**facts, "image": ask("image-update", name, progress=Progress(call.err)).get("image")}
        call.err.clear()
    if call.json:
        call.answer(facts)
        return 0
    if call.options.dry_run:
        call.out.line("pip could install it; nothing was installed or recorded.")
        return 0
    versions = facts.get("packages")
    for requirement, version in (versions if isinstance(versions, dict) else {}).items():
        call.out.line(names.printable(f"{requirement}: {version} is installed in the container now"))
    call.out.line(f"It is recorded in ~/workspace/{name}/requirements.txt.")
    took = duration(time.monotonic() - started)
    if bake:
        call.out.line(f"The image has it too ({took}): {facts.get('image')}")
    else:
        call.out.line(f"The next image has it; at once with: image-update {name}")
    if facts.get("dockerfile") is False:
        note = "The Dockerfile does not mention requirements.txt; let it install it."
        call.out.sentence(note, "  note: ", "warn")
    return 0


def _images_of(facts: Mapping[str, Any], key: str = "images") -> list[Mapping[str, Any]]:
    listed = facts.get(key)
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def _first_digits(image: Mapping[str, Any]) -> str:
    return str(image.get("fingerprint", ""))[:12]


def _remark(image: Mapping[str, Any]) -> str:
    words = [("current", "current"), ("gone back to", "pinned"), ("in use", "in_use")]
    return ", ".join(word for word, key in words if image.get(key))


def _row(image: Mapping[str, Any]) -> list[str]:
    return [_first_digits(image), age(image), format_size(int(image.get("size") or 0))]


def _say_table(call: Call, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for line in table(headings, rows, call.out.width):
        call.out.line(line)


def _image_list(call: Call) -> int:
    call.user()
    data = ask("image-list")
    if call.json:
        call.answer(data)
        return 0
    rows = [[str(one.get("project")), *_row(one), _remark(one)] for one in _images_of(data)]
    if not rows:
        call.out.line("Your projects have no images yet. Build one: project launch NAME")
        return 0
    _say_table(call, ["PROJECT", "IMAGE", "AGE", "SIZE", "REMARK"], rows)
    call.out.line("Layers that images share are in the size of each of them.")
    call.out.line(f"Together, each layer once and without base images: {_together(data)}.")
    return 0


def _together(data: Mapping[str, Any]) -> str:
    size, limit = int(data.get("together") or 0), int(data.get("limit") or 0)
    return f"{format_size(size)} of {format_size(limit)}" if limit else format_size(size)


def _image_history(call: Call) -> int:
    call.user()
    name = call.options.name
    data = ask("image-history", name)
    if call.json:
        call.answer(data)
        return 0
    rows = []
    for one in _images_of(data):
        packages = one.get("packages")
        count = str(len(packages)) if isinstance(packages, list) else "?"
        rows.append([*_row(one), count, _remark(one)])
    _say_table(call, ["IMAGE", "AGE", "SIZE", "PACKAGES", "REMARK"], rows)
    if len(rows) > 1:
        call.out.line(f"Go back to an older one: image rollback {name} --to DIGITS")
    return 0


def _image_show(call: Call) -> int:
    call.user()
    to = call.options.to
    facts = ask("image-show", call.options.name, *([f"to={to}"] if to else []))
    if call.json:
        call.answer(facts)
        return 0
    packages = told(facts, "packages")
    known = isinstance(facts.get("packages"), list)
    rows = {
        "image": facts.get("image"),
        "base": facts.get("base") or "not known",
        "age": age(facts),
        "size": f"{format_size(int(facts.get('size') or 0))}, with the layers that it shares with others",
        "state": _remark(facts) or "an older one that is kept",
        "packages": f"{len(packages)} of Python" if known else "not known: it has no pip that lists them",
    }
    build = on_build(facts.get("build"), call.options.name)
    if build:
        rows["build"] = build
    for label, value in rows.items():
        call.out.sentence(names.printable(str(value)), f"{label + ':':<10}")
    for package in packages:
        call.out.line(f"  {package}")
    return 0


def _image_log(call: Call) -> int:
    call.user()
    name, follow, count = call.options.name, call.options.follow, call.options.lines
    if call.json and follow:
        raise InvalidInput("--follow shows what comes, and JSON is one answer.", "Use one of them.")
    kept: list[str] = []

    def show(lines: list[str]) -> None:
        for line in lines:
            call.out.line(line)

    words = ["follow=yes"] if follow else [] if count is None else [f"lines={count}"]
    facts = ask("image-log", name, *words, lines=kept.extend if call.json else show)
    if call.json:
        call.answer({**facts, "lines": kept})
        return 0
    outcome, message = facts.get("outcome"), names.printable(str(facts.get("message") or ""))
    call.err.sentence(_told_end(name, facts), colour="good" if outcome == "done" else "warn")
    if message:
        call.err.sentence(message)
    return EXIT_CODES["failed"] if follow and outcome in ("failed", "broken off") else 0


def _told_end(name: str, facts: Mapping[str, Any]) -> str:
    """Say how a build ended, or that it did not."""
    begun = f"The build of {name} that was begun {moment(facts.get('started'))}"
    seconds = facts.get("seconds")
    took = f" after {duration(seconds)}" if isinstance(seconds, (int, float)) else ""
    return {
        "running": f"{begun} is at work. Watch it: image log {name} --follow",
        "done": f"{begun} was done{took}.",
        "failed": f"{begun} failed{took}.",
    }.get(str(facts.get("outcome")), f"{begun} was broken off.")


def _image_rollback(call: Call) -> int:
    call.user()
    name, to = call.options.name, call.options.to
    verb = "image-rollback-check" if call.options.dry_run else "image-rollback"
    facts = ask(verb, name, *([f"to={to}"] if to else []))
    if call.json:
        call.answer(_marked(call, facts))
        return 0
    image = names.printable(str(facts.get("image")))
    if call.options.dry_run:
        would = "would be" if facts.get("changed") else "is already"
        call.out.line(f"{image} {would} the current image of {name}.")
        return 0
    done = "is the current image of" if facts.get("changed") else "was already the current image of"
    call.out.line(f"{image} {done} {name}.")
    if facts.get("pinned"):
        call.out.line("It stays so until the project's files change; then a new one is built.")
    _say_change(call, facts)
    return 0


def _image_remove(call: Call) -> int:
    call.user()
    name, to = call.options.name, call.options.to
    if call.options.dry_run or not call.options.yes:
        leaving = _previewed(call, to)
        if call.options.dry_run or not leaving:
            return 0
        if not agreed(call, "Remove this?" if len(leaving) == 1 else f"Remove these {len(leaving)}?"):
            call.out.line("Nothing was removed.")
            return 1
        # What was shown is what goes, whatever is built meanwhile.
        to = [_first_digits(one) for one in leaving]
    facts = ask("image-remove", name, *_remove_words(call, to))
    if call.json:
        call.answer(facts)
        return 0
    removed = _images_of(facts, "removed")
    for one in removed:
        call.out.line(f"{_first_digits(one)} is removed.")
    if not removed:
        call.out.line(f"No image of {name} was removed: each is the current one or in use.")
    return 0


def _remove_words(call: Call, to: Sequence[str]) -> list[str]:
    return [*([f"to={','.join(to)}"] if to else []), *(["all=yes"] if call.options.all else [])]


def _previewed(call: Call, to: Sequence[str]) -> Sequence[Mapping[str, Any]]:
    """Say what would be removed, and return that."""
    if not call.options.dry_run:
        check_possible(call)
    facts = ask("image-remove-check", call.options.name, *_remove_words(call, to))
    leaving = _images_of(facts, "removed")
    if call.json:
        call.answer(_marked(call, facts))
    else:
        _say_leaving(call, facts, leaving)
    return leaving


def _say_leaving(call: Call, facts: Mapping[str, Any], leaving: Sequence[Mapping[str, Any]]) -> None:
    name = call.options.name
    if not leaving:
        call.out.line(f"Nothing to remove: each image of {name} is the current one or in use.")
        return
    call.out.line(f"Of the images of {name} these would be removed for good:")
    _say_table(call, ["IMAGE", "AGE", "SIZE", "REMARK"], [[*_row(one), _remark(one)] for one in leaving])
    staying = [f"{_first_digits(one)} ({_remark(one) or 'kept'})" for one in _images_of(facts, "kept")]
    if staying:
        call.out.sentence(", ".join(staying), "These stay: ")


def _image_argument(value: str) -> str:
    if not value or len(value) > 64 or set(value) - set("0123456789abcdef"):
        raise argparse.ArgumentTypeError("use the first digits of an image, as 'image history' shows them")
    return value


def _to_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--to", metavar="DIGITS", type=_image_argument, help="an older image, by its first digits"
    )


def _log_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--follow", action="store_true", help="go on until the build ends, and exit as it ended"
    )
    parser.add_argument("--lines", metavar="N", type=lines_argument, help="only the last N lines")


def _remove_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--to",
        action="append",
        default=[],
        metavar="DIGITS",
        type=_image_argument,
        help="only this image, by its first digits; may be given several times",
    )
    parser.add_argument("--all", action="store_true", help="the current image, too")


def _update_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--locked", action="store_true", help="keep the versions that the Python packages had"
    )
    parser.add_argument("--rebuild", action="store_true", help="build it though nothing changed")


def _install_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "packages", nargs="+", metavar="PACKAGE", help="a name and, if need be, a version: 'numpy>=1.26'"
    )
    parser.add_argument("--bake", action="store_true", help="build the image with them at once")


COMMANDS: tuple[Command, ...] = (
    Command(
        ("image", "update"),
        "build a project's image anew from its files",
        "Build the project's image if its Dockerfile, another of its files or the base image changed. "
        "A running container is left as it is. With --locked, whatever is built, Python packages keep the "
        "versions that they have in the image of these files, or else in the current one.",
        "image update my-thesis --locked",
        _image_update,
        dry_run=True,
        arguments=_update_arguments,
    ),
    Command(
        ("image", "install"),
        "install Python packages at once, and for every image to come",
        "Install Python packages in the project's running container, and record them with their versions in "
        "the project's requirements.txt, so that its next image has them too. Inside of the container the "
        "same command takes the packages alone.",
        "image install my-thesis pandas 'scikit-learn>=1.4'",
        _image_install,
        dry_run=True,
        arguments=_install_arguments,
    ),
    Command(
        ("image", "list"),
        "list the images of your projects",
        "List the images of all your projects: how old and how large they are, which are current, and which "
        "a container was made of.",
        "image list",
        _image_list,
        named=False,
    ),
    Command(
        ("image", "show"),
        "show what is in a project's image",
        "Show the base, the size, the age and the Python packages of the project's current image, or of an "
        "older one.",
        "image show my-thesis",
        _image_show,
        arguments=_to_argument,
    ),
    Command(
        ("image", "log"),
        "show all that the last build of a project's image said",
        "Show the output of the last build of the project, and how it ended. A build goes on when the "
        "connection is lost or Ctrl-C is pressed: --follow shows it again until it ends. Of a very long "
        "output the beginning and the end are kept.",
        "image log my-thesis --follow",
        _image_log,
        arguments=_log_arguments,
    ),
    Command(
        ("image", "history"),
        "list a project's images, the newest first",
        "List the images of the project that are kept, the newest first. Any of them can be gone back to.",
        "image history my-thesis",
        _image_history,
    ),
    Command(
        ("image", "rollback"),
        "go back to an older image",
        "Make an older image of the project the current one: the one before it, or the one that --to names. "
        "It stays so until the project's files change. A running container is left as it is.",
        "image rollback my-thesis --to 0123456789ab",
        _image_rollback,
        dry_run=True,
        arguments=_to_argument,
    ),
    Command(
        ("image", "remove"),
        "remove older images that nothing uses",
        "Remove the older images of the project, or those that --to names. What a container was made of "
        "stays, and so does the current image, unless --all is given. Asks before it removes anything.",
        "image remove my-thesis --dry-run",
        _image_remove,
        dry_run=True,
        asks=True,
        arguments=_remove_arguments,
    ),
)
