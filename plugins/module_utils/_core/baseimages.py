# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The images that projects start from: from a registry or an archive, with certificates and environment."""

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
from typing import Any, BinaryIO

from . import fingerprint, locks, names
from .engine import BuildRequest, Engine
from .errors import EngineError, InvalidInput, LabError, NotFound
from .items import ItemResult
from .spec import LABEL_OWNER, LABEL_PROJECT
from .versions import LABEL_BASE, LABEL_FINGERPRINT, LABEL_KIND

_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
_FORMAT = 1
_CERTIFICATE_LIMIT = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")

BUILD, LOAD, PULL, TAG = "build", "load", "pull", "tag"


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
    labels = {
        LABEL_KIND: "base",
        LABEL_FINGERPRINT: digest,
        LABEL_OWNER: "",
        LABEL_PROJECT: "",
        LABEL_BASE: "",
    }
    files = _base_files(str(inspected["Id"]), user, certificates, wanted.environment, labels)
    with _tar(files) as archive:
        request = BuildRequest(context=archive, title=wanted.name, build_args={})
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
    except FileNotFoundError:
        raise NotFound(f"There is no archive {path}.", "Correct the path.") from None
    except OSError as error:
        raise EngineError(
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
    data = [_FORMAT, source, sorted(certificates), sorted(environment)]
    return hashlib.sha256(json.dumps(data).encode("utf-8")).hexdigest()


def _base_files(
    source: str,
    user: str,
    certificates: Mapping[str, bytes],
    environment: Sequence[tuple[str, str]],
    labels: Mapping[str, str],
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
    if values:
        lines.append(f"ENV {fingerprint.assignments(values)}")
    files = {f"certificates/{name}": content for name, content in certificates.items()}
    dockerfile = "".join(f"{line}\n" for line in lines) + fingerprint.labels(labels)
    return {"Dockerfile": dockerfile.encode("utf-8"), **files}


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
