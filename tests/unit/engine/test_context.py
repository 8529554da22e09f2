"""What is sent of a project, what root accepts of it, and when it is known not to have changed."""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import subprocess
import tarfile
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import asuser, context, dockerignore
from ansible_collections.lab.server.plugins.module_utils._core.errors import InvalidInput, LabError, Refused
from docker.utils.build import PatternMatcher
from docker.utils.fnmatch import translate
from hypothesis import given
from hypothesis import strategies as st


def archive(*members: tuple[str, bytes, bytes | str]) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as opened:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if isinstance(content, str):
                info.linkname, content = content, b""
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    buffer.seek(0)
    return buffer


FILE, FOLDER, LINK = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE
DOCKERFILE = ("Dockerfile", FILE, b"FROM x\n")


def test_good():
    members, text = context.check(
        archive(DOCKERFILE, ("a", FOLDER, b""), ("a/b", FILE, b"x"), ("a/l", LINK, "/etc/shadow"))
    )
    assert text == "FROM x\n"
    assert [(member.path, member.kind) for member in members] == [
        ("Dockerfile", "f"),
        ("a", "d"),
        ("a/b", "f"),
        ("a/l", "l"),
    ]
    assert members[3].content == "/etc/shadow"


@pytest.mark.parametrize(
    "members",
    [
        [("/etc/passwd", FILE, b"")],
        [("../x", FILE, b"")],
        [("a/../../x", FILE, b"")],
        [("./a", FILE, b"")],
        [("a", FILE, b"1"), ("a", FILE, b"2")],
        [("Dockerfile", FILE, b"FROM y")],
        [("a", LINK, "/"), ("a/b", FILE, b"")],
        [("a", FILE, b""), ("a/b", FILE, b"")],
        [("a", tarfile.LNKTYPE, "Dockerfile")],
        [("a", tarfile.CHRTYPE, b"")],
        [("a", tarfile.BLKTYPE, b"")],
        [("a", tarfile.FIFOTYPE, b"")],
    ],
)
def test_bad(members):
    with pytest.raises(InvalidInput):
        context.check(archive(DOCKERFILE, *members))


@pytest.mark.parametrize("member", [("Dockerfile", LINK, "x"), ("Dockerfile", FOLDER, b""), ("x", FILE, b"")])
def test_no_dockerfile(member):
    with pytest.raises(InvalidInput, match="Dockerfile"):
        context.check(archive(member))


def test_too_much(monkeypatch):
    monkeypatch.setattr(context, "FILES_LIMIT", 2)
    with pytest.raises(Refused):
        context.check(archive(DOCKERFILE, ("a", FILE, b""), ("b", FILE, b"")))
    monkeypatch.setattr(context, "FILES_LIMIT", 9)
    monkeypatch.setattr(context, "BYTES_LIMIT", 9)
    with pytest.raises(Refused):
        context.check(archive(DOCKERFILE, ("a", FILE, b"xyz")))


def test_a_size_below_nothing_leads_nowhere():
    info = tarfile.TarInfo("a")
    info.size = -1024
    header = info.tobuf(tarfile.GNU_FORMAT)
    began = time.monotonic()
    with pytest.raises(InvalidInput):
        context.check(io.BytesIO(archive(DOCKERFILE).getvalue()[:1024] + header + bytes(4096)))
    assert time.monotonic() - began < 5


@given(st.binary(max_size=2000))
def test_garbage(data):
    with pytest.raises(LabError):
        context.check(io.BytesIO(data))


@given(st.integers(0, 3000))
def test_cut_off(length):
    whole = archive(DOCKERFILE, ("a", FILE, b"x" * 600)).getvalue()[:length]
    with contextlib.suppress(LabError):
        context.check(io.BytesIO(whole))


# What is sent


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return the folder of a project, in a workspace of its own."""
    folder = tmp_path / "net"
    (folder / "src").mkdir(parents=True)
    (folder / "Dockerfile").write_text("FROM x\n")
    (folder / "src/a.py").write_text("a = 1\n")
    return folder


def glance(folder: Path) -> str:
    return context._glance(str(folder.parent), folder.name)[0]


def pack(folder: Path) -> tuple[list[str], str]:
    """Return the paths that are sent, and how they looked."""
    output = io.BytesIO()
    digest, _newest = context._pack(str(folder.parent), folder.name, output)
    output.seek(0)
    return [member.path for member in context.check(output)[0]], digest


@pytest.mark.parametrize(
    ("lines", "sent"),
    [
        (
            [],
            [
                "Data",
                "Data/x",
                "Dockerfile",
                "a",
                "a/b",
                "a/b/c.log",
                "a/d.py",
                "data",
                "data/keep",
                "data/raw",
            ],
        ),
        (["data", "*/*.py"], ["Data", "Data/x", "Dockerfile", "a", "a/b", "a/b/c.log"]),
        (["**/*.log", "Data/"], ["Dockerfile", "a", "a/b", "a/d.py", "data", "data/keep", "data/raw"]),
        (["data", "!data/keep", "Data", "a"], ["Dockerfile", "data/keep"]),
        (["*"], ["Dockerfile"]),
        (["*", "!a/b"], ["Dockerfile", "a/b", "a/b/c.log"]),
        (["# data", "", "[a-c]", "./Data", "/data/../data/raw"], ["Dockerfile", "data", "data/keep"]),
    ],
)
def test_ignored(project, lines, sent):
    for path in ("data/raw", "data/keep", "Data/x", "a/b/c.log", "a/d.py"):
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).write_text("")
    (project / "src/a.py").unlink()
    (project / "src").rmdir()
    if lines:
        (project / ".dockerignore").write_text("\n".join(lines))
    assert [path for path in pack(project)[0] if path != ".dockerignore"] == sent


names = st.text("ab", min_size=1, max_size=2)
patterns = st.lists(
    st.builds(
        lambda mark, parts: mark + "/".join(parts),
        st.sampled_from(["", "!"]),
        st.lists(st.one_of(names, st.sampled_from(["*", "**", "?", "[a]"])), min_size=1, max_size=3),
    ),
    max_size=5,
)


@given(patterns, st.lists(names, min_size=1, max_size=4))
def test_ignored_as_the_sdk_does(lines, parts):
    ignored = context._Ignored.__new__(context._Ignored)
    ignored._patterns = context._patterns(lines)
    path, folder = "/".join(parts), "/".join(parts[:-1])
    assert ignored.below(folder)(path) == PatternMatcher([*lines, "!Dockerfile"]).matches(path)


@given(st.text("ab*?[]!^\\./-", max_size=8))
def test_a_pattern_means_what_it_means_to_the_sdk(text):
    assert dockerignore.expression(text) == translate(text)


@given(st.lists(st.text("ab*!./ ", max_size=8), max_size=4))
def test_lines_are_cleaned_as_the_sdk_does(lines):
    lines = [line for line in map(str.strip, lines) if line]
    found = [(one.text, one.depth, one.exception) for one in context._patterns(lines)]
    wanted = PatternMatcher([*lines, "!Dockerfile"]).patterns
    assert found == [(one.cleaned_pattern, len(one.dirs), one.exclusion) for one in wanted]


# What is known not to have changed


def test_looks_are_equal_where_contents_are(project):
    (project / "link").symlink_to("src")
    os.mkfifo(project / "fifo")
    first = glance(project)
    assert glance(project) == first
    assert pack(project)[1] == first
    (project / ".dockerignore").write_text("data\n.dockerignore")
    (project / "data").mkdir()
    (project / "data/raw").write_text("much")
    seen = glance(project)
    assert seen != first
    (project / "data/raw").write_text("more")
    os.utime(project / "src", (1, 1))
    assert glance(project) == seen


def same_time_and_size(path: Path) -> None:
    status = path.stat()
    path.write_text("b = 2\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def renamed_over(path: Path) -> None:
    status = path.stat()
    (path.parent / "new").write_text("b = 2\n")
    os.utime(path.parent / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
    (path.parent / "new").rename(path)


def swapped(path: Path) -> None:
    """Let two files of one size and time change their places."""
    other = path.parent / "b.py"
    path.rename(path.parent / "c")
    other.rename(path)
    (path.parent / "c").rename(other)


@pytest.mark.parametrize(
    "change",
    [
        same_time_and_size,
        renamed_over,
        swapped,
        lambda path: path.chmod(0o755),
        lambda path: path.unlink(),
        lambda path: path.rename(path.parent / "z.py"),
        lambda path: (path.parent / "empty").mkdir(),
        lambda path: (path.unlink(), path.symlink_to("b.py")),
        lambda path: ((path.parent / "link").unlink(), (path.parent / "link").symlink_to("b.py")),
    ],
)
def test_a_change_shows(project, change):
    path = project / "src/a.py"
    (path.parent / "b.py").write_text("b = 1\n")
    (path.parent / "link").symlink_to("a.py")
    for name in ("a.py", "b.py"):
        os.utime(path.parent / name, (1, 1))
    before = glance(project)
    # Later than the kernel's tick, as the rule of two seconds has it.
    time.sleep(0.02)
    change(path)
    assert glance(project) != before


def test_a_file_that_is_written_through_a_mapping_shows(project):
    path = project / "src/a.py"
    kind = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=True).stdout
    if kind.strip() == "tmpfs":
        pytest.skip("a tmpfs tells nobody that a mapped file changed, and no home is on one")
    # More than once: now and then the kernel writes the page out by itself just then.
    for _time in range(8):
        path.unlink(missing_ok=True)
        path.write_bytes(b"x" * 4096)
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096) as mapped:
            mapped[:1] = b"y"
            time.sleep(0.02)
            _paths, before = pack(project)
            time.sleep(0.02)
            # The page was dirty when the file was read. Nothing but the write-out makes this write known.
            mapped[:1] = b"z"
            assert glance(project) != before


@pytest.mark.parametrize("field", ["st_dev", "st_ino", "st_mode", "st_size", "st_mtime_ns", "st_ctime_ns"])
def test_everything_that_lstat_says_counts(field):
    status = dict.fromkeys(["st_dev", "st_ino", "st_mode", "st_size", "st_mtime_ns", "st_ctime_ns"], 1)

    def digest(**changed: int) -> str:
        walk = context._Walk(SimpleNamespace())
        walk._saw("a", SimpleNamespace(**{**status, **changed}))
        return walk.digest.hexdigest()

    assert digest(**{field: 2}) != digest()


@pytest.mark.parametrize(
    ("age", "settled"), [(2_000_000_001, True), (2_000_000_000, False), (0, False), (-5_000_000_000, False)]
)
def test_what_changed_just_now_is_read_again(age, settled):
    began = 1_700_000_000_000_000_000
    assert context.Look("0", began - age, began).settled == settled


@pytest.mark.parametrize("answer", [None, [], ["x"], ["x", "1"], [1, 1], {"x": 1}, ["x", 1, 2]])
def test_an_answer_that_is_none(answer):
    with pytest.raises(LabError):
        context._look_of(answer, 0)


# Too much


class _Endless:
    """A folder's listing with two million names, of which it is counted how many were asked for."""

    asked = 0
    total = 2_000_000

    def __enter__(self):
        return self

    def __exit__(self, *_rest):
        return None

    def __iter__(self):
        for number in range(self.total):
            _Endless.asked += 1
            yield SimpleNamespace(name=f"file-{number}", is_dir=lambda follow_symlinks: False)


def test_two_million_files_are_refused_at_the_limit(project, monkeypatch):
    monkeypatch.setattr(_Endless, "asked", 0)
    monkeypatch.setattr(context.os, "scandir", lambda _descriptor: _Endless())
    began = time.monotonic()
    with pytest.raises(Refused, match="dockerignore"):
        glance(project)
    assert _Endless.asked == context.FILES_LIMIT + 1
    assert time.monotonic() - began < 10


def test_ignored_files_are_passed_over_without_keeping_their_names(project, monkeypatch):
    (project / ".dockerignore").write_text("file-*")
    monkeypatch.setattr(_Endless, "asked", 0)
    monkeypatch.setattr(_Endless, "total", 200_000)
    monkeypatch.setattr(context.os, "scandir", lambda _descriptor: _Endless())
    tracemalloc.start()
    try:
        glance(project)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert _Endless.asked == 200_000
    # Bytes. The names alone would be more than 10 MB.
    assert peak < 2_000_000


def test_a_sparse_terabyte_is_not_read(project):
    (project / "big").touch()
    os.truncate(project / "big", 1 << 40)
    with pytest.raises(Refused, match="dockerignore"):
        glance(project)


def test_the_archive_of_many_files_needs_no_list_of_them(monkeypatch):
    kept = []
    forget = context._forget_members
    monkeypatch.setattr(
        context, "_forget_members", lambda opened: (kept.append(len(opened.members)), forget(opened))
    )
    context.check(archive(DOCKERFILE, *((f"f{number}", FILE, b"") for number in range(50))))
    assert len(kept) == 51
    assert max(kept) <= 1


SELF = asuser.Identity(61001, 61001) if os.geteuid() == 0 else asuser.Identity(os.getuid(), os.getgid())
SENT = (DOCKERFILE, ("a", FOLDER, b""), ("a/b", FILE, b"x" * 200_000), ("z", LINK, "a"))


@pytest.fixture
def sends(monkeypatch, tmp_path):
    """Return a function that sets what the user's child sends; the server's own folder is the test's."""
    monkeypatch.setattr(context, "STATE_DIRECTORY", str(tmp_path / "state"))

    def put(data=None, error=None):
        def pack(_workspace, _project, output):
            if error is not None:
                raise error
            output.write(data)
            return "digest", 7

        monkeypatch.setattr(context, "_pack", pack)

    return put


def test_a_context_that_is_not_kept_is_the_same_and_takes_no_space(sends, tmp_path, monkeypatch):
    sends(archive(*SENT).getvalue())
    with context.packed(SELF, "/w", "net") as kept:
        assert len(kept.archive.read()) > 200_000
        monkeypatch.setattr(context, "_temporary_file", pytest.fail)
        with context.packed(SELF, "/w", "net", keep=False) as passed:
            assert (passed.members, passed.dockerfile) == (kept.members, kept.dockerfile)
            assert (passed.look.digest, passed.look.newest) == (kept.look.digest, kept.look.newest)
            assert passed.archive.read() == b""
    assert len(kept.members) == 4


@pytest.mark.parametrize("keep", [True, False])
def test_a_context_that_cannot_be_had_is_refused_alike_whether_it_is_kept(sends, monkeypatch, keep):
    def refused(kind, words):
        with pytest.raises(kind, match=words), context.packed(SELF, "/w", "net", keep=keep):
            pass

    sends(error=Refused("No Dockerfile of a kind that can be read."))
    refused(Refused, "of a kind")
    sends(archive(("/etc/passwd", FILE, b"")).getvalue())
    refused(InvalidInput, r"not allowed.*Try again.*\.dockerignore")
    sends(archive(*SENT).getvalue()[:100_000])
    refused(InvalidInput, "broken")
    sends(archive(*SENT).getvalue() + bytes(50_000))
    for name, value in (("BYTES_LIMIT", 100_000), ("_MEMBER_COST", 0)):
        monkeypatch.setattr(context, name, value)
    refused(Refused, r"too large|would go into")


def test_the_builder_unpacks_what_was_put_in_last():
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as opened:
        for name, content in (("Dockerfile", b"FROM evil"), ("z", b"z")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    context.put_in(archive, {"Dockerfile": "FROM good\n"})
    assert archive.tell() == 0
    with tarfile.open(fileobj=archive, mode="r:") as opened:
        # As it is unpacked: the last of one name stays.
        there = {member.name: opened.extractfile(member).read() for member in opened}
    assert there == {"Dockerfile": b"FROM good\n", "z": b"z"}


def test_what_is_put_in_below_a_folder_has_that_folder_whatever_was_there():
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as opened:
        link = tarfile.TarInfo("a")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        opened.addfile(link)
    context.put_in(archive, {"a/b/c": "x"}, {"a/b/c": 0o755})
    with tarfile.open(fileobj=archive, mode="r:") as opened:
        last = {member.name: (member.type, member.mode) for member in opened}
    assert last == {
        "a": (tarfile.DIRTYPE, 0o755),
        "a/b": (tarfile.DIRTYPE, 0o755),
        "a/b/c": (tarfile.REGTYPE, 0o755),
    }
