"""Containers on a real engine: what is made, what stays, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import containers, context, images, state
from ansible_collections.lab.server.plugins.module_utils._core.containers import Wanted
from ansible_collections.lab.server.plugins.module_utils._core.engine import Engine
from ansible_collections.lab.server.plugins.module_utils._core.errors import (
    EngineError,
    HostError,
    NotFound,
    Refused,
)


@pytest.fixture
def launched(engine, policy, alice, thesis):
    return containers.launch(engine, policy, alice, "thesis")


def test_launch_makes_and_starts(launched, engine, alice, inside):
    assert launched.changed
    assert launched.facts["status"] == "created"
    assert launched.facts["notes"] == []
    assert inside(alice, "thesis", "cat /word; pwd; id -u; id -g; id -un; echo $HOME $LAB").split() == [
        "one",
        "/workspace/thesis",
        "2001",
        "2001",
        "alice",
        "/home/alice",
        "test",
    ]


def test_second_launch_changes_nothing(launched, engine, policy, alice):
    again = containers.launch(engine, policy, alice, "thesis")
    assert not again.changed
    assert again.facts["status"] == "running"
    assert again.facts["id"] == launched.facts["id"]


def test_both_sides_see_the_same_files(launched, alice, thesis, inside):
    inside(alice, "thesis", "echo hello > made; ln -s /home/.workspaces/alice/thesis/word link")
    made = thesis.path / "made"
    assert made.read_text() == "hello\n"
    assert (made.stat().st_uid, made.stat().st_gid) == (2001, 2001)
    assert inside(alice, "thesis", "cat link").strip() == "one"
    assert inside(alice, "thesis", "ls ~/workspace/").split() == ["thesis"]


def test_no_way_to_more_rights(launched, alice, inside):
    status = dict(
        line.split(":\t", 1) for line in inside(alice, "thesis", "cat /proc/self/status").splitlines()
    )
    assert status["NoNewPrivs"] == "1"
    assert {status[f"Cap{kind}"].strip() for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert status["Seccomp"] == "2"
    # The image has a copy of busybox that is setuid root.
    assert inside(alice, "thesis", "/usr/busybox id -u").strip() == "2001"
    assert inside(alice, "thesis", "id -G").split() == ["2001"]


def test_data_is_read_only_and_other_shares_closed(launched, policy, alice, inside):
    data = policy.data_root
    assert inside(alice, "thesis", f"cat {data}/datasets/iris.csv").strip() == "data"
    assert "Read-only" in inside(alice, "thesis", f"touch {data}/x 2>&1 || true")
    assert "Permission denied" in inside(alice, "thesis", f"ls {data}/vision {data}/admin 2>&1 || true")


def test_group_share_is_writable_for_members(engine, policy, bob, tiny, inside, root, project_of):
    project_of(bob, "net").write("Dockerfile", f"FROM {tiny}\n")
    result = containers.launch(engine, policy, bob, "net")
    share = f"{policy.data_root}/vision"
    assert result.facts["kept"] == ["/workspace", share]
    inside(bob, "net", f"touch {share}/weights")
    assert (root / "srv/vision/weights").stat().st_gid == 3102
    assert inside(bob, "net", "id -Gn").split() == ["bob", "researchers"]


def test_create_options(launched, engine):
    inspected = engine.inspect(launched.facts["id"])
    host, config = inspected["HostConfig"], inspected["Config"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["Memory"] == host["MemorySwap"] == 64 << 20
    assert host["PidsLimit"] == 64
    assert host["NanoCpus"] == 1_000_000_000
    assert host["ShmSize"] == 1 << 20
    assert host["CgroupParent"] in ("/lab/2001", "lab-2001.slice")
    assert host["IpcMode"] == host["CgroupnsMode"] == "private"
    assert host["PidMode"] == host["UTSMode"] == host["UsernsMode"] == ""
    assert host["NetworkMode"] == "lab"
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["LogConfig"]["Config"]["max-size"]
    assert not host["Privileged"]
    assert not host["PortBindings"]
    assert not host["Devices"]
    assert config["User"] == "2001:2001"
    assert config["Entrypoint"] == ["sleep", "infinity"]
    assert config["Healthcheck"] == {"Test": ["NONE"]}
    assert "NVIDIA_VISIBLE_DEVICES=void" in config["Env"]


def test_home_is_lost_workspace_is_kept(launched, engine, policy, alice, inside, thesis):
    inside(alice, "thesis", "touch ~/marker /tmp/marker kept")
    assert containers.retire(engine, alice, "thesis").changed
    assert not containers.retire(engine, alice, "thesis").changed
    assert (thesis.path / "kept").exists()
    again = containers.launch(engine, policy, alice, "thesis")
    assert again.facts["id"] != launched.facts["id"]
    assert inside(alice, "thesis", "ls ~ /tmp kept; ls -a ~").split().count("marker") == 0


def test_stop_stays_and_launch_starts_the_same(launched, engine, policy, alice, inside):
    inside(alice, "thesis", "touch ~/marker")
    assert containers.stop(engine, alice, "thesis").changed
    assert not containers.stop(engine, alice, "thesis").changed
    name = launched.facts["container"]
    assert state.is_stopped(name)
    info = containers.listing(engine, policy, alice)[0]
    assert not info.running
    assert not containers.start_existing(engine, policy, info).changed
    again = containers.launch(engine, policy, alice, "thesis")
    assert (again.facts["status"], again.facts["id"]) == ("started", launched.facts["id"])
    assert not state.is_stopped(name)
    assert "marker" in inside(alice, "thesis", "ls ~")


def test_boot_starts_what_was_not_stopped_on_purpose(launched, engine, policy, alice):
    engine.stop(launched.facts["id"], 0)
    info = containers.listing(engine, policy, alice)[0]
    assert containers.start_existing(engine, policy, info).changed
    assert containers.listing(engine, policy, alice)[0].running


def test_listing_is_the_users_own(launched, engine, policy, alice, bob):
    assert [info.project for info in containers.listing(engine, policy, alice)] == ["thesis"]
    assert containers.listing(engine, policy, bob) == []
    with pytest.raises(NotFound):
        containers.stop(engine, bob, "thesis")


def test_newer_image_is_told_and_used_after_retire(launched, engine, policy, alice, thesis, inside):
    thesis.write("word", "two\n")
    assert images.build(engine, policy, alice, "thesis").changed
    again = containers.launch(engine, policy, alice, "thesis")
    assert again.facts["id"] == launched.facts["id"]
    assert "newer" in again.facts["notes"][0]
    assert inside(alice, "thesis", "cat /word").strip() == "one"
    containers.retire(engine, alice, "thesis")
    containers.launch(engine, policy, alice, "thesis")
    assert inside(alice, "thesis", "cat /word").strip() == "two"


def test_launch_without_project(engine, policy, alice):
    with pytest.raises(NotFound, match="project init"):
        containers.launch(engine, policy, alice, "nothing")


def test_too_many_containers(engine, policy, alice, tiny, project_of):
    for number in range(3):
        project_of(alice, f"p{number}").write("Dockerfile", f"FROM {tiny}\n")
        containers.launch(engine, policy, alice, f"p{number}")
    project_of(alice, "p3").write("Dockerfile", f"FROM {tiny}\n")
    with pytest.raises(Refused, match="3 of 3 containers"):
        containers.launch(engine, policy, alice, "p3")
    results = containers.reconcile(
        engine, policy, [Wanted("alice", "p3"), Wanted("alice", "p0", state="retired")], check=True
    )
    assert [result.failed for result in results] == [False, False]


@pytest.mark.parametrize("volume", ["/workspace", "/workspace/x", "/home", "/home/alice/.cache", "/"])
def test_volume_that_hides_the_workspace_is_refused(engine, policy, alice, thesis, tiny, volume):
    thesis.write("Dockerfile", f"FROM {tiny}\nVOLUME {volume}\n")
    with pytest.raises(Refused, match="VOLUME"):
        containers.launch(engine, policy, alice, "thesis")
    assert containers.listing(engine, policy, alice) == []


def test_other_volumes_go_with_the_container(engine, policy, alice, thesis, tiny, docker):
    before = set(docker("volume", "ls", "-q").split())
    thesis.write("Dockerfile", f"FROM {tiny}\nVOLUME /var/cache\n")
    containers.launch(engine, policy, alice, "thesis")
    assert len(set(docker("volume", "ls", "-q").split()) - before) == 1
    containers.retire(engine, alice, "thesis")
    assert set(docker("volume", "ls", "-q").split()) == before


def test_what_an_image_asks_for_is_not_given(engine, policy, alice, thesis, tiny, inside):
    thesis.write(
        "Dockerfile",
        f'FROM {tiny}\nUSER root\nENTRYPOINT ["/bin/false"]\nHEALTHCHECK CMD false\n'
        "ENV NVIDIA_VISIBLE_DEVICES=all"
        ' LD_PRELOAD=/evil.so HOME=/root\nLABEL lab.server.owner="2002" lab.server.project="x"\n',
    )
    containers.launch(engine, policy, alice, "thesis")
    shown = inside(alice, "thesis", "env; id -u")
    assert "NVIDIA_VISIBLE_DEVICES=void" in shown
    assert "evil" not in shown
    assert "HOME=/home/alice" in shown
    assert shown.split()[-1] == "2001"


@pytest.mark.parametrize("target", ["/workspace", "DATA/admin"])
def test_etc_that_is_a_link_leads_nowhere(engine, policy, alice, thesis, docker, target, inside, file_system):
    target = target.replace("DATA", policy.data_root)
    secret = Path(policy.data_root) / "admin/passwd"
    secret.write_text("secret:x:9:9::/:/bin/sh\n")
    docker("import", "-", "lab-test/linked", input=file_system(etc=target))
    thesis.write("Dockerfile", "FROM lab-test/linked\n")
    containers.launch(engine, policy, alice, "thesis")
    assert secret.read_text() == "secret:x:9:9::/:/bin/sh\n"
    assert not (thesis.path.parent / "passwd").exists()
    shown = inside(alice, "thesis", "cat /etc/passwd")
    assert "alice" in shown
    assert "secret" not in shown


def test_home_that_is_a_link_leads_nowhere(engine, policy, alice, thesis):
    thesis.write("Dockerfile", "FROM lab-test/tiny\nRUN rm -rf /home && ln -s /workspace /home\n")
    containers.launch(engine, policy, alice, "thesis")
    assert sorted(os.listdir(policy.workspace(alice))) == ["thesis"]


def test_a_container_that_is_not_ours_is_left_alone(engine, policy, alice, thesis, docker):
    docker("create", "--name", "thesis._.2001", "lab-test/tiny", "true")
    with pytest.raises(Refused, match="labels"):
        containers.launch(engine, policy, alice, "thesis")
    result = containers.reconcile(engine, policy, [Wanted("alice", "thesis")], check=True)[0]
    assert result.failed
    with pytest.raises(Refused):
        containers.retire(engine, alice, "thesis")
    assert docker("ps", "-aq", "--filter", "name=thesis._.2001")


def test_forged_labels_are_not_ours(engine, policy, alice, launched, docker):
    labels = engine.inspect(launched.facts["id"])["Config"]["Labels"]
    containers.retire(engine, alice, "thesis")
    spec = json.loads(labels["lab.server.spec"])
    labels["lab.server.spec"] = json.dumps({**spec, "memory": 1})
    flags = [f"--label={name}={value}" for name, value in labels.items()]
    docker("create", "--name", "thesis._.2001", *flags, "lab-test/tiny", "true")
    with pytest.raises(Refused):
        containers.launch(engine, policy, alice, "thesis")


def test_missing_data_root_starts_nothing(engine, policy, alice, thesis, root):
    (root / "srv").rename(root / "gone")
    with pytest.raises(HostError, match="not there"):
        containers.launch(engine, policy, alice, "thesis")
    assert containers.listing(engine, policy, alice) == []


def test_a_start_that_fails_leaves_nothing(engine, policy, alice, thesis, tiny):
    # Without sleep there is nothing to run.
    thesis.write("Dockerfile", f"FROM {tiny}\nRUN rm /bin/sleep\n")
    with pytest.raises(EngineError):
        containers.launch(engine, policy, alice, "thesis")
    assert containers.listing(engine, policy, alice) == []


def test_a_half_made_container_is_healed(launched, engine, policy, alice, docker, inside):
    inspected = engine.inspect(launched.facts["id"])
    containers.retire(engine, alice, "thesis")
    flags = [f"--label={name}={value}" for name, value in inspected["Config"]["Labels"].items()]
    docker("create", "--name", "thesis._.2001", *flags, inspected["Config"]["Image"], "true")
    containers.launch(engine, policy, alice, "thesis")
    assert inside(alice, "thesis", "id -un").strip() == "alice"


def test_two_launches_at_once(engine, url, policy, alice, thesis):
    children = []
    for _number in range(2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                containers.launch(Engine.connect(url), policy, alice, "thesis")
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert [info.running for info in containers.listing(engine, policy, alice)] == [True]


@pytest.mark.parametrize("delay", [0.05, 0.2, 0.4, 0.6, 0.8, 1.0])
def test_a_launch_that_is_killed(engine, url, policy, alice, thesis, delay):
    child = os.fork()
    if child == 0:
        os.setsid()
        try:
            containers.launch(Engine.connect(url), policy, alice, "thesis")
        finally:
            os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert containers.launch(engine, policy, alice, "thesis").facts["status"] in (
        "created",
        "running",
        "started",
    )
    assert [info.running for info in containers.listing(engine, policy, alice)] == [True]
    again = containers.reconcile(engine, policy, [Wanted("alice", "thesis")], check=False)[0]
    assert not again.changed
    assert os.listdir(f"{context.STATE_DIRECTORY}/tmp") == []


# IT's list


@pytest.fixture
def built(engine, policy, alice, thesis):
    return images.build(engine, policy, alice, "thesis")


def test_reconcile_promise_equals_deed(built, engine, policy):
    for wanted in (
        Wanted("alice", "thesis"),
        Wanted("alice", "thesis"),
        Wanted("alice", "thesis", memory=32 << 20),
        Wanted("alice", "thesis", state="stopped"),
        Wanted("alice", "thesis", state="stopped"),
        Wanted("alice", "thesis"),
        Wanted("alice", "thesis", environment=(("A", "b"),)),
        Wanted("alice", "thesis", state="retired"),
        Wanted("alice", "thesis", state="stopped"),
        Wanted("alice", "thesis", state="absent"),
    ):
        before = engine.containers()
        promise = containers.reconcile(engine, policy, [wanted], check=True)[0]
        assert [c["Id"] for c in engine.containers()] == [c["Id"] for c in before]
        deed = containers.reconcile(engine, policy, [wanted], check=False)[0]
        assert deed == promise
        assert not deed.failed
        assert not containers.reconcile(engine, policy, [wanted], check=False)[0].changed


def test_both_doors_make_the_same(built, engine, policy, alice):
    containers.reconcile(engine, policy, [Wanted("alice", "thesis")], check=False)
    launched = containers.launch(engine, policy, alice, "thesis")
    assert not launched.changed
    assert launched.facts["notes"] == []


def test_drift_recreates_and_keeps_files(built, engine, policy, alice, inside, thesis):
    containers.reconcile(engine, policy, [Wanted("alice", "thesis")], check=False)
    inside(alice, "thesis", "touch kept")
    result = containers.reconcile(engine, policy, [Wanted("alice", "thesis", pids=32)], check=False)[0]
    assert result.reason == "the policy changed (pids)"
    assert result.diff["before"]["pids"] == 64
    assert inside(alice, "thesis", "ls kept").strip() == "kept"
    assert [info.name for info in containers.listing_all(engine, policy)] == ["thesis._.2001"]
    assert len(engine.containers("thesis._.2001.next", "thesis._.2001.previous")) == 0


def test_replacement_that_fails_keeps_the_old(built, engine, policy, alice, inside, monkeypatch):
    containers.reconcile(engine, policy, [Wanted("alice", "thesis")], check=False)
    old = containers.listing(engine, policy, alice)[0]
    start = engine.start

    def start_only_the_old(container):
        if container != old.id:
            raise EngineError("no")
        start(container)

    monkeypatch.setattr(engine, "start", start_only_the_old)
    result = containers.reconcile(engine, policy, [Wanted("alice", "thesis", pids=32)], check=False)[0]
    assert result.failed
    now = containers.listing(engine, policy, alice)
    assert [(info.id, info.running) for info in now] == [(old.id, True)]


@pytest.mark.parametrize("breaking", ["stop", "rename", "start", "remove"])
def test_replacement_broken_off_is_healed(built, engine, policy, alice, monkeypatch, breaking):
    """Leave everything as it is at one step, as a power loss would, and look at the next run."""
    wanted = [Wanted("alice", "thesis", pids=32)]
    containers.reconcile(engine, policy, [Wanted("alice", "thesis")], check=False)

    class Off(Exception):
        pass

    def broken(*arguments):
        for name in ("stop", "rename", "start", "remove"):
            monkeypatch.setattr(engine, name, broken)
        raise Off

    monkeypatch.setattr(engine, breaking, broken)
    with pytest.raises(Off):
        containers.reconcile(engine, policy, wanted, check=False)
    for name in ("stop", "rename", "start", "remove"):
        monkeypatch.setattr(engine, name, getattr(type(engine), name).__get__(engine))
    result = containers.reconcile(engine, policy, wanted, check=False)[0]
    assert not result.failed
    assert result.changed
    names = [c["Names"][0] for c in engine.containers() if "._." in c["Names"][0]]
    assert names == ["/thesis._.2001"]
    assert not containers.reconcile(engine, policy, wanted, check=False)[0].changed


def test_one_failure_does_not_stop_the_others(built, engine, policy):
    results = containers.reconcile(
        engine,
        policy,
        [
            Wanted("alice", "no-image"),
            Wanted("alice", "thesis"),
            Wanted("nobody", "x"),
            Wanted("bob", "y", memory=1 << 40),
        ],
        check=False,
    )
    assert [result.failed for result in results] == [True, False, True, True]
    assert "image-update" in results[0].message
    assert "limit of 64M" in results[3].message


def test_bare_host_in_check_mode(policy):
    result = containers.reconcile(None, policy, [Wanted("alice", "thesis")], check=True)[0]
    assert result.changed
    assert not result.failed
