# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A list of containers of IT's: no failure hides what was done, and no promise is made that is not kept."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils import _core
from ansible_collections.lab.server.plugins.module_utils._core import (
    brought,
    containers,
    events,
    gpufiles,
    gpuleases,
    journal,
    locks,
    names,
)
from ansible_collections.lab.server.plugins.module_utils._core import policy as policies
from ansible_collections.lab.server.plugins.module_utils._core import spec as specs
from ansible_collections.lab.server.plugins.module_utils._core import state as states
from ansible_collections.lab.server.plugins.module_utils._core.containers import Wanted
from ansible_collections.lab.server.plugins.module_utils._core.errors import EngineError, HostError
from ansible_collections.lab.server.plugins.module_utils._core.gpudevices import Device
from ansible_collections.lab.server.plugins.module_utils._core.items import ItemResult
from ansible_collections.lab.server.plugins.module_utils._core.policy import BaseImage, Policy
from test_lease_model import Engine, uuid

LIMITS = {"containers": 9, "cpus": 2, "memory": "1g", "pids": 512, "shm": "64m", "gpus": 2}
QUOTA = {"soft": 0, "hard": 0, "inodes_soft": 0, "inodes_hard": 0}
CARDS = 3
PROJECTS = ("a", "b", "c")
CURRENT = "sha256:" + "c" * 64
LOOKS = {"containers", "images", "inspect", "inspect_image"}


class Docker(Engine):
    """The model, which gives to a container what it is made with, and fails where a test says so.

    ``breaks``: by (call, name of the container), the errors that come first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.breaks: dict[tuple[str, str], Exception] = {}

    def _break(self, call: str, name: str) -> None:
        error = self.breaks.get((call, name))
        if error is not None:
            raise error

    def create(self, name: str, config: Any) -> str:
        self._break("create", name)
        made = super().create(name, config)
        self.given[made] = (config.get("HostConfig") or {}).get("DeviceRequests") or []
        return made

    def start(self, container: str) -> None:
        self._break("start", self.rows[container].name if not self.rows[container].worked else "")
        super().start(container)

    def rename(self, container: str, name: str) -> None:
        self._break("rename", name.partition("-")[0])
        super().rename(container, name)

    def ensure_network(self) -> None:
        self._break("ensure_network", "")
        super().ensure_network()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Policy:
    """Return the policy of a server with two users and three GPUs, whose folders are the test's own."""
    for folder in ("workspaces/alice", "workspaces/bob", "data/vision"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(policies, "WORKSPACES_ROOT", str(tmp_path / "workspaces"))
    monkeypatch.setattr(policies, "HOMES_ROOT", str(tmp_path / "homes"))
    for module in (states, _core):
        monkeypatch.setattr(module, "STATE_DIRECTORY", str(tmp_path / "state"))
    for module in (locks, _core):
        monkeypatch.setattr(module, "RUN_DIRECTORY", str(tmp_path / "run"))
    cards = [Device(uuid(n), "GPU (simulated)", 80 << 30, index=str(n)) for n in range(CARDS)]
    monkeypatch.setattr(gpuleases, "inventory", lambda _policy: list(cards))
    monkeypatch.setattr(gpufiles, "gids", lambda: ())
    made, _keys = policies.from_inventory(
        {
            "lab_data_root": str(tmp_path / "data"),
            "lab_groups": [{"name": "vision", "gid": 3101, "limits": LIMITS, "quota": QUOTA}],
            "lab_users": [
                {"name": name, "uid": 2001 + number, "group": "vision"}
                for number, name in enumerate(("alice", "bob"))
            ],
            "lab_shares": [{"name": "vision", "access": "group", "group": "vision"}],
        }
    )
    return made


@pytest.fixture
def docker() -> Docker:
    """Return an engine with an image of each project and no container."""
    model = Docker()
    for uid, project in ((uid, project) for uid in (2001, 2002) for project in PROJECTS):
        repository = names.image_repository(uid, project)
        labels = {specs.LABEL_OWNER: str(uid), specs.LABEL_PROJECT: project}
        labels["lab.server.fingerprint"] = "c" * 64
        tags = [f"{repository}:latest", f"{repository}:{'c' * 12}"]
        image = CURRENT[:-5] + f"{uid}{project}"
        model.pictures.append({"Id": image, "RepoTags": tags, "Labels": labels, "Created": 1})
    return model


def run(model: Docker, lab: Policy, *wanted: Wanted, check: bool = False) -> list[ItemResult]:
    return containers.reconcile(model, lab, wanted, check=check)


def told(results: list[ItemResult]) -> list[dict[str, Any]]:
    return [one.as_dict() for one in results]


def made(model: Docker, lab: Policy, *wanted: Wanted) -> None:
    assert not any(one.failed for one in run(model, lab, *wanted))


def name(project: str, uid: int = 2001) -> str:
    return names.container_name(project, uid)


def live(model: Docker) -> list[str]:
    return sorted(row.name for row in model.rows.values() if row.live)


A, B, C = (Wanted("alice", project) for project in PROJECTS)
STOP_A = replace(A, state="stopped")


# What was done is told, whatever fails after it


@pytest.mark.parametrize("what", ["disk", "network", "a fault of ours"])
def test_what_fails_for_all_that_start_hides_nothing_of_what_was_done(
    docker: Docker, lab: Policy, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    made(docker, lab, A)
    wrong: Exception = EngineError("No network.") if what == "network" else ValueError("odd")
    docker.breaks["ensure_network", ""] = wrong
    monkeypatch.setattr(journal, "record", lambda *_words, **_values: None)
    if what == "disk":
        monkeypatch.setattr(containers.storage, "check_mounts", lambda _policy: ["/data is not mounted."])
    stopped, started = run(docker, lab, STOP_A, B)
    assert (stopped.failed, stopped.changed, stopped.actions) == (False, True, ["stop"])
    assert (started.failed, started.changed, started.actions) == (True, False, [])
    said = {
        "disk": "/data is not mounted",
        "network": "No network",
        "a fault of ours": "Unexpected ValueError",
    }
    assert said[what] in started.message
    assert live(docker) == []
    if what != "a fault of ours":
        (event,) = events.read(2001, "b")
        assert event.what == events.NOT_STARTED and said[what] in event.reason


def test_a_fault_of_ours_with_one_container_hides_none_of_the_others(
    docker: Docker, lab: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(journal, "record", lambda *_words, **values: logged.append(values["detail"]))
    docker.breaks["create", name("b")] = ZeroDivisionError("odd")
    results = run(docker, lab, A, B, C)
    assert [one.failed for one in results] == [False, True, False]
    assert "Unexpected ZeroDivisionError: odd" in results[1].message and "odd" in logged[0]
    assert live(docker) == [name("a"), name("c")]


def test_one_that_is_stopped_and_brought_back_says_so(docker: Docker, lab: Policy) -> None:
    made(docker, lab, A)
    docker.breaks["start", name("a")] = EngineError("No start.")
    (result,) = run(docker, lab, replace(A, pids=32))
    assert (result.failed, result.changed, result.actions) == (True, True, ["stop", "start"])
    assert result.diff == {} and "No start" in result.message
    assert live(docker) == [name("a")] and len(docker.rows) == 1


def test_one_that_did_not_run_and_is_brought_back_is_as_it_was(docker: Docker, lab: Policy) -> None:
    made(docker, lab, A)
    made(docker, lab, STOP_A)
    docker.breaks["start", name("a")] = EngineError("No start.")
    (result,) = run(docker, lab, replace(A, pids=32))
    assert (result.failed, result.changed, result.actions) == (True, False, [])


def test_what_was_healed_or_removed_before_it_failed_is_told(docker: Docker, lab: Policy) -> None:
    made(docker, lab, A, B)
    healed, unfinished = (docker.named(name(project)) for project in ("a", "b"))
    assert healed is not None and unfinished is not None
    healed.name, healed.state = f"{name('a')}.previous", "exited"
    unfinished.state = "created"
    for one in (f"{name('a')}.next", name("a"), name("b")):
        docker.breaks["create", one] = EngineError("No room.")
    first, second = run(docker, lab, replace(A, pids=32), B)
    assert (first.failed, first.changed, first.actions) == (True, True, [containers.HEAL])
    assert (second.failed, second.changed, second.actions) == (True, True, ["remove"])


def test_one_that_was_stopped_to_be_retired_says_so(docker: Docker, lab: Policy) -> None:
    made(docker, lab, A)
    docker.breaks["rename", f"{name('a')}.retired"] = EngineError("No name.")
    (result,) = run(docker, lab, replace(A, state="retired"))
    assert (result.failed, result.changed, result.actions) == (True, True, ["stop"])


def test_files_that_were_brought_for_one_that_failed_are_told(
    docker: Docker, lab: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = bringing(lab, docker, monkeypatch)
    docker.breaks["create", name("a")] = EngineError("No room.")
    (result,) = run(docker, policy, A)
    assert (result.failed, result.changed, result.actions) == (True, True, [])
    assert result.facts["brought"]["files"] == 3


# What is refused is told in check mode, in the same words, and nothing is made for it


def refused(docker: Docker, lab: Policy, *wanted: Wanted) -> list[str]:
    """Return what is refused of a list, of which the promise must be the deed; what is left can be made."""
    before = [replace(row) for row in docker.rows.values()]
    docker.again()
    promise = run(docker, lab, *wanted, check=True)
    assert list(docker.rows.values()) == before and set(docker.calls) <= LOOKS
    docker.again()
    deed = run(docker, lab, *wanted)
    assert told(deed) == told(promise)
    if all(one.failed for one in deed):
        # Before anything was made: not even a container to look into the image.
        assert set(docker.calls) <= {*LOOKS, "ensure_network"} and list(docker.rows.values()) == before
    return [one.message for one in deed]


def test_gpus_that_a_user_may_never_have_are_refused(docker: Docker, lab: Policy) -> None:
    (said,) = refused(docker, lab, replace(A, gpus="3"))
    assert "more than the limit of 2" in said
    # So they are where there is no engine yet.
    (promise,) = containers.reconcile(None, lab, [replace(A, gpus="3")], check=True)
    assert promise.failed and promise.message == said


def test_the_gpus_of_a_user_are_summed_over_the_list(docker: Docker, lab: Policy) -> None:
    said = refused(docker, lab, *(replace(one, gpus="1") for one in (A, B, C)))
    assert said[:2] == ["", ""] and "you hold 2 of 2 GPUs" in said[2]


def test_the_gpus_of_the_server_are_counted_over_the_list(docker: Docker, lab: Policy) -> None:
    others = [Wanted("bob", "a", gpus="2"), Wanted("bob", "b", gpus=uuid(0))]
    said = refused(docker, lab, replace(A, gpus="2"), *others, B)
    assert [bool(one) for one in said] == [False, True, True, False]
    assert "1 of 3 free" in said[1] and "0 of 1 free" in said[2]


def test_gpus_that_are_taken_are_refused(docker: Docker, lab: Policy) -> None:
    made(docker, lab, replace(A, gpus="2"))
    (said,) = refused(docker, lab, Wanted("bob", "a", gpus="2"))
    assert "1 of 3 free" in said


def test_what_goes_makes_room_for_what_comes(docker: Docker, lab: Policy) -> None:
    made(docker, lab, replace(A, gpus="2"), Wanted("bob", "c", gpus="1"))
    gone = replace(A, state="absent")
    assert refused(docker, lab, Wanted("bob", "a", gpus="1"), gone, replace(B, gpus="1")) == ["", "", ""]


def test_one_that_holds_its_gpus_is_started_again_and_counted_once(docker: Docker, lab: Policy) -> None:
    made(docker, lab, replace(A, gpus="1"))
    made(docker, lab, STOP_A)
    assert refused(docker, lab, replace(A, gpus="1"), replace(B, gpus="1")) == ["", ""]


def test_a_retired_one_does_not_come_back_without_its_gpus(docker: Docker, lab: Policy) -> None:
    had = replace(A, gpus=uuid(0))
    made(docker, lab, had)
    made(docker, lab, replace(had, state="retired"))
    made(docker, lab, Wanted("bob", "a", gpus=uuid(0)))
    (said,) = refused(docker, lab, replace(had, state="restored"))
    assert "given to somebody else" in said


def test_a_retired_one_does_not_come_back_with_a_share_that_was_taken(docker: Docker, lab: Policy) -> None:
    made(docker, lab, A)
    made(docker, lab, replace(A, state="retired"))
    (said,) = refused(docker, replace(lab, shares=()), replace(A, state="restored"))
    assert "you may no longer use" in said


def test_a_kept_home_that_is_a_file_is_refused(docker: Docker, lab: Policy, tmp_path: Path) -> None:
    (tmp_path / "homes/alice").mkdir(parents=True)
    (tmp_path / "homes/alice/a").touch()
    (said,) = refused(docker, lab, replace(A, home="persistent"))
    assert "not where a folder is expected" in said


def test_a_workspace_that_is_gone_is_refused(docker: Docker, lab: Policy, tmp_path: Path) -> None:
    (tmp_path / "workspaces/alice").rmdir()
    said = refused(docker, lab, replace(A, gpus="1"), Wanted("bob", "a"))
    assert f"{tmp_path}/workspaces/alice is not there" in said[0] and said[1] == ""


# What the tasks before it make is no refusal in check mode


def test_what_may_be_made_before_is_noted_alone(
    docker: Docker, lab: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(tmp_path / "data")
    (promise,) = run(docker, lab, A, check=True)
    assert not promise.failed and promise.actions == ["create", "start"]
    assert [str(tmp_path / "data") in note for note in promise.facts["notes"]] == [True, True]
    (deed,) = run(docker, lab, A)
    assert deed.failed
    (tmp_path / "data/vision").mkdir(parents=True)
    made(docker, lab, A)
    # A container has had it by now.
    shutil.rmtree(tmp_path / "data/vision")
    assert run(docker, lab, B, check=True)[0].failed
    # Of somebody who is new there is nothing.
    docker.pictures, docker.rows = [], {}
    (tmp_path / "workspaces/bob").rmdir()
    (promise,) = run(docker, lab, Wanted("bob", "a", home="host"), check=True)
    assert not promise.failed and any("workspaces/bob" in note for note in promise.facts["notes"])
    monkeypatch.setattr(containers.storage, "check_mounts", lambda _policy: ["/data is not mounted."])
    assert "/data is not mounted" in run(docker, lab, A, check=True)[0].facts["notes"][0]
    assert containers.reconcile(None, lab, [A], check=True)[0].facts == {}


# What the environment brings


def bringing(lab: Policy, docker: Docker, monkeypatch: pytest.MonkeyPatch) -> Policy:
    """Let the images be made of one that brings files, of which three are copied."""
    for picture in docker.pictures:
        picture["Labels"]["lab.server.base"] = "lab/notebook:latest"

    def bring(_engine: Any, _policy: Any, user: Any, base: Any) -> dict[str, Any]:
        if states.was_brought(user.uid, base.folder):
            return {}
        states.mark_brought(user.uid, base.folder)
        return {"folder": f"/workspace/{base.folder}", "files": 3, "skipped": 0}

    monkeypatch.setattr(brought, "bring", bring)
    return replace(lab, base_images=(BaseImage("lab/notebook", "lab/notebook", "", "/home/jovyan"),))


def test_files_that_will_be_brought_are_foretold_once(
    docker: Docker, lab: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = bringing(lab, docker, monkeypatch)
    wanted = [A, B, Wanted("bob", "a")]
    folder = "/workspace/notebook"
    promise = [one.facts.get("brought") for one in run(docker, policy, *wanted, check=True)]
    assert promise == [{"folder": folder}, None, {"folder": folder}]
    deed = [one.facts.get("brought", {}).get("folder") for one in run(docker, policy, *wanted)]
    assert deed == [folder, None, folder]
    docker.again()
    assert "brought" not in run(docker, policy, C, check=True)[0].facts
    assert "inspect_image" not in docker.calls


# What it costs


def test_what_is_as_it_should_be_costs_two_listings(docker: Docker, lab: Policy) -> None:
    wanted = [replace(A, gpus="1"), B, replace(C, gpus="1")]
    made(docker, lab, *wanted)
    for check in (True, False):
        docker.again()
        assert not any(one.changed or one.failed for one in run(docker, lab, *wanted, check=check))
        assert docker.calls == ["containers", "images"]


def test_how_containers_differ_costs_two_listings_whatever_is_in_the_way(
    docker: Docker, lab: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(docker, lab, replace(A, gpus="1"))
    made(docker, lab, STOP_A)

    def inventory(_policy: Policy) -> list[Device]:
        raise HostError("No driver.")

    monkeypatch.setattr(gpuleases, "inventory", inventory)
    docker.again()
    (result,) = containers.differing(docker, lab, [replace(A, gpus="1")])
    assert (result.failed, result.actions, result.reason) == (False, ["start"], "it does not run")
    assert docker.calls == ["containers", "images"]
    assert run(docker, lab, replace(A, gpus="1"), check=True)[0].message.startswith("No driver")
