# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Base images of containers as archives that ``docker load`` takes, made from Debian's packages.

    base_image.py build python debian tiny      makes what is missing or stale, links it into .vm/images
    base_image.py path tiny                     the same for one, and prints where the archive lies

``debian`` (lab/debian) is a bare Debian 12, ``python`` (lab/python) the same with Python and pip: both have
the layer of the first, which a server unpacks once. ``tiny`` (lab/tiny) is a shell of 2 MB for the
integration tests. No registry is needed.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cache import Entry, ToolError, as_root, folder, run, say

ROOT = Path(__file__).resolve().parent.parent
LINKS = ROOT / ".vm" / "images"
EPOCH = 1_700_000_000
"""The time of every file and image: archives of equal content are equal bytes."""

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UNWANTED = [
    "/usr/share/man/*",
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/var/cache/*",
]
KEPT = ["/usr/share/doc/*/copyright"]

TINY_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
}
TINY_FOLDERS = {
    "bin": 0o755,
    "etc": 0o755,
    "home": 0o755,
    "root": 0o700,
    "srv": 0o755,
    "tmp": 0o1777,
    "var": 0o755,
}


@dataclass(frozen=True)
class Image:
    """A base image: its reference, how the tar of its tree is made, and the image below it, if any."""

    reference: str
    recipe: dict[str, object]
    layer: Callable[[Path], None]
    parent: str = ""


def debian(reference: str, release: str, packages: list[str], hooks: list[str], parent: str = "") -> Image:
    """Return an image of Debian's smallest variant with ``packages``; in ``hooks``, $1 is its tree."""
    options = [
        "--variant=minbase",
        "--format=tar",
        f"--include={','.join(packages)}",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in UNWANTED),
        *(f"--dpkgopt=path-include={pattern}" for pattern in KEPT),
        *(f"--customize-hook={hook}" for hook in hooks),
    ]

    def layer(work: Path) -> None:
        target = work / "layer.tar"
        command = [
            "env",
            f"SOURCE_DATE_EPOCH={EPOCH}",
            "mmdebstrap",
            *options,
            release,
            str(target),
        ]
        run(as_root(*command))
        run(as_root("chown", f"{os.getuid()}:{os.getgid()}", str(target)))

    return Image(reference, {"options": options, "release": release}, layer, parent)


def tiny_layer(work: Path) -> None:
    """Make the layer of the tiny image: one static busybox and its names."""
    command = ["apt-get", "download", "-q", "busybox-static"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    packages = list(work.glob("busybox-static_*.deb"))
    if done.returncode != 0 or not packages:
        raise ToolError(f"The package busybox-static cannot be downloaded.\n{done.stderr}")
    run(["dpkg-deb", "-x", str(packages[0]), str(work / "package")])
    # Its place moved from /bin to /usr/bin over the releases.
    program = next(path for path in (work / "package").glob("**/bin/busybox") if path.is_file())
    names = subprocess.run(
        [str(program), "--list"], capture_output=True, text=True, check=True
    ).stdout.split()
    with tarfile.open(work / "layer.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, mode in TINY_FOLDERS.items():
            tar.addfile(_member(name, mode, tarfile.DIRTYPE))
        for name, text in TINY_FILES.items():
            _add(tar, name, text.encode(), 0o644)
        _add(tar, "bin/busybox", program.read_bytes(), 0o755)
        for name in sorted(set(names) - {"busybox"}):
            link = _member(f"bin/{name}", 0o777, tarfile.SYMTYPE)
            link.linkname = "busybox"
            tar.addfile(link)


# The package that merged /usr has done its work; it alone holds 50 MB of Perl.
PURGE_PERL = 'chroot "$1" apt-get purge -qq -y usrmerge perl perl-modules-5.36 libperl5.36'

IMAGES = {
    # Debian marks its Python as managed by apt; in a container it is there for pip.
    "python": debian(
        "lab/python",
        "bookworm",
        ["ca-certificates", "procps", "python3", "python3-pip", "python3-venv", "usr-is-merged"],
        [
            PURGE_PERL,
            'rm -f "$1"/usr/lib/python3.*/EXTERNALLY-MANAGED',
            'ln -s python3 "$1/usr/bin/python"',
        ],
        parent="debian",
    ),
    # Without Debian's tool of certificates: servers have images that lack it.
    "debian": debian("lab/debian", "bookworm", ["usr-is-merged"], [PURGE_PERL]),
    "tiny": Image("lab/tiny", {"files": TINY_FILES, "folders": TINY_FOLDERS}, tiny_layer),
}


def _member(name: str, mode: int, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.mode, member.type, member.mtime = mode, kind, EPOCH
    return member


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    member = _member(name, mode)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def subtract(parent: Path, whole: Path, target: Path) -> None:
    """Write to ``target`` the layer that makes the tree of the tar ``whole`` of that of the tar ``parent``.

    What is gone is marked as the image specification says (OCI image-spec, layer.md: whiteouts).
    """
    with tarfile.open(parent) as below, tarfile.open(whole) as tree, tarfile.open(target, "w") as layer:
        known = {_path(member): _identity(below, member) for member in below}
        members = {_path(member): member for member in tree}
        for path, member in members.items():
            if known.get(path) != _identity(tree, member):
                _copy(tree, member, layer)
        for path in sorted(known.keys() - members.keys()):
            folder_of, _slash, name = path.rpartition("/")
            if not folder_of or folder_of in members:
                layer.addfile(_member(f"{folder_of}/.wh.{name}".lstrip("/"), 0o644))


def _path(member: tarfile.TarInfo) -> str:
    return os.path.normpath(member.name)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    """Return the content of a regular file or of what a hard link leads to; None for anything else."""
    content = tar.extractfile(member) if member.isreg() or member.islnk() else None
    return content.read() if content else None


def _identity(tar: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[object, ...]:
    """Return what makes two members the same; not the time of a folder, which any package changes."""
    content = _content(tar, member)
    shape = (member.type, member.linkname) if content is None else ()
    return (*shape, member.mode, member.uid, member.gid, content and hashlib.sha256(content).hexdigest())


def _copy(tar: tarfile.TarFile, member: tarfile.TarInfo, target: tarfile.TarFile) -> None:
    """Add a member of one tar to another; a hard link as a file, since its other end may not be there."""
    content = _content(tar, member)
    if content is None:
        target.addfile(member)
        return
    whole = copy.copy(member)
    whole.type, whole.linkname, whole.size = tarfile.REGTYPE, "", len(content)
    target.addfile(whole, io.BytesIO(content))


def write_archive(reference: str, layers: list[Path], target: Path) -> None:
    """Write the archive ``target`` of an image with the layers of these tars, the lowest first."""
    digests = [_digest(layer) for layer in layers]
    created = "2023-11-14T22:13:20Z"
    configuration = {
        "architecture": "amd64",
        "os": "linux",
        "created": created,
        "config": {"Env": [f"PATH={SEARCH_PATH}", "LANG=C.UTF-8"], "Cmd": ["/bin/sh"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
        "history": [{"created": created, "created_by": "tools/base_image.py"} for _digest_of_one in digests],
    }
    text = json.dumps(configuration, sort_keys=True).encode()
    name = f"{hashlib.sha256(text).hexdigest()}.json"
    places = [f"{digest}/layer.tar" for digest in digests]
    manifest = [{"Config": name, "RepoTags": [f"{reference}:latest"], "Layers": places}]
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, name, text, 0o644)
        for layer, digest, place in zip(layers, digests, places):
            tar.addfile(_member(digest, 0o755, tarfile.DIRTYPE))
            member = _member(place, 0o644)
            member.size = layer.stat().st_size
            with layer.open("rb") as content:
                tar.addfile(member, content)
        _add(tar, "manifest.json", json.dumps(manifest).encode(), 0o644)


def _digest(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def entry(name: str, *, force: bool = False) -> Path:
    """Return the folder with the archive of an image and its own layer, made when missing or stale."""
    image = IMAGES[name]
    below = entry(image.parent) if image.parent else None

    def make(work: Path) -> None:
        image.layer(work)
        layers = [work / "layer.tar"]
        if below:
            (work / "layer.tar").rename(work / "whole.tar")
            subtract(below / "layer.tar", work / "whole.tar", work / "layer.tar")
            layers.insert(0, below / "layer.tar")
        write_archive(image.reference, layers, work / "image.tar")
        for path in work.iterdir():
            if path.name not in ("image.tar", "layer.tar"):
                run(["rm", "-rf", str(path)])

    recipe = {"version": 2, "reference": image.reference, "path": SEARCH_PATH, **image.recipe}
    if below:
        recipe["parent"] = _digest(below / "layer.tar")
    return Entry(f"image-{name}", recipe).get(make, force=force)


def archive(name: str, *, force: bool = False) -> Path:
    """Return the archive of an image, made when it is missing or stale, and link it into the checkout."""
    path = entry(name, force=force) / "image.tar"
    LINKS.mkdir(parents=True, exist_ok=True)
    link = LINKS / f"{name}.tar"
    fresh = LINKS / f".{name}.{os.getpid()}"
    fresh.symlink_to(path)
    fresh.rename(link)
    return link


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Base images of containers, as archives for docker load.")
    parser.add_argument("verb", choices=["build", "path"])
    parser.add_argument("names", nargs="+", choices=IMAGES, metavar="|".join(IMAGES))
    parser.add_argument("--force", action="store_true", help="make it even if it is fresh")
    arguments = parser.parse_args()
    folder()
    try:
        for name in arguments.names:
            link = archive(name, force=arguments.force)
            size = link.stat().st_size / (1 << 20)
            print(link if arguments.verb == "path" else f"{IMAGES[name].reference}: {link} ({size:.0f} MiB)")
    except ToolError as error:
        say(f"base_image.py: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
