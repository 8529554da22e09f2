"""Containers on a real engine: what is made, what stays, and what is refused."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    asuser,
    brought,
    containers,
    context,
    events,
    greeting,
    homes,
    images,
    replacing,
    retired,
    state,
    where,
)
from ansible_collections.lab.server.plugins.module_utils._core import policy as policies
from ansible_collections.lab.server.plugins.module_utils._core import spec as specs
from ansible_collections.lab.server.plugins.module_utils._core.containers import Wanted
from ansible_collections.lab.server.plugins.module_utils._core.engine import Engine
from ansible_collections.lab.server.plugins.module_utils._core.errors import (
    EngineError,
    HostError,
    InvalidInput,
    LabError,
    NotFound,
    Refused,
)
from ansible_collections.lab.server.plugins.module_utils._core.shares import encode_acl
from conftest import root_file_system


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


def test_what_is_mounted_below_the_data_is_not_writable_in_containers(
    engine, policy, alice, tiny, inside, project_of
):
    below = Path(policy.data_root) / "datasets/more"
    below.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", below], check=True)
    try:
        project_of(alice, "thesis").write("Dockerfile", f"FROM {tiny}\n")
        containers.launch(engine, policy, alice, "thesis")
        assert "Read-only" in inside(alice, "thesis", f"touch {below}/x 2>&1 || true")
        assert list(below.iterdir()) == []
    finally:
        engine.remove(f"thesis._.{alice.uid}")
        subprocess.run(["umount", below], check=True)


def test_group_share_is_writable_for_members(engine, policy, bob, tiny, inside, root, project_of):
    project_of(bob, "net").write("Dockerfile", f"FROM {tiny}\n")
    result = containers.launch(engine, policy, bob, "net")
    share = f"{policy.data_root}/vision"
    assert result.facts["kept"] == ["/workspace", share]
    inside(bob, "net", f"touch {share}/weights")
    assert (root / "srv/vision/weights").stat().st_gid == 3102
    assert inside(bob, "net", "id -Gn").split() == ["bob", "researchers"]


def test_what_a_container_writes_to_a_share_a_colleague_edits(
    engine, policy, bob, tiny, inside, root, project_of
):
    folder = root / "srv/vision"
    os.setxattr(folder, "system.posix_acl_default", encode_acl("u::rwx,g::rwx,o::---"))
    project_of(bob, "net").write("Dockerfile", f"FROM {tiny}\n")
    containers.launch(engine, policy, bob, "net")
    share = f"{policy.data_root}/vision"
    inside(bob, "net", f"umask 077; mkdir -p {share}/runs && echo a > {share}/runs/log")
    # The colleague is on the host, with the same umask and another uid.
    subprocess.run(
        ["/bin/sh", "-c", "echo b >> runs/log && echo b > runs/new"],
        cwd=folder,
        user=64102,
        group=64102,
        extra_groups=[3102],
        umask=0o077,
        check=True,
    )
    assert inside(bob, "net", f"echo a >> {share}/runs/new; cat {share}/runs/log").split() == ["a", "b"]
    assert (folder / "runs/new").read_text() == "b\na\n"


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


def test_variables_of_a_user_are_in_the_users_containers_alone(
    engine, policy, alice, bob, tiny, project_of, inside
):
    wanted = [
        Wanted("alice", "a", environment=(("PLACE", "project"),)),
        Wanted("alice", "b"),
        Wanted("bob", "a"),
    ]
    for one in wanted:
        project_of(policy.user(one.user), one.project).write("Dockerfile", f"FROM {tiny}\n")
        images.build(engine, policy, policy.user(one.user), one.project)
    results = containers.reconcile(engine, policy, wanted, check=False)
    assert all(result.changed and not result.failed for result in results), results
    show = "echo $LAB $PLACE $HF_HOME"
    assert inside(alice, "b", show).split() == ["test"]
    hers = (("HF_HOME", "/workspace/.cache/huggingface"), ("LAB", "hers"), ("PLACE", "user"))
    users = tuple(replace(one, environment=hers if one == alice else ()) for one in policy.users)
    results = containers.reconcile(engine, replace(policy, users=users), wanted, check=False)
    assert [result.changed for result in results] == [True, True, False], results
    assert inside(alice, "a", show).split() == ["hers", "project", "/workspace/.cache/huggingface"]
    assert inside(alice, "b", show).split() == ["hers", "user", "/workspace/.cache/huggingface"]
    assert inside(bob, "a", show).split() == ["test"]
    results = containers.reconcile(engine, replace(policy, users=users), wanted, check=False)
    assert not any(result.changed for result in results), results


def test_home_is_lost_workspace_is_kept(launched, engine, policy, alice, inside, thesis):
    inside(alice, "thesis", "touch ~/marker /tmp/marker kept")
    assert containers.retire(engine, policy, alice, "thesis").changed
    assert not containers.retire(engine, policy, alice, "thesis").changed
    assert (thesis.path / "kept").exists()
    again = containers.launch(engine, policy, alice, "thesis")
    assert again.facts["id"] != launched.facts["id"]
    assert inside(alice, "thesis", "ls ~ /tmp kept; ls -a ~").split().count("marker") == 0


# The data root of the tests is below /tmp.
SHOWN = "ls /tmp | grep -v lab-server-test || true"


def names_of(engine: Engine) -> list[str]:
    """Return the names of all containers that are or were of a project."""
    return sorted(c["Names"][0].lstrip("/") for c in engine.containers() if "._." in c["Names"][0])


def test_retire_says_what_is_lost_and_undo_brings_it_back(launched, engine, policy, alice, inside):
    packages = "~/.local/lib/python3/site-packages"
    inside(alice, "thesis", f"mkdir -p {packages}/numpy-1.26.0.dist-info; echo > {packages}/numpy.py")
    inside(
        alice,
        "thesis",
        f"echo > {packages}/numpy-1.26.0.dist-info/METADATA; echo mine > /tmp/notes; echo k > kept",
    )
    before = time.time()
    said = containers.lost(engine, policy, alice, "thesis")
    retired = containers.retire(engine, policy, alice, "thesis")
    assert retired.actions == ["retire"]
    lost = retired.facts["lost"]
    assert {**said["lost"], "bytes": 0} == {**lost, "bytes": 0}
    assert lost["packages"] == ["numpy 1.26.0"]
    assert lost["files"] == 3
    assert lost["complete"]
    assert lost["paths"][0] == "/tmp/notes"
    assert 0 < lost["bytes"] < 100_000
    assert 0 <= retired.facts["undo_until"] - 7 * 86400 - int(before) < 60
    assert containers.listing(engine, policy, alice) == []
    assert len(names_of(engine)) == 1
    back = containers.undo(engine, policy, alice, "thesis")
    assert back.actions == ["restore", "start"]
    assert names_of(engine) == ["thesis._.2001"]
    assert inside(alice, "thesis", "cat /tmp/notes").strip() == "mine"
    assert containers.listing(engine, policy, alice)[0].id == launched.facts["id"]
    assert not containers.undo(engine, policy, alice, "thesis").changed
    assert containers.launch(engine, policy, alice, "thesis").facts["status"] == "running"


def test_what_holds_nothing_is_not_kept(launched, engine, policy, alice, inside):
    retired = containers.retire(engine, policy, alice, "thesis")
    assert retired.facts["lost"]["files"] == 0, retired.facts
    assert retired.facts["undo_until"] is None
    assert "differs" in retired.facts["not_kept"]
    assert names_of(engine) == []
    with pytest.raises(NotFound, match="no retired container"):
        containers.undo(engine, policy, alice, "thesis")
    containers.launch(engine, policy, alice, "thesis")
    inside(alice, "thesis", "echo alias ll=ls >> ~/.bashrc")
    assert containers.retire(engine, policy, alice, "thesis").facts["undo_until"]


def test_undo_takes_nobodys_place(launched, engine, policy, alice, bob, inside):
    inside(alice, "thesis", "echo > /tmp/notes")
    containers.retire(engine, policy, alice, "thesis")
    with pytest.raises(NotFound):
        containers.undo(engine, policy, bob, "thesis")
    again = containers.launch(engine, policy, alice, "thesis")
    with pytest.raises(Refused, match="container retire thesis"):
        containers.undo(engine, policy, alice, "thesis")
    assert containers.listing(engine, policy, alice)[0].id == again.facts["id"]
    # The one in between has nothing in it, so the older one is the one that comes back.
    containers.retire(engine, policy, alice, "thesis")
    containers.undo(engine, policy, alice, "thesis")
    assert containers.listing(engine, policy, alice)[0].id == launched.facts["id"]


def test_what_was_restored_is_as_wanted_though_older_ones_are_kept(built, engine, policy, alice, inside):
    for number in range(2):
        containers.launch(engine, policy, alice, "thesis")
        inside(alice, "thesis", f"echo > /tmp/{number}")
        containers.retire(engine, policy, alice, "thesis")
    wanted = [Wanted("alice", "thesis", state="restored")]
    assert containers.reconcile(engine, policy, wanted, check=False)[0].changed
    assert inside(alice, "thesis", SHOWN).split() == ["1"]
    assert len(retired.kept(engine)) == 1
    again = containers.reconcile(engine, policy, wanted, check=False)[0]
    assert (again.changed, again.failed) == (False, False), again
    # Where the start was broken off, the next run starts it.
    engine.stop(containers.listing(engine, policy, alice)[0].id, 0)
    assert containers.reconcile(engine, policy, wanted, check=False)[0].actions == ["start"]


def test_what_is_kept_is_bounded(engine, policy, alice, thesis, inside):
    policy = replace(policy, retire_size=3 << 20)
    for number, size in enumerate((1, 1, 2, 4)):
        containers.launch(engine, policy, alice, "thesis")
        inside(alice, "thesis", f"/bin/busybox dd if=/dev/zero of=/tmp/{number} bs=1M count={size}")
        facts = containers.retire(engine, policy, alice, "thesis").facts
        assert bool(facts["undo_until"]) == (size < 4), facts
        time.sleep(1.1)
    # The first made room for the third; the last was too large by itself.
    kept = retired.kept(engine, uid=2001)
    assert len(kept) == 1 or len(kept) == 2
    total = sum(engine.sizes([one.actual.id for one in kept]).values())
    assert total <= 3 << 20
    containers.undo(engine, policy, alice, "thesis")
    assert inside(alice, "thesis", SHOWN).split() == ["2"]


def test_nothing_is_gone_for_good_before_it_was_asked(launched, engine, policy, alice, inside):
    none = replace(policy, retire_keep_days=0)
    inside(alice, "thesis", "echo > /tmp/notes")
    asked = containers.retire(engine, none, alice, "thesis", asks=True)
    assert not asked.changed and asked.facts["asks"] and asked.facts["lost"]["files"] == 1
    assert containers.listing(engine, policy, alice)[0].running
    # Where it can be undone, or nothing is in it, nobody is asked.
    assert containers.retire(engine, policy, alice, "thesis", asks=True).facts["undo_until"]
    containers.launch(engine, policy, alice, "thesis")
    assert containers.retire(engine, none, alice, "thesis", asks=True).changed
    assert containers.listing(engine, policy, alice) == []


def test_a_server_that_keeps_nothing(launched, engine, policy, alice, inside):
    inside(alice, "thesis", "echo > /tmp/notes")
    facts = containers.retire(engine, replace(policy, retire_keep_days=0), alice, "thesis").facts
    assert facts["undo_until"] is None
    assert facts["lost"]["paths"] == ["/tmp/notes"]
    assert names_of(engine) == []


def test_a_retired_one_counts_nowhere(engine, policy, alice, thesis, tiny, project_of, inside):
    for number in range(3):
        project_of(alice, f"p{number}").write("Dockerfile", f"FROM {tiny}\n")
        containers.launch(engine, policy, alice, f"p{number}")
        inside(alice, f"p{number}", "echo > /tmp/notes")
    containers.retire(engine, policy, alice, "p0")
    containers.launch(engine, policy, alice, "thesis")
    assert [info.project for info in containers.listing_all(engine, policy)] == ["p1", "p2", "thesis"]
    with pytest.raises(Refused, match="3 of 3"):
        containers.undo(engine, policy, alice, "p0")
    assert len(retired.kept(engine)) == 1


def test_a_share_that_was_taken_away_does_not_come_back(engine, policy, bob, tiny, project_of, inside):
    project_of(bob, "net").write("Dockerfile", f"FROM {tiny}\n")
    containers.launch(engine, policy, bob, "net")
    inside(bob, "net", "echo > /tmp/notes")
    containers.retire(engine, policy, bob, "net")
    without = replace(policy, shares=tuple(share for share in policy.shares if share.name != "vision"))
    with pytest.raises(Refused, match="vision, which you may no longer use"):
        containers.undo(engine, without, bob, "net")
    containers.undo(engine, policy, bob, "net")
    containers.stop(engine, bob, "net")
    with pytest.raises(Refused, match="vision"):
        containers.launch(engine, without, bob, "net")


def test_a_forged_name_is_nobodys(launched, engine, policy, alice, docker):
    docker("create", "--name", "thesis._.2001.retired-99999999999", "lab-test/tiny", "true")
    assert retired.kept(engine) == []
    containers.stop(engine, alice, "thesis")
    assert retired.clean_up(engine, replace(policy, retire_keep_days=0), time.time()) == []
    assert "thesis._.2001.retired-99999999999" in names_of(engine)


def test_the_clean_up_counts_days_that_passed(launched, engine, policy, alice, inside):
    inside(alice, "thesis", "echo > /tmp/notes")
    containers.retire(engine, policy, alice, "thesis")
    now, day = time.time(), 86400.0
    assert retired.clean_up(engine, policy, now) == []
    # The clock jumps a year ahead, and back.
    assert retired.clean_up(engine, policy, now + 365 * day) == []
    assert retired.clean_up(engine, policy, now) == []
    for number in range(1, 5):
        assert retired.clean_up(engine, policy, now + number * day) == []
    assert len(retired.clean_up(engine, policy, now + 5 * day, check=True)) == 1
    assert len(retired.kept(engine)) == 1
    assert len(retired.clean_up(engine, policy, now + 5 * day)) == 1
    assert names_of(engine) == []


def test_a_damaged_record_removes_nothing(launched, engine, policy, alice, inside):
    inside(alice, "thesis", "echo > /tmp/notes")
    containers.retire(engine, policy, alice, "thesis")
    for damaged in ('{"last": 1, "clo', '{"last": 1, "clock": 1e12, "seen": 5}', "[]", ""):
        state.write_record("retired.json", damaged)
        assert retired.clean_up(engine, policy, time.time()) == []
    assert len(retired.kept(engine)) == 1


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


SIMULATED_PYTHON = """\
#!/bin/sh
shift 2
echo "as $(id -u) in $PWD"
if [ "$*" = "--report nosuch" ]; then echo "image-install: pip could not install it."; exit 1; fi
[ "$1" != --report ] || echo 'lab-server-report: {"packages": {"numpy": "2.1"}, "dockerfile": true}'
"""


def test_packages_are_installed_by_the_containers_own_python(engine, policy, alice, bob, thesis, tiny):
    thesis.write("python3", SIMULATED_PYTHON)
    (thesis.path / "python3").chmod(0o755)
    thesis.write("Dockerfile", f"FROM {tiny}\nCOPY python3 /bin/python3\n")
    with pytest.raises(NotFound, match="project launch thesis"):
        containers.install(engine, alice, "thesis", ["numpy"])
    containers.launch(engine, policy, alice, "thesis")
    lines = []
    done = containers.install(engine, alice, "thesis", ["numpy"], progress=lines.append)
    assert done.changed and done.facts == {"packages": {"numpy": "2.1"}, "dockerfile": True}
    assert lines == ["as 2001 in /"]
    assert not containers.install(engine, alice, "thesis", ["numpy"], dry_run=True).changed
    with pytest.raises(EngineError, match=r"recorded: pip could not install it\."):
        containers.install(engine, alice, "thesis", ["nosuch"])
    with pytest.raises(InvalidInput):
        containers.install(engine, alice, "thesis", ["--user"])
    with pytest.raises(NotFound):
        containers.install(engine, bob, "thesis", ["numpy"])


def test_an_image_without_python_is_told(launched, engine, alice, inside):
    with pytest.raises(EngineError, match="no python3"):
        containers.install(engine, alice, "thesis", ["numpy"])
    assert (
        inside(alice, "thesis", "command -v image-install").strip() == "/home/alice/.local/bin/image-install"
    )


def test_where_tells_what_is_kept_from_the_real_mounts(engine, policy, bob, project_of, tiny, inside):
    project_of(bob, "thesis").write("Dockerfile", f"FROM {tiny}\nVOLUME /var/cache\n")
    containers.launch(engine, policy, bob, "thesis")
    wanted = {
        ".": "workspace",
        "/home/bob/workspace/none": "workspace",
        "/home/.workspaces/bob": "workspace",
        f"{policy.data_root}/datasets/iris.csv": "shared",
        f"{policy.data_root}/vision": "group",
        "/home/bob": "layer",
        "/tmp": "layer",
        "/etc/hosts": "layer",
        "/bin/sleep": "layer",
        "/var/cache/x": "volume",
        "/run/x": "container_memory",
        "/dev/shm": "container_memory",
        "/proc/1/status": "kernel",
    }
    # The image has no readlink, so that 'ls' is asked.
    said = json.loads(inside(bob, "thesis", f"workspace where --json {' '.join(wanted)} || [ $? = 4 ]"))
    found = {one["path"]: (one["verdict"], one["why"][0]) for one in said["paths"]}
    assert found == {path: where.KINDS[kind] for path, kind in wanted.items()}
    assert f"{where.LEADS}/bin/busybox" in said["paths"][8]["why"]


def test_the_greeting_knows_what_runs_without_asking(engine, policy, bob, project_of, tiny):
    project_of(bob, "thesis").write("Dockerfile", f"FROM {tiny}\n")
    containers.launch(engine, policy, bob, "thesis")
    who = asuser.identity(policy, bob)
    told = asuser.run_as_user(who, lambda: [asdict(one) for one in greeting.running(bob.uid)])
    assert [(one["project"], one["age"] < 60) for one in told] == [("thesis", True)]
    assert told[0]["kept"] == ["/workspace", f"{policy.data_root}/vision"]
    assert told[0]["read_only"] == [policy.data_root]
    containers.stop(engine, bob, "thesis")
    assert asuser.run_as_user(who, lambda: [asdict(one) for one in greeting.running(bob.uid)]) == []


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
    containers.retire(engine, policy, alice, "thesis")
    containers.launch(engine, policy, alice, "thesis")
    assert inside(alice, "thesis", "cat /word").strip() == "two"


def test_a_launch_tells_of_a_dockerfile_that_was_changed(
    launched, engine, policy, alice, thesis, tiny, monkeypatch
):
    """It leads into the container that is there, and builds nothing."""

    def notes(**more):
        return containers.launch(engine, policy, alice, "thesis", **more).facts["notes"]

    assert notes() == []
    thesis.write("results", "in no image\n")
    assert notes() == []
    thesis.write("Dockerfile", f"FROM {tiny}\nCOPY word /word\nENV CHANGED=yes\n")
    (note,) = notes()
    assert "image update thesis builds" in note
    assert notes(check=True) == [note]
    containers.stop(engine, alice, "thesis")
    assert notes() == [note]
    assert containers.listing(engine, policy, alice)[0].id == launched.facts["id"]
    # Where that takes long to see, nobody waits for it.
    monkeypatch.setattr(containers, "_GLANCE_SECONDS", 0.0)
    assert notes() == []


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
    # A volume has no bound, so nothing is kept of it.
    retired = containers.retire(engine, policy, alice, "thesis")
    assert "VOLUME /var/cache" in retired.facts["not_kept"]
    assert retired.facts["lost"]["volumes"] == ["/var/cache"]
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


@pytest.mark.parametrize(
    ("lines", "link"),
    [
        # Docker would mount along it, as root, while the user changes what /workspace/evil is.
        ("RUN ln -s /workspace/evil /x\nVOLUME /x/sudoers.d", "/x"),
        ("RUN ln -s /workspace/evil /srv", "/srv"),
        ("RUN rm -rf /run && ln -s /workspace/evil /run", "/run"),
    ],
)
def test_a_link_on_the_way_to_a_mount_is_refused(engine, policy, alice, thesis, tiny, docker, lines, link):
    # The data root of these tests lies elsewhere; the servers' own is below /srv.
    policy = replace(policy, data_root="/srv/data") if link == "/srv" else policy
    thesis.write("Dockerfile", f"FROM {tiny}\n{lines}\n")
    images.build(engine, policy, alice, "thesis")
    image = images.project_images(engine)[2001, "thesis"]
    spec = specs.decide(policy, alice, "thesis")
    with pytest.raises(Refused, match=f"{link} is no plain folder"):
        containers._make(engine, policy, spec, image, spec.name)
    assert engine.containers() == []
    assert not docker("volume", "ls", "-q")


def test_an_image_is_looked_into_once_and_without_mounts(engine, policy, alice, thesis, monkeypatch):
    made = []
    create = Engine.create

    def noted(self, name, config):
        if not name.endswith(".packages"):
            made.append((name.rpartition(".")[2], bool(config["HostConfig"].get("Mounts"))))
        return create(self, name, config)

    monkeypatch.setattr(Engine, "create", noted)
    for again in (False, True):
        containers.launch(engine, policy, alice, "thesis")
        assert containers.retire(engine, policy, alice, "thesis").changed, again
    assert made == [("look", False), ("2001", True), ("2001", True)]


def test_a_container_that_ran_is_never_looked_into(launched, engine, policy, alice, inside, monkeypatch):
    def refused(*_arguments):
        raise AssertionError("Docker would mount the workspace to look into the container")

    inside(alice, "thesis", "echo mine > /tmp/notes")
    for name in ("file_status", "read_file", "put", "copy_out"):
        monkeypatch.setattr(Engine, name, refused)
    assert containers.retire(engine, policy, alice, "thesis").facts["lost"]["files"] == 1
    containers.undo(engine, policy, alice, "thesis")
    assert inside(alice, "thesis", "cat /tmp/notes").strip() == "mine"


def test_what_was_taken_from_a_user_is_taken_from_the_containers_too(
    engine, policy, alice, bob, tiny, project_of
):
    for user in (alice, bob):
        project_of(user, "net").write("Dockerfile", f"FROM {tiny}\n")
        containers.launch(engine, policy, user, "net")
    assert containers.withdraw(engine, policy, check=False) == []
    gone = replace(policy, users=tuple(user for user in policy.users if user.name != "bob"))
    told = containers.withdraw(engine, gone, check=True)
    assert engine.inspect("net._.2002")["State"]["Running"]
    done = containers.withdraw(engine, gone, check=False)
    assert [(one.name, one.actions) for one in done] == [("net._.2002", ["stop"])]
    assert done == told
    assert not engine.inspect("net._.2002")["State"]["Running"]
    assert engine.inspect("net._.2001")["State"]["Running"]
    assert containers.withdraw(engine, gone, check=False) == []


def test_a_share_that_was_taken_away_stops_the_container(engine, policy, tiny, project_of):
    member = next(user for user in policy.users if policy.shares_for(user))
    project_of(member, "net").write("Dockerfile", f"FROM {tiny}\n")
    containers.launch(engine, policy, member, "net")
    (stopped,) = containers.withdraw(engine, replace(policy, shares=()), check=False)
    assert "may no longer use" in stopped.reason
    with pytest.raises(Refused, match="may no longer use"):
        containers.launch(engine, replace(policy, shares=()), member, "net")


def test_a_container_that_is_not_ours_is_left_alone(engine, policy, alice, thesis, docker):
    docker("create", "--name", "thesis._.2001", "lab-test/tiny", "true")
    with pytest.raises(Refused, match="labels"):
        containers.launch(engine, policy, alice, "thesis")
    result = containers.reconcile(engine, policy, [Wanted("alice", "thesis")], check=True)[0]
    assert result.failed
    with pytest.raises(Refused):
        containers.retire(engine, policy, alice, "thesis")
    assert docker("ps", "-aq", "--filter", "name=thesis._.2001")


def test_forged_labels_are_not_ours(engine, policy, alice, launched, docker):
    labels = engine.inspect(launched.facts["id"])["Config"]["Labels"]
    containers.retire(engine, policy, alice, "thesis")
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
    containers.retire(engine, policy, alice, "thesis")
    flags = [f"--label={name}={value}" for name, value in inspected["Config"]["Labels"].items()]
    docker("create", "--name", "thesis._.2001", *flags, inspected["Config"]["Image"], "true")
    containers.launch(engine, policy, alice, "thesis")
    assert inside(alice, "thesis", "id -un").strip() == "alice"


@pytest.mark.parametrize("number", [2, pytest.param(50, marks=pytest.mark.thorough)])
def test_launches_at_once_make_one_container(engine, url, policy, alice, thesis, number):
    children = []
    for _number in range(number):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                containers.launch(Engine.connect(url), policy, alice, "thesis")
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * number
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


def test_what_is_replaced_is_retired_with_what_was_in_it(built, engine, policy, alice, inside):
    """By IT's run; its user is told, and has it back."""
    first, other = Wanted("alice", "thesis"), Wanted("alice", "thesis", pids=32, ports=((80, 8123),))
    containers.reconcile(engine, policy, [replace(first, ports=((80, 8123),))], check=False)
    inside(alice, "thesis", "echo mine > /tmp/notes")
    old = containers.listing(engine, policy, alice)[0].id
    promise = containers.reconcile(engine, policy, [other], check=True)[0]
    deed = containers.reconcile(engine, policy, [other], check=False)[0]
    assert deed.facts["lost"] == promise.facts["lost"]
    assert deed.facts["lost"]["paths"] == ["/tmp/notes"]
    assert deed.facts["not_kept"] == promise.facts["not_kept"] == ""
    assert 0 <= deed.facts["undo_until"] - promise.facts["undo_until"] < 60
    assert [one.actual.id for one in retired.kept(engine)] == [old]
    told = events.read(2001, "thesis")[-1]
    assert (told.what, told.by) == (events.REPLACED, events.IT)
    assert "is kept, with what was in it alone (1 file, " in told.reason
    assert any(
        "container why" in note for note in containers.launch(engine, policy, alice, "thesis").facts["notes"]
    )
    with pytest.raises(Refused, match="container retire thesis"):
        containers.undo(engine, policy, alice, "thesis")
    containers.retire(engine, policy, alice, "thesis")
    containers.undo(engine, policy, alice, "thesis")
    assert containers.listing(engine, policy, alice)[0].id == old
    assert inside(alice, "thesis", "cat /tmp/notes").strip() == "mine"


def test_of_two_that_are_kept_the_older_comes_back_too(built, engine, policy, alice, inside):
    """The replacement has work of its own by now, and loses none."""
    containers.reconcile(engine, policy, [Wanted("alice", "thesis")], check=False)
    inside(alice, "thesis", "echo > /tmp/first")
    containers.reconcile(engine, policy, [Wanted("alice", "thesis", pids=32)], check=False)
    inside(alice, "thesis", "echo > /tmp/second")
    with pytest.raises(Refused, match="container retire thesis"):
        containers.undo(engine, policy, alice, "thesis", back=2)
    containers.retire(engine, policy, alice, "thesis")
    with pytest.raises(NotFound, match="2 retired containers"):
        containers.undo(engine, policy, alice, "thesis", back=3)
    assert containers.undo(engine, policy, alice, "thesis", back=2, check=True).changed
    containers.undo(engine, policy, alice, "thesis", back=2)
    assert inside(alice, "thesis", SHOWN).split() == ["first"]
    containers.retire(engine, policy, alice, "thesis")
    containers.undo(engine, policy, alice, "thesis", back=2)
    assert inside(alice, "thesis", SHOWN).split() == ["second"]


def test_what_is_replaced_without_work_is_not_kept(built, engine, policy, alice):
    containers.reconcile(engine, policy, [Wanted("alice", "thesis")], check=False)
    facts = containers.reconcile(engine, policy, [Wanted("alice", "thesis", pids=32)], check=False)[0].facts
    assert (facts["lost"]["files"], facts["undo_until"]) == (0, None)
    assert names_of(engine) == ["thesis._.2001"]
    assert events.read(2001, "thesis")[-1].reason == "the policy changed (pids)"


def test_a_replaced_one_that_cannot_be_kept_is_told(built, engine, policy, alice, inside):
    containers.reconcile(engine, policy, [Wanted("alice", "thesis")], check=False)
    inside(alice, "thesis", "echo > /tmp/notes")
    small = replace(policy, retire_size=1)
    wanted = [Wanted("alice", "thesis", pids=32)]
    promise = containers.reconcile(engine, small, wanted, check=True)[0]
    deed = containers.reconcile(engine, small, wanted, check=False)[0]
    assert deed == promise
    assert deed.facts["undo_until"] is None and "more than this server keeps" in deed.facts["not_kept"]
    assert names_of(engine) == ["thesis._.2001"]
    assert "gone for good" in events.read(2001, "thesis")[-1].reason


def test_a_kept_one_leaves_room_for_its_successor(built, engine, policy, alice, inside, monkeypatch):
    """The oldest goes first, and no more than must."""
    for number in range(3):
        containers.reconcile(engine, policy, [Wanted("alice", "thesis", pids=32 + number)], check=False)
        inside(alice, "thesis", f"echo > /tmp/{number}")
    assert len(retired.kept(engine)) == 2
    full = iter([True, True, False])
    monkeypatch.setattr(replacing, "_is_full", lambda _policy, _uid: next(full))
    facts = containers.reconcile(engine, policy, [Wanted("alice", "thesis", pids=40)], check=False)[0].facts
    assert facts["undo_until"]
    assert len(retired.kept(engine)) == 1
    inside(alice, "thesis", "echo > /tmp/last")
    monkeypatch.setattr(replacing, "_is_full", lambda _policy, _uid: True)
    facts = containers.reconcile(engine, policy, [Wanted("alice", "thesis", pids=41)], check=False)[0].facts
    assert facts["undo_until"] is None and "layers_size" in facts["not_kept"]
    assert names_of(engine) == ["thesis._.2001"]


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

    class Off(BaseException):
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


def test_retired_and_restored_are_promised_and_done(built, engine, policy, alice, inside):
    containers.reconcile(engine, policy, [Wanted("alice", "thesis")], check=False)
    inside(alice, "thesis", "echo > /tmp/notes")
    for wished, actions in (
        ("retired", ["retire"]),
        ("retired", []),
        ("restored", ["restore", "start"]),
        ("restored", []),
        ("absent", ["remove"]),
        ("absent", []),
    ):
        wanted = [Wanted("alice", "thesis", state=wished)]
        promise = containers.reconcile(engine, policy, wanted, check=True)[0]
        before = names_of(engine)
        deed = containers.reconcile(engine, policy, wanted, check=False)[0]
        assert (promise.actions, promise.diff, promise.changed) == (deed.actions, deed.diff, deed.changed)
        assert deed.actions == actions, deed
        assert (names_of(engine) != before) == bool(actions)
        assert promise.facts.get("lost", {}).get("paths") == deed.facts.get("lost", {}).get("paths")
    assert names_of(engine) == []
    result = containers.reconcile(engine, policy, [Wanted("alice", "thesis", state="restored")], check=True)[
        0
    ]
    assert result.failed
    assert "no retired container" in result.message


@pytest.mark.parametrize("breaking", ["stop", "rename", "sizes", "changes"])
def test_a_retire_that_was_broken_off_is_finished(
    launched, engine, policy, alice, inside, monkeypatch, breaking
):
    inside(alice, "thesis", "echo > /tmp/notes")

    class Off(BaseException):
        pass

    def broken(*arguments):
        raise Off

    with monkeypatch.context() as patched:
        patched.setattr(engine, breaking, broken)
        with pytest.raises(Off):
            containers.retire(engine, policy, alice, "thesis")
    facts = containers.retire(engine, policy, alice, "thesis").facts
    assert facts["undo_until"]
    with monkeypatch.context() as patched:
        patched.setattr(engine, "start", broken)
        with pytest.raises(Off):
            containers.undo(engine, policy, alice, "thesis")
    containers.undo(engine, policy, alice, "thesis")
    assert containers.listing(engine, policy, alice)[0].running
    assert inside(alice, "thesis", SHOWN).split() == ["notes"]


def test_a_port_is_on_loopback_and_one_containers(built, engine, policy, alice, tiny, project_of):
    project_of(alice, "other").write("Dockerfile", f"FROM {tiny}\n")
    images.build(engine, policy, alice, "other")
    wanted = [Wanted("alice", "thesis", ports=((8888, 18888),))]
    made = containers.reconcile(engine, policy, wanted, check=False)[0]
    assert not made.failed, made.message
    ports = engine.inspect(containers.listing(engine, policy, alice)[0].id)["NetworkSettings"]["Ports"]
    assert ports == {"8888/tcp": [{"HostIp": "127.0.0.1", "HostPort": "18888"}]}
    assert not containers.reconcile(engine, policy, wanted, check=True)[0].changed
    for check in (True, False):
        second = [Wanted("alice", "other", ports=((80, 18888),))]
        clash = containers.reconcile(engine, policy, second, check=check)[0]
        assert clash.failed
        assert "port 18888 of the host is that of thesis._.2001" in clash.message
    # Without the first it is free.
    both = [Wanted("alice", "thesis"), Wanted("alice", "other", ports=((80, 18888),))]
    assert [result.failed for result in containers.reconcile(engine, policy, both, check=False)] == [
        False
    ] * 2


def refused_in_advance(policy, home):
    """Return why a home of alice's could not be mounted, as a look at it finds it; "" where it could."""
    alice = policy.user("alice")
    spec = specs.decide(policy, alice, "thesis", Wanted("alice", "thesis", home=home).wishes)
    try:
        homes.prepare(policy, alice, spec, check=True)
    except LabError as error:
        return str(error)
    return ""


@pytest.fixture
def homes_root(root, monkeypatch):
    """Let the homes of the host and those that are kept be in the folder of the test."""
    monkeypatch.setattr(policies, "HOME_ROOT", str(root / "home"))
    monkeypatch.setattr(policies, "HOMES_ROOT", str(root / "home/.homes"))
    return root / "home"


def test_a_persistent_home_outlives_the_container(built, engine, policy, alice, inside, homes_root):
    wanted = [Wanted("alice", "thesis", home="persistent")]
    promise = containers.reconcile(engine, policy, wanted, check=True)[0]
    assert refused_in_advance(policy, "persistent") == "" and not (homes_root / ".homes").exists()
    made = containers.reconcile(engine, policy, wanted, check=False)[0]
    assert not made.failed, made.message
    assert promise.diff == made.diff
    assert not containers.reconcile(engine, policy, wanted, check=False)[0].changed
    home = homes_root / ".homes/alice/thesis"
    for path, owner, mode in (
        (homes_root / ".homes", 0, 0o711),
        (homes_root / ".homes/alice", 0, 0o711),
        (home, 2001, 0o700),
    ):
        status = path.lstat()
        assert (status.st_uid, status.st_mode & 0o7777) == (owner, mode), path
    assert sorted(os.listdir(home)) == [".bashrc", ".local", ".profile", "workspace"]
    assert sorted(os.listdir(home / ".local/bin")) == ["image-install", "workspace"]
    assert {path.lstat().st_uid for path in home.iterdir()} == {2001}
    inside(alice, "thesis", "mkdir -p ~/.local; echo mine > ~/.local/made; echo > /tmp/notes")
    assert inside(alice, "thesis", "ls ~/workspace/").split() == ["thesis"]
    containers.reconcile(engine, policy, [Wanted("alice", "thesis", state="absent")], check=False)
    containers.reconcile(engine, policy, wanted, check=False)
    assert inside(alice, "thesis", f"cat ~/.local/made; {SHOWN}").split() == ["mine"]


def test_a_kept_folder_outlives_the_container(built, engine, policy, alice, inside, homes_root):
    wanted = [Wanted("alice", "thesis", keep=("/opt/packages",))]
    source = homes_root / ".homes/alice/thesis@opt+packages"
    missing = containers.reconcile(engine, policy, wanted, check=False)[0]
    assert missing.failed and f"{source} is not there" in missing.message
    source.mkdir(parents=True, mode=0o700)
    os.chown(source, 2001, 2001)
    made = containers.reconcile(engine, policy, wanted, check=False)[0]
    assert not made.failed, made.message
    assert not containers.reconcile(engine, policy, wanted, check=False)[0].changed
    inside(alice, "thesis", "echo mine > /opt/packages/made")
    assert (source / "made").stat().st_uid == 2001
    assert "/opt/packages" in specs.fates(engine.inspect("thesis._.2001")["Mounts"])["kept"]
    told = inside(alice, "thesis", "~/.local/bin/workspace where /opt/packages/made")
    assert "kept" in told and "a folder that is kept for the project" in told
    containers.reconcile(engine, policy, [Wanted("alice", "thesis", state="absent")], check=False)
    containers.reconcile(engine, policy, wanted, check=False)
    shown = inside(alice, "thesis", "ls /opt /opt/packages").split()
    assert shown == ["/opt:", "packages", "/opt/packages:", "made"]
    # What is not declared any more is not mounted any more, and not removed.
    assert containers.reconcile(engine, policy, [replace(wanted[0], keep=())], check=False)[0].changed
    assert (source / "made").exists()


def test_nothing_of_roots_is_written_through_a_kept_home(built, engine, policy, alice, homes_root, root):
    """Who owns the home puts links where something of ours could go."""
    wanted = [Wanted("alice", "thesis", home="persistent")]
    containers.reconcile(engine, policy, wanted, check=False)
    home = homes_root / ".homes/alice/thesis"
    victim = root / "srv/admin"
    shutil.rmtree(home / ".local")
    for name in (".profile", ".bashrc", "workspace", ".ssh", ".local"):
        if os.path.lexists(home / name):
            (home / name).unlink()
        (home / name).symlink_to(victim / name.strip("."))

    def seen() -> object:
        links = {path.name: (os.readlink(path), path.lstat().st_ino) for path in home.iterdir()}
        return links, sorted(os.listdir(victim)), home.lstat().st_mode, home.lstat().st_mtime_ns

    before = seen()
    changed = replace(wanted[0], pids=32)
    assert not containers.reconcile(engine, policy, [changed], check=False)[0].failed
    assert seen() == before


@pytest.mark.parametrize("planted", ["link", "file", "owner"])
def test_a_kept_home_that_is_not_one_is_refused(built, engine, policy, homes_root, root, planted):
    above = homes_root / ".homes/alice"
    above.mkdir(parents=True)
    if planted == "link":
        (above / "thesis").symlink_to(root / "srv")
    elif planted == "file":
        (above / "thesis").write_text("")
    else:
        (above / "thesis").mkdir()
        os.chown(above / "thesis", 2002, 2002)
    result = containers.reconcile(
        engine, policy, [Wanted("alice", "thesis", home="persistent")], check=False
    )[0]
    assert result.failed, result
    assert refused_in_advance(policy, "persistent") == result.message
    assert planted != "owner" or "belongs to uid 2002" in result.message
    assert (root / "srv").stat().st_uid == 0
    assert engine.containers("thesis._.2001") == []


def test_the_hosts_home_without_its_keys(built, engine, policy, alice, inside, homes_root):
    home = homes_root / "alice"
    home.mkdir(mode=0o700)
    os.chown(home, 2001, 2001)
    (home / ".ssh").mkdir()
    (home / ".ssh/id_ed25519").write_text("secret")
    (home / "mine").write_text("mine")
    wanted = [Wanted("alice", "thesis", home="host")]
    made = containers.reconcile(engine, policy, wanted, check=False)[0]
    assert not made.failed, made.message
    assert inside(alice, "thesis", "cat ~/mine; echo; ls -a ~/.ssh").split() == ["mine", ".", ".."]
    assert "Read-only" in inside(alice, "thesis", "touch ~/.ssh/authorized_keys 2>&1 || true")
    assert "busy" in inside(alice, "thesis", "/bin/busybox mv ~/.ssh ~/x 2>&1 || true")
    assert (home / ".ssh/id_ed25519").read_text() == "secret"
    assert "secret" not in inside(alice, "thesis", "cat ~/.ssh/* ~/x/* 2>&1 || true")
    assert sorted(os.listdir(home)) == [".ssh", "mine"]


def test_the_programs_are_beside_the_hosts_home_and_nothing_is_in_it(
    built, engine, policy, alice, inside, homes_root
):
    home = homes_root / "alice"
    home.mkdir(mode=0o700)
    os.chown(home, 2001, 2001)
    wanted = [Wanted("alice", "thesis", home="host")]
    assert containers.reconcile(engine, policy, wanted, check=False)[0].changed
    assert inside(alice, "thesis", "command -v image-install; command -v workspace").split() == [
        "/home/.lab-server/bin/image-install",
        "/home/.lab-server/bin/workspace",
    ]
    told = json.loads(inside(alice, "thesis", "workspace where --json ~ /tmp"))
    assert [one["verdict"] for one in told["paths"]] == ["kept", "lost"], told
    assert "denied" in inside(alice, "thesis", "touch /home/.lab-server/bin/workspace 2>&1 || true")
    assert os.listdir(home) == [".ssh"]
    # They are nothing that would be lost, and where the home is the container's own they are not there twice.
    assert containers.lost(engine, policy, alice, "thesis")["lost"]["files"] == 0
    assert containers.reconcile(engine, policy, [Wanted("alice", "thesis")], check=False)[0].changed
    assert inside(alice, "thesis", "command -v workspace; ls -A /home").split() == [
        "/home/alice/.local/bin/workspace",
        ".workspaces",
        "alice",
    ]


@pytest.mark.parametrize("planted", ["link", "file", "nothing"])
def test_what_is_in_the_place_of_the_keys(built, engine, policy, homes_root, root, planted):
    home = homes_root / "alice"
    home.mkdir(mode=0o700)
    os.chown(home, 2001, 2001)
    if planted == "link":
        (home / ".ssh").symlink_to(root / "srv")
    elif planted == "file":
        (home / ".ssh").write_text("")
    result = containers.reconcile(engine, policy, [Wanted("alice", "thesis", home="host")], check=False)[0]
    assert result.failed == (planted != "nothing"), result
    assert refused_in_advance(policy, "host") == result.message
    if planted == "nothing":
        assert (home / ".ssh").lstat().st_uid == 2001
    else:
        assert "~/.ssh" in result.message


@pytest.fixture
def environment(engine, policy, docker):
    """Return a policy whose base image brings files, some of which lead elsewhere."""
    buffer = io.BytesIO(root_file_system())
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        for name, content, link in (
            ("home/jovyan/intro.ipynb", b"{}", ""),
            ("home/jovyan/lib/helper.py", b"x = 1", ""),
            ("home/jovyan/passwd", None, "/etc/passwd"),
        ):
            member = tarfile.TarInfo(name)
            member.mode, member.size = 0o4755, len(content or b"")
            member.type, member.linkname = (tarfile.SYMTYPE if link else tarfile.REGTYPE), link
            archive.addfile(member, io.BytesIO(content) if content is not None else None)
    docker("import", "-", "lab-test/notebook:latest", input=buffer.getvalue())
    base = policies.BaseImage("lab-test/notebook", "lab-test/notebook", "", "/home/jovyan")
    return replace(policy, base_images=(*policy.base_images, base))


def test_what_the_environment_brings_is_copied_once(engine, environment, alice, project_of, inside, docker):
    policy = environment
    project_of(alice, "book").write("Dockerfile", "FROM lab-test/notebook\n")
    mine = Path(policy.workspace(alice)) / "notebook"
    mine.mkdir()
    os.chown(mine, 2001, 2001)
    (mine / "intro.ipynb").write_text("mine")
    first = containers.launch(engine, policy, alice, "book")
    assert first.facts["brought"] == {"folder": "/workspace/notebook", "files": 1, "skipped": 2}
    assert (mine / "intro.ipynb").read_text() == "mine"
    helper = mine / "lib/helper.py"
    assert helper.read_text() == "x = 1"
    assert (helper.stat().st_uid, helper.stat().st_mode & 0o7777) == (2001, 0o755)
    assert not os.path.lexists(mine / "passwd")
    assert docker("ps", "-aq", "--filter", "name=lab-files") == ""
    helper.unlink()
    containers.retire(engine, policy, alice, "book")
    assert "brought" not in containers.launch(engine, policy, alice, "book").facts
    assert not helper.exists()


def test_what_is_brought_goes_through_no_link(engine, environment, alice, project_of, root):
    policy = environment
    project_of(alice, "book").write("Dockerfile", "FROM lab-test/notebook\n")
    (Path(policy.workspace(alice)) / "notebook").symlink_to(root / "srv/datasets")
    result = containers.launch(engine, policy, alice, "book")
    assert "not copied" in result.facts["notes"][0]
    assert os.listdir(root / "srv/datasets") == ["iris.csv"]
    assert not state.was_brought(2001, "notebook")
    # The own image is not what is read: a link in it would be followed by Docker, as root.
    assert brought.base_of(engine, policy, "lab-test/tiny") is None


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
