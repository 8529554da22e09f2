# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The commands ``image-...``: build a project's image, install packages."""

from __future__ import annotations

import argparse
import time

from . import image_install, names
from .calls import Call, Command, Progress, ask, told
from .errors import InvalidInput
from .terminal import duration


def _image_update(call: Call) -> int:
    call.user()
    name, started = call.options.name, time.monotonic()
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
        call.out.line(f"  locked: the versions of {lock.get('packages')} packages, as in {lock.get('image')}")
    for note in told(facts, "notes"):
        call.out.line(call.out.style(f"  note: {note}", "warn"))
    if facts.get("in_use"):
        call.out.line("Your container still runs the image before it. To change over:")
        call.out.line(f"  container retire {name} && project launch {name}")
    return 0


def _image_install(call: Call) -> int:
    call.user()
    name, packages, started = call.options.name, call.options.packages, time.monotonic()
    try:
        image_install.check(packages)
    except image_install.Problem as problem:
        raise InvalidInput(str(problem)) from None
    verb = "image-install-check" if call.options.dry_run else "image-install"
    facts = ask(verb, name, *packages, progress=call.err.status)
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
        call.out.line(call.out.style(f"  note: {note}", "warn"))
    return 0


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
        ("image-update",),
        "build a project's image anew from its files",
        "Build the project's image if its Dockerfile, another of its files or the base image changed. "
        "A running container is left as it is. With --locked, whatever is built, Python packages keep the "
        "versions that they have in the image of these files, or else in the current one.",
        "image-update my-thesis --locked",
        _image_update,
        arguments=_update_arguments,
    ),
    Command(
        ("image-install",),
        "install Python packages at once, and for every image to come",
        "Install Python packages in the project's running container, and record them with their versions in "
        "the project's requirements.txt, so that its next image has them too. Inside of the container the "
        "same command takes the packages alone.",
        "image-install my-thesis pandas 'scikit-learn>=1.4'",
        _image_install,
        dry_run=True,
        arguments=_install_arguments,
    ),
)
