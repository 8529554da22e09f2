"""Files, locks and markers, and the child that becomes a user (as far as this process may)."""

from __future__ import annotations

import errno
import os
import signal
import stat
import tempfile
import threading
import time
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    asuser,
    fingerprint,
    hostfiles,
    locks,
    safefs,
    scaffold,
    state,
)
from ansible_collections.lab.server.plugins.module_utils._core.asuser import Identity
from ansible_collections.lab.server.plugins.module_utils._core.errors import (
    HostError,
    InvalidInput,
    NotFound,
    Refused,
)

SELF = Identity(61001, 61001, (61002,)) if os.geteuid() == 0 else Identity(os.getuid(), os.getgid())


@pytest.fixture
def folder(tmp_path: Path):
    descriptor = safefs.open_directory(str(tmp_path))
    yield descriptor
    os.close(descriptor)


@pytest.fixture(params=["openat2", "steps"])
def way(request, monkeypatch):
    """Run a test with the system call, and with what stands in for it."""
    if request.param == "steps":

        def missing(*_arguments):
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(safefs, "_openat2", missing)


def test_reads_and_creates(folder, tmp_path, way):
    assert safefs.make_directory(folder, "a")
    assert not safefs.make_directory(folder, "a")
    assert safefs.create_file(folder, "a/b", b"text")
    assert not safefs.create_file(folder, "a/b", b"other")
    assert safefs.read_file(folder, "a/b", 4) == b"text"
    with pytest.raises(InvalidInput, match="larger"):
        safefs.read_file(folder, "a/b", 3)
    with pytest.raises(NotFound):
        safefs.read_file(folder, "a/c", 3)


@pytest.mark.parametrize("path", ["", "/a", "../a", "a/../b", "a//b", "./a", "a/", "a\0b"])
def test_paths_that_are_none(folder, path):
    with pytest.raises(InvalidInput):
        safefs.open_beneath(folder, path)


def test_links_are_not_followed(folder, tmp_path, way):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/file").write_text("x")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real/link").symlink_to("file")
    for path in ("link/file", "real/link", "link"):
        with pytest.raises(InvalidInput):
            safefs.read_file(folder, path, 9)
    assert not safefs.create_file(folder, "real/link", b"y")
    with pytest.raises(InvalidInput):
        safefs.create_file(folder, "link/new", b"y")
    with pytest.raises(InvalidInput):
        safefs.make_directory(folder, "link")
    with pytest.raises(InvalidInput):
        safefs.open_directory(str(tmp_path / "link"))
    assert (tmp_path / "real/file").read_text() == "x"


def test_a_fifo_is_not_waited_for(folder, tmp_path, way):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidInput, match="regular"):
        safefs.read_file(folder, "pipe", 9)


def test_write_atomically(tmp_path):
    path = tmp_path / "file"
    safefs.write_atomically(str(path), b"one", 0o640)
    safefs.write_atomically(str(path), b"two", 0o640)
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["file"]


def test_a_written_file_lasts_through_a_loss_of_power(tmp_path, monkeypatch):
    done, fsync, rename = [], os.fsync, os.rename

    def synced(descriptor):
        fsync(descriptor)
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")

    def renamed(old, new):
        rename(old, new)
        done.append("name")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    safefs.write_atomically(str(tmp_path / "state"), b"new")
    assert done == ["file", "name", "folder"]


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_write_that_fails_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch, call):
    path = tmp_path / "state"
    path.write_bytes(b"old")

    def fail(*_given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(HostError, match="No space left"):
        safefs.write_atomically(str(path), b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["state"]


# The child


def test_the_child_has_become_the_user():
    def look():
        status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return {
            "uids": os.getresuid(),
            "groups": os.getgroups(),
            "privileges": status["NoNewPrivs"].strip(),
            "directory": os.getcwd(),
            "files": sorted(os.listdir("/proc/self/fd")),
        }

    seen = asuser.run_as_user(SELF, look)
    assert seen["uids"] == [SELF.uid] * 3
    assert seen["privileges"] == "1"
    assert seen["directory"] == "/"
    # 0 to 2, the two pipes, and the listing itself.
    assert len(seen["files"]) == 6
    if os.geteuid() == 0:
        assert seen["groups"] == [61002]


def test_errors_cross():
    def refuse():
        raise Refused("No.", "Ask.")

    with pytest.raises(Refused) as caught:
        asuser.run_as_user(SELF, refuse)
    assert (caught.value.message, caught.value.hint) == ("No.", "Ask.")
    with pytest.raises(HostError, match="ZeroDivisionError"):
        asuser.run_as_user(SELF, lambda: 1 // 0)
    with pytest.raises(HostError, match=r"permission denied|No such file"):
        asuser.run_as_user(SELF, lambda: os.listdir("/root/none"))
    with pytest.raises(HostError, match="failed"):
        asuser.run_as_user(SELF, object)


def test_a_child_that_does_not_end():
    began = time.monotonic()
    with pytest.raises(HostError, match="too long"):
        asuser.run_as_user(SELF, lambda: time.sleep(60), timeout=0.3)
    assert time.monotonic() - began < 5


def test_a_child_that_is_killed():
    with pytest.raises(HostError, match="signal 9"):
        asuser.run_as_user(SELF, lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_never_as_root():
    for who in (Identity(0, 5), Identity(5, 0), Identity(5, 5, (0,))):
        with pytest.raises(HostError):
            asuser.run_as_user(who, lambda: 1)


def test_stream():
    with tempfile.TemporaryFile() as output:
        assert asuser.stream_as_user(
            SELF, lambda out: out.write(b"x" * 200_000), output, timeout=9, limit=200_000
        )
        assert output.tell() == 200_000
        with pytest.raises(Refused):
            asuser.stream_as_user(
                SELF, lambda out: out.write(b"x" * 200_001), output, timeout=9, limit=200_000
            )


def test_what_is_read_as_it_comes():
    def read(take, function=lambda out: out.write(b"x" * 200_000), timeout=9.0, limit=200_000):
        return asuser.read_as_user(SELF, function, take, timeout=timeout, limit=limit)

    def refuse(coming):
        raise InvalidInput(coming.read(4).decode())

    def fail(out):
        out.write(b"x" * 200_000)
        raise NotFound("It is gone.")

    # What is not taken is passed over, so that the child comes to its end.
    assert read(lambda coming: coming.read(3)) == (200_000, b"xxx")
    assert read(lambda coming: len(b"".join(iter(lambda: coming.read(7000), b"")))) == (200_000, 200_000)
    with pytest.raises(InvalidInput, match="xxxx"):
        read(refuse)
    with pytest.raises(NotFound, match="gone"):
        read(refuse, fail)
    with pytest.raises(Refused, match="too large"):
        read(lambda coming: coming.read(3), limit=199_999)
    with pytest.raises(HostError, match="too long"):
        read(lambda coming: coming.read(3), lambda _out: time.sleep(60), timeout=0.3)


# Locks and markers


def test_lock_excludes(tmp_path):
    with locks.hold("a", directory=str(tmp_path)):
        with locks.hold("b", directory=str(tmp_path)):
            pass
        with (
            pytest.raises(Refused, match="at work on a"),
            locks.hold("a", timeout=0.05, directory=str(tmp_path)),
        ):
            pass
    with locks.hold("a", timeout=0, directory=str(tmp_path)):
        pass


def test_lock_waits(tmp_path):
    order = []

    def second():
        with locks.hold("a", directory=str(tmp_path)):
            order.append(2)

    with locks.hold("a", directory=str(tmp_path)):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.1)
        order.append(1)
    thread.join()
    assert order == [1, 2]


def test_lock_dies_with_its_holder(tmp_path):
    child = os.fork()
    if child == 0:
        with locks.hold("a", directory=str(tmp_path)):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with locks.hold("a", timeout=0, directory=str(tmp_path)):
        pass


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", ".."])
def test_lock_names(name, tmp_path):
    with pytest.raises(InvalidInput), locks.hold(name, directory=str(tmp_path)):
        pass


# Files of the host


def test_what_a_killed_process_left_goes_with_the_next_that_writes_the_file(tmp_path, monkeypatch):
    path = tmp_path / "file.conf"
    path.write_text("old")
    path.chmod(0o640)
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(os, "replace", lambda *_names: os.kill(os.getpid(), signal.SIGKILL))
        hostfiles.write_text(str(path), "killed")
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 2
    assert not list(tmp_path.glob(".*.conf"))
    hostfiles.write_text(str(path), "new")
    assert list(tmp_path.iterdir()) == [path]
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o640)


def test_two_that_write_one_file_are_not_in_each_others_way(tmp_path, monkeypatch):
    path, replace, inner = tmp_path / "file", os.replace, []

    def late(*names):
        if not inner:
            inner.append(names)
            hostfiles.write_text(str(path), "second")
            assert path.read_text() == "second"
        replace(*names)

    monkeypatch.setattr(os, "replace", late)
    hostfiles.write_text(str(path), "first")
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]
    # Nor is anything that is there under the name of the temporary file.
    name = os.path.basename(inner[0][0])
    (tmp_path / "other").write_text("other's")
    (tmp_path / name).symlink_to("other")
    hostfiles.write_text(str(path), "third")
    assert path.read_text() == "third" and (tmp_path / "other").read_text() == "other's"


def test_markers(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "STATE_DIRECTORY", str(tmp_path))
    assert state.stopped_names() == frozenset()
    state.clear_stopped("a._.2001")
    state.mark_stopped("a._.2001")
    state.mark_stopped("a._.2001")
    assert state.is_stopped("a._.2001")
    assert state.stopped_names() == {"a._.2001"}
    state.clear_stopped("a._.2001")
    assert not state.is_stopped("a._.2001")
    with pytest.raises(InvalidInput):
        state.mark_stopped("../x")


# The layout of a project


def test_scaffold_never_overwrites(tmp_path):
    created = scaffold.init_project(
        str(tmp_path), "net", kind="cv", base="lab/python", files={"a/b.txt": "x"}
    )
    assert created[0] == "net"
    for name in ("Dockerfile", "requirements.txt", "pyproject.toml", "README.md", ".gitignore", "a/b.txt"):
        assert (tmp_path / "net" / name).is_file()
    for name in (
        "data/raw",
        "data/processed",
        "notebooks",
        "src",
        "models",
        "results/logs",
        "results/plots",
        "tests",
    ):
        assert (tmp_path / "net" / name).is_dir()
    assert "FROM lab/python\n" in (tmp_path / "net/Dockerfile").read_text()
    assert os.listdir(tmp_path) == ["net"]
    (tmp_path / "net/README.md").write_text("mine")
    (tmp_path / "net/pyproject.toml").unlink()
    again = scaffold.init_project(str(tmp_path), "net", kind="cv", base="lab/python", files={"a/b.txt": "y"})
    assert again == ["net/pyproject.toml"]
    assert (tmp_path / "net/README.md").read_text() == "mine"
    assert (tmp_path / "net/a/b.txt").read_text() == "x"
    assert scaffold.init_project(str(tmp_path), "net", kind="cv", base="lab/python") == []


@pytest.mark.parametrize("kind", scaffold.TYPES)
def test_scaffold_types(tmp_path, kind):
    tomllib = pytest.importorskip("tomllib", reason="part of Python since 3.11")
    scaffold.init_project(str(tmp_path), "p", kind=kind, base="lab/python")
    project = tomllib.loads((tmp_path / "p/pyproject.toml").read_text())
    assert project["project"]["name"] == "p"


def test_scaffold_types_differ_where_their_work_does(tmp_path):
    folders = {}
    for kind in scaffold.TYPES:
        created = scaffold.init_project(str(tmp_path), kind, kind=kind, base="lab/python")
        folders[kind] = {path.partition("/")[2] for path in created if (tmp_path / path).is_dir()}
        readme = (tmp_path / kind / "README.md").read_text()
        assert all(f"`{folder}`" in readme for folder in folders[kind] - folders.get("custom", folders[kind]))
    assert all(folders["custom"] < folders[kind] for kind in ("ml", "cv", "nlp", "stats"))
    assert len({frozenset(each) for each in folders.values()}) == len(scaffold.TYPES)
    assert "data/raw/images" in folders["cv"] and "reports" in folders["stats"]


def test_the_examples_in_a_new_dockerfile_can_be_used(tmp_path):
    scaffold.init_project(str(tmp_path), "net", kind="ml", base="lab/python")
    text = (tmp_path / "net/Dockerfile").read_text()
    words = [item.word for item in fingerprint.instructions(text)]
    assert words == ["FROM", "COPY", "RUN", "ARG", "ENV"]
    used = "\n".join(
        line[2:] if line[:6] in ("# ENV ", "#     ", "# COPY") else line for line in text.split("\n")
    )
    assert [item.word for item in fingerprint.instructions(used)] == [*words, "ENV", "COPY"]
    assert max(len(line) for line in text.splitlines()) <= 110


def test_scaffold_broken_off_goes_on(tmp_path):
    (tmp_path / ".net.making/data").mkdir(parents=True)
    assert "net" in scaffold.init_project(str(tmp_path), "net", kind="ml", base="lab/python")
    assert os.listdir(tmp_path) == ["net"]


@pytest.mark.parametrize(
    ("name", "kind", "base", "files"),
    [
        ("../x", "ml", "b", {}),
        ("x", "web", "b", {}),
        ("x", "ml", "", {}),
        ("x", "ml", "a\nRUN x", {}),
        ("x", "ml", "b", {"../y": ""}),
        ("x", "ml", "b", {"/y": ""}),
    ],
)
def test_scaffold_bad_input(tmp_path, name, kind, base, files):
    with pytest.raises(InvalidInput):
        scaffold.init_project(str(tmp_path), name, kind=kind, base=base, files=files)
    assert os.listdir(tmp_path) == []


def test_who_waits_for_a_lock_is_called_meanwhile_and_may_wait_longer(tmp_path):
    calls = []

    def busy() -> bool:
        calls.append(None)
        return len(calls) < 6

    with (
        locks.hold("a", directory=str(tmp_path)),
        pytest.raises(locks.InUse),
        locks.hold("a", timeout=0.01, directory=str(tmp_path), meanwhile=busy),
    ):
        pass
    assert len(calls) >= 6
