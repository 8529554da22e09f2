# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the broker does with the images that there are: list them, go back, remove."""

from __future__ import annotations

import re
import time
from functools import partial
from typing import Any

from . import buildlog, names
from .errors import InvalidInput, NotFound
from .verbs import Request, Verb, answer, connected, runs_another, settings, yes
from .verbs_container import lines

_FINGERPRINT = re.compile(r"[0-9a-f]{1,64}")
_AT_ONCE = 100
_PAUSE = 0.3  # seconds between two looks at a log that is followed


def fingerprint(word: str) -> str:
    """Take the beginning of a fingerprint; raise InvalidInput for anything else."""
    if not _FINGERPRINT.fullmatch(word):
        raise InvalidInput(
            f"{names.printable(word)[:80]!r} is not the beginning of a fingerprint.",
            "Use its first digits (0-9, a-f), as image history shows them.",
        )
    return word


def fingerprints(word: str) -> tuple[str, ...]:
    """Take the beginnings of fingerprints with a comma between any two; raise InvalidInput."""
    words = word.split(",")
    if len(words) > _AT_ONCE:
        raise InvalidInput(f"More than {_AT_ONCE} images at once.", "Remove them in several calls.")
    return tuple(fingerprint(one) for one in words)


def _list(request: Request) -> dict[str, Any]:
    from .images import listing
    from .imagesizes import held
    from .versions import described

    with connected() as engine:
        found = listing(engine, request.user)
        together = held(engine, request.policy, request.user)
    return {
        "together": together.size,
        "limit": together.limit,
        "images": [
            {"project": project, **described(version)} for project, own in found.items() for version in own
        ],
    }


def _own(engine: Any, request: Request) -> Any:
    """Return the images of the project, the newest first; raise NotFound when there is none."""
    from .images import history

    found = history(engine, request.user, request.project)
    if not found and buildlog.is_running(request.user.uid, request.project):
        raise NotFound(
            f"{request.project} has no image yet; it is being built.",
            f"Watch it: image log {request.project} --follow",
        )
    if not found:
        raise NotFound(f"{request.project} has no image yet.", f"Build it: image update {request.project}.")
    return found


def _told(request: Request, version: Any) -> dict[str, Any]:
    from .images import is_pinned, packages
    from .versions import described

    listed = packages(request.user, request.project, version)
    return {
        "project": request.project,
        **described(version),
        "pinned": is_pinned(request.user, request.project, version),
        "packages": None if listed is None else list(listed),
    }


def _history(request: Request) -> dict[str, Any]:
    with connected() as engine:
        return {"images": [_told(request, version) for version in _own(engine, request)]}


def _show(request: Request) -> dict[str, Any]:
    from .versions import chosen, current_of

    with connected() as engine:
        found = _own(engine, request)
        to = str(request.options.get("to", ""))
        version = None if to else current_of(found)
        build = buildlog.last(request.user.uid, request.project)
        return {
            **_told(request, version or chosen(found, request.project, to)),
            "build": None if build is None else build.shown(),
        }


def _log(request: Request) -> dict[str, Any]:
    """Give the log of the last build, and with ``follow`` what comes until none is at work any more."""
    uid, project = request.user.uid, request.project
    follow, reader, shown = request.options.get("follow", False), None, ""
    while True:
        build = buildlog.last(uid, project)
        if build is None:
            raise NotFound(f"No build of {project} is known.", f"Builds are begun by: image update {project}")
        if reader is None or build.id != shown:
            reader, shown = buildlog.Reader(uid, project, build.id), build.id
        more = reader.more()
        count = request.options.get("lines")
        there = request.lines(more if count is None or follow else more[len(more) - min(count, len(more)) :])
        if not (follow and there and build.outcome == buildlog.RUNNING):
            return {"project": project, **build.shown()}
        time.sleep(_PAUSE)


def _rollback(request: Request, *, check: bool) -> dict[str, Any]:
    from .images import rollback

    to = str(request.options.get("to", ""))
    with connected() as engine:
        done = rollback(engine, request.policy, request.user, request.project, to, check=check)
        return {**answer(done), "in_use": runs_another(engine, request)}


def _remove(request: Request, *, check: bool) -> dict[str, Any]:
    from .images import remove

    with connected() as engine:
        return answer(
            remove(
                engine,
                request.policy,
                request.user,
                request.project,
                request.options.get("to", ()),
                everything=bool(request.options.get("all", False)),
                check=check,
            )
        )


VERBS: dict[str, Verb] = {
    "image-list": Verb(False, _list),
    "image-history": Verb(True, _history),
    "image-show": Verb(True, _show, further=settings(to=fingerprint)),
    "image-log": Verb(True, _log, further=settings(lines=lines, follow=yes)),
    # They look at the project's files, by which it is known how long the older image stays.
    "image-rollback": Verb(True, partial(_rollback, check=False), True, settings(to=fingerprint)),
    "image-rollback-check": Verb(True, partial(_rollback, check=True), True, settings(to=fingerprint)),
    "image-remove": Verb(True, partial(_remove, check=False), further=settings(to=fingerprints, all=yes)),
    "image-remove-check": Verb(
        True, partial(_remove, check=True), further=settings(to=fingerprints, all=yes)
    ),
}
