"""Which images of a project are kept, gone back to and removed; on a model of the engine."""

from __future__ import annotations

import contextlib
import fnmatch
import io
import shlex
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    buildlog,
    collecting,
    context,
    freeze,
    images,
    imagestate,
    locks,
    packagecache,
    state,
    versions,
)
from ansible_collections.lab.server.plugins.module_utils._core import policy as policies
from ansible_collections.lab.server.plugins.module_utils._core.context import Context, Look, Member
from ansible_collections.lab.server.plugins.module_utils._core.engine import BuildFailed
from ansible_collections.lab.server.plugins.module_utils._core.errors import (
    EngineError,
    HostError,
    InvalidInput,
    NotFound,
    Refused,
)
from ansible_collections.lab.server.plugins.module_utils._core.images import WantedImage
from ansible_collections.lab.server.plugins.module_utils._core.imagestate import Known, Pin
from ansible_collections.lab.server.plugins.module_utils._core.policy import PackageCache, Policy, User
from ansible_collections.lab.server.plugins.module_utils._core.versions import Version
from hypothesis import given
from hypothesis import strategies as st

BASE = "lab/python"
REPOSITORY = "lab/2001/net"
LIMITS = {"containers": 3, "cpus": 1, "memory": "64m", "pids": 64, "shm": "1m", "gpus": 0}
QUOTA = {"soft": 0, "hard": 0, "inodes_soft": 0, "inodes_hard": 0}


def labels_at_the_end(dockerfile: str) -> dict[str, str]:
    """Return the labels that the last line of a Dockerfile sets."""
    word, *pairs = shlex.split(dockerfile.splitlines()[-1])
    return dict(pair.split("=", 1) for pair in pairs) if word == "LABEL" else {}


class Model:
    """An engine of names and labels: what is built gets the next id and the next second as its time."""

    def __init__(self) -> None:
        self.facts = SimpleNamespace(cgroup_driver="systemd", cpus=2)
        self.stored: dict[str, dict[str, Any]] = {BASE: {"Id": "base-1", "Config": {"Labels": {}}}}
        self.built: list[dict[str, Any]] = []
        self.used: list[str] = []
        self.calls: list[str] = []
        self.broken = ""
        self.failing_step = 2
        self.made = 0
        self.strays: dict[str, str] = {}
        # What the last build was sent, and whether it started from nothing that was there.
        self.sent: dict[str, str] = {}
        self.fresh = False
        # What pip says of images, where that is not a new version of numpy for each.
        self.said: bytes | None = None
        self.silent = False

    def images(self, reference: str = "") -> list[dict[str, Any]]:
        listed = []
        for image in self.built:
            names = [
                name for name in image["RepoTags"] if fnmatch.fnmatch(name.rpartition(":")[0], reference)
            ]
            if names:
                listed.append({**image, "RepoTags": names})
            elif not reference:
                listed.append({**image, "RepoTags": image["RepoTags"] or ["<none>:<none>"]})
        return listed

    def containers(self) -> list[dict[str, Any]]:
        ours = [{"Id": f"of-{image}", "Names": ["/net._.2001"], "ImageID": image} for image in self.used]
        return [*ours, *({"Id": one, "Names": [f"/{one}"], "ImageID": ""} for one in self.strays)]

    def inspect_image(self, reference: str) -> dict[str, Any] | None:
        for image in self.built:
            if f"{reference}:latest" in image["RepoTags"]:
                return {"Id": image["Id"], "Config": {"Labels": image["Labels"]}}
        return self.stored.get(reference)

    def inspect(self, container: str) -> dict[str, Any]:
        return {"Id": container, "HostConfig": {"CgroupParent": self.strays.get(container, "")}}

    def remove(self, container: str) -> None:
        self.calls.append(f"remove container {container}")

    def pull(self, reference: str, _progress: Any = None) -> None:
        raise EngineError(f"{reference} could not be fetched.")

    def build(self, request: Any, _progress: Any) -> str:
        self.calls.append("build")
        self.fresh = request.fresh
        with tarfile.open(fileobj=request.context, mode="r:") as opened:
            self.sent = {one.name: opened.extractfile(one).read().decode() for one in opened}
        if self.broken:
            raise BuildFailed("The build failed.", self.failing_step, self.broken, "leftover")
        self.made += 1
        number = self.made
        self.built.append(
            {
                "Id": f"id-{number}",
                "Created": number,
                "Size": 7,
                "RepoTags": [],
                "Labels": labels_at_the_end(self.sent[context.DOCKERFILE]),
            }
        )
        return f"id-{number}"

    def tag(self, image: str, reference: str) -> None:
        self.calls.append(f"tag {reference}")
        for one in self.built:
            one["RepoTags"] = [name for name in one["RepoTags"] if name != reference]
            if one["Id"] == image:
                one["RepoTags"].append(reference)

    def remove_image(self, reference: str) -> None:
        self.calls.append(f"remove {reference}")
        self.built = [one for one in self.built if one["Id"] != reference or one["Id"] in self.used]
        for one in self.built:
            one["RepoTags"] = [name for name in one["RepoTags"] if name != reference]

    def output_of(self, name: str, _config: Any, **_bounds: Any) -> bytes | None:
        self.calls.append(f"run {name}")
        if self.silent:
            return None
        if self.said is not None:
            return self.said
        # As pip does with constraints.
        return self.sent.get(".lab-server-lock.txt", f"numpy==1.{self.made}\n").encode()

    @property
    def current(self) -> str:
        return next(image["Id"] for image in self.built if f"{REPOSITORY}:latest" in image["RepoTags"])

    @property
    def names(self) -> int:
        """The number of images that still have a name by their fingerprint."""
        return sum(any(":latest" not in name for name in image["RepoTags"]) for image in self.built)


class Files:
    """The project's files, in the place of what a user's child reads."""

    def __init__(self) -> None:
        self.text = "one"
        self.dockerfile = f"FROM {BASE}\nCOPY a /a\nRUN true\n"
        self.settled = True
        self.reads = 0
        self.kept: list[bool] = []
        self.takes = 1.0

    @property
    def look(self) -> Look:
        return Look(f"look of {self.text}{self.dockerfile}", 0 if self.settled else 10**19, 10**19)

    @contextlib.contextmanager
    def packed(self, *_place: Any, keep: bool = True, seconds: float = 0.0) -> Iterator[Context]:
        if self.takes > seconds:
            raise HostError("That takes too long.")
        self.reads += 1
        self.kept.append(keep)
        members = (Member("Dockerfile", "f", False, self.dockerfile), Member("a", "f", False, self.text))
        archive = io.BytesIO()
        tarfile.open(fileobj=archive, mode="w").close()
        yield Context(archive, members, self.dockerfile, self.look)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Files:
    made = Files()
    monkeypatch.setattr(context, "look", lambda *_place, **_more: made.look)
    monkeypatch.setattr(context, "packed", made.packed)
    monkeypatch.setattr(images, "_is_ready", lambda engine, *_rest: engine is not None)
    for module in (imagestate, state):
        monkeypatch.setattr(module, "STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setattr(locks, "RUN_DIRECTORY", str(tmp_path / "run"))
    return made


@pytest.fixture
def policy() -> Policy:
    made, _keys = policies.from_inventory(
        {
            "lab_groups": [{"name": "students", "gid": 3101, "limits": LIMITS, "quota": QUOTA}],
            "lab_users": [{"name": "alice", "uid": 2001, "group": "students"}],
            "lab_base_images": [{"name": BASE, "image": BASE}],
        }
    )
    return made


@pytest.fixture
def alice(policy: Policy) -> User:
    return policy.user("alice")


@pytest.fixture
def build(files: Files, policy: Policy, alice: User):
    """Return a function that builds the project's image with these files; the promise must be the deed."""

    def run(engine: Model, text: str = "", **options: Any) -> Any:
        files.text = text or files.text
        promise = images.build(engine, policy, alice, "net", check=True, **options)
        deed = images.build(engine, policy, alice, "net", **options)
        assert promise == deed
        return deed

    return run


@pytest.fixture
def roll(policy: Policy, alice: User):
    """Return a function that goes back; the promise must be the deed."""

    def run(engine: Model, to: str = "") -> Any:
        before = list(engine.calls)
        promise = images.rollback(engine, policy, alice, "net", to, check=True)
        assert engine.calls == before
        deed = images.rollback(engine, policy, alice, "net", to)
        assert promise == deed
        return deed

    return run


def test_a_clean_up_does_not_wait_for_a_build(policy, alice, build, monkeypatch):
    engine = Model()
    engine.nameless = list
    build(engine)
    monkeypatch.setattr(locks, "BRIEF", 0.02)
    with locks.hold(locks.of_project("image", 2001, "net")):
        (problem,) = collecting.collect(engine, policy, 1e9, check=False).problems
    assert "at work on net" in problem
    assert collecting.collect(engine, policy, 1e9, check=False).problems == ()


def test_a_base_that_is_missing_is_named_with_its_line_and_with_what_there_is(build, files):
    files.dockerfile = f"FROM {BASE} AS first\n\n# the next one is nowhere\nFROM lab/nothing\nCOPY a /a\n"
    with pytest.raises(EngineError) as caught:
        build(Model())
    assert caught.value.message == "Dockerfile line 4: the image lab/nothing is not on this server."
    assert caught.value.hint == f"Base images here: {BASE}."


# Built when the files changed, and not read when they did not


def test_unchanged_files_are_not_read_again(build, files):
    engine = Model()
    first = build(engine)
    assert first.actions == ["build", "tag"]
    reads = files.reads
    again = build(engine)
    assert not again.changed
    assert again.facts == first.facts
    assert files.reads == reads
    # A change, and the way back.
    build(engine, "two")
    assert files.reads > reads
    assert engine.calls.count("build") == 2


def test_what_is_only_looked_at_is_not_kept_on_the_server(build, roll, files, policy, alice):
    engine = Model()
    build(engine)
    assert files.kept == [False, True]
    files.settled = False
    build(engine, "two")
    files.kept.clear()
    assert images.matches_files(engine, policy, alice, "net")
    roll(engine)
    assert files.kept == [False] * 3


def test_whether_the_image_is_that_of_the_files_is_told_only_where_it_is_soon_seen(
    build, files, policy, alice
):
    engine = Model()
    build(engine)
    # What looks as it did need not be read.
    assert images.matches_files(engine, policy, alice, "net", seconds=0.1) is True
    files.text = "two"
    assert images.matches_files(engine, policy, alice, "net", seconds=0.1) is None
    files.takes = 0.05
    assert images.matches_files(engine, policy, alice, "net", seconds=0.1) is False
    assert engine.calls.count("build") == 1


def test_files_that_changed_just_now_are_read_once_more(build, files):
    engine = Model()
    files.settled = False
    build(engine)
    reads = files.reads
    build(engine)
    assert files.reads == reads + 2
    files.settled = True
    build(engine)
    reads = files.reads
    build(engine)
    assert files.reads == reads
    assert engine.calls.count("build") == 1


def test_a_file_that_no_instruction_takes_makes_no_new_image(build, files):
    engine = Model()
    files.dockerfile = f"FROM {BASE}\nCOPY other /a\n"
    first = build(engine)
    reads = files.reads
    again = build(engine, "a result was saved")
    assert not again.changed
    assert again.facts == first.facts
    # It was read once more, and then it was known.
    assert files.reads > reads
    reads = files.reads
    assert not build(engine).changed
    assert files.reads == reads
    engine.stored["base-1"] = {"Id": "base-1", "Config": {"OnBuild": ["COPY . /app"]}}
    files.settled = False
    assert build(engine, "a result was saved, which the base image takes").changed


def test_what_else_a_fingerprint_covers_is_looked_at(build, files):
    engine = Model()
    build(engine)
    assert build(engine, build_args={"A": "b"}).changed
    assert build(engine).changed
    engine.stored[BASE] = {"Id": "base-2"}
    assert build(engine).changed
    del engine.stored[BASE]
    with pytest.raises(EngineError, match=f"Base images here: {BASE}"):
        build(engine)


def test_check_mode_keeps_nothing(files, policy, alice):
    engine = Model()
    images.build(engine, policy, alice, "net", check=True)
    assert engine.calls == []
    assert imagestate.known(2001, "net") is None
    files.settled = False
    images.build(engine, policy, alice, "net")
    files.settled = True
    assert not images.build(engine, policy, alice, "net", check=True).changed
    assert imagestate.known(2001, "net") is None


def test_a_build_that_fails_moves_no_name(build, files, policy, alice):
    engine = Model()
    build(engine)
    engine.broken, files.text = "ERROR: No matching distribution found for nosuch", "two"
    with pytest.raises(EngineError, match=r"line 2 .*No matching distribution found for nosuch"):
        images.build(engine, policy, alice, "net")
    assert engine.current == "id-1"
    # It comes from the output of the build: what has a name, or is older, was not left over by it.
    assert "remove leftover" not in engine.calls
    for names_of_it, created, removed in (
        ([], "9999", True),
        (["lab/x"], "9999", False),
        ([], "1999", False),
    ):
        engine.stored["leftover"] = {"Id": "leftover", "RepoTags": names_of_it, "Created": created}
        engine.calls.clear()
        with pytest.raises(EngineError):
            images.build(engine, policy, alice, "net")
        assert ("remove leftover" in engine.calls) == removed
    # The files are still not those of the image.
    engine.broken = ""
    assert build(engine).changed


def test_the_name_latest_moves_last(build):
    engine = Model()
    build(engine)
    assert [call.split(":")[0] for call in engine.calls] == [
        "build",
        "run net._.2001.packages",
        f"tag {REPOSITORY}",
        f"tag {REPOSITORY}",
    ]
    assert engine.calls[-1] == f"tag {REPOSITORY}:latest"


@pytest.mark.parametrize(
    ("dockerfile", "base"),
    [
        ("FROM lab/python:latest\n", BASE),
        ("FROM docker.io/lab/python\n", BASE),
        ("FROM scratch\n", ""),
        ("FROM lab/2001/other\n", BASE),
        ("FROM lab/forged\n", "lab/forged"),
        ('FROM lab/python\nLABEL lab.server.base="lab/secret"\n', BASE),
    ],
)
def test_the_base_is_in_a_label(build, files, dockerfile, base):
    engine = Model()
    labels = {"lab.server.kind": "project", "lab.server.base": BASE}
    engine.stored["lab/2001/other"] = {"Id": "o", "Config": {"Labels": labels}}
    # An image of somebody else's making says what it likes of itself.
    engine.stored["lab/forged"] = {"Id": "f", "Config": {"Labels": {**labels, "lab.server.kind": "x"}}}
    for name in ("lab/python:latest", "docker.io/lab/python"):
        engine.stored[name] = engine.stored[BASE]
    files.dockerfile = dockerfile
    build(engine)
    assert engine.built[0]["Labels"]["lab.server.base"] == base


# Kept, and removed


def test_the_newest_are_kept(build, policy, alice):
    engine = Model()
    for text in ("one", "two", "three"):
        assert "remove" not in build(engine, text).actions
    fourth = build(engine, "four")
    assert fourth.actions == ["build", "tag", "remove"]
    assert len(fourth.diff["before"]["older"]) == 1
    assert engine.names == 3
    assert [version.id for version in images.history(engine, alice, "net")] == ["id-4", "id-3", "id-2"]


def test_what_a_killed_engine_left_of_a_build_goes_at_the_next_one(build):
    engine = Model()
    engine.used = ["id-9"]
    engine.strays = {"mine": "lab-2001.slice", "bobs": "lab-2002.slice", "its": "", "web": "system.slice"}
    build(engine)
    assert [call for call in engine.calls if call.startswith("remove container")] == ["remove container mine"]


def test_what_containers_were_made_of_stays(build, policy, alice):
    engine = Model()
    engine.used = ["id-1"]
    for text in ("one", "two", "three", "four", "five"):
        build(engine, text)
    kept = images.history(engine, alice, "net")
    assert [(version.id, version.in_use) for version in kept] == [
        ("id-5", False),
        ("id-4", False),
        ("id-3", False),
        ("id-1", True),
    ]
    engine.used = []
    promise = images.prune(engine, policy, alice, "net", check=True)
    deed = images.prune(engine, policy, alice, "net")
    assert promise == deed
    assert deed.facts["removed"] == [kept[3].reference]
    assert engine.names == 3
    assert not images.prune(engine, policy, alice, "net").changed


def test_a_project_that_is_gone_is_forgotten(build, policy, alice, monkeypatch):
    engine = Model()
    for text in ("one", "two", "three"):
        build(engine, text)
    images.rollback(engine, policy, alice, "net")
    there = {"folder": True}
    monkeypatch.setattr(images.workspaces, "has_project", lambda *_which: there["folder"])
    with pytest.raises(Refused, match="has a folder"):
        images.forget(engine, policy, alice, "net")
    there["folder"] = False
    engine.used = ["id-1"]
    with pytest.raises(Refused, match="has a container"):
        images.forget(engine, policy, alice, "net")
    assert len(images.history(engine, alice, "net")) == 3
    engine.used, engine.strays = [], {"net._.2001.retired-1": ""}
    gone = [version.reference for version in images.history(engine, alice, "net")]
    assert images.forget(engine, policy, alice, "net").facts == {"removed": gone}
    assert not any(image["RepoTags"] for image in engine.built)
    assert imagestate.pin(2001, "net") is None and imagestate.known(2001, "net") is None
    assert imagestate.newest_packages(2001, "net") is None
    assert not images.forget(engine, policy, alice, "net").changed


def test_names_that_are_not_ours_are_left_alone(build, policy, alice):
    engine = Model()
    one = replace(policy, images_keep=1)
    build(engine)
    engine.tag("id-1", f"{REPOSITORY}:by-hand")
    forged = {"lab.server.owner": "2002", "lab.server.project": "net", "lab.server.fingerprint": "f" * 64}
    engine.built.append(
        {"Id": "id-9", "Created": 0, "RepoTags": [f"{REPOSITORY}:{'f' * 12}"], "Labels": forged}
    )
    assert not images.prune(engine, one, alice, "net").changed
    assert len(images.history(engine, alice, "net")) == 1
    # An older one that somebody gave a name of his own, and that has lost ours.
    build(engine, "two")
    images.prune(engine, one, alice, "net")
    assert [version.id for version in images.history(engine, alice, "net")] == ["id-2"]
    assert engine.built[0]["RepoTags"] == [f"{REPOSITORY}:by-hand"]


def test_packages_are_kept_with_the_image(build, policy, alice):
    engine = Model()
    for number, text in enumerate(("one", "two", "three"), start=1):
        build(engine, text)
        newest = images.history(engine, alice, "net")[0]
        assert images.packages(alice, "net", newest) == (f"numpy==1.{number}",)
    oldest = images.history(engine, alice, "net")[-1]
    build(engine, "four")
    # Of an image that is gone, too, so that it can be made again the same.
    assert images.packages(alice, "net", oldest) == ("numpy==1.1",)
    build(engine, "one")
    # Files that went back after their image was gone are built, and listed, anew.
    assert images.packages(alice, "net", images.history(engine, alice, "net")[0]) == ("numpy==1.5",)


def test_lists_of_images_that_are_gone_do_not_add_up(build, policy, alice, monkeypatch):
    monkeypatch.setattr(imagestate, "_LISTS_OF_GONE", 2)
    engine = Model()
    gone = []
    for number in range(7):
        build(engine, f"files {number}")
        gone.append(images.history(engine, alice, "net")[0])
    kept = [images.packages(alice, "net", version) for version in gone]
    assert kept == [None, None, *((f"numpy==1.{number}",) for number in range(3, 8))]
    for version in gone[4:]:
        imagestate.set_packages(2001, "net", version.fingerprint, None)
    assert imagestate.newest_packages(2001, "net") == (gone[3].fingerprint[:12], ("numpy==1.4",))


# Locked


def test_a_locked_build_keeps_the_versions_of_the_current_image(build, alice):
    engine = Model()
    first = build(engine)
    assert "lock" not in first.facts
    engine.said = b"numpy==1.1\npandas==2\n"
    locked = build(engine, "two", locked=True)
    assert locked.facts["lock"] == {
        "image": first.facts["fingerprint"][:12],
        "packages": 1,
        "left_out": [],
        "broken": [],
    }
    assert "notes" not in locked.facts
    assert engine.sent[".lab-server-lock.txt"] == "numpy==1.1\n"
    assert engine.sent["Dockerfile"].rpartition("LABEL ")[0] == (
        f"FROM {BASE}\nCOPY .lab-server-lock.txt /run/lab-server/lock.txt\n"
        "ARG PIP_CONSTRAINT=/run/lab-server/lock.txt\nARG UV_CONSTRAINT=/run/lab-server/lock.txt\n"
        "COPY a /a\nRUN true\n"
    )
    assert not engine.fresh
    # It makes no build needed, and is no part of what the image is known by.
    assert not build(engine, "two", locked=True).changed
    assert not build(engine, "two").changed
    build(engine, "three")
    assert set(engine.sent) == {"Dockerfile"}


def test_an_image_that_was_lost_is_made_again_with_its_own_versions(build, alice):
    engine = Model()
    build(engine, "one")
    lost = build(engine, "two")
    build(engine, "three")
    engine.built = []
    again = build(engine, "two", locked=True)
    assert again.facts["fingerprint"] == lost.facts["fingerprint"]
    assert again.facts["lock"]["image"] == lost.facts["fingerprint"][:12]
    assert engine.sent[".lab-server-lock.txt"] == "numpy==1.2\n"
    # Of files that were never built: the current image's, and without one those that were kept last.
    assert build(engine, "four", locked=True).facts["lock"]["image"] == lost.facts["fingerprint"][:12]
    engine.built = []
    assert build(engine, "five", locked=True).facts["lock"]["image"] == imagestate._lists(2001, "net")[1]


def test_a_promise_that_could_not_be_kept_is_told(files, policy, alice):
    engine = Model()
    engine.said = b"numpy==1.0\nMy_Tool==3\nlocal @ file:///wheels/local.whl\n-e /opt/x\n"
    images.build(engine, policy, alice, "net")
    engine.said = b"numpy==2.0\nmy-tool @ file:///x.whl\nnew==1\n"
    files.text = "two"
    told = images.build(engine, policy, alice, "net", locked=True).facts
    assert engine.sent[".lab-server-lock.txt"] == "numpy==1.0\nMy_Tool==3\n"
    assert told["lock"]["left_out"] == ["local @ file:///wheels/local.whl", "-e /opt/x"]
    assert told["lock"]["broken"] == ["my-tool 3 -> file:///x.whl", "numpy 1.0 -> 2.0"]
    assert "local @ file" in told["notes"][0]
    assert "lock was not kept: my-tool 3 -> file:///x.whl, numpy 1.0 -> 2.0." in told["notes"][1]
    # What cannot be seen is told as well, and is no reason to forget what is known.
    engine.silent, files.text = True, "three"
    told = images.build(engine, policy, alice, "net", locked=True).facts
    assert "cannot be listed" in told["notes"][-1]
    assert imagestate.newest_packages(2001, "net")[1] == ("numpy==2.0", "my-tool @ file:///x.whl", "new==1")


def test_without_a_list_a_locked_build_says_so(build):
    engine = Model()
    first = build(engine, locked=True)
    assert first.facts["notes"] == [
        "No list of packages is known yet, so nothing keeps their versions this time."
    ]
    assert "lock" not in first.facts
    assert set(engine.sent) == {"Dockerfile"}
    assert "notes" not in build(engine, locked=True).facts
    build(engine, "two")
    # Nothing is built where an image of the same files is still there.
    assert build(engine, "one", locked=True).actions == ["tag"]


def test_a_declared_project_may_be_locked(build, policy, files, alice):
    declared = policies.parse(
        {**policies.dump(policy), "projects": [{"user": "alice", "name": "net", "locked": True}]}
    )
    assert declared.keeps_versions("alice", "net")
    assert not declared.keeps_versions("alice", "other")
    engine = Model()
    images.build(engine, declared, alice, "net")
    files.text = "two"
    assert images.build(engine, declared, alice, "net").facts["lock"]["packages"] == 1


def test_a_failing_step_of_a_locked_build_is_that_of_the_users_line(build, files, policy, alice):
    engine = Model()
    build(engine)
    files.dockerfile = f"# note\nFROM {BASE} AS one\nRUN a\nFROM one\nRUN b\n"
    # FROM, COPY, ARG, ARG, RUN a, FROM, COPY, ARG, ARG, RUN b
    for step, line in ((1, 2), (2, 2), (4, 2), (5, 3), (6, 4), (9, 4), (10, 5)):
        engine.broken, engine.failing_step = "no", step
        with pytest.raises(EngineError, match=rf"line {line} of its Dockerfile .*it was a locked build"):
            images.build(engine, policy, alice, "net", locked=True)


def test_built_anew_though_nothing_changed(build, alice):
    engine = Model()
    first = build(engine)
    again = build(engine, rebuild=True)
    assert again.changed
    assert again.reason == "it is to be built anew"
    assert engine.fresh
    assert again.facts == first.facts
    assert again.diff["before"] != again.diff["after"]
    # What it replaced has no name left, and is gone.
    assert [one["Id"] for one in engine.built] == [engine.current] == ["id-2"]
    assert images.packages(alice, "net", images.history(engine, alice, "net")[0]) == ("numpy==1.2",)
    engine.used = ["id-2"]
    locked = build(engine, rebuild=True, locked=True)
    assert locked.facts["lock"]["image"] == first.facts["fingerprint"][:12]
    assert images.packages(alice, "net", images.history(engine, alice, "net")[0]) == ("numpy==1.2",)
    # A container was made of it, so it stays until a later build.
    assert [one["Id"] for one in engine.built] == ["id-2", "id-3"]
    assert not build(engine).changed
    engine.used = []
    build(engine, "two")
    assert [one["Id"] for one in engine.built] == ["id-3", "id-4"]


# Gone back to


def test_back_until_the_files_change(build, roll, files):
    engine = Model()
    build(engine, "one")
    build(engine, "two")
    back = roll(engine)
    assert back.actions == ["tag", "pin"]
    assert engine.current == "id-1"
    # The files are those of the second image; yet nothing is built or moved.
    for _time in range(2):
        again = build(engine)
        assert not again.changed
        assert again.facts == back.facts
        assert again.facts["pinned"]
    assert engine.current == "id-1"
    build(engine, "three")
    assert engine.current == "id-3"
    # The pin is gone: the files that were gone away from have their own image again.
    assert build(engine, "two").actions == ["tag"]
    assert engine.current == "id-2"
    build(engine, "one")
    build(engine, "two")
    assert engine.current == "id-2"


def test_back_to_the_files_of_the_image_ends_the_pin(build, roll):
    engine = Model()
    build(engine, "one")
    build(engine, "two")
    roll(engine)
    assert not build(engine, "one").changed
    assert imagestate.pin(2001, "net") is None
    assert build(engine, "two").changed


def test_back_from_files_that_were_not_built(build, roll, files, policy, alice):
    engine = Model()
    build(engine, "one")
    build(engine, "two")
    files.text = "three"
    roll(engine)
    assert not build(engine).changed
    assert engine.current == "id-1"


def test_back_from_files_that_nothing_can_be_built_of(build, files, policy):
    engine = Model()
    build(engine, "one")
    build(engine, "two")
    whole, files.dockerfile = files.dockerfile, "FROM\n"
    wanted = [WantedImage("alice", "net")]
    for changed in (True, False):
        done = images.reconcile_images(engine, policy, wanted, check=False, state="rolled_back")[0]
        assert done.changed == changed
    assert engine.current == "id-1"
    # What could not be read was still what was gone away from.
    files.dockerfile = whole
    assert not build(engine).changed


def test_further_back_and_forth(build, roll, alice):
    engine = Model()
    for text in ("one", "two", "three"):
        build(engine, text)
    roll(engine)
    roll(engine)
    assert engine.current == "id-1"
    with pytest.raises(NotFound, match="no image older"):
        roll(engine)
    newest = images.history(engine, alice, "net")[0]
    forth = roll(engine, newest.fingerprint[:8])
    assert engine.current == "id-3"
    assert "pinned" not in forth.facts
    assert not roll(engine, newest.fingerprint).changed
    assert imagestate.pin(2001, "net") is None


def test_the_current_image_can_be_held(build, roll, files, alice):
    engine = Model()
    build(engine, "one")
    files.text = "two"
    held = roll(engine, images.history(engine, alice, "net")[0].fingerprint)
    assert held.actions == ["pin"]
    assert not build(engine).changed


def test_as_a_state_it_is_done_once(build, files, policy):
    engine = Model()
    for text in ("one", "two", "three"):
        build(engine, text)
    wanted = [WantedImage("alice", "net")]
    for changed in (True, False):
        for check in (True, False):
            done = images.reconcile_images(engine, policy, wanted, check=check, state="rolled_back")[0]
            assert (done.changed, done.failed) == (changed, False)
    assert engine.current == "id-2"


def test_a_pin_broken_off_means_nothing(build, files):
    engine = Model()
    build(engine, "one")
    build(engine, "two")
    # The pin was written, and the name did not move.
    imagestate.set_pin(2001, "net", Pin(engine.built[0]["Labels"]["lab.server.fingerprint"], "x"))
    assert not build(engine).changed
    assert engine.current == "id-2"


# Removing


def digits(engine: Model, number: int) -> str:
    """Return the fingerprint of an image by the number of its build."""
    return next(
        one["Labels"][versions.LABEL_FINGERPRINT] for one in engine.built if one["Id"] == f"id-{number}"
    )


@pytest.fixture
def three(build) -> Model:
    """Return an engine with three images of the project, the third of which is the current one."""
    engine = Model()
    for text in ("one", "two", "three"):
        build(engine, text)
    return engine


@pytest.fixture
def remove(policy, alice):
    """Return a function that removes images; the promise must be the deed."""

    def run(engine: Model, to: tuple[str, ...] = (), **options: bool) -> list[str]:
        before = list(engine.calls)
        promise = images.remove(engine, policy, alice, "net", to, check=True, **options)
        assert engine.calls == before
        deed = images.remove(engine, policy, alice, "net", to, **options)
        assert promise == deed
        assert deed.changed == bool(deed.facts["removed"])
        return [one["fingerprint"] for one in deed.facts["removed"]]

    return run


def test_older_images_that_nothing_uses_are_removed(three, remove):
    three.used = ["id-1"]
    gone = digits(three, 2)
    assert remove(three) == [gone]
    assert three.current == "id-3" and three.names == 2
    assert remove(three) == []


def test_images_that_are_named_are_removed_and_no_others(three, remove):
    gone = digits(three, 1)
    assert remove(three, (gone[:12],)) == [gone]
    assert three.names == 2
    with pytest.raises(Refused, match="current image"):
        remove(three, (digits(three, 3),))
    three.used = ["id-2"]
    with pytest.raises(Refused, match="A container was made"):
        remove(three, (digits(three, 2),), everything=True)
    with pytest.raises(NotFound):
        remove(three, (gone,))


def test_all_are_removed_unless_a_container_was_made_of_them(three, remove, build, alice):
    three.used = ["id-3"]
    remove(three, everything=True)
    assert three.current == "id-3" and three.names == 1
    three.used = []
    remove(three, everything=True)
    assert images.history(three, alice, "net") == []
    # The name by which containers are made goes first.
    assert three.calls[-2].endswith(":latest")
    with pytest.raises(NotFound, match="has no image"):
        remove(three)
    assert build(three).actions == ["build", "tag"]


def test_a_user_sees_the_images_of_all_projects_of_his_own(three, alice):
    # Another user's project, and a name that its labels do not agree with.
    labels = {**three.built[0]["Labels"], images.LABEL_OWNER: "2002"}
    three.built.append({"Id": "x", "RepoTags": ["lab/2002/net:latest"], "Labels": labels})
    three.built.append({"Id": "y", "RepoTags": ["lab/2001/net:latest"], "Labels": labels})
    found = images.listing(three, alice)
    assert {project: [one.id for one in own] for project, own in found.items()} == {
        "net": ["id-3", "id-2", "id-1"]
    }


def test_states_that_cannot_be(files, policy):
    engine = Model()
    wanted = [WantedImage("alice", "net"), WantedImage("alice", "other")]
    for options in ({"state": "gone"}, {"state": "present", "to": "a"}, {"state": "rolled_back", "to": "a"}):
        with pytest.raises(InvalidInput):
            images.reconcile_images(engine, policy, wanted, check=False, **options)
    results = images.reconcile_images(engine, policy, wanted, check=False, state="rolled_back")
    assert [result.failed for result in results] == [True, True]
    assert "no image yet" in results[0].message
    pruned = images.reconcile_images(engine, policy, wanted, check=False, state="pruned")
    assert [(result.failed, result.changed) for result in pruned] == [(False, False)] * 2
    # A server without Docker has no images; that there is nothing to go back to is said.
    pruned = images.reconcile_images(None, policy, wanted, check=True, state="pruned")
    assert [(result.failed, result.changed) for result in pruned] == [(False, False)] * 2
    assert images.reconcile_images(None, policy, wanted, check=True, state="rolled_back")[0].failed


@pytest.mark.parametrize(
    ("to", "error"), [("xyz", InvalidInput), ("../a", InvalidInput), ("", NotFound), ("f", NotFound)]
)
def test_images_that_are_not_there(to, error):
    with pytest.raises(error):
        versions.chosen([], "net", to)


def test_more_than_one_image_is_meant():
    found = [Version("a", "r", "ab" * 32, current=True), Version("b", "r", "aa" * 32)]
    assert versions.chosen(found, "net", "aa") == found[1]
    with pytest.raises(InvalidInput, match="More than one"):
        versions.chosen(found, "net", "a")


def test_of_one_second_the_current_one_is_the_newest():
    found = [Version(str(n), "r", f"{n:064x}", created=7, current=n == 1) for n in range(3)]
    newest = versions._newest_first(found)
    assert newest[0] == found[1]
    assert versions.chosen(newest, "net") == found[0]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=8),
    st.integers(1, 4),
    st.integers(0, 7),
)
def test_what_goes(made, keep, current):
    found = tuple(
        Version(str(n), "r", f"{n:064x}", created=age, in_use=used, current=n == current)
        for n, (age, used) in enumerate(made)
    )
    found = versions._newest_first(found)
    gone = versions.surplus(found, keep)
    assert not any(version.current or version.in_use for version in gone)
    left = [version for version in found if version not in gone]
    assert len(left) >= min(keep, len(found))
    assert all(version.current or version.in_use or version in found[:keep] for version in left)
    # Done twice it does nothing more.
    assert versions.surplus(left, keep) == ()


# What is remembered


def test_state_that_is_broken_is_none(files, tmp_path):
    imagestate.remember(2001, "net", Known("l", "a", {"b": "c"}, "f"))
    imagestate.set_pin(2001, "net", Pin("i", "f"))
    assert imagestate.known(2001, "net") == Known("l", "a", {"b": "c"}, "f")
    folder = tmp_path / "state/images/2001"
    for text in ("", "[]", "{", '{"look": 1}', "\xff", '{"look": "l", "arguments": "a", "bases": 7}'):
        for name in ("net.look.json", "net.pin.json"):
            (folder / name).write_text(text)
        assert imagestate.known(2001, "net") is None
        assert imagestate.pin(2001, "net") is None


def test_state_is_for_root_alone(files, tmp_path):
    imagestate.set_packages(2001, "net", "a" * 64, ("numpy==1",))
    imagestate.set_pin(2001, "net", Pin("i", "f"))
    state = tmp_path / "state"
    assert (state / "locks/2001/net" / ("a" * 12 + ".txt")).read_text() == "numpy==1\n"
    modes = {path.stat().st_mode & 0o077 for path in state.rglob("*")}
    assert modes == {0}
    imagestate.set_packages(2001, "net", "a" * 64, None)
    imagestate.set_pin(2001, "net", None)
    imagestate.set_pin(2001, "net", None)
    assert [path for path in state.rglob("*") if path.is_file()] == []
    for project, digest in (("../x", "a" * 64), ("net", "../../x")):
        with pytest.raises(InvalidInput):
            imagestate.set_packages(2001, project, digest, ())


@pytest.mark.parametrize(
    ("said", "listed"),
    [
        (b"b==2\n\n  a==1 \n", ("b==2", "a==1")),
        (b"", ()),
        (b"\x1b[31m\xff==1\n", ("\\x1b[31m\ufffd==1",)),
        (None, None),
    ],
)
def test_packages_as_pip_says_them(alice, said, listed):
    engine = SimpleNamespace(facts=Model().facts, output_of=lambda *_given, **_bounds: said)
    assert freeze.packages(engine, alice, "net", "id") == listed


def test_packages_are_asked_for_without_any_rights(alice):
    seen: dict[str, Any] = {}

    def output_of(name: str, config: Any, **bounds: Any) -> bytes:
        seen.update(config, name=name, **bounds)
        return b""

    freeze.packages(SimpleNamespace(facts=Model().facts, output_of=output_of), alice, "net", "id")
    host = seen["HostConfig"]
    assert seen["User"] == "2001:2001"
    assert seen["NetworkDisabled"] and host["NetworkMode"] == "none"
    assert host["CapDrop"] == ["ALL"] and host["SecurityOpt"] == ["no-new-privileges"]
    assert host["ReadonlyRootfs"] and not host["Privileged"]
    assert not host.keys() & {"Mounts", "Binds", "Tmpfs", "Devices", "DeviceRequests"}
    assert host["CgroupParent"] == "lab-2001.slice"
    assert 0 < host["Memory"] == host["MemorySwap"] <= 64 << 20
    assert 0 < host["PidsLimit"] <= 64
    assert (seen["seconds"], seen["limit"]) == (60.0, 1 << 20)


def test_an_image_without_python_is_no_error(alice):
    def fails(*_given: Any, **_bounds: Any) -> None:
        raise EngineError('exec: "python3": executable file not found in $PATH')

    assert freeze.packages(SimpleNamespace(facts=Model().facts, output_of=fails), alice, "n", "id") is None


# The package cache


def _with_cache(policy: Policy) -> Policy:
    files = ("https://files.example.org/",)
    cache = PackageCache("https://index.example.org/simple/", files, ("a.example.org",), 1, "10.0.0.1/24", 80)
    return replace(policy, package_cache=cache)


@pytest.mark.parametrize("works", [True, False])
def test_a_package_cache_is_used_where_it_works(
    files: Files, policy: Policy, alice: User, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    monkeypatch.setattr(packagecache, "answers", lambda _cache: works)
    engine, lines, requests = Model(), [], []
    monkeypatch.setattr(engine, "build", lambda request, _progress: requests.append(request) or "id-1")
    promise = images.build(engine, policy, alice, "net", check=True)
    deed = images.build(engine, _with_cache(policy), alice, "net", progress=lines.append)
    assert deed == promise
    assert dict(requests[0].hosts) == ({"a.example.org": "10.0.0.1"} if works else {})
    assert lines == (
        [] if works else ["The package cache does not answer at http://10.0.0.1: this build goes without."]
    )


@pytest.mark.parametrize(
    ("setting", "left"),
    [("", True), ("ENV PIP_INDEX_URL=x", False), ("base", False), ("argument", False)],
)
def test_an_index_that_is_set_is_left(
    files: Files, policy: Policy, alice: User, monkeypatch: pytest.MonkeyPatch, setting: str, left: bool
) -> None:
    monkeypatch.setattr(packagecache, "answers", lambda _cache: True)
    written: list[str] = []
    put_in = context.put_in

    def noted(archive: Any, files: dict[str, str], modes: dict[str, int]) -> None:
        written.append(files["Dockerfile"])
        put_in(archive, files, modes)

    monkeypatch.setattr(context, "put_in", noted)
    engine = Model()
    files.dockerfile += setting if setting.startswith("ENV") else ""
    if setting == "base":
        engine.stored[BASE]["Config"]["Env"] = ["PATH=/bin", "PIP_TRUSTED_HOST=mirror.example.org"]
    arguments = {"PIP_INDEX_URL": "https://x/"} if setting == "argument" else {}
    images.build(engine, _with_cache(policy), alice, "net", build_args=arguments)
    assert ("ARG PIP_INDEX_URL=http://10.0.0.1/simple/" in written[0].splitlines()) is left
    assert ("ARG PIP_TRUSTED_HOST=10.0.0.1" in written[0].splitlines()) is left
    assert "ARG UV_DEFAULT_INDEX=http://10.0.0.1/simple/" in written[0].splitlines()


# What a build says, and who waits for it


class Slow(Model):
    """An engine of which a build says a line, and waits until it is to end."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def build(self, request: Any, progress: Any) -> str:
        request.log("\x1b[31mcompiling\n")
        self.begun.set()
        assert self.go_on.wait(10)
        request.log("end of it\n")
        return super().build(request, progress)


class Builder(threading.Thread):
    """Somebody who builds meanwhile, and looks at it."""

    def __init__(self, *place: Any, **options: Any) -> None:
        super().__init__()
        self.shown: list[str] = []
        self.changed: bool | None = None
        self.error = ""
        self._work = lambda: images.build(*place, progress=self.shown.append, **options)
        self.start()

    def run(self) -> None:
        try:
            self.changed = self._work().changed
        except EngineError as error:
            self.error = str(error)


def wait_for_line(builder: Builder, line: str) -> None:
    end = time.monotonic() + 10
    while line not in builder.shown:
        assert time.monotonic() < end, builder.shown
        time.sleep(0.01)


@pytest.mark.parametrize("broken", ["", "no such header"])
def test_who_builds_meanwhile_sees_the_build_that_runs_and_its_end(files, policy, alice, broken):
    engine = Slow()
    engine.broken = broken
    first = Builder(engine, policy, alice, "net")
    assert engine.begun.wait(10)
    second = Builder(engine, policy, alice, "net")
    wait_for_line(second, "compiling")
    assert second.shown[0].startswith("A build of net is at work since ")
    build = buildlog.last(2001, "net")
    assert build is not None and build.outcome == buildlog.RUNNING
    engine.go_on.set()
    first.join()
    second.join()
    assert engine.calls.count("build") == 1
    assert (first.changed, second.changed) == ((None, None) if broken else (True, False))
    assert first.error == second.error
    ended = buildlog.last(2001, "net")
    assert ended is not None and ended.id == build.id
    assert ended.outcome == (buildlog.FAILED if broken else buildlog.DONE)
    assert buildlog.Reader(2001, "net", build.id).more() == ["compiling", "end of it"]
    if broken:
        assert "image log net" in first.error
        # Other files may do better, and so may the same ones later.
        with pytest.raises(EngineError):
            images.build(engine, policy, alice, "net")
        assert engine.calls.count("build") == 2


def test_a_build_that_was_watched_is_not_the_one_of_other_files(files, policy, alice):
    engine = Slow()
    engine.broken = "no such header"
    first = Builder(engine, policy, alice, "net")
    assert engine.begun.wait(10)
    files.text = "better"
    second = Builder(engine, policy, alice, "net")
    wait_for_line(second, "compiling")
    third = Builder(engine, policy, alice, "net", rebuild=True)
    wait_for_line(third, "compiling")
    engine.go_on.set()
    for builder in (first, second, third):
        builder.join()
    assert engine.calls.count("build") >= 2 and first.error


def test_a_build_that_runs_is_waited_for_longer_where_somebody_looks(files, policy, alice, monkeypatch):
    # Bound before, as a default value of the function is.
    hold = locks.hold

    def impatient(name: str, **options: Any) -> Any:
        return hold(name, **{**options, "timeout": 0.2})

    monkeypatch.setattr(locks, "hold", impatient)
    engine = Slow()
    first = Builder(engine, policy, alice, "net")
    assert engine.begun.wait(10)
    other = Builder(engine, policy, alice, "paper")
    second = Builder(engine, policy, alice, "net")
    with pytest.raises(locks.InUse):
        images.build(engine, policy, alice, "net")  # as a play does
    wait_for_line(other, "Your build of net is at work; this waits for its end.")
    time.sleep(0.5)
    engine.go_on.set()
    for builder in (first, second, other):
        builder.join()
    assert (first.changed, second.changed, other.changed) == (True, False, True)


def test_an_image_that_is_there_costs_no_log_and_what_is_forgotten_has_none(build, engine_of_one, alice):
    before = buildlog.last(2001, "net")
    assert before is not None and before.outcome == buildlog.DONE
    build(engine_of_one)
    assert buildlog.last(2001, "net") == before
    images.remove(engine_of_one, None, alice, "net", everything=True)
    assert buildlog.last(2001, "net") is None


@pytest.fixture
def engine_of_one(build) -> Model:
    engine = Model()
    build(engine)
    return engine
