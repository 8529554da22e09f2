# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What IT's run makes of containers that users made: what was asked for stays, and what was done is known."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils import _core
from ansible_collections.lab.server.plugins.module_utils._core import (
    containers,
    ending,
    events,
    gpuhandover,
    gpuleases,
    gpureservations,
    homes,
    images,
    journal,
    locks,
    names,
    notices,
    quota,
    replacing,
    retired,
    workspaces,
)
from ansible_collections.lab.server.plugins.module_utils._core import policy as policies
from ansible_collections.lab.server.plugins.module_utils._core import spec as specs
from ansible_collections.lab.server.plugins.module_utils._core import state as states
from ansible_collections.lab.server.plugins.module_utils._core.containers import Wanted
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError, NotFound, Refused
from ansible_collections.lab.server.plugins.module_utils._core.items import ItemResult
from ansible_collections.lab.server.plugins.module_utils._core.leases import Lease
from ansible_collections.lab.server.plugins.module_utils._core.lifecycle import (
    Counted,
    Decision,
    Look,
    Record,
)
from ansible_collections.lab.server.plugins.module_utils._core.liferules import HOUR
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy
from ansible_collections.lab.server.plugins.module_utils._core.spec import OwnWishes, Wishes
from docker_model import Model, PowerLoss, Row

LIMITS = {"containers": 3, "cpus": 2, "memory": "1g", "pids": 512, "shm": "64m", "gpus": 0}
QUOTA = {"soft": 0, "hard": 0, "inodes_soft": 0, "inodes_hard": 0}
NAME = "thesis._.2001"
CURRENT = "sha256:" + "c" * 64
SMALL = OwnWishes(cpus=0.5, memory=64 << 20)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Policy:
    """Return the policy of a server with one user, whose folders are the test's own."""
    (tmp_path / "workspaces/alice").mkdir(parents=True)
    (tmp_path / "data/vision").mkdir(parents=True)
    monkeypatch.setattr(policies, "WORKSPACES_ROOT", str(tmp_path / "workspaces"))
    for module in (states, _core):
        monkeypatch.setattr(module, "STATE_DIRECTORY", str(tmp_path / "state"))
    for module in (locks, _core):
        monkeypatch.setattr(module, "RUN_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setattr(homes, "prepare", lambda *_words, **_more: None)
    monkeypatch.setattr(containers, "check_storage", lambda _policy: None)
    made, _keys = policies.from_inventory(
        {
            "lab_data_root": str(tmp_path / "data"),
            "lab_groups": [{"name": "vision", "gid": 3101, "limits": LIMITS, "quota": QUOTA}],
            "lab_users": [{"name": "alice", "uid": 2001, "group": "vision"}],
            "lab_shares": [{"name": "vision", "access": "group", "group": "vision"}],
        }
    )
    return made


@pytest.fixture
def docker() -> Model:
    """Return an engine with an image of the project and no container."""
    model = Model()
    repository = names.image_repository(2001, "thesis")
    labels = {specs.LABEL_OWNER: "2001", specs.LABEL_PROJECT: "thesis", "lab.server.fingerprint": "c" * 64}
    tags = [f"{repository}:latest", f"{repository}:{'c' * 12}"]
    model.pictures.append({"Id": CURRENT, "RepoTags": tags, "Labels": labels, "Created": 1})
    return model


def put(model: Model, lab: Policy, own: OwnWishes = SMALL, name: str = NAME, state: str = "running") -> None:
    """Put a container there that its user asked for."""
    spec = specs.decide(lab, lab.user("alice"), "thesis", Wishes(), own)
    model.add(name, state, CURRENT, specs.labels(spec))


def reconcile(model: Model, lab: Policy, **wanted: Any) -> list[str]:
    """Let IT's run make the container as wanted; the promise must be the deed. Return what was done."""
    one = replace(Wanted("alice", "thesis"), **wanted)
    promise = containers.reconcile(model, lab, [one], check=True)[0]
    deed = containers.reconcile(model, lab, [one], check=False)[0]
    assert not deed.failed, deed.message
    assert deed.actions == promise.actions
    return deed.actions


def happened() -> list[tuple[str, str]]:
    return [(event.what, event.by) for event in events.read(2001, "thesis")]


def asked(model: Model, lab: Policy) -> OwnWishes:
    """Return what the container that is there was asked for."""
    return OwnWishes.of(containers.observe(model).containers[NAME].spec)


def test_a_container_that_its_user_asked_for_is_left_as_it_is(docker: Model, lab: Policy) -> None:
    put(docker, lab)
    assert reconcile(docker, lab) == []
    assert happened() == []
    there = containers.observe(docker).containers[NAME]
    assert containers.drift(lab, lab.user("alice"), "thesis", there) == {}


def test_what_was_asked_for_outlives_a_newer_image(docker: Model, lab: Policy) -> None:
    put(docker, lab)
    next(iter(docker.rows.values())).image = "sha256:old"
    assert reconcile(docker, lab) == ["remove", "create", "start"]
    assert asked(docker, lab) == SMALL and happened() == [("replaced", "it")]
    assert "newer" in events.read(2001, "thesis")[0].reason
    # IT's word wins where there is one.
    assert reconcile(docker, lab, memory=128 << 20) == ["remove", "create", "start"]
    assert asked(docker, lab) == OwnWishes(cpus=0.5)


def test_what_was_asked_for_outlives_a_replacement_that_was_broken_off(docker: Model, lab: Policy) -> None:
    put(docker, lab, name=f"{NAME}.previous")
    containers.reconcile(docker, lab, [Wanted("alice", "thesis")], check=False)
    assert asked(docker, lab) == SMALL and docker.lost == []


def replaced(model: Model, lab: Policy, **wanted: Any) -> dict[str, Any]:
    """Let IT's run replace the container that is there; return the facts, which the promise has, too."""
    one = replace(Wanted("alice", "thesis"), **wanted)
    promise = containers.reconcile(model, lab, [one], check=True)[0]
    deed = containers.reconcile(model, lab, [one], check=False)[0]
    assert not deed.failed, deed.message
    for key in ("lost", "not_kept"):
        assert deed.facts[key] == promise.facts[key]
    return deed.facts


def test_what_is_replaced_is_retired_and_told(docker: Model, lab: Policy) -> None:
    user = lab.user("alice")
    put(docker, lab)
    old = docker.named(NAME)
    assert old is not None and replacing.note(2001, "thesis") == []
    facts = replaced(docker, lab, pids=32)
    assert facts["lost"]["paths"] == ["/opt/work"] and facts["undo_until"] and not facts["not_kept"]
    assert (old.state, old.name) == ("exited", f"{NAME}.retired-{facts['undo_until'] - 7 * 86400}")
    assert docker.lost == []
    event = events.read(2001, "thesis")[-1]
    assert (event.what, event.by) == ("replaced", "it")
    assert "; the old one is kept, with what was in it alone (1 file, 1)" in event.reason
    assert "container why thesis" in replacing.note(2001, "thesis")[0]
    with pytest.raises(Refused, match=r"container retire thesis.*--back 2"):
        containers.undo(docker, lab, user, "thesis")
    with pytest.raises(Refused, match="in the way"):
        containers.undo(docker, lab, user, "thesis", back=2)
    containers.retire(docker, lab, user, "thesis")
    # Its user gave it up: what IT did before is no news any more.
    assert replacing.note(2001, "thesis") == []
    with pytest.raises(NotFound, match="There are 2 retired containers"):
        containers.undo(docker, lab, user, "thesis", back=3)
    promise = containers.undo(docker, lab, user, "thesis", back=2, check=True)
    assert promise.actions == ["restore", "start"] and promise.facts["holds"]["paths"] == ["/opt/work"]
    containers.undo(docker, lab, user, "thesis", back=2)
    assert docker.named(NAME) is old and old.live and docker.lost == []


@pytest.mark.parametrize("calls", range(40))
def test_what_nobody_touched_is_not_kept_wherever_the_power_is_lost(
    docker: Model, lab: Policy, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    monkeypatch.setattr(docker, "changes", lambda _container: ([], True))
    reconcile(docker, lab)
    docker.again(power_until=calls)
    with contextlib.suppress(PowerLoss):
        containers.reconcile(docker, lab, [Wanted("alice", "thesis", pids=32)], check=False)
    docker.again()
    assert not containers.reconcile(docker, lab, [Wanted("alice", "thesis", pids=32)], check=False)[0].failed
    assert [row.name for row in docker.rows.values()] == [NAME]
    assert all("kept" not in event.reason for event in events.read(2001, "thesis"))


def test_a_replaced_one_that_cannot_be_kept_is_told(docker: Model, lab: Policy) -> None:
    put(docker, lab)
    facts = replaced(docker, replace(lab, retire_size=0), pids=32)
    assert facts["undo_until"] is None and "more than this server keeps" in facts["not_kept"]
    assert [row.name for row in docker.rows.values()] == [NAME]
    assert "is gone for good, as it holds more" in events.read(2001, "thesis")[-1].reason


def test_a_kept_one_leaves_room_for_its_successor(
    docker: Model, lab: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest goes first, and no more than must."""
    put(docker, lab)
    for number in range(3):
        replaced(docker, lab, pids=32 + number)
    newest = next(one.actual.id for one in retired.kept(docker))
    full = iter([True, True, False])
    monkeypatch.setattr(replacing, "_is_full", lambda _policy, _uid: next(full))
    assert replaced(docker, lab, pids=40)["undo_until"]
    assert [one.actual.id for one in retired.kept(docker)][1:] == [newest]
    monkeypatch.setattr(replacing, "_is_full", lambda _policy, _uid: True)
    one = Wanted("alice", "thesis", pids=41)
    facts = containers.reconcile(docker, lab, [one], check=False)[0].facts
    assert facts["undo_until"] is None and "layers_size" in facts["not_kept"]
    assert [row.name for row in docker.rows.values()] == [NAME]


def test_room_is_what_the_quota_of_dockers_disk_says(lab: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = {lab.docker_root: "/dev/b", lab.home_root: "/dev/a"}
    monkeypatch.setattr(quota, "device_of", devices.__getitem__)
    monkeypatch.setattr(quota, "enforced", lambda _device: True)
    limits = policies.Quota(soft=0, hard=100, inodes_soft=0, inodes_hard=50)
    for used, inodes, full in ((90, 45, False), (91, 0, True), (0, 46, True)):
        usage = quota.Usage(used, inodes, limits)
        monkeypatch.setattr(quota, "read", lambda *_words, usage=usage: usage)
        assert replacing._is_full(lab, 2001) is full
    monkeypatch.setattr(quota, "read", lambda *_words: quota.Usage(10**9, 10**9, quota.NO_LIMIT))
    assert not replacing._is_full(lab, 2001)
    # Where Docker has no disk of its own, what is kept counts as it did.
    devices[lab.docker_root] = "/dev/a"
    assert not replacing._is_full(lab, 2001)


def test_nothing_is_gone_for_good_before_it_was_asked(docker: Model, lab: Policy) -> None:
    user, none = lab.user("alice"), replace(lab, retire_keep_days=0)
    put(docker, lab)
    asked_first = containers.retire(docker, none, user, "thesis", asks=True)
    assert not asked_first.changed and asked_first.facts["asks"] and asked_first.facts["lost"]["files"] == 1
    row = docker.named(NAME)
    assert row is not None and row.live and happened() == []
    # Where it can be undone, nobody is asked.
    assert containers.retire(docker, lab, user, "thesis", asks=True).facts["undo_until"]
    put(docker, lab)
    assert containers.retire(docker, none, user, "thesis").changed


def test_a_limit_that_was_lowered_is_drift_and_no_refusal(docker: Model, lab: Policy) -> None:
    put(docker, lab)
    user = lab.user("alice")
    low = replace(user, limits=replace(user.limits, memory=32 << 20))
    lowered = replace(lab, users=(low,))
    changed = containers.drift(lowered, low, "thesis", containers.observe(docker).containers[NAME])
    assert changed["memory"] == ("64M", "32M")
    assert reconcile(docker, lowered) == ["remove", "create", "start"]
    # Raised again, what was asked for is there again.
    assert reconcile(docker, lab) == ["remove", "create", "start"]
    assert asked(docker, lab) == SMALL


def test_each_deed_is_written_down(docker: Model, lab: Policy) -> None:
    user = lab.user("alice")
    reconcile(docker, lab)
    containers.stop(docker, user, "thesis")
    containers.stop(docker, user, "thesis")
    containers.start(docker, lab, user, "thesis")
    containers.start(docker, lab, user, "thesis")
    reconcile(docker, lab, state="stopped")
    states.clear_stopped(NAME)
    (info,) = containers.listing(docker, lab, user)
    containers.start_existing(docker, lab, info)
    containers.retire(docker, lab, user, "thesis")
    containers.undo(docker, lab, user, "thesis")
    closed = replace(lab, shares=())
    containers.withdraw(docker, closed, check=False)
    for _try in range(2):
        with pytest.raises(Refused):
            containers.start_existing(docker, closed, info)
    reconcile(docker, lab, state="absent")
    assert happened() == [
        ("made", "it"),
        ("stopped", "user"),
        ("started", "user"),
        ("stopped", "it"),
        ("started", "boot"),
        ("retired", "user"),
        ("restored", "user"),
        ("stopped", "it"),
        ("not-started", "boot"),
        ("removed", "it"),
    ]
    assert events.read(2001, "thesis")[7].reason == "alice may no longer use " + f"{lab.data_root}/vision"


def test_what_it_stops_is_in_the_audit_log(
    docker: Model, lab: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[dict[str, Any]] = []
    monkeypatch.setattr(containers.journal, "record", lambda _priority, **values: written.append(values))
    reconcile(docker, lab)
    containers.withdraw(docker, replace(lab, shares=()), check=False)
    (one,) = written
    assert (one["verb"], one["container"], one["owner"], one["outcome"]) == ("stop", NAME, 2001, "done")
    assert one["detail"].startswith("alice may no longer use ")


def test_what_was_only_looked_at_is_not_written_down(docker: Model, lab: Policy) -> None:
    put(docker, lab)
    for state in ("stopped", "retired", "absent", "started"):
        containers.reconcile(docker, lab, [Wanted("alice", "thesis", state=state)], check=True)
    containers.withdraw(docker, replace(lab, shares=()), check=True)
    assert happened() == []


# What is kept of images


class Odd(Model):
    """An engine whose images have account files of bytes that are no text, and a volume if it is given."""

    volume = ""

    def read_file(self, _container: str, _path: str, limit: int) -> bytes | None:
        return b"\xff" * limit

    def inspect_image(self, reference: str) -> dict[str, Any] | None:
        found = super().inspect_image(reference)
        if found is not None and self.volume:
            found["Config"]["Volumes"] = {self.volume: {}}
        return found

    def renew(self, number: int) -> None:
        """Put another image in the place of the project's."""
        self.pictures[0]["Id"] = f"sha256:{number:064x}"


def test_what_is_kept_of_images_is_bounded_for_each_user(
    docker: Model, lab: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "_LOOKS", 3)
    looks = tmp_path / "state/looks"
    (looks / "2002").mkdir(parents=True)
    for old in ("a" * 64, f"2002/{'b' * 64}"):
        (looks / old).write_text("{}")
    odd = Odd()
    odd.pictures = docker.pictures
    for number in range(5):
        odd.renew(number)
        assert reconcile(odd, lab)
    kept = sorted(path.relative_to(looks).parts[0] for path in looks.rglob("*") if path.is_file())
    assert kept == ["2001"] * 3 + ["2002"]
    assert max(path.stat().st_size for path in looks.rglob("*")) < 1 << 20
    # What was seen is not looked for again.
    odd.again()
    containers.reconcile(odd, lab, [Wanted("alice", "thesis", memory=128 << 20)], check=False)
    assert "put" in odd.calls and "file_status" not in odd.calls


def test_nothing_is_kept_of_an_image_that_cannot_be_used(docker: Model, lab: Policy, tmp_path: Path) -> None:
    odd = Odd()
    odd.pictures, odd.volume = docker.pictures, "/workspace/x"
    (done,) = containers.reconcile(odd, lab, [Wanted("alice", "thesis")], check=False)
    assert done.failed and "VOLUME /workspace/x" in done.message
    assert not (tmp_path / "state/looks").exists() and odd.rows == {}


# A user's own launch


class Builds(list[bool]):
    """Whether each build was to be anew; something may happen meanwhile."""

    meanwhile = staticmethod(lambda: None)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    """Return whether each build was to be anew; none of them builds anything."""
    asked_for = Builds()

    def build(*_words: object, rebuild: bool = False, **_options: object) -> ItemResult:
        asked_for.append(rebuild)
        asked_for.meanwhile()
        return ItemResult("alice/thesis")

    monkeypatch.setattr(images, "build", build)
    monkeypatch.setattr(workspaces, "check_project", lambda *_words: None)
    return asked_for


def test_a_launch_makes_what_is_asked_for_and_says_where_it_cannot(
    docker: Model, lab: Policy, builds: Builds
) -> None:
    user = lab.user("alice")
    made = containers.launch(docker, lab, user, "thesis", own=SMALL)
    assert made.facts["limits"] == {"cpus": 0.5, "memory": 64 << 20} and made.facts["notes"] == []
    assert asked(docker, lab) == SMALL and happened() == [("made", "user")]
    # To ask for nothing, or for the same, is to have what there is.
    for own in (OwnWishes(), SMALL, OwnWishes(cpus=0.5)):
        again = containers.launch(docker, lab, user, "thesis", own=own)
        assert (again.changed, again.facts["status"], again.facts["notes"]) == (False, "running", [])
    (note,) = containers.launch(docker, lab, user, "thesis", own=OwnWishes(1.5, 1 << 30)).facts["notes"]
    assert "0.5 cpus, not 1.5 and 64M of memory, not 1G" in note
    assert note.endswith("container retire thesis, then project launch thesis --cpus 1.5 --memory 1G.")
    for own in (OwnWishes(cpus=2.5), OwnWishes(memory=2 << 30)):
        with pytest.raises(Refused, match="more than the limit"):
            containers.launch(docker, lab, user, "thesis", own=own)
    assert builds == [False] and len(docker.rows) == 1


def test_a_launch_builds_anew_for_a_container_that_is_there_too(
    docker: Model, lab: Policy, builds: Builds
) -> None:
    user = lab.user("alice")
    containers.launch(docker, lab, user, "thesis", rebuild=True)
    containers.launch(docker, lab, user, "thesis", rebuild=True)
    containers.stop(docker, user, "thesis")
    assert containers.launch(docker, lab, user, "thesis").facts["status"] == "started"
    assert builds == [True, True]
    assert happened() == [("made", "user"), ("stopped", "user"), ("started", "user")]


def test_what_it_declared_cannot_be_asked_for_otherwise(docker: Model, lab: Policy, builds: Builds) -> None:
    made, _keys = policies.from_inventory(
        {
            "lab_groups": [{"name": "vision", "gid": 3101, "limits": LIMITS, "quota": QUOTA}],
            "lab_users": [{"name": "alice", "uid": 2001, "group": "vision"}],
            "lab_base_images": [{"name": "lab/python", "archive": "python.tar"}],
            "lab_projects": [{"user": "alice", "name": "thesis", "memory": "128m"}],
        }
    )
    policy = replace(lab, projects=made.projects)
    with pytest.raises(Refused, match="IT declared 128M for thesis"):
        containers.launch(docker, policy, policy.user("alice"), "thesis", own=SMALL)
    own = OwnWishes(cpus=0.5)
    launched = containers.launch(docker, policy, policy.user("alice"), "thesis", own=own)
    assert launched.facts["limits"] == {"cpus": 0.5, "memory": 128 << 20}
    # IT's run of the playbook leaves what it did not declare as it is.
    assert reconcile(docker, policy, memory=128 << 20) == [] and asked(docker, policy) == own


@pytest.mark.parametrize("what", ["stop", "retire"])
def test_what_is_stopped_or_retired_while_its_image_is_built_stays_so(
    docker: Model, lab: Policy, builds: Builds, what: str
) -> None:
    user = lab.user("alice")
    containers.launch(docker, lab, user, "thesis")

    def meanwhile() -> None:
        # Who builds holds no lock of the container.
        with locks.hold(LOCK, timeout=0.0):
            pass
        if what == "stop":
            containers.stop(docker, user, "thesis", by=events.LIMIT, why="it ran for long")
        else:
            containers.retire(docker, lab, user, "thesis")

    builds.meanwhile = meanwhile
    with pytest.raises(Refused, match="stopped or retired meanwhile"):
        containers.launch(docker, lab, user, "thesis", rebuild=True)
    assert not any(row.live for row in docker.rows.values())
    assert states.is_stopped(NAME) == (what == "stop")
    builds.meanwhile = lambda: None
    assert containers.launch(docker, lab, user, "thesis", rebuild=True).facts["status"] in (
        "started",
        "created",
    )


def test_of_two_launches_at_once_the_later_finds_the_container_of_the_first(
    docker: Model, lab: Policy, builds: Builds
) -> None:
    user = lab.user("alice")

    def meanwhile() -> None:
        builds.meanwhile = lambda: None
        assert containers.launch(docker, lab, user, "thesis").facts["status"] == "created"

    builds.meanwhile = meanwhile
    assert containers.launch(docker, lab, user, "thesis").facts["status"] == "running"
    assert len(docker.rows) == 1 and happened() == [("made", "user")]


# While somebody holds a lock, and for as long as that is

LOCK = locks.of_project("container", 2001, "thesis")


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BRIEF", 0.02)


@pytest.mark.usefixtures("brief")
def test_a_held_lock_keeps_no_container_from_its_end(docker: Model, lab: Policy) -> None:
    user = lab.user("alice")
    put(docker, lab)
    (row,) = docker.rows.values()
    with locks.hold(LOCK):
        containers.stop(docker, user, "thesis", by=events.LIMIT, why="it ran for long")
        assert row.state == "exited" and states.is_stopped(NAME)
        row.state = "running"
        containers.withdraw(docker, replace(lab, shares=()), check=False)
        assert row.state == "exited"
        # What does more than to stop it is left for the next look.
        with pytest.raises(locks.InUse):
            containers.retire(docker, lab, user, "thesis", by=events.LIMIT)
        (info,) = containers.listing(docker, lab, user)
        with pytest.raises(locks.InUse):
            containers.start_existing(docker, lab, info, wait=0.0)
    with locks.hold("user-2001"), pytest.raises(locks.InUse):
        containers.retire(docker, lab, user, "thesis", by=events.LIMIT)
    assert happened() == [("stopped", "limit"), ("stopped", "it")]


@pytest.mark.usefixtures("brief")
def test_a_held_lock_keeps_nobody_from_the_gpus_that_were_reserved(
    docker: Model, lab: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(docker, lab)
    (row,) = docker.rows.values()
    monkeypatch.setattr(gpuleases, "give_way", lambda *_words: None)
    monkeypatch.setattr(journal, "record", lambda **_values: None)
    held = gpuleases.Held(Lease(NAME, 2001, ()), row.id)
    one = gpuhandover.Handover(held, gpureservations.End(0.0, 1, 0.0), 0.0)
    with locks.hold(LOCK):
        assert ending._hand_over(docker, lab, one, check=False).problem == ""
    assert row.state == "exited"


@pytest.fixture
def limited(lab: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Policy:
    """Return the policy with a limit of time, of which the notice has stood for the user's container."""
    user = lab.user("alice")
    monkeypatch.setattr(ending, "NOTICES", str(tmp_path / "notices"))
    monkeypatch.setattr(notices.os, "chown", lambda *_words: None)
    monkeypatch.setattr(journal, "record", lambda **_values: None)
    monkeypatch.setattr(ending, "_look", lambda _engine, info, _typed: Look(info.name, info.id, info.running))
    monkeypatch.setattr(ending.sessions, "typed", lambda _names: {})
    return replace(lab, users=(replace(user, limits=replace(user.limits, run_hours=1)),))


def due(docker: Model, policy: Policy) -> Row:
    """Put a container there that is to be stopped at the next look."""
    put(docker, policy)
    (row,) = docker.rows.values()
    notice = policy.life.notice_hours * HOUR
    boot, up = ending._now()
    counted = Counted(row.id, ran=2 * HOUR, noticed=notice, about="run")
    states.write_record("lifecycle.json", Record(boot, up, ((NAME, counted),)).render())
    return row


@pytest.mark.usefixtures("brief")
def test_all_are_counted_and_told_before_one_is_stopped(
    docker: Model, limited: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = due(docker, limited)
    before = states.read_record("lifecycle.json")
    order: list[str] = []

    def stop(*words: Any, **more: Any) -> None:
        order.append("stop" if states.read_record("lifecycle.json") != before else "too early")
        containers.stop(*words, **more)

    def hand_over(*_words: object, **_more: object) -> ending.Ended:
        order.append("hand over")
        return ending.Ended("other._.2002", Decision("stop", ending.RESERVED, 0.0))

    monkeypatch.setattr(ending, "stop", stop)
    monkeypatch.setattr(ending, "_hand_over", hand_over)
    end = gpureservations.End(0.0, 1, 0.0)
    other = gpuhandover.Handover(gpuleases.Held(Lease("other._.2002", 2002, ()), "x"), end, 0.0)
    monkeypatch.setattr(gpuhandover, "look", lambda *_words, **_more: ([other], gpuhandover.Record()))
    with locks.hold(LOCK):
        ended = ending.tick(docker, limited)
    assert [(one.name, one.decision.do, one.problem) for one in ended] == [
        (NAME, "stop", ""),
        ("other._.2002", "stop", ""),
    ]
    assert order == ["hand over", "stop"] and not row.live


def test_what_cannot_be_told_keeps_none_from_its_end(
    docker: Model, limited: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = due(docker, limited)
    monkeypatch.setattr(ending, "NOTICES", "/proc/notices")
    with pytest.raises(HostError, match="could not be written"):
        ending.tick(docker, limited)
    assert not row.live


@pytest.mark.usefixtures("brief")
def test_a_held_lock_keeps_the_containers_of_nobody_else_from_being_cleaned_up(
    docker: Model, lab: Policy
) -> None:
    spec = specs.decide(lab, lab.user("alice"), "thesis", Wishes(), SMALL)
    for uid in (2001, 2002):
        name = names.container_name("thesis", uid)
        docker.add(f"{name}.retired-7", "exited", CURRENT, specs.labels(replace(spec, uid=uid)))
    told: list[str] = []
    none = replace(lab, retire_keep_days=0)
    with locks.hold("user-2001"):
        gone = retired.clean_up(docker, none, 1e9, tell=told.append)
    assert [one.uid for one in gone] == [2002]
    assert len(told) == 1 and "uid 2001" in told[0] and "at work" in told[0]
    assert [one.uid for one in retired.clean_up(docker, none, 1e9)] == [2001]
