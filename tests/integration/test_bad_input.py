"""Bad input to a build: a clear sentence, while the image and the container that are there stay."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import containers, context, images
from ansible_collections.lab.server.plugins.module_utils._core import engine as engines
from ansible_collections.lab.server.plugins.module_utils._core.engine import DOCKER, Engine
from ansible_collections.lab.server.plugins.module_utils._core.errors import (
    EngineError,
    HostError,
    LabError,
    Refused,
)
from private_root import CHECKOUT

NAME = "thesis._.2001"
FEW = 2000
"""The number of files that may be sent where these tests send too many."""
Change = Callable[..., object]


@pytest.fixture
def learner(alice):
    """Return the user with the memory that pip needs."""
    return replace(alice, limits=replace(alice.limits, memory=1 << 30))


@pytest.fixture
def as_before(engine, policy, learner, thesis, docker, root) -> Callable[[], None]:
    """Launch the project; return what asserts that nothing of it changed, and nothing is left over."""

    def seen() -> tuple[object, ...]:
        (one,) = [row for row in engine.containers() if row["Names"] == [f"/{NAME}"]]
        return (
            one["Id"],
            one["State"],
            one["ImageID"],
            engine.inspect_image("lab/2001/thesis")["Id"],
            images.history(engine, learner, "thesis"),
            docker("ps", "-aq"),
            docker("images", "-q", "--no-trunc", "-f", "dangling=true"),
            docker("volume", "ls", "-q"),
            os.listdir(root / "state/tmp"),
        )

    containers.launch(engine, policy, learner, "thesis")
    before = seen()
    assert before[1] == "running"

    def check() -> None:
        assert seen() == before

    return check


# A Dockerfile that is none, or cannot be built


def no_dockerfile(thesis, *_more) -> Path:
    path = thesis.path / "Dockerfile"
    path.unlink()
    return path


def a_link(thesis, *_more) -> None:
    no_dockerfile(thesis).symlink_to("/etc/shadow")


def a_link_to_a_good_one(thesis, *_more) -> None:
    path = thesis.path / "Dockerfile"
    path.rename(path.parent / "good")
    path.symlink_to("good")


def a_fifo(thesis, *_more) -> None:
    path = no_dockerfile(thesis)
    os.mkfifo(path)
    os.chown(path, 2001, 2001)


def a_folder(thesis, *_more) -> None:
    no_dockerfile(thesis).mkdir()


def a_sparse_terabyte(thesis, *_more) -> None:
    path = no_dockerfile(thesis)
    path.touch()
    os.truncate(path, 1 << 40)


def binary(thesis, *_more) -> None:
    no_dockerfile(thesis).write_bytes(bytes(range(256)) * 100)


def empty(thesis, *_more) -> None:
    thesis.write("Dockerfile", "")


def a_step_that_fails(thesis, tiny, _python) -> None:
    thesis.write("Dockerfile", f"FROM {tiny}\nRUN touch /made\nRUN false\n")


def no_instruction(thesis, tiny, _python) -> None:
    thesis.write("Dockerfile", f"FROM {tiny}\nRUNN true\n")


def a_source_that_is_missing(thesis, tiny, _python) -> None:
    thesis.write("Dockerfile", f"FROM {tiny}\nRUN touch /made\nCOPY nothing /x\n")


def a_missing_base(thesis, *_more) -> None:
    thesis.write("Dockerfile", "FROM lab/nothing\n")


def a_missing_requirement(thesis, _tiny, python) -> None:
    thesis.write("requirements.txt", "no-such-package==1.0\n")
    thesis.write(
        "Dockerfile",
        f"FROM {python}\nCOPY requirements.txt /\n"
        "RUN python3 -m pip install --no-index -r /requirements.txt\n",
    )


def too_many_bytes(thesis, *_more) -> None:
    (thesis.path / "big").touch()
    os.truncate(thesis.path / "big", 1 << 40)


def too_many_files(thesis, *_more) -> None:
    """Write more files than FEW; at its true bound the walk is tried, and measured, in the unit tests."""
    for number in range(FEW + 1):
        folder = thesis.path / f"many/{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / str(number)).touch()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (no_dockerfile, "has no Dockerfile"),
        (a_link, "Dockerfile"),
        (a_link_to_a_good_one, "Dockerfile"),
        (a_fifo, "Dockerfile"),
        (a_folder, "Dockerfile"),
        (a_sparse_terabyte, "Dockerfile"),
        (binary, "Dockerfile line"),
        (empty, "no FROM line"),
        (a_step_that_fails, r"line 3 of its Dockerfile \(RUN false\)"),
        (no_instruction, "line 2"),
        (a_source_that_is_missing, r"line 3 of its Dockerfile \(COPY nothing /x\)"),
        (a_missing_base, "Dockerfile line 1: the image lab/nothing is not.*Base images here"),
        (a_missing_requirement, r"line 3 .*No matching distribution found for no-such-package==1\.0"),
        (too_many_bytes, r"More than 100000 files or 1G .*\.dockerignore"),
        (too_many_files, r"More than 100000 files or 1G .*\.dockerignore"),
    ],
)
def test_bad_input_is_a_sentence_and_changes_nothing(
    engine, policy, learner, thesis, tiny, python, as_before, monkeypatch, change: Change, said: str
):
    monkeypatch.setattr(context, "FILES_LIMIT", FEW)
    change(thesis, tiny, python)
    began = time.monotonic()
    with pytest.raises(LabError, match=said) as caught:
        images.build(engine, policy, learner, "thesis")
    assert time.monotonic() - began < 30
    assert "\n" not in str(caught.value)
    # Of a file that the user may not read nothing is told.
    assert "root:" not in str(caught.value)
    as_before()
    # By the users' way in, too, where the container that runs is entered all the same.
    assert containers.launch(engine, policy, learner, "thesis").facts["status"] == "running"
    as_before()


def test_many_files_that_are_ignored_are_no_matter(engine, policy, learner, thesis, as_before, monkeypatch):
    monkeypatch.setattr(context, "FILES_LIMIT", FEW)
    too_many_files(thesis)
    with pytest.raises(Refused):
        images.build(engine, policy, learner, "thesis")
    thesis.write(".dockerignore", "many\n")
    promise = images.build(engine, policy, learner, "thesis", check=True)
    # .dockerignore counts itself.
    assert promise.changed
    as_before()


def test_what_an_image_says_of_itself_changes_nothing(
    engine, policy, learner, thesis, tiny, as_before, docker
):
    thesis.write(
        "Dockerfile",
        f'FROM {tiny}\nVOLUME /var/cache\nUSER root\nENTRYPOINT ["/bin/false"]\nCMD ["false"]\n'
        "HEALTHCHECK CMD touch /workspace/evil\nSTOPSIGNAL SIGKILL\nEXPOSE 22\n"
        "LABEL lab.server.owner=2002 lab.server.project=net lab.server.fingerprint=x lab.server.kind=base "
        "lab.server.base=lab/secret lab.server.spec={} lab.server.digest=x\n",
    )
    running = docker("ps", "-q", "--no-trunc").split()
    built = images.build(engine, policy, learner, "thesis")
    assert docker("ps", "-q", "--no-trunc").split() == running
    (newest, old) = images.history(engine, learner, "thesis")
    assert (newest.fingerprint, newest.base, newest.current) == (built.facts["fingerprint"], tiny, True)
    assert old.in_use
    assert set(images.project_images(engine)) == {(2001, "thesis")}
    containers.retire(engine, policy, learner, "thesis")
    assert containers.launch(engine, policy, learner, "thesis").facts["status"] == "created"
    made = engine.inspect(NAME)
    assert made["State"]["Running"]
    assert made["Config"]["User"] == "2001:2001"
    assert made["Config"]["Healthcheck"]["Test"] == ["NONE"]
    assert made["Config"]["Labels"]["lab.server.owner"] == "2001"
    assert made["Config"]["Labels"]["lab.server.project"] == "thesis"


# No room


class Limited(io.FileIO):
    """A file on which the kernel lets nobody write more than so many bytes."""

    room, reason = 1 << 20, errno.EDQUOT

    def write(self, data) -> int:
        """Write, or fail as write(2) does."""
        if self.tell() + len(data) > self.room:
            raise OSError(self.reason, os.strerror(self.reason))
        return super().write(data)


@pytest.mark.parametrize("reason", [errno.EDQUOT, errno.ENOSPC])
def test_a_quota_that_is_hit_while_the_context_is_kept(
    engine, policy, learner, thesis, root, as_before, monkeypatch, reason
):
    """This computer's kernel has no quotas, so write(2) itself is played; a full disk is a real one below."""

    def temporary_file(**place: str) -> io.BufferedRandom:
        path = os.path.join(place["dir"], "limited")
        file = io.BufferedRandom(Limited(path, "x+"))
        os.unlink(path)
        return file

    thesis.write("big", "x" * 4_000_000)
    monkeypatch.setattr(Limited, "reason", reason)
    monkeypatch.setattr(context.tempfile, "TemporaryFile", temporary_file)
    with pytest.raises(HostError, match=r"could not be kept .*The disk of the server is full"):
        images.build(engine, policy, learner, "thesis")
    as_before()


def test_a_disk_that_fills_up_while_the_context_is_kept(
    engine, policy, learner, thesis, root, as_before, monkeypatch
):
    thesis.write("big", "x" * 4_000_000)
    # A build that finds less room than it may need does not begin; here it is let begin.
    monkeypatch.setattr(context, "_RESERVE", -context.BYTES_LIMIT)
    place = str(root / "state/tmp")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "none", place], check=True)
    try:
        with pytest.raises(HostError, match=r"No space left on device.*The disk of the server is full"):
            images.build(engine, policy, learner, "thesis")
    finally:
        subprocess.run(["umount", place], check=True)
    as_before()


@pytest.fixture
def small_engine(url: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """Start an engine beside that of the tests whose data is on a file system of 32 MiB; return both ends."""
    monkeypatch.syspath_prepend(str(CHECKOUT / "tools"))
    tool = import_module("engine")
    disk, run = root / "disk", Path("/run/lab-test-small")
    for name, value in {
        "DATA": disk / "data",
        "RUN": run,
        "SOCKET": run / "docker.sock",
        "PIDFILE": run / "docker.pid",
        "LOG": root / "engine.log",
        "BRIDGE": "labtest1",
        "ADDRESS": "172.30.251.1/24",
        "POOL": "base=172.30.128.0/18,size=24",
    }.items():
        monkeypatch.setattr(tool, name, value)
    # The network of the containers is an interface of the host, and the other engine has one of that name.
    monkeypatch.setattr(engines, "BRIDGE", "labtest2")
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(disk)], check=True)
    try:
        connected = Engine.connect(tool.start())
        yield connected
        connected.close()
    finally:
        tool.stop()
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("RUN cat /dev/zero > /full", r"line 2 of its Dockerfile .*No space left on device"),
        # The context is larger than what is free: it does not come as far as a step.
        ("COPY big /big", "no space left on device"),
    ],
)
def test_a_file_system_of_dockers_that_fills_up(
    small_engine, policy, learner, thesis, tiny, root, file_system, line: str, said: str
):
    socket = small_engine._url
    subprocess.run(
        [DOCKER, "-H", socket, "import", "-", tiny], input=file_system(), check=True, capture_output=True
    )
    launched = containers.launch(small_engine, policy, learner, "thesis")
    image = small_engine.inspect_image("lab/2001/thesis")["Id"]
    free = os.statvfs(root / "disk").f_bfree
    if "big" in line:
        thesis.write("big", "x" * 40_000_000)
    thesis.write("Dockerfile", f"FROM {tiny}\n{line}\n")
    with pytest.raises(EngineError, match=said) as caught:
        images.build(small_engine, policy, learner, "thesis")
    assert "\n" not in str(caught.value)
    (one,) = small_engine.containers()
    assert (one["Id"], one["State"], one["ImageID"]) == (launched.facts["id"], "running", image)
    assert small_engine.inspect_image("lab/2001/thesis")["Id"] == image
    # What the build had filled is free again, but for some blocks of logs.
    assert free - os.statvfs(root / "disk").f_bfree < 512
    # There is room again for a build that is good.
    thesis.write("Dockerfile", f"FROM {tiny}\nRUN touch /made\n")
    (thesis.path / "big").unlink(missing_ok=True)
    assert images.build(small_engine, policy, learner, "thesis").changed
