# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The images that projects are built to: built when their fingerprint is new, kept, gone back to, removed.

Names move only after a build that succeeded, so whatever fails leaves the old image in its place. Whatever
breaks off in between, the next call does again: the name ``latest`` moves last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Callable

from . import (
    asuser,
    buildlog,
    context,
    fingerprint,
    freeze,
    imagesizes,
    imagestate,
    locks,
    names,
    packagecache,
    taken,
    watermarks,
    workspaces,
)
from .engine import BuildFailed, BuildRequest, Engine, ignore
from .errors import EngineError, InvalidInput, LabError, NotFound, Refused
from .imagestate import Known, Pin
from .items import ItemResult
from .policy import Policy, User
from .spec import LABEL_OWNER, LABEL_PROJECT, cgroup_parent
from .versions import (
    LABEL_BASE,
    LABEL_BASE_ID,
    LABEL_FINGERPRINT,
    LABEL_KIND,
    Version,
    chosen,
    current_of,
    described,
    surplus,
    versions,
)

# So many lines of a build that is at work already are shown at once.
_SHOWN = 50
BUILD, TAG, REMOVE, PIN = "build", "tag", "remove", "pin"
PRESENT, ROLLED_BACK, PRUNED = STATES = ("present", "rolled_back", "pruned")


# What there is


@dataclass(frozen=True)
class ProjectImage:
    """The current image of a project, with the fingerprints by which it and older ones are named."""

    id: str
    repository: str
    fingerprint: str
    names: tuple[tuple[str, str], ...]

    @property
    def reference(self) -> str:
        """The name that stays with this image when a newer one comes."""
        return f"{self.repository}:{self.fingerprint[:12]}"

    def named(self, image: str) -> str:
        """Return the name of an image of this project by its id, or the id where it has none."""
        return dict(self.names).get(image, image)


def project_images(engine: Engine | None) -> dict[tuple[int, str], ProjectImage]:
    """Return the current image of every project by (uid, project), from one listing."""
    current: dict[str, dict[str, Any]] = {}
    known: dict[str, list[tuple[str, str]]] = {}
    for image in engine.images("lab/*/*") if engine is not None else []:
        for name in image.get("RepoTags") or []:
            repository, _colon, tag = str(name).rpartition(":")
            if tag == "latest":
                current[repository] = image
            else:
                known.setdefault(repository, []).append((str(image["Id"]), str(name)))
    found: dict[tuple[int, str], ProjectImage] = {}
    for repository, image in current.items():
        _lab, owner, project = repository.split("/")
        labels = image.get("Labels") or {}
        # Our build sets the labels last, over any that the user's Dockerfile has.
        if labels.get(LABEL_OWNER) == owner and labels.get(LABEL_PROJECT) == project and owner.isdigit():
            found[int(owner), project] = ProjectImage(
                id=str(image["Id"]),
                repository=repository,
                fingerprint=str(labels.get(LABEL_FINGERPRINT, "")),
                names=tuple(known.get(repository, [])),
            )
    return found


# Images of projects


@dataclass(frozen=True)
class WantedImage:
    """A project whose image is to be up to date; ``locked`` and ``rebuild`` as of ``build``."""

    user: str
    project: str
    build_args: tuple[tuple[str, str], ...] = ()
    locked: bool = False
    rebuild: bool = False


def reconcile_images(
    engine: Engine | None,
    policy: Policy,
    wanted: Sequence[WantedImage],
    *,
    check: bool,
    progress: Callable[[str], None] = ignore,
    state: str = PRESENT,
    to: str = "",
) -> list[ItemResult]:
    """Bring the images of projects to a state; one result an item. One failure does not stop the others.

    "present": built if the fingerprint is new. "rolled_back": an older image is the current one; which is
    named by ``to``, and else is the one before, once for each state of the files. "pruned": no more images
    are there than the policy keeps. With ``check`` nothing is done, and the results say what would be.
    ``engine`` is None where Docker is not installed yet. Raises InvalidInput for an unknown state.
    """
    if state not in STATES:
        raise InvalidInput(f"{names.printable(state)!r} is not a state.", f"Use one of: {', '.join(STATES)}.")
    if to and (state != ROLLED_BACK or len(wanted) != 1):
        raise InvalidInput("'to' names the image of one project to go back to.", "Give one project.")
    results = []
    for item in wanted:
        result = ItemResult(f"{item.user}/{item.project}")
        try:
            user = policy.user(item.user)
            arguments = dict(item.build_args)
            if state == PRUNED:
                result = prune(engine, policy, user, item.project, check=check)
            elif state == ROLLED_BACK:
                work = _Work(_connected(engine), policy, user, item.project, arguments, check)
                result = _rollback(work, to, once=True)
            else:
                result = build(
                    engine,
                    policy,
                    user,
                    item.project,
                    progress=progress,
                    check=check,
                    build_args=arguments,
                    locked=item.locked,
                    rebuild=item.rebuild,
                )
        except LabError as error:
            result.failed, result.message = True, str(error)
        results.append(result)
    return results


@dataclass(frozen=True)
class _Work:
    """A project whose images are worked on, and how."""

    engine: Engine
    policy: Policy
    user: User
    project: str
    arguments: Mapping[str, str]
    check: bool = False
    progress: Callable[[str], None] = ignore
    keeps_versions: bool = False
    rebuild: bool = False
    wait: float = locks.PATIENCE
    seconds: float = context.SECONDS
    log: buildlog.Log | None = None
    watch: _Watch | None = None

    @property
    def repository(self) -> str:
        return names.image_repository(self.user.uid, self.project)

    def result(self) -> ItemResult:
        return ItemResult(f"{self.user.name}/{self.project}")

    def locked(self) -> contextlib.AbstractContextManager[None]:
        name = locks.of_project("image", self.user.uid, self.project)
        if self.check:
            return contextlib.nullcontext()
        return locks.hold(name, title=self.project, timeout=self.wait, meanwhile=self.watch)

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """Hold the user's one place among the builds: each keeps a context on the server while it runs."""
        name = f"build-{self.user.uid}"
        if self.check:
            return contextlib.nullcontext()
        return locks.hold(name, title="another build of yours", meanwhile=self.watch)

    def tell(self, line: str) -> None:
        """Show a line of progress that belongs into the log of the build, too."""
        if self.log is not None:
            self.log.line(line)
        self.progress(line)

    def versions(self, *, with_use: bool = False) -> tuple[Version, ...]:
        """Return the project's images, newest first. Whether they are in use costs another listing."""
        listed = self.engine.images(self.repository)
        return versions(listed, _used(self.engine) if with_use else ()).get((self.user.uid, self.project), ())

    def pin(self) -> Pin | None:
        return imagestate.pin(self.user.uid, self.project)

    def set_pin(self, pin: Pin | None) -> None:
        imagestate.set_pin(self.user.uid, self.project, pin)

    def look(self) -> context.Look:
        return context.look(*self._place(), seconds=self.seconds)

    def packed(self) -> contextlib.AbstractContextManager[context.Context]:
        # What is only looked at is not kept: it holds no turn, so that there may be many at once.
        return context.packed(*self._place(), keep=not self.check, seconds=self.seconds)

    def _place(self) -> tuple[asuser.Identity, str, str]:
        return asuser.identity(self.policy, self.user), self.policy.workspace(self.user), self.project


class _Watch:
    """Shows who waits for the lock of a build what is built meanwhile: that very build, line by line."""

    def __init__(self, user: User, project: str, progress: Callable[[str], None]) -> None:
        self._uid, self._project, self._progress = user.uid, project, progress
        self._reader: buildlog.Reader | None = None
        self._told = ""
        #: The build of the project that was shown, by its id.
        self.followed = ""

    def __call__(self) -> bool:
        """Show what is new; say whether a build of the user's is at work, so that it is worth waiting."""
        projects = buildlog.running(self._uid)
        if self._project in projects:
            self._follow()
        elif projects and projects[0] != self._told:
            self._told = projects[0]
            self._progress(f"Your build of {self._told} is at work; this waits for its end.")
        return bool(projects)

    def _follow(self) -> None:
        build = buildlog.last(self._uid, self._project)
        if build is not None and build.id != self.followed:
            self.followed = build.id
            self._reader = buildlog.Reader(self._uid, self._project, build.id)
            since = time.strftime("%H:%M", time.localtime(build.started))
            self._progress(f"A build of {self._project} is at work since {since}; this shows it.")
        self.rest()

    def rest(self) -> None:
        """Show what is new of the build that was shown; it may have ended by now."""
        for line in self._reader.more()[-_SHOWN:] if self._reader is not None else ():
            self._progress(line)


def _connected(engine: Engine | None) -> Engine:
    if engine is None:
        raise EngineError(
            "Docker Engine is not installed on this server.", "Apply the role lab.server.docker first."
        )
    return engine


def _used(engine: Engine) -> frozenset[str]:
    """Return the ids of the images that containers were made of, running or not."""
    return frozenset(str(container.get("ImageID", "")) for container in engine.containers())


def build(
    engine: Engine | None,
    policy: Policy,
    user: User,
    project: str,
    *,
    progress: Callable[[str], None] = ignore,
    check: bool = False,
    build_args: Mapping[str, str] | None = None,
    locked: bool = False,
    rebuild: bool = False,
) -> ItemResult:
    """Build the image of a user's project if its fingerprint is new, and remove what is then too old.

    A context that looks as it did is not read again; how that is known is in ``context``. An image that the
    user went back to stays for as long as the files do not change.

    ``locked``: where a build is needed, Python packages keep the versions that they had: in the image of the
    same files, which was lost, or else in the current one, or else in that whose list was kept last. IT can
    declare a project so. ``rebuild``: a build is needed in any case, and does every step again.

    ``facts``: image (the reference by fingerprint) and fingerprint, of the image that is current afterwards;
    pinned (True) where it was gone back to; lock (of a locked build: image, whose versions they are,
    packages, how many of them, left_out, the lines that no version can be kept of, and broken, what has
    another version all the same); notes (sentences for people). Raises EngineError that names the line of the
    Dockerfile, and the errors of ``context.packed``; the old image then stays as it is.

    The output of a build is kept (``buildlog``). Where one of the project is at work already, that one is
    shown and waited for, and its failure is this one's, too, if it was built from the same files.
    """
    names.project_name(project)
    if check and not _is_ready(engine, policy, user, project):
        repository = names.image_repository(user.uid, project)
        return _to_build(ItemResult(f"{user.name}/{project}"), repository, None, "")
    # Where nobody looks, a user's build is not waited for longer than anything else.
    watch = _Watch(user, project, progress) if progress is not ignore else None
    work = _Work(
        engine=_connected(engine),
        policy=policy,
        user=user,
        project=project,
        arguments=dict(build_args or {}),
        check=check,
        progress=progress,
        keeps_versions=locked or policy.keeps_versions(user.name, project),
        rebuild=rebuild,
        watch=watch,
    )
    with work.locked(), buildlog.writing(user.uid, project) as log:
        if watch is not None:
            watch.rest()
        return _build_if_new(replace(work, log=log))


def _build_if_new(work: _Work) -> ItemResult:
    result = work.result()
    found = work.versions()
    current, pin = current_of(found), work.pin()
    # It comes first: what is too large to be sent is refused before anything is read or kept.
    look = work.look()
    digest = _recalled(work, look)
    if current is not None and not work.rebuild and _serves(current, pin, digest):
        return _unchanged(work, result, current, pin, digest)
    _fail_as_followed(work, look)
    with work.turn(), work.packed() as packed:
        wanted = fingerprint.sources(packed.dockerfile, work.arguments, work.user.uid)
        bases = _bases(work, wanted)
        if bases is None:
            return _to_build(result, work.repository, current, "")
        digest = _fingerprint(work, packed, bases)
        if current is not None and not work.rebuild and _serves(current, pin, digest):
            _remember(work, packed.look, bases, digest)
            return _unchanged(work, result, current, pin, digest)
        there = next((version for version in found if version.fingerprint == digest), None)
        if work.rebuild:
            there = None
        _to_build(result, work.repository, current, digest, built=there is not None, anew=work.rebuild)
        result.facts = {"image": f"{work.repository}:{digest[:12]}", "fingerprint": digest}
        lock = _lock(work, current, digest) if there is None else None
        _tell_lock(work, result, lock)
        older = _removable(work, digest)
        if older:
            result.actions.append(REMOVE)
            result.diff["before"]["older"] = [version.reference for version in older]
            result.diff["after"]["older"] = []
        if work.check:
            return result
        if there is None:
            for note in _refuse_without_room(work, older):
                _note(result, note)
        built = there.id if there is not None else _build(work, packed, digest, lock)
        if there is None:
            _refuse_too_large(work, built, older)
        listed = _record_packages(work, built, digest, anew=there is None, lock=lock)
        _tell_broken(result, lock, listed)
        work.engine.tag(built, f"{work.repository}:{digest[:12]}")
        work.engine.tag(built, f"{work.repository}:latest")
        _remember(work, packed.look, bases, digest)
        _remove_nameless(work)
    work.set_pin(None)
    _remove(work, older)
    return result


def _fail_as_followed(work: _Work, look: context.Look) -> None:
    """Raise the error of a build that was waited for, where this one would only fail once more."""
    if work.log is not None:
        work.log.files = f"{look.digest} {_digest_of(work.arguments)} {work.keeps_versions}"
        followed = work.watch.followed if work.watch is not None else ""
        build = buildlog.last(work.user.uid, work.project) if followed and not work.rebuild else None
        same = build is not None and (build.id, build.files) == (followed, work.log.files)
        if build is not None and same and build.outcome == buildlog.FAILED:
            raise EngineError(build.message, build.hint)


def _serves(current: Version, pin: Pin | None, digest: str) -> bool:
    """Say whether the current image is the one for files with this fingerprint."""
    return bool(digest) and (current.fingerprint == digest or pin == Pin(current.fingerprint, digest))


def _unchanged(work: _Work, result: ItemResult, current: Version, pin: Pin | None, digest: str) -> ItemResult:
    result.facts = {"image": current.reference, "fingerprint": current.fingerprint}
    if current.fingerprint != digest:
        result.facts["pinned"] = True
    elif pin is not None and not work.check:
        # The files are again those of this image: nothing is left that was gone away from.
        work.set_pin(None)
    return result


def _to_build(
    result: ItemResult,
    repository: str,
    current: Version | None,
    digest: str,
    *,
    built: bool = False,
    anew: bool = False,
) -> ItemResult:
    result.changed, result.actions = True, [TAG] if built else [BUILD, TAG]
    result.reason = "the project's files or its base image changed"
    if current is None:
        result.reason = "there is none"
    elif anew:
        result.reason = "it is to be built anew"
    after = f"{repository}:{digest[:12]}" if digest else "(to be built)"
    if current is not None and after == current.reference:
        after += " (anew)"
    result.diff = {"before": {"image": current.reference if current else ""}, "after": {"image": after}}
    return result


# The versions that are kept


def _lock(work: _Work, current: Version | None, digest: str) -> freeze.Lock | None:
    """Return what a locked build keeps; None where nothing is to be kept, or nothing is known."""
    if not work.keeps_versions:
        return None
    uid, project = work.user.uid, work.project
    for image in (digest, current.fingerprint if current is not None else ""):
        listed = imagestate.packages(uid, project, image) if image else None
        if listed is not None:
            return freeze.Lock(image[:12], listed)
    newest = imagestate.newest_packages(uid, project)
    return None if newest is None else freeze.Lock(*newest)


def _tell_lock(work: _Work, result: ItemResult, lock: freeze.Lock | None) -> None:
    if lock is not None:
        result.facts["lock"] = {
            "image": lock.image,
            "packages": len(lock.lines),
            "left_out": list(lock.left_out),
            "broken": [],
        }
        if lock.left_out:
            shown = ", ".join(lock.left_out)
            _note(result, f"What came from a file or an address has no version to keep: {shown}.")
    elif work.keeps_versions and BUILD in result.actions:
        _note(result, "No list of packages is known yet, so nothing keeps their versions this time.")


def _tell_broken(result: ItemResult, lock: freeze.Lock | None, listed: tuple[str, ...] | None) -> None:
    """Say where a locked build did not keep what it was to keep."""
    if lock is None:
        return
    if listed is None:
        _note(result, "The packages of the new image cannot be listed, so nobody knows if they are the same.")
        return
    broken = lock.broken(listed)
    result.facts["lock"]["broken"] = list(broken)
    if broken:
        _note(
            result,
            f"The lock was not kept: {', '.join(broken)}. They come with another base image, or by a"
            " tool that reads no constraints.",
        )


def _note(result: ItemResult, sentence: str) -> None:
    result.facts.setdefault("notes", []).append(sentence)


# What is known of a context


def _recalled(work: _Work, look: context.Look) -> str:
    """Return the fingerprint of files that look as they did when it was taken; "" when it is not known."""
    known = imagestate.known(work.user.uid, work.project)
    if known is None or known.look != look.digest or known.arguments != _digest_of(work.arguments):
        return ""
    for name, image in known.bases.items():
        inspected = work.engine.inspect_image(name)
        if inspected is None or inspected["Id"] != image:
            return ""
    return known.fingerprint


def _remember(work: _Work, look: context.Look, bases: Mapping[str, str], digest: str) -> None:
    """Keep the fingerprint of files that look so, where a change would show from now on."""
    if not work.check:
        known = Known(look.digest, _digest_of(work.arguments), bases, digest) if look.settled else None
        imagestate.remember(work.user.uid, work.project, known)


def _digest_of(arguments: Mapping[str, str]) -> str:
    # Of other people's build arguments no copy is needed.
    return hashlib.sha256(json.dumps(dict(arguments), sort_keys=True).encode("ascii")).hexdigest()


def _fingerprint(work: _Work, packed: context.Context, bases: Mapping[str, str]) -> str:
    """Return the fingerprint of a build of these files on these images, by name and id."""
    found = [work.engine.inspect_image(image) or {} for image in bases.values()]
    triggers = any((inspected.get("Config") or {}).get("OnBuild") for inspected in found)
    counted = taken.taken(packed.members, packed.dockerfile, triggers=triggers)
    return fingerprint.fingerprint(counted, work.arguments, bases)


def _files_fingerprint(work: _Work) -> str:
    """Return the fingerprint of the files as they are; "" where they cannot be built from."""
    asking = replace(work, check=True)
    with contextlib.suppress(LabError):
        known = _recalled(asking, asking.look())
        if known:
            return known
        with asking.packed() as packed:
            wanted = fingerprint.sources(packed.dockerfile, asking.arguments, asking.user.uid)
            bases = _bases(asking, wanted)
            if bases is not None:
                return _fingerprint(asking, packed, bases)
    return ""


def matches_files(
    engine: Engine, policy: Policy, user: User, project: str, *, seconds: float = context.SECONDS
) -> bool | None:
    """Say whether the current image of a project is the one for its files as they are now.

    None where there is no image, the files cannot be built from, or to look at them or to read them takes
    longer than ``seconds``.
    """
    work = _Work(engine, policy, user, project, {}, check=True, seconds=seconds)
    current = current_of(work.versions())
    files = _files_fingerprint(work) if current is not None else ""
    return _serves(current, work.pin(), files) if current is not None and files else None


# Older images


def history(engine: Engine, user: User, project: str) -> list[Version]:
    """Return the images of a user's project that are kept, newest first."""
    names.project_name(project)
    listed = engine.images(names.image_repository(user.uid, project))
    return list(versions(listed, _used(engine)).get((user.uid, project), ()))


def listing(engine: Engine, user: User) -> dict[str, tuple[Version, ...]]:
    """Return the images of all projects of a user, by project, the newest first."""
    listed = engine.images(f"lab/{user.uid}/*")
    found = versions(listed, _used(engine))
    return {project: own for (uid, project), own in sorted(found.items()) if uid == user.uid}


def is_pinned(user: User, project: str, version: Version) -> bool:
    """Say whether an image was gone back to, and stays the current one until the project's files change."""
    return version.current and _holds(imagestate.pin(user.uid, project), version)


def packages(user: User, project: str, version: Version) -> tuple[str, ...] | None:
    """Return the Python packages of an image, as ``pip freeze`` said them; None where they are not known."""
    return imagestate.packages(user.uid, project, version.fingerprint)


def rollback(
    engine: Engine | None,
    policy: Policy,
    user: User,
    project: str,
    to: str = "",
    *,
    check: bool = False,
    build_args: Mapping[str, str] | None = None,
) -> ItemResult:
    """Make an older image of a user's project the current one: that before it, or one by its fingerprint.

    It stays the current one until the project's files change, of which a note is kept. ``build_args`` are
    those of the builds. ``facts`` as of ``build``. Raises NotFound when there is no such image.
    """
    names.project_name(project)
    return _rollback(_Work(_connected(engine), policy, user, project, dict(build_args or {}), check), to)


def _rollback(work: _Work, to: str, *, once: bool = False) -> ItemResult:
    """Go back; with ``once`` not again where the files are still those that were gone away from."""
    result = work.result()
    with work.locked():
        found = work.versions()
        current, pin = current_of(found), work.pin()
        files = _files_fingerprint(work) or _believed(current, pin)
        back = once and not to and current is not None and pin == Pin(current.fingerprint, files)
        target = current if current is not None and back else chosen(found, work.project, to)
        result.facts = {"image": target.reference, "fingerprint": target.fingerprint}
        wanted = Pin(target.fingerprint, files) if target.fingerprint != files else None
        if wanted is not None:
            result.facts["pinned"] = True
        result.actions = [TAG] if not target.current else []
        result.actions += [PIN] if wanted != pin else []
        if not result.actions:
            return result
        result.changed = True
        result.reason = "it is to be the current one" if to else "the one before is to be the current one"
        result.diff = {
            "before": {"image": current.reference if current else "", "pinned": _holds(pin, current)},
            "after": {"image": target.reference, "pinned": wanted is not None},
        }
        if not work.check:
            # First: a pin of an image that is not the current one means nothing.
            work.set_pin(wanted)
            if not target.current:
                work.engine.tag(target.id, f"{work.repository}:latest")
    return result


def _believed(current: Version | None, pin: Pin | None) -> str:
    """Return which files an image was made or kept for, where those that are there cannot be built from."""
    if current is None:
        return ""
    return pin.files if pin is not None and pin.image == current.fingerprint else current.fingerprint


def _holds(pin: Pin | None, current: Version | None) -> bool:
    return pin is not None and current is not None and pin.image == current.fingerprint


def prune(
    engine: Engine | None,
    policy: Policy,
    user: User,
    project: str,
    *,
    check: bool = False,
    wait: float = locks.PATIENCE,
) -> ItemResult:
    """Remove the images of a user's project beyond those that the policy keeps (``images_keep``).

    The current one and those that containers were made of stay. ``wait``: for how many seconds the project's
    lock is waited for. ``facts``: kept, removed (references).
    """
    names.project_name(project)
    result = ItemResult(f"{user.name}/{project}")
    if check and engine is None:
        result.facts = {"kept": [], "removed": []}
        return result
    work = _Work(_connected(engine), policy, user, project, {}, check, wait=wait)
    with work.locked():
        found = work.versions(with_use=True)
        older = surplus(found, policy.images_keep)
        kept = [version.reference for version in found if version not in older]
        result.facts = {"kept": kept, "removed": [version.reference for version in older]}
        if older:
            result.changed, result.actions = True, [REMOVE]
            result.reason = f"more images are there than the {policy.images_keep} that are kept"
            result.diff = {
                "before": {"images": [version.reference for version in found]},
                "after": {"images": kept},
            }
        if not check:
            _remove(work, older)
    return result


def remove(
    engine: Engine,
    policy: Policy,
    user: User,
    project: str,
    to: Sequence[str] = (),
    *,
    everything: bool = False,
    check: bool = False,
) -> ItemResult:
    """Remove images of a user's project that nothing needs: the older ones, or those that ``to`` names.

    ``to`` holds the beginnings of fingerprints. What a container was made of stays, be it stopped or retired,
    and so does the current one unless there is ``everything``. ``facts``: removed and kept, each a list of
    images (``versions.described``). Raises NotFound, InvalidInput, and Refused where ``to`` names one that
    must stay.
    """
    names.project_name(project)
    work = _Work(engine, policy, user, project, {}, check)
    result = work.result()
    with work.locked():
        found = work.versions(with_use=True)
        if not found:
            raise NotFound(f"{project} has no image.", "The command image list shows those that there are.")
        named = [chosen(found, project, one) for one in to]
        for version in named:
            _refuse_needed(version, everything=everything)
        free = [one for one in named or found if not one.in_use and (everything or not one.current)]
        if free and not check:
            for version in free:
                if version.current:
                    # First: while it is there, it is taken for the image that a container is made of.
                    work.engine.remove_image(f"{work.repository}:latest")
                    work.set_pin(None)
            _remove(work, free)
            if len(free) == len(found):
                buildlog.forget(user.uid, project)
            found_after = {version.id for version in work.versions()}
            # Docker keeps one of which a container was made meanwhile.
            free = [version for version in free if version.id not in found_after]
        result.facts = {
            "removed": [described(version) for version in found if version in free],
            "kept": [described(version) for version in found if version not in free],
        }
        if free:
            result.changed, result.actions, result.reason = True, [REMOVE], "nothing needs them"
    return result


def _refuse_needed(version: Version, *, everything: bool) -> None:
    """Raise Refused for an image that must stay."""
    if version.in_use:
        raise Refused(
            f"A container was made of the image {version.fingerprint[:12]}, so it stays.",
            "Retire the container first. One that was retired counts while it can be brought back.",
        )
    if version.current and not everything:
        raise Refused(
            f"{version.fingerprint[:12]} is the current image: the next container is made of it.",
            "Go back to another one first (image rollback), or remove all of them with --all.",
        )


def forget(engine: Engine, policy: Policy, user: User, project: str) -> ItemResult:
    """Remove all images of a project that has neither a folder nor a container any more.

    What retired containers that are kept were made of stays. ``facts``: removed (references). Raises Refused.
    """
    work = _Work(engine, policy, user, project, {})
    result = work.result()
    with work.locked():
        if workspaces.has_project(policy, user, project):
            raise Refused(f"{project} has a folder, so its images stay.", f"project remove {project}")
        name = "/" + names.container_name(project, user.uid)
        if any(name in (listed.get("Names") or []) for listed in engine.containers()):
            raise Refused(f"{project} has a container, so its images stay.", f"container retire {project}")
        gone = [version for version in work.versions(with_use=True) if not version.in_use]
        for version in gone:
            if version.current:
                engine.remove_image(f"{work.repository}:latest")
        _remove(work, gone)
        _remove_nameless(work)
        imagestate.forget(user.uid, project)
        buildlog.forget(user.uid, project)
    result.changed, result.actions = bool(gone), [REMOVE] if gone else []
    result.facts = {"removed": [version.reference for version in gone]}
    return result


def _removable(work: _Work, digest: str) -> tuple[Version, ...]:
    """Return what is too old once the image of this fingerprint is the current one."""
    found = work.versions(with_use=True)
    after = [replace(version, current=version.fingerprint == digest) for version in found]
    if not any(version.current for version in after):
        after.insert(0, Version("", work.repository, digest, current=True))
    return surplus(after, work.policy.images_keep)


def _remove(work: _Work, older: Sequence[Version]) -> None:
    for version in older:
        # By its name, so that an image of which another one was made keeps its layers.
        work.engine.remove_image(version.reference)
    if older:
        left = [version.fingerprint for version in work.versions()]
        imagestate.thin_out_packages(work.user.uid, work.project, left)


# The build


def _is_ready(engine: Engine | None, policy: Policy, user: User, project: str) -> bool:
    """Say whether there is something to look at in check mode: an engine, and the project's folder."""
    if engine is None or not os.path.lexists(policy.workspace(user)):
        return False
    return workspaces.has_project(policy, user, project)


def _bases(work: _Work, wanted: Mapping[str, int]) -> dict[str, str] | None:
    """Return the ids of the images that a build starts from, fetching what is not here.

    None in check mode when one is missing: what it will be cannot be known.
    """
    found: dict[str, str] = {}
    for image, line in wanted.items():
        inspected = work.engine.inspect_image(image)
        if inspected is None:
            if work.check:
                return None
            inspected = _fetched(work, image, line)
        triggers = (inspected.get("Config") or {}).get("OnBuild") or []
        fingerprint.check_triggers(image, triggers)
        found[image] = str(inspected["Id"])
    return found


def _fetched(work: _Work, image: str, line: int) -> dict[str, Any]:
    """Fetch an image that a line of the Dockerfile names; raise EngineError where it cannot be had."""
    missing = f"Dockerfile line {line}: the image {names.printable(image)} is not on this server"
    here = ", ".join(base.name for base in work.policy.base_images) or "none"
    watermarks.check(work.policy)
    try:
        # The names of images here are nobody else's: one that is missing is not to come from elsewhere.
        if not fingerprint.plain(image.lower()).startswith("lab/"):
            work.engine.pull(image, work.tell, anonymous=True)
        inspected = work.engine.inspect_image(image)
    except LabError as error:
        raise EngineError(f"{missing}: {error.message}", f"Base images here: {here}.") from error
    if inspected is None:
        raise EngineError(f"{missing}.", f"Base images here: {here}.")
    return inspected


def _refuse_without_room(work: _Work, older: Sequence[Version]) -> list[str]:
    """Raise Refused where there is no room for another image; return what is to be told if there is."""
    told = watermarks.check(work.policy)
    if work.user.limits.images_size:
        now = imagesizes.held(work.engine, work.policy, work.user, without={one.id for one in older})
        imagesizes.check(now, _can_go(work), after=False)
    return told


def _refuse_too_large(work: _Work, built: str, older: Sequence[Version]) -> None:
    """Remove what was just built, and has no name yet, where it is too much; raise Refused."""
    if not work.user.limits.images_size:
        return
    gone = {one.id for one in older}
    now = imagesizes.held(work.engine, work.policy, work.user, without=gone, also=built)
    try:
        imagesizes.check(now, _can_go(work), after=True)
    except Refused:
        if not (work.engine.inspect_image(built) or {}).get("RepoTags"):
            work.engine.remove_image(built)
        raise


def _can_go(work: _Work) -> list[Version]:
    return imagesizes.removable(work.engine, work.user, _used(work.engine))


def _build(work: _Work, packed: context.Context, digest: str, lock: freeze.Lock | None) -> str:
    user, facts = work.user, work.engine.facts
    environment, hosts = _package_cache(work, packed.dockerfile)
    copies: dict[str, str] = {}
    files: dict[str, str] = {}
    if lock is not None and lock.lines:
        copies = {freeze.LOCK_PLACE: freeze.LOCK_FILE}
        environment = {**environment, **freeze.ENVIRONMENT}
        files[freeze.LOCK_FILE] = "".join(f"{line}\n" for line in lock.lines)
    shells = _shells(work, packed.dockerfile)
    steps = fingerprint.steps(packed.dockerfile, work.arguments, environment, copies, shells)
    labels = {
        LABEL_OWNER: str(user.uid),
        LABEL_PROJECT: work.project,
        LABEL_FINGERPRINT: digest,
        LABEL_KIND: "project",
        **_base(work, packed.dockerfile),
    }
    inline = fingerprint.inline_files(packed.dockerfile)
    files.update({path: text for path, (text, _mode) in inline.items()})
    dockerfile = fingerprint.canonical(packed.dockerfile, work.arguments, environment, copies, shells)
    files[context.DOCKERFILE] = dockerfile + fingerprint.labels(labels)
    context.put_in(packed.archive, files, {path: mode for path, (_text, mode) in inline.items()})
    _remove_strays(work)
    started = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    request = BuildRequest(
        context=packed.archive,
        title=work.project,
        build_args=work.arguments,
        cgroup_parent=cgroup_parent(user.uid, facts.cgroup_driver),
        memory=user.limits.memory,
        cpus=min(user.limits.cpus, float(facts.cpus)),
        hosts=hosts,
        scratch=str(user.uid),
        fresh=work.rebuild,
        seconds=60 * work.policy.disks.build_minutes,
        watch=partial(watermarks.watch, work.policy),
        log=ignore if work.log is None else work.log.line,
    )
    if work.log is not None:
        work.log.begin()
    try:
        return work.engine.build(request, work.progress)
    except BuildFailed as error:
        # One that was killed may leave its container, with all that it has written, for some seconds.
        _remove_strays(work)
        _clear_away(work.engine, error.left_over, started)
        hint = "Older images stay as they are."
        if copies:
            hint += " Packages were to keep their versions: it was a locked build."
        if work.log is not None and work.log.begun:
            hint += f" All that it said: image log {work.project}"
        raise EngineError(_explained(error, work.project, steps), hint) from error


def _shells(work: _Work, dockerfile: str) -> dict[str, Sequence[str] | None]:
    """Return what runs commands in the images that a build starts from, by their names."""
    found = {}
    for image in fingerprint.sources(dockerfile, work.arguments, work.user.uid):
        found[image] = fingerprint.shell_of((work.engine.inspect_image(image) or {}).get("Config") or {})
    return found


def _package_cache(work: _Work, dockerfile: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the environment and the hosts by which a build finds the package cache; none when it is down."""
    cache = work.policy.package_cache
    if cache is None:
        return {}, {}
    if not packagecache.answers(cache):
        work.tell(f"The package cache does not answer at {packagecache.url(cache)}: this build goes without.")
        return {}, {}
    taken = {*work.arguments, *fingerprint.variables(dockerfile)}
    # What the image sets wins over an ARG, so a part of ours could meet a part of its own.
    for image in fingerprint.sources(dockerfile, work.arguments, work.user.uid):
        inspected = work.engine.inspect_image(image) or {}
        taken.update(str(item).partition("=")[0] for item in (inspected.get("Config") or {}).get("Env") or [])
    return packagecache.environment(cache, taken), packagecache.hosts(cache)


def _remove_strays(work: _Work) -> None:
    """Remove what builds of the user left when the engine was killed: containers of theirs that nobody named.

    Whoever calls it holds the user's turn, so that no build is at work. With live restore they may even run.
    """
    parent = cgroup_parent(work.user.uid, work.engine.facts.cgroup_driver)
    for listed in work.engine.containers():
        if not any("._." in str(name) for name in listed.get("Names") or []):
            with contextlib.suppress(NotFound):
                found = work.engine.inspect(str(listed["Id"]))
                if (found.get("HostConfig") or {}).get("CgroupParent") == parent:
                    work.engine.remove(str(listed["Id"]))


def _clear_away(engine: Engine, image: str, started: str) -> None:
    """Remove what a build that failed left over: without a name, and made since the build started.

    Its id comes from the output of the build, in which a user can print any.
    """
    inspected = engine.inspect_image(image) if image else None
    if inspected and not inspected.get("RepoTags") and str(inspected.get("Created", ""))[:19] >= started:
        # Its parents without a name go with it, but none that another image stands on.
        engine.remove_image(str(inspected["Id"]))


def _base(work: _Work, dockerfile: str) -> dict[str, str]:
    """Return labels for the image that a build stands on: a base image of the policy, where it is one.

    Its name is the policy's, and its id is kept: another image has that name after the next change of it.
    """
    name = fingerprint.base(dockerfile, work.arguments)
    inspected = (work.engine.inspect_image(name) if name else None) or {}
    for base in work.policy.base_images:
        if fingerprint.plain(base.name) == fingerprint.plain(name):
            return {LABEL_BASE: base.name, LABEL_BASE_ID: str(inspected.get("Id", ""))}
    # On another project's image of the same user: what that one stands on is in its labels, which are ours.
    labels = (inspected.get("Config") or {}).get("Labels") or {}
    if labels.get(LABEL_KIND) != "project":
        return {LABEL_BASE: name, LABEL_BASE_ID: ""}
    return {
        LABEL_BASE: str(labels.get(LABEL_BASE) or name),
        LABEL_BASE_ID: str(labels.get(LABEL_BASE_ID, "")),
    }


def _record_packages(
    work: _Work, image: str, digest: str, *, anew: bool, lock: freeze.Lock | None
) -> tuple[str, ...] | None:
    """Keep the list of the Python packages in an image, and return it: a new one where it was built anew."""
    uid, project = work.user.uid, work.project
    listed = None if anew else imagestate.packages(uid, project, digest)
    if listed is None:
        listed = freeze.packages(work.engine, work.user, project, image)
        # What was to be kept and could not be seen is no reason to forget what there was.
        if listed is not None or lock is None:
            imagestate.set_packages(uid, project, digest, listed)
    return listed


def _remove_nameless(work: _Work) -> None:
    """Remove what a build of the same files replaced: an image of the project without a name left.

    One that a container was made of stays until the next build, and so does one that others stand on.
    """
    for listed in work.engine.images():
        labels = listed.get("Labels") or {}
        named = [name for name in listed.get("RepoTags") or [] if name != "<none>:<none>"]
        own = (labels.get(LABEL_OWNER), labels.get(LABEL_PROJECT), labels.get(LABEL_KIND))
        if not named and own == (str(work.user.uid), work.project, "project"):
            work.engine.remove_image(str(listed["Id"]))


def _explained(error: BuildFailed, project: str, steps: Sequence[fingerprint.Step]) -> str:
    said = (error.last or error.message).rstrip(".")
    if not 0 < error.step <= len(steps):
        return f"The image of {project} was not built: {said}."
    step = steps[error.step - 1].origin
    shown = names.printable(f"{step.word} {step.rest}")[:120]
    return (
        f"The image of {project} was not built: line {step.line} of its Dockerfile ({shown}) failed: {said}."
    )
