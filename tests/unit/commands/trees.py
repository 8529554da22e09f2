# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Trees of files for the tests: any tree at all, and what one looks like."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

names = st.binary(min_size=1, max_size=6).map(
    lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"~").replace(b".", b"-") or b"x"
)
contents = st.binary(max_size=40) | st.builds(
    lambda zeros, end: bytes(zeros) + end,
    st.sampled_from([1 << 16, (1 << 20) + 1, 3 << 16]),
    st.binary(max_size=3),
)
times = st.integers(-(10**18), 4 * 10**18)
leaves = (
    st.tuples(st.just("file"), contents, st.sampled_from([0o644, 0o755, 0o600, 0o444, 0o4755]))
    | st.tuples(
        st.just("link"),
        st.binary(min_size=1, max_size=9).map(lambda raw: raw.replace(b"\0", b"/")),
        st.just(0),
    )
    | st.tuples(st.just("again"), st.integers(0, 9), st.just(0))
    | st.tuples(st.just("fifo"), st.just(b""), st.just(0))
)
trees: Any = st.recursive(
    st.dictionaries(names, leaves, max_size=4),
    lambda inner: st.dictionaries(names, leaves | inner, max_size=4),
    max_leaves=12,
)


def build(root: Path, tree: dict[bytes, Any], when: int = 10**18) -> None:
    """Make the folder ``root`` with that in it; everything in it was changed at ``when`` (nanoseconds)."""
    root.mkdir()
    _fill(os.fsencode(root), tree, [], when)


def _fill(folder: bytes, tree: dict[bytes, Any], files: list[bytes], when: int) -> None:
    for name, node in tree.items():
        path = folder + b"/" + name
        if isinstance(node, dict):
            os.mkdir(path)
            _fill(path, node, files, when)
            continue
        kind, value, mode = node
        if kind == "link":
            os.symlink(value, path)
            os.utime(path, ns=(when, when), follow_symlinks=False)
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "again" and files:
            os.link(files[value % len(files)], path)
        elif kind == "file":
            with open(path, "wb") as file:
                file.write(value)
            os.chmod(path, mode)
            os.utime(path, ns=(when, when))
            files.append(path)
    os.utime(folder, ns=(when, when))


def seen(root: Path) -> dict[bytes, tuple[Any, ...]]:
    """Return all that is kept of a tree, by path: kind, mode, time, content, and which names are one file."""
    found: dict[bytes, tuple[Any, ...]] = {}
    first: dict[int, bytes] = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        folders.sort()
        for name in (
            [b"", *sorted(folders + files)] if folder == os.fsencode(root) else sorted(folders + files)
        ):
            path = os.path.join(folder, name) if name else folder
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            content: Any = b""
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = (
                        hashlib.sha256(file.read()).digest(),
                        first.setdefault(status.st_ino, path[len(os.fsencode(root)) :]),
                    )
            elif not stat.S_ISDIR(status.st_mode):
                continue
            mode = stat.S_IMODE(status.st_mode)
            found[path[len(os.fsencode(root)) :]] = (kind, mode, status.st_mtime_ns, content)
    return found
