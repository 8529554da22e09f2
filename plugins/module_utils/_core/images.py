# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Images: those that projects start from, and those that projects are built to.

A build happens only when its fingerprint is new. Names move only after a build that succeeded, so whatever
fails leaves the old image in its place.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import posixpath
import re
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, BinaryIO, Callable

from . import asuser, context, fingerprint, locks, names, workspaces
from .engine import BuildFailed, BuildRequest, Engine, ignore
from .errors import EngineError, InvalidInput, LabError, NotFound, Refused
from .items import ItemResult
from .policy import Policy, User
from .spec import LABEL_OWNER, LABEL_PROJECT, cgroup_parent

LABEL_FINGERPRINT = "lab.server.fingerprint"
LABEL_KIND = "lab.server.kind"
_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
_BASE_FORMAT = 1
_CERTIFICATE_LIMIT = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")

BUILD, LOAD, PULL, TAG = "build", "load", "pull", "tag"


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
    """A project whose image is to be up to date."""

    user: str
    project: str
    build_args: tuple[tuple[str, str], ...] = ()


def reconcile_images(
    engine: Engine | None,
    policy: Policy,
    wanted: Sequence[WantedImage],
    *,
    check: bool,
    progress: Callable[[str], None] = ignore,
) -> list[ItemResult]:
    """Bring the images of projects up to date; one result an item. One failure does not stop the others.

    With ``check`` nothing is built. ``engine`` is None where Docker is not installed yet.
    """
    results = []
    for item in wanted:
        result = ItemResult(f"{item.user}/{item.project}")
        try:
            user = policy.user(item.user)
            result = build(
                engine,
                policy,
                user,
                item.project,
                progress=progress,
                check=check,
                build_args=dict(item.build_args),
            )
        except LabError as error:
            result.failed, result.message = True, str(error)
        results.append(result)
    return results


def build(
    engine: Engine | None,
    policy: Policy,
    user: User,
    project: str,
    *,
    progress: Callable[[str], None] = ignore,
    check: bool = False,
    build_args: Mapping[str, str] | None = None,
) -> ItemResult:
    """Build the image of a user's project if its fingerprint is new.

    ``facts``: image (the reference by fingerprint), fingerprint. Raises EngineError that names the line of
    the Dockerfile, and the errors of ``context.packed``; the old image then stays as it is.
    """
    arguments = dict(build_args or {})
    repository = names.image_repository(user.uid, project)
    result = ItemResult(f"{user.name}/{project}")
    if check and not _is_ready(engine, policy, user, project):
        return _to_build(result, repository, None, "")
    if engine is None:
        raise EngineError(
            "Docker Engine is not installed on this server.", "Apply the role lab.server.docker first."
        )
    with locks.hold(f"image-{user.uid}-{project}") if not check else contextlib.nullcontext():
        current = project_images(engine).get((user.uid, project))
        with context.packed(asuser.identity(policy, user), policy.workspace(user), project) as packed:
            wanted = fingerprint.sources(packed.dockerfile, arguments, user.uid)
            bases = _bases(engine, policy, wanted, check, progress)
            if bases is None:
                return _to_build(result, repository, current, "")
            digest = fingerprint.fingerprint(packed.members, arguments, bases)
            result.facts = {"image": f"{repository}:{digest[:12]}", "fingerprint": digest}
            if current is not None and current.fingerprint == digest:
                return result
            _to_build(result, repository, current, digest)
            if check:
                return result
            built = _find_built(engine, repository, user, project, digest) or _build(
                engine, user, project, packed, arguments, digest, progress
            )
        engine.tag(built, f"{repository}:{digest[:12]}")
        engine.tag(built, f"{repository}:latest")
    return result


def _to_build(result: ItemResult, repository: str, current: ProjectImage | None, digest: str) -> ItemResult:
    result.changed, result.actions = True, [BUILD, TAG]
    result.reason = "there is none" if current is None else "the project's files or its base image changed"
    after = f"{repository}:{digest[:12]}" if digest else "(to be built)"
    result.diff = {"before": {"image": current.reference if current else ""}, "after": {"image": after}}
    return result


def _is_ready(engine: Engine | None, policy: Policy, user: User, project: str) -> bool:
    """Say whether there is something to look at in check mode: an engine, and the project's folder."""
    if engine is None or not os.path.lexists(policy.workspace(user)):
        return False
    return workspaces.has_project(policy, user, project)


def _bases(
    engine: Engine, policy: Policy, wanted: Sequence[str], check: bool, progress: Callable[[str], None]
) -> dict[str, str] | None:
    """Return the ids of the images that a build starts from, fetching what is not here.

    None in check mode when one is missing: what it will be cannot be known.
    """
    found: dict[str, str] = {}
    for image in wanted:
        inspected = engine.inspect_image(image)
        if inspected is None:
            if check:
                return None
            inspected = _fetched(engine, policy, image, progress)
        triggers = (inspected.get("Config") or {}).get("OnBuild") or []
        if any("from=" in str(trigger).lower() for trigger in triggers):
            raise Refused(
                f"The image {names.printable(image)} copies from other images (ONBUILD).", "Use another one."
            )
        found[image] = str(inspected["Id"])
    return found


def _fetched(engine: Engine, policy: Policy, image: str, progress: Callable[[str], None]) -> dict[str, Any]:
    try:
        engine.pull(image, progress)
        inspected = engine.inspect_image(image)
    except LabError as error:
        here = ", ".join(base.name for base in policy.base_images) or "none"
        raise EngineError(
            f"The image {names.printable(image)} of the Dockerfile is not on this server: {error.message}",
            f"Base images here: {here}.",
        ) from error
    if inspected is None:
        raise EngineError(f"The image {names.printable(image)} was fetched, but is not there.", "Try again.")
    return inspected


def _find_built(engine: Engine, repository: str, user: User, project: str, digest: str) -> str | None:
    """Return the id of an image with this fingerprint, built before and still here: files that went back."""
    for image in engine.images(f"{repository}:{digest[:12]}"):
        labels = image.get("Labels") or {}
        found = tuple(labels.get(key) for key in (LABEL_OWNER, LABEL_PROJECT, LABEL_FINGERPRINT))
        if found == (str(user.uid), project, digest):
            return str(image["Id"])
    return None


def _build(
    engine: Engine,
    user: User,
    project: str,
    packed: context.Context,
    build_args: Mapping[str, str],
    digest: str,
    progress: Callable[[str], None],
) -> str:
    packed.archive.seek(0)
    request = BuildRequest(
        context=packed.archive,
        title=project,
        labels={
            LABEL_OWNER: str(user.uid),
            LABEL_PROJECT: project,
            LABEL_FINGERPRINT: digest,
            LABEL_KIND: "project",
        },
        build_args=build_args,
        cgroup_parent=cgroup_parent(user.uid, engine.facts.cgroup_driver),
        memory=user.limits.memory,
        cpus=min(user.limits.cpus, float(engine.facts.cpus)),
    )
    try:
        return engine.build(request, progress)
    except BuildFailed as error:
        if error.left_over:
            # Its parents without a name go with it, but none that another image stands on.
            engine.remove_image(error.left_over)
        raise EngineError(
            _explained(error, project, packed.dockerfile), "Older images stay as they are."
        ) from error


def _explained(error: BuildFailed, project: str, dockerfile: str) -> str:
    steps = fingerprint.instructions(dockerfile)
    said = (error.last or error.message).rstrip(".")
    if not 0 < error.step <= len(steps):
        return f"The image of {project} was not built: {said}."
    step = steps[error.step - 1]
    shown = names.printable(f"{step.word} {step.rest}")[:120]
    return (
        f"The image of {project} was not built: line {step.line} of its Dockerfile ({shown}) failed: {said}."
    )


# Base images


@dataclass(frozen=True)
class WantedBaseImage:
    """An image for projects to start from.

    Its source is a registry's reference (``image``) or an archive of ``docker save`` on this server
    (``archive``, a path). Where ``sha256`` tells its content, in hexadecimal, an archive whose image is there
    already need not be; a ``temporary`` one is removed once it was used. ``ca_certificates`` are paths of PEM
    files on this server; they and the environment become part of the image, so builds and containers have
    them.
    """

    name: str
    image: str = ""
    archive: str = ""
    sha256: str = ""
    temporary: bool = False
    ca_certificates: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


def wanted_base_images(
    images: Sequence[Mapping[str, str]],
    *,
    archives: str = "",
    digests: Mapping[str, str] = MappingProxyType({}),
    ca_certificates: Sequence[str] = (),
    environment: Sequence[tuple[str, str]] = (),
) -> list[WantedBaseImage]:
    """Return what an inventory's list of base images wants, with the same certificates and environment.

    ``archives`` is the folder on this server into which an image's archive was copied, as ``archive_name``
    says; without it an archive lies where the item says, and stays there. ``digests`` are the SHA-256 of the
    archives by image.
    """
    return [
        WantedBaseImage(
            name=image["name"],
            image=image.get("image") or "",
            archive=posixpath.join(archives, archive_name(image["name"]))
            if archives and image.get("archive")
            else image.get("archive") or "",
            sha256=digests.get(image["name"], ""),
            temporary=bool(archives),
            ca_certificates=tuple(ca_certificates),
            environment=tuple(environment),
        )
        for image in images
    ]


def archive_name(image: str) -> str:
    """Return the file name of a base image's archive in the folder of archives."""
    return image.replace("/", "_") + ".tar"


def base_images(engine: Engine | None, wanted: Sequence[WantedBaseImage], *, check: bool) -> list[ItemResult]:
    """Make the base images as wanted; one result an item. One failure does not stop the others."""
    results = []
    for item in wanted:
        result = ItemResult(item.name)
        results.append(result)
        try:
            _base_image(engine, item, check, result)
        except LabError as error:
            result.failed, result.message = True, str(error)
            result.changed, result.actions, result.diff = False, [], {}
    return results


def _base_image(engine: Engine | None, wanted: WantedBaseImage, check: bool, result: ItemResult) -> None:
    names.image_reference(wanted.name, "base image")
    if bool(wanted.image) == bool(wanted.archive):
        raise InvalidInput(
            f"The base image {wanted.name} needs an image or an archive.", "Set one of the two."
        )
    if wanted.sha256 and not _SHA256.fullmatch(wanted.sha256):
        raise InvalidInput(f"The sha256 of {wanted.name} is not one.", "Write 64 hexadecimal digits.")
    if wanted.name.startswith("lab/") and wanted.name.split("/")[1].isdigit():
        raise InvalidInput(f"{wanted.name} is a name for images of projects.", "Choose another name.")
    current = engine.inspect_image(wanted.name) if engine is not None else None
    before = _labels(current).get(LABEL_FINGERPRINT, "") if current else ""
    certificates = _certificates(wanted.ca_certificates, check)
    source = _source(wanted, check)
    digest = (
        _base_fingerprint(source, certificates, wanted.environment)
        if source and certificates is not None
        else ""
    )
    if digest and before == digest and _labels(current).get(LABEL_KIND) == "base":
        return
    result.changed = True
    result.actions = [LOAD if wanted.archive else PULL, BUILD, TAG]
    result.reason = "there is none" if current is None else "its archive, certificates or environment changed"
    result.diff = {
        "before": {"image": str(current["Id"]) if current else ""},
        "after": {"source": wanted.archive or wanted.image, "fingerprint": digest},
    }
    if check:
        return
    if engine is None:
        raise EngineError(
            "Docker Engine is not installed on this server.", "Apply the role lab.server.docker first."
        )
    with locks.hold("base-images"):
        _make_base_image(engine, wanted, certificates or {}, digest)


def _labels(inspected: Mapping[str, Any] | None) -> Mapping[str, str]:
    return ((inspected or {}).get("Config") or {}).get("Labels") or {}


def _make_base_image(
    engine: Engine, wanted: WantedBaseImage, certificates: Mapping[str, bytes], digest: str
) -> None:
    if wanted.archive:
        with _opened(wanted.archive) as archive:
            if wanted.sha256 and _digest_of(archive) != wanted.sha256:
                raise EngineError(f"The archive {wanted.archive} is damaged.", "Copy it again.")
            source = engine.load(archive)
    else:
        engine.pull(wanted.image)
        source = wanted.image
    inspected = engine.inspect_image(source)
    if inspected is None:
        raise EngineError(f"The image {source} is gone again.", "Try again.")
    user = str((inspected.get("Config") or {}).get("User") or "")
    files = _base_files(str(inspected["Id"]), user, certificates, wanted.environment)
    with _tar(files) as archive:
        request = BuildRequest(
            context=archive,
            title=wanted.name,
            labels={LABEL_KIND: "base", LABEL_FINGERPRINT: digest, LABEL_OWNER: "", LABEL_PROJECT: ""},
            build_args={},
        )
        engine.tag(engine.build(request), wanted.name)
    if wanted.archive and wanted.temporary:
        os.unlink(wanted.archive)


def _certificates(paths: Sequence[str], check: bool) -> dict[str, bytes] | None:
    """Return the certificates by their names in the image; None in check mode when one is not there."""
    found: dict[str, bytes] = {}
    for path in paths:
        try:
            with open(path, "rb") as file:
                content = file.read(_CERTIFICATE_LIMIT + 1)
        except OSError as error:
            if check:
                return None
            raise NotFound(
                f"The certificate {path} cannot be read: {error.strerror}.", "Correct the path."
            ) from error
        if b"-----BEGIN CERTIFICATE-----" not in content or len(content) > _CERTIFICATE_LIMIT:
            raise InvalidInput(f"{path} is not a certificate in PEM form.", "Name a PEM file.")
        found[f"lab-{hashlib.sha256(content).hexdigest()[:16]}.crt"] = content
    return found


def _source(wanted: WantedBaseImage, check: bool) -> str:
    """Return what identifies the source; "" in check mode when the archive is not there yet."""
    if wanted.image:
        return f"image {wanted.image}"
    if wanted.sha256:
        return f"archive {wanted.sha256}"
    try:
        with _opened(wanted.archive) as archive:
            return f"archive {_digest_of(archive)}"
    except NotFound:
        if check:
            return ""
        raise


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """Open an archive on the server; raise NotFound or InvalidInput."""
    try:
        archive = open(path, "rb")  # noqa: SIM115  # closed below; the try is for the opening alone
    except OSError as error:
        raise NotFound(
            f"The archive {path} cannot be read: {error.strerror}.", "Correct the path."
        ) from error
    with archive:
        if not stat.S_ISREG(os.fstat(archive.fileno()).st_mode):
            raise InvalidInput(f"{path} is not a regular file.", "Name an archive made by docker save.")
        yield archive


def _digest_of(archive: BinaryIO) -> str:
    """Return the SHA-256 of an open file, in hexadecimal, and go back to its start."""
    digest = hashlib.sha256()
    for chunk in iter(lambda: archive.read(1 << 20), b""):
        digest.update(chunk)
    archive.seek(0)
    return digest.hexdigest()


def _base_fingerprint(
    source: str, certificates: Mapping[str, bytes], environment: Sequence[tuple[str, str]]
) -> str:
    data = [_BASE_FORMAT, source, sorted(certificates), sorted(environment)]
    return hashlib.sha256(json.dumps(data).encode("utf-8")).hexdigest()


def _base_files(
    source: str, user: str, certificates: Mapping[str, bytes], environment: Sequence[tuple[str, str]]
) -> dict[str, bytes]:
    """Return the build context of the layer that makes a base image of a source, as paths and contents."""
    lines = [f"FROM {source}"]
    values = dict(environment)
    if certificates:
        lines += [
            "USER 0",
            "COPY certificates/ /usr/local/share/ca-certificates/",
            # Debian's tool keeps the bundle; an image without it has, or gets, a plain bundle.
            "RUN if command -v update-ca-certificates >/dev/null; then update-ca-certificates;"
            f" else mkdir -p {posixpath.dirname(_BUNDLE)}"
            f" && cat /usr/local/share/ca-certificates/lab-*.crt >> {_BUNDLE}; fi",
            f"USER {user or '0'}",
        ]
        for name in ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE"):
            values.setdefault(name, _BUNDLE)
    # A JSON string is a quoted word of a Dockerfile, but for the variables.
    for name, value in sorted(values.items()):
        quoted = json.dumps(value, ensure_ascii=False).replace("$", "\\$")
        lines.append(f"ENV {name}={quoted}")
    files = {f"certificates/{name}": content for name, content in certificates.items()}
    return {"Dockerfile": "\n".join(lines).encode("utf-8") + b"\n", **files}


@contextlib.contextmanager
def _tar(files: Mapping[str, bytes]) -> Iterator[BinaryIO]:
    # A file, since the program that builds needs a descriptor.
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for path, content in files.items():
                member = tarfile.TarInfo(path)
                member.size, member.mode = len(content), 0o644
                archive.addfile(member, io.BytesIO(content))
        file.seek(0)
        yield file
