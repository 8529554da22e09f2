"""Containers come to their end by the policy, on a real engine; only the kernel's clock is another one."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    containers,
    ending,
    events,
    notices,
    retired,
    state,
)
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError, NotFound, Refused
from ansible_collections.lab.server.plugins.module_utils._core.liferules import HOUR, LifeRules
from ansible_collections.lab.server.plugins.module_utils._core.policy import Project as Declared

NAME = "thesis._.2001"


@pytest.fixture
def clock(monkeypatch, tmp_path):
    """Return a clock of hours since the boot that is set by hand; files are in a folder of ours."""
    hours = [0.0]
    monkeypatch.setattr(ending, "_now", lambda: ("boot", hours[0] * HOUR))
    for module in (ending, notices):
        monkeypatch.setattr(module, "NOTICES", str(tmp_path / "notices"))

    def put(value):
        hours[0] = value

    return put


@pytest.fixture
def limited(policy, alice):
    """Return the policy with limits of time for alice alone, and her."""
    user = replace(alice, limits=replace(alice.limits, run_hours=10))
    users = tuple(user if one.uid == user.uid else one for one in policy.users)
    rules = LifeRules(notice_hours=2, retire_hours=5, extend_hours=3, extend_times=1)
    return replace(policy, users=users, life=rules), user


def did(engine, policy, **options):
    return {one.name: one.decision.do for one in ending.tick(engine, policy, **options)}


def test_told_put_off_stopped_and_retired(engine, limited, clock, thesis, inside, bob):
    policy, user = limited
    containers.launch(engine, policy, user, "thesis")
    inside(user, "thesis", "echo > /tmp/mine")
    assert did(engine, policy) == {NAME: "nothing"}
    far = notices.notices(user.uid)["thesis"]
    assert notices.remark(far) == "" and notices.outlook(far) in ("stops in 9 h", "stops in 10 h")
    assert far["at"] == far["latest"] and not far["idle"]
    clock(9)
    assert did(engine, policy, check=True) == did(engine, policy) == {NAME: "notice"}
    told = notices.notices(user.uid)["thesis"]
    assert told["noticed"] and "10 hours" in told["why"]
    assert notices.remark(told).startswith("to be stopped in 1 h")
    file = os.path.join(notices.NOTICES, str(user.uid))
    status = os.stat(file)
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (0, user.uid, 0o640)
    assert notices.notices(bob.uid) == {}
    promised = ending.put_off(engine, policy, user, "thesis", 2, check=True)
    done = ending.put_off(engine, policy, user, "thesis", 2, check=False)
    assert {**promised, "changed": True} == done and done["hours"] == 2 and done["left"] == 0
    assert not notices.notices(user.uid)["thesis"]["noticed"]
    with pytest.raises(Refused):
        ending.put_off(engine, policy, user, "thesis", None, check=False)
    with pytest.raises(NotFound):
        ending.put_off(engine, policy, bob, "thesis", None, check=False)
    clock(11)
    assert did(engine, policy) == {NAME: "notice"}
    clock(13)
    assert did(engine, policy) == {NAME: "stop"}
    (info,) = containers.listing(engine, policy, user)
    assert not info.running and state.is_stopped(NAME)
    clock(17)
    assert did(engine, policy) == {NAME: "notice"}
    assert notices.remark(notices.notices(user.uid)["thesis"]).startswith("to be retired")
    clock(20)
    assert did(engine, policy) == {NAME: "retire"}
    assert retired.kept(engine, container=NAME) and did(engine, policy) == {}
    assert not os.path.exists(file)
    happened = [(one.what, one.by, one.reason) for one in events.read(user.uid, "thesis")][1:]
    assert happened == [
        ("extended", "user", ""),
        ("stopped", "limit", "it ran for 10 hours, which is the limit"),
        ("retired", "limit", "it was stopped for 5 hours, which is the limit"),
    ]
    containers.undo(engine, policy, user, "thesis")
    assert did(engine, policy) == {NAME: "nothing"}


def test_a_notice_that_could_not_be_published_does_not_stand(engine, limited, clock, thesis, monkeypatch):
    policy, user = limited
    containers.launch(engine, policy, user, "thesis")
    did(engine, policy)
    clock(9)
    with monkeypatch.context() as broken:
        broken.setattr(ending, "NOTICES", "/proc/notices")
        with pytest.raises(HostError, match="could not be written"):
            ending.tick(engine, policy)
    clock(12)
    assert did(engine, policy) == {NAME: "notice"}
    assert notices.notices(user.uid)["thesis"]["noticed"]


def test_a_declared_project_has_hours_of_its_own(engine, limited, clock, thesis, project_of):
    policy, user = limited
    other = project_of(user, "endless")
    other.write("Dockerfile", (thesis.path / "Dockerfile").read_text())
    other.write("word", "two\n")
    mine = {"base": "lab-test/tiny", "files": (), "state": "started", "environment": ()}
    none = {"cpus": None, "memory": None, "pids": None, "shm": None}
    endless = Declared(user=user.name, name="endless", type="custom", run_hours=0, **mine, **none)
    policy = replace(policy, projects=(endless,))
    for project in ("thesis", "endless"):
        containers.launch(engine, policy, user, project)
    did(engine, policy)
    clock(9)
    assert did(engine, policy)[NAME] == "notice"
    clock(12)
    done = did(engine, policy)
    assert done[NAME] == "stop" and done.get("endless._.2001") == "nothing"
    with pytest.raises(Refused, match="not stopped for its time"):
        ending.put_off(engine, policy, user, "endless", None, check=False)


def test_somebody_who_types_keeps_a_container_from_being_idle(engine, limited, clock, thesis, monkeypatch):
    policy, user = limited
    limits = replace(user.limits, run_hours=0, idle_hours=4)
    policy = replace(policy, users=(replace(user, limits=limits),))
    containers.launch(engine, policy, user, "thesis")
    typed = {NAME: 1}
    monkeypatch.setattr(ending.sessions, "typed", lambda names: typed)
    for hour in (0, 3, 6):
        typed[NAME] += 1
        clock(hour)
        assert did(engine, policy) == {NAME: "nothing"}
    clock(9)
    assert did(engine, policy) == {NAME: "notice"}
    typed[NAME] += 1
    clock(10)
    assert did(engine, policy) == {NAME: "nothing"}


def test_nothing_is_stopped_by_a_damaged_record_or_without_a_limit(engine, limited, clock, thesis, policy):
    bounded, user = limited
    containers.launch(engine, policy, user, "thesis")
    assert did(engine, policy) == {}
    did(engine, bounded)
    state.write_record("lifecycle.json", json.dumps({"boot": "boot"}))
    clock(1000)
    with pytest.raises(HostError, match="damaged"):
        ending.tick(engine, bounded)
    assert containers.listing(engine, policy, user)[0].running
