"""The difference of two pictures of a server: what is a user's own, and what is not (molecule test 29)."""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path
from typing import Any, Callable

import pytest

SCRIPT = Path(__file__).parents[2] / "molecule" / "default" / "tests" / "hostile" / "snapshot.py"


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("snapshot", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["snapshot"] = module
    spec.loader.exec_module(module)
    return module


snapshot = _load()

BOB, CAROL = 2002, 2003
FILE, FOLDER = oct(0o100644), oct(0o40700)


def _container(uid: int) -> dict[str, Any]:
    return {"inspect": {"Name": "x", "Config": {"Labels": {"lab.server.owner": str(uid)}}}, "changes": None}


def _layer(folder: str) -> dict[str, Any]:
    return {"Data": {"UpperDir": f"/var/lib/docker/overlay2/{folder}/diff"}}


BEFORE: dict[str, Any] = {
    "files": {
        "/etc/passwd": [FILE, 0, 0, 0, 10, 1, 5, 5, "x"],
        "/tmp/roots": [FILE, 0, 0, 0, 0, 1, 5, 5, ""],
        "/tmp": [oct(0o41777), 0, 0, 0, 4096, 5, 5, 5, ""],
        "/var/log/syslog": [FILE, 0, 0, 0, 10, 1, 5, 5, "x"],
        "/home/bob/x": [FILE, BOB, BOB, 0, 10, 1, 5, 5, "x"],
        "/home/bobby/x": [FILE, CAROL, CAROL, 0, 10, 1, 5, 5, "x"],
        "/var/lib/docker/overlay2/a/diff/bin": [FILE, 0, 0, 0, 10, 1, 5, 5, ""],
        "/var/lib/docker/overlay2/b/diff/bin": [FILE, 0, 0, 0, 10, 1, 5, 5, ""],
    },
    "records": {
        "lifecycle.json": {"up": 5, "counted": {"vision._.2003": {"ran": 5}, "x._.2002": {"ran": 5}}}
    },
    "docker": {
        "containers": {"c" * 64: _container(CAROL), "b" * 64: _container(BOB)},
        "images": {
            "sha256:a": {"RepoTags": ["lab/python:latest"], "GraphDriver": _layer("a")},
            "sha256:b": {"RepoTags": ["lab/2002/x:latest"], "GraphDriver": _layer("b")},
        },
        "volumes": [],
        "networks": [],
        "root": "/var/lib/docker",
    },
    "processes": {"['0', '0', '0', '0'] /usr/bin/dockerd": 1},
    "limits": {"/sys/fs/cgroup/lab.slice/lab-2003.slice/pids.max": "5"},
    "settings": {"kernel/core_pattern": "core"},
    "units": ["docker.service loaded active running Docker"],
    "mounts": ["/ /home rw - ext4 /dev/vdb rw"],
    "firewall": ["-A FORWARD -j LAB-SERVER"],
    "listening": ["tcp LISTEN 0 128 127.0.0.1:22"],
    "quotas": ["#2002 -- 5 10 10", "#2003 -- 5 10 10", "#0 -- 5 0 0"],
}


def _set(*keys: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(picture: dict[str, Any]) -> None:
        *way, last = keys
        for key in way:
            picture = picture[key]
        picture[last] = to

    return change


def _told(change: Callable[[dict[str, Any]], None]) -> list[str]:
    after = copy.deepcopy(BEFORE)
    change(after)
    found: list[str] = snapshot.Difference(BEFORE, after, BOB, "bob").all()
    return found


ROOT, OF_BOB = "['0', '0', '0', '0']", "['2002', '2002', '2002', '2002']"


@pytest.mark.parametrize(
    "change",
    [
        _set("files", "/etc/new", to=[FILE, 0, 0, 0, 0, 1, 6, 6, ""]),
        _set("files", "/etc/passwd", to=[FILE, 0, 0, 0, 10, 1, 5, 6, "x"]),
        _set("files", "/etc/passwd", to=[FILE, BOB, 0, 0, 10, 1, 5, 5, "x"]),
        _set("files", "/home/bobby/x", to=[FILE, CAROL, CAROL, 0, 10, 1, 5, 6, "y"]),
        _set("files", "/home/alice", to=[FOLDER, BOB, BOB, 0, 0, 1, 6, 6, ""]),
        _set("files", "/var/log/syslog", to=[oct(0o100666), 0, 0, 0, 10, 1, 5, 5, "x"]),
        _set("files", "/var/log/bobs", to=[FILE, BOB, BOB, 0, 10, 1, 5, 5, "x"]),
        _set("files", "/tmp/roots", to=[FILE, 0, 0, 0, 0, 1, 6, 6, ""]),
        _set("files", "/tmp/roots", to=[FILE, BOB, 0, 0, 0, 1, 5, 6, ""]),
        lambda picture: picture["files"].pop("/tmp/roots"),
        _set("files", "/tmp/carols", to=[FILE, CAROL, 0, 0, 0, 1, 6, 6, ""]),
        _set("files", "/run/lab-server/calls/bobs", to=[FILE, BOB, 0, 0, 0, 1, 6, 6, ""]),
        _set("files", "/var/lib/lab-server/events/2003/x", to=[FILE, 0, 0, 0, 0, 1, 6, 6, ""]),
        _set("files", "/var/lib/lab-server/stopped/x._.20021", to=[FILE, 0, 0, 0, 0, 1, 6, 6, ""]),
        _set("files", "/var/lib/lab-server/open", to=[oct(0o40777), 0, 0, 0, 0, 1, 6, 6, ""]),
        _set("files", "/var/lib/docker/overlay2/a/diff/bin", to=[FILE, 0, 0, 0, 10, 1, 5, 6, ""]),
        lambda picture: picture["files"].pop("/home/bobby/x"),
        _set("records", "lifecycle.json", "counted", "vision._.2003", "ran", to=6),
        _set("records", "lifecycle.json", to={"counted": {}}),
        _set("docker", "containers", "c" * 64, "inspect", "Name", to="y"),
        lambda picture: picture["docker"]["containers"].pop("c" * 64),
        _set("docker", "containers", "d" * 64, to=_container(CAROL)),
        _set("docker", "containers", "d" * 64, to={"inspect": {"Config": {"Labels": None}}, "changes": None}),
        _set("docker", "images", "sha256:a", "RepoTags", to=["lab/python:latest", "lab/2002/x:1"]),
        _set("docker", "images", "sha256:c", to={"RepoTags": ["lab/20021/x:1"]}),
        _set("docker", "volumes", to=[{"Name": "x"}]),
        _set("processes", f"{ROOT} sleep 5", to=1),
        _set("processes", f"{ROOT} /usr/bin/dockerd", to=2),
        _set("processes", "['2002', '0', '0', '0'] bash", to=1),
        _set("limits", "/sys/fs/cgroup/lab.slice/lab-2003.slice/pids.max", to="max"),
        _set("settings", "kernel/core_pattern", to="|/home/bob/x"),
        _set("units", to=["docker.service loaded failed failed Docker"]),
        _set("mounts", to=["/ /home rw - ext4 /dev/vdb rw", "/ /srv rw - ext4 /dev/vdb rw"]),
        _set("firewall", to=[]),
        _set("listening", to=[]),
        _set("quotas", to=["#2002 -- 5 10 10", "#2003 -- 6 10 10", "#0 -- 5 0 0"]),
    ],
)
def test_what_is_not_the_users_own_is_told(change: Callable[[dict[str, Any]], None]) -> None:
    assert _told(change) != []


@pytest.mark.parametrize(
    "change",
    [
        lambda picture: None,
        lambda picture: picture["files"].pop("/home/bob/x"),
        _set("files", "/home/.workspaces/bob/new", to=[FILE, BOB, BOB, 0, 0, 1, 6, 6, ""]),
        _set("files", "/tmp", to=[oct(0o41777), 0, 0, 0, 9000, 6, 6, 6, ""]),
        _set("files", "/tmp/bobs", to=[FILE, BOB, BOB, 0, 0, 1, 6, 6, ""]),
        _set("files", "/var/log/syslog", to=[FILE, 0, 0, 0, 20, 1, 6, 6, "y"]),
        _set("files", "/var/lib/lab-server/events/2002/x.jsonl", to=[FILE, 0, 0, 0, 0, 1, 6, 6, ""]),
        _set("files", "/var/lib/lab-server/stopped/x._.2002", to=[FILE, 0, 0, 0, 0, 1, 6, 6, ""]),
        _set("files", "/var/lib/lab-server/jobs", to=[FOLDER, 0, 0, 0, 0, 1, 6, 6, ""]),
        _set("files", "/var/lib/docker/overlay2/b/diff/bin", to=[FILE, 0, 0, 0, 10, 1, 5, 6, ""]),
        _set("records", "lifecycle.json", to={"up": 6, "counted": {"vision._.2003": {"ran": 5}}}),
        lambda picture: picture["docker"]["containers"].pop("b" * 64),
        _set("docker", "containers", "d" * 64, to=_container(BOB)),
        _set("docker", "images", "sha256:c", to={"RepoTags": []}),
        lambda picture: picture["docker"]["images"].pop("sha256:b"),
        _set("processes", f"{OF_BOB} sleep 5", to=1),
        _set("processes", f"{ROOT} containerd-shim -id {'b' * 64}", to=1),
        _set("processes", f"{ROOT} sshd-session: bob [priv]", to=1),
        _set("limits", "/sys/fs/cgroup/lab.slice/lab-2002.slice/pids.max", to="5"),
        _set("quotas", to=["#2002 -- 9 10 10", "#2003 -- 5 10 10", "#0 -- 9 0 0"]),
    ],
)
def test_what_is_the_users_own_is_not(change: Callable[[dict[str, Any]], None]) -> None:
    assert _told(change) == []


def test_a_picture_of_files_has_what_lstat_says_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("one\n")
    (tmp_path / "out").symlink_to("/etc")
    (tmp_path / "left out").mkdir()
    (tmp_path / "left out" / "file").touch()
    seen = snapshot._walk([str(tmp_path)], {str(tmp_path / "left out")})
    assert sorted(seen) == [str(tmp_path), str(tmp_path / "file"), str(tmp_path / "out")]
    before = seen[str(tmp_path / "file")]
    (tmp_path / "file").write_text("two\n")
    after = snapshot._walk([str(tmp_path)], set())[str(tmp_path / "file")]
    assert before[:6] == after[:6] and before[-1] != after[-1] and before[7] != after[7]
