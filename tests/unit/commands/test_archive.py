# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A project as one file: what goes in comes out, and nothing else ever does."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import tarfile
import tempfile
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import archive, asuser, safefs
from ansible_collections.lab.server.plugins.module_utils._core.archive import Entry
from ansible_collections.lab.server.plugins.module_utils._core.asuser import Identity
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError, InvalidInput, LabError
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import build, seen, times, trees

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


def pack(folder: Path, **options: Any) -> tuple[bytes, archive.Look]:
    """Return the archive of a folder, and how it looked."""
    output = io.BytesIO()
    descriptor = os.open(folder, _DIRECTORY)
    try:
        look = archive.pack(descriptor, "thesis", output, **options)
        return output.getvalue(), look
    finally:
        os.close(descriptor)


def unpack(data: bytes, folder: Path, *, own: bool = True) -> archive.Whole:
    """Unpack an archive to a new folder."""
    folder.mkdir()
    descriptor = os.open(folder, _DIRECTORY)
    try:
        visitor = archive.Unpacking(descriptor, own=own)
        whole = archive.read(io.BytesIO(data), visitor)
        visitor.finish()
        return whole
    finally:
        os.close(descriptor)


def compare(data: bytes, folder: Path) -> archive.Whole:
    """Compare an archive with a folder."""
    descriptor = os.open(folder, _DIRECTORY)
    try:
        return archive.read(io.BytesIO(data), archive.Comparing(descriptor))
    finally:
        os.close(descriptor)


@settings(deadline=None, max_examples=60)
@given(tree=trees, when=times)
def test_what_is_packed_is_what_is_unpacked(tree: dict[bytes, Any], when: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder, again = Path(place, "one"), Path(place, "two")
        build(folder, tree, when)
        data, look = pack(folder)
        whole = compare(data, folder)
        assert unpack(data, again) == whole
        assert seen(again) == seen(folder)
        assert (whole.files, whole.bytes) == (look.files, look.bytes)
        assert list(whole.left_out) == look.special and not look.blocked


TREE = {
    b"a": {b"file": ("file", b"content" * 9, 0o644), b"link": ("link", b"../b", 0)},
    b"b": ("file", bytes(1 << 16) + b"end", 0o600),
    b"c": ("again", 0, 0),
}


@settings(deadline=None, max_examples=150)
@given(place_of=st.floats(0, 1, exclude_max=True), flip=st.integers(0, 255))
def test_a_damaged_archive_is_refused_or_gives_the_same(place_of: float, flip: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder, again = Path(place, "one"), Path(place, "two")
        build(folder, TREE)
        whole, _look = pack(folder)
        at = int(place_of * len(whole))
        broken = whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :] if flip else whole[:at]
        try:
            unpack(broken, again)
        except InvalidInput:
            return
        assert seen(again) == seen(folder)  # a byte of gzip's header that says nothing


def test_the_content_counts_not_only_its_frame(tmp_path: Path) -> None:
    build(tmp_path / "one", TREE)
    plain = gzip.decompress(pack(tmp_path / "one")[0])
    changed = gzip.compress(plain.replace(b"contentcontent", b"contentCONTENT"))
    with pytest.raises(InvalidInput, match="a/file is not as the manifest says"):
        unpack(changed, tmp_path / "two")


def test_tar_reads_it(tmp_path: Path) -> None:
    build(tmp_path / "one", TREE)
    (tmp_path / "x.tar.gz").write_bytes(pack(tmp_path / "one")[0])
    subprocess.run(["tar", "xzpf", "x.tar.gz"], cwd=tmp_path, check=True)
    assert seen(tmp_path / "thesis") == seen(tmp_path / "one")
    assert (tmp_path / "thesis.manifest").read_text().count("\n") == 7


def test_holes_stay_holes(tmp_path: Path) -> None:
    build(tmp_path / "one", {})
    with open(tmp_path / "one/sparse", "wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"data")
    data, _look = pack(tmp_path / "one")
    assert len(data) < 200_000
    unpack(data, tmp_path / "two")
    assert os.stat(tmp_path / "two/sparse").st_blocks * 512 < 1 << 20
    assert seen(tmp_path / "two") == seen(tmp_path / "one")


# ---- what is outside -------------------------------------------------------------------------------------


def test_a_link_is_never_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret-of-bob")
    build(tmp_path / "one", {})
    (tmp_path / "one/file").symlink_to(tmp_path / "outside/secret")
    (tmp_path / "one/folder").symlink_to(tmp_path / "outside")
    data, look = pack(tmp_path / "one")
    assert b"secret-of-bob" not in gzip.decompress(data) and look.files == 0
    assert set(unpack(data, tmp_path / "two").links_out) == {"file", "folder"}
    assert os.readlink(tmp_path / "two/folder") == str(tmp_path / "outside")


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_becomes_a_link_meanwhile_is_not_followed(tmp_path: Path, what: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/inner").write_text("secret-of-bob")
    build(tmp_path / "one", {b"a": ("file", b"x" * 9, 0o644), b"z": {b"inner": ("file", b"y", 0o644)}})
    (tmp_path / "one/zz").write_text("z")

    def swap(_bytes: int, path: str) -> None:
        name = tmp_path / "one" / ("z" if what == "folder" else "zz")
        if path == "a" and not name.is_symlink():
            name.rename(tmp_path / "away")
            name.symlink_to(tmp_path / "outside" if what == "folder" else tmp_path / "outside/inner")

    with pytest.raises(LabError):
        pack(tmp_path / "one", progress=swap)


def test_a_file_that_changes_meanwhile_is_told(tmp_path: Path) -> None:
    build(tmp_path / "one", {b"a": ("file", b"x" * 9, 0o644)})

    def write(_bytes: int, path: str) -> None:
        with open(tmp_path / "one/a", "ab") as file:
            file.write(b"more")

    with pytest.raises(HostError, match="a changed while it was packed"):
        pack(tmp_path / "one", progress=write)
    with pytest.raises(HostError, match="a changed while it was packed"):
        pack(tmp_path / "one", progress=lambda _bytes, path: os.truncate(tmp_path / "one/a", 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda one: (one / "b").write_bytes(bytes(1 << 16) + b"END"),
        lambda one: (one / "b").chmod(0o640),
        lambda one: ((one / "a/link").unlink(), (one / "a/link").symlink_to("../c")),
        lambda one: ((one / "c").unlink(), (one / "c").write_bytes(b"content" * 9)),
        lambda one: (one / "b").unlink(),
        lambda one: os.utime(one / "b", ns=(1, 1)),
    ],
)
def test_a_comparison_finds_every_difference(tmp_path: Path, change: Any) -> None:
    build(tmp_path / "one", TREE)
    data, _look = pack(tmp_path / "one")
    times_of_b = os.stat(tmp_path / "one/b").st_mtime_ns
    change(tmp_path / "one")
    if (tmp_path / "one/b").exists() and os.stat(tmp_path / "one/b").st_mtime_ns != 1:
        os.utime(tmp_path / "one/b", ns=(times_of_b, times_of_b))  # who hides a change
    with pytest.raises(LabError):
        compare(data, tmp_path / "one")


def test_a_look_is_the_same_where_the_disk_got_another_number(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    status = (tmp_path / "f").stat()
    facts = {name: getattr(status, name) for name in dir(status) if name.startswith("st_")}

    def digest(**changes: int) -> str:
        look = archive.Look()
        look.add(archive.Found("f", SimpleNamespace(**{**facts, **changes})))
        return look.digest

    assert digest(st_dev=status.st_dev + 1) == digest()
    assert digest(st_ctime_ns=status.st_ctime_ns + 1) != digest()


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can be somebody else, and root reads everything")
def test_what_cannot_be_read_is_told_and_left_out(tmp_path: Path) -> None:
    build(tmp_path / "one", {b"a": ("file", b"x", 0o644), b"d": {b"e": ("file", b"y", 0o644)}})
    (tmp_path / "one/closed").write_text("z")
    for path in ("one", "one/a", "one/closed", "one/d"):
        os.chown(tmp_path / path, 2001, 2001)
    (tmp_path / "one/closed").chmod(0)
    (tmp_path / "one/d").chmod(0o300)

    # Its parents are root's alone.
    descriptor = os.open(tmp_path / "one", _DIRECTORY)

    def work() -> list[Any]:
        output = io.BytesIO()
        look = archive.pack(descriptor, "thesis", output)
        output.seek(0)
        whole = archive.read(output, archive.Comparing(descriptor))
        return [look.blocked, whole.files, list(whole.left_out)]

    blocked, files, left_out = asuser.run_as_user(Identity(2001, 2001), work, keep=(descriptor,))
    os.close(descriptor)
    assert blocked == left_out == ["closed: it cannot be read", "d: it cannot be read"] and files == 1


def test_what_is_made_anew_by_itself_is_no_export(tmp_path: Path) -> None:
    file = ("file", b"x", 0o644)
    tag = ("file", b"Signature: 8a477f597d28d172789f06886806bc55\n", 0o644)
    build(
        tmp_path / "one",
        {
            b"src": {b"a-py": file, b"__pycache__": {b"a-pyc": file}},
            b"env": {b"pyvenv_cfg": file},
            b"tagged": {b"data": file},
            b"untagged": {b"data": file},
        },
    )
    (tmp_path / "one/.cache/pip").mkdir(parents=True)
    (tmp_path / "one/env/pyvenv.cfg").write_text("home = /usr/bin")
    (tmp_path / "one/tagged/CACHEDIR.TAG").write_bytes(tag[1])
    (tmp_path / "one/untagged/CACHEDIR.TAG").write_bytes(b"none")
    unpack(pack(tmp_path / "one", leave_out=archive.caches)[0], tmp_path / "two")
    left = {os.fsdecode(path) for path in seen(tmp_path / "two")} - {""}
    assert left == {"/src", "/src/a-py", "/untagged", "/untagged/data", "/untagged/CACHEDIR.TAG"}


def test_a_folder_is_looked_at_a_part_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        (tmp_path / f"f{number}").touch()
    monkeypatch.setattr(archive, "_AT_ONCE", 3)
    looked, real = [], os.stat

    def stat(path: Any, **options: Any) -> os.stat_result:
        looked.append(path)
        return real(path, **options)

    monkeypatch.setattr(os, "stat", stat)
    with safefs.opened(str(tmp_path)) as folder:
        walk = archive.walk(folder)
        assert [next(walk).path for _one in range(3)] == ["", "f0", "f1"]
        assert looked == ["f0", "f1", "f2"]
        assert [one.path for one in walk] == [f"f{number}" for number in range(2, 10)]


def test_little_is_held_of_each_of_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Both are full with 200 files already.
    monkeypatch.setattr(archive, "_CHUNK", 1 << 12)
    monkeypatch.setattr(archive, "_BLOCK", 1 << 16)
    held: dict[str, list[int]] = {"pack": [], "read": []}
    for count in (200, 600):
        for number in range(count):
            inner = tmp_path / str(count) / f"d{number // 20}"
            inner.mkdir(parents=True, exist_ok=True)
            (inner / f"{'x' * 150}{number}").touch()
        with safefs.opened(str(tmp_path / str(count))) as folder, tempfile.TemporaryFile() as file:
            for name, peaks in held.items():
                file.seek(0)
                tracemalloc.start()
                if name == "pack":
                    archive.pack(folder, "thesis", file)
                else:
                    archive.read(file, archive.Visitor())
                peaks.append(tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
    bytes_a_file = {name: (peaks[1] - peaks[0]) / 400 for name, peaks in held.items()}
    # Who reads needs the names, to refuse one that is there twice.
    assert bytes_a_file["pack"] < 200 and bytes_a_file["read"] < 500, bytes_a_file


# ---- archives that nobody of ours made -------------------------------------------------------------------


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, 0o755 if kind == tarfile.DIRTYPE else mode
    return info


def made_of(*members: tarfile.TarInfo, manifest: bytes | None = None) -> bytes:
    """Return an archive of these empty members with a manifest that is right for them."""
    output = io.BytesIO()
    kinds = {tarfile.DIRTYPE: "d", tarfile.SYMTYPE: "l", tarfile.LNKTYPE: "h"}
    text = b'{"format": 1, "left_out": [], "made": 0, "project": "thesis"}\n'
    with tarfile.open(fileobj=output, mode="w:gz", format=tarfile.PAX_FORMAT) as made:
        for info in members:
            made.addfile(info)
            kind = kinds.get(info.type, "f")
            content = {"l": info.linkname, "h": info.linkname[7:], "f": EMPTY}.get(kind, "")
            text += Entry(info.name[7:], kind, info.mode, 0, 0, content).line()
        text = text if manifest is None else manifest
        end = tarfile.TarInfo("thesis.manifest")
        end.size = len(text)
        made.addfile(end, io.BytesIO(text))
    return output.getvalue()


TOP = member("thesis", tarfile.DIRTYPE)
EMPTY = hashlib.sha256().hexdigest()


def test_the_same_by_hand_is_taken(tmp_path: Path) -> None:
    unpack(
        made_of(TOP, member("thesis/a"), member("thesis/l", tarfile.SYMTYPE, "/etc", 0o777)), tmp_path / "x"
    )
    assert sorted(os.listdir(tmp_path / "x")) == ["a", "l"]


@pytest.mark.parametrize(
    "members",
    [
        [],
        [member("thesis")],
        [member("thesis", tarfile.SYMTYPE, "/tmp")],
        [member("Thesis", tarfile.DIRTYPE)],
        [member("thesis/a", tarfile.DIRTYPE)],
        [TOP, member("/etc/evil")],
        [TOP, member("thesis/../evil")],
        [TOP, member("../evil")],
        [TOP, member("thesis/./a")],
        [TOP, member("thesis//a")],
        [TOP, member("other/a")],
        [TOP, member("other", tarfile.DIRTYPE)],
        [TOP, TOP],
        [TOP, member("thesis/a"), member("thesis/a")],
        [TOP, member("thesis/a"), member("thesis/a/b")],
        [TOP, member("thesis/a/b")],
        [TOP, member("thesis/l", tarfile.SYMTYPE, "/tmp"), member("thesis/l/evil")],
        [TOP, member("thesis/l", tarfile.SYMTYPE, "."), member("thesis/l", tarfile.DIRTYPE)],
        [TOP, member("thesis/h", tarfile.LNKTYPE, "/etc/passwd")],
        [TOP, member("thesis/h", tarfile.LNKTYPE, "thesis/../../etc/passwd")],
        [TOP, member("thesis/h", tarfile.LNKTYPE, "thesis")],
        [TOP, member("thesis/l", tarfile.SYMTYPE, "x"), member("thesis/h", tarfile.LNKTYPE, "thesis/l")],
        [TOP, member("thesis/dev", tarfile.CHRTYPE)],
        [TOP, member("thesis/dev", tarfile.BLKTYPE)],
        [TOP, member("thesis/fifo", tarfile.FIFOTYPE)],
        [TOP, member("thesis/sparse", tarfile.GNUTYPE_SPARSE)],
    ],
)
def test_what_none_of_ours_has_is_refused(tmp_path: Path, members: list[tarfile.TarInfo]) -> None:
    with pytest.raises(InvalidInput):
        unpack(made_of(*members), tmp_path / "x")
    assert not (tmp_path / "evil").exists() and not Path("/tmp/evil").exists()


@pytest.mark.parametrize("chunk", [1, 300, 1 << 20])
def test_a_manifest_is_compared_to_its_end(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    head = b'{"format": 1, "left_out": [], "made": 0, "project": "thesis"}\n'
    text = head + b"".join(
        Entry(path, kind, mode, 0, 0, content).line()
        for path, kind, mode, content in (
            ("", "d", 0o755, ""),
            ("a", "f", 0o644, EMPTY),
            ("b", "f", 0o644, EMPTY),
        )
    )
    members = (TOP, member("thesis/a"), member("thesis/b"))
    # The header of gzip has the time.
    assert gzip.decompress(made_of(*members, manifest=text)) == gzip.decompress(made_of(*members))
    monkeypatch.setattr(archive, "_CHUNK", chunk)

    def read(manifest: bytes) -> int:
        return archive.read(io.BytesIO(made_of(*members, manifest=manifest)), archive.Visitor()).files

    assert read(text) == 2
    for wrong in (text[:-1], text + b"\n", text + Entry("c", "f", 0o644, 0, 0, EMPTY).line(), head):
        with pytest.raises(InvalidInput, match="is not as the manifest says"):
            read(wrong)
    with pytest.raises(InvalidInput, match=r"^b is not as the manifest says"):
        read(text.replace(b'"b", "f", "0644"', b'"b", "f", "0755"'))


@pytest.mark.parametrize(
    "manifest",
    [b"", b"{}\n", b"[]\n", b'{"format": 2, "left_out": [], "project": "thesis"}\n', b"\xff\xfe\n"],
)
def test_a_manifest_of_another_kind_is_refused(tmp_path: Path, manifest: bytes) -> None:
    line = Entry("", "d", 0o755, 0, 0, "").line()
    with pytest.raises(InvalidInput):
        unpack(made_of(TOP, manifest=manifest + line), tmp_path / "x")


@pytest.mark.parametrize(
    "data", [b"", b"not gzip at all", gzip.compress(b"", mtime=0), gzip.compress(b"no tar" * 500, mtime=0)]
)
def test_what_is_no_archive_is_said_so(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InvalidInput):
        unpack(data, tmp_path / "x")


def test_setuid_is_for_ones_own_archives_alone(tmp_path: Path) -> None:
    data = made_of(TOP, member("thesis/program", mode=0o4755))
    unpack(data, tmp_path / "own")
    unpack(data, tmp_path / "other", own=False)
    assert os.stat(tmp_path / "own/program").st_mode & 0o7777 == 0o4755
    assert os.stat(tmp_path / "other/program").st_mode & 0o7777 == 0o755


def test_an_archive_is_no_part_of_itself(tmp_path: Path) -> None:
    build(tmp_path / "one", {})
    descriptor = os.open(tmp_path / "one", _DIRECTORY)
    try:
        with (
            open(tmp_path / "one/out", "wb") as output,
            pytest.raises(InvalidInput, match="of the project itself"),
        ):
            archive.pack(descriptor, "thesis", output)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("path", "target", "out"),
    [
        ("a", "b", False),
        ("a/b", "../c", False),
        ("a", "../x", True),
        ("a/b", "../../x", True),
        ("a", "/etc", True),
        ("a/b", "../../thesis/x", True),
        ("a", ".", False),
        ("a", "b/../../x", True),
    ],
)
def test_links_that_lead_out(path: str, target: str, *, out: bool) -> None:
    assert archive.leads_out(path, target) is out
