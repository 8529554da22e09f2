# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The report tells what was seen: nothing is left out, nothing made up, and what is not known says why."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import gpus, mounts, report, spec, storage
from ansible_collections.lab.server.plugins.module_utils._core.containers import Snapshot, Wanted
from ansible_collections.lab.server.plugins.module_utils._core.images import ProjectImage
from ansible_collections.lab.server.plugins.module_utils._core.items import ItemResult
from ansible_collections.lab.server.plugins.module_utils._core.plan import Actual
from ansible_collections.lab.server.plugins.module_utils._core.policy import (
    Filesystem,
    Policy,
    Quota,
    from_inventory,
)
from ansible_collections.lab.server.plugins.module_utils._core.quota import Usage
from ansible_collections.lab.server.plugins.module_utils._core.report import Docker, Folders, Seen
from ansible_collections.lab.server.plugins.module_utils._core.retired import among

NOW = 1_000_000_000
NOTHING = Docker()
DAY = 86400
LIMITS = {"containers": 3, "cpus": 1, "memory": "64m", "pids": 64, "shm": "1m", "gpus": 0}
QUOTA = {"soft": "9g", "hard": "10g", "inodes_soft": 900, "inodes_hard": 1000}
USAGE = Usage(5 << 30, 77, Quota(9 << 30, 10 << 30, 900, 1000))


@pytest.fixture
def policy() -> Policy:
    made, _keys = from_inventory(
        {
            "lab_groups": [{"name": "students", "gid": 3101, "limits": LIMITS, "quota": QUOTA}],
            "lab_users": [
                {"name": "alice", "uid": 2001, "group": "students"},
                {"name": "bob", "uid": 2002, "group": "students"},
            ],
            "lab_base_images": [
                {"name": "lab/python", "archive": "/x.tar"},
                {"name": "lab/r", "image": "r"},
            ],
            "lab_projects": [
                {"user": "alice", "name": "thesis", "pids": 32},
                {"user": "bob", "name": "net", "state": "absent"},
            ],
        }
    )
    return made


def container(policy: Policy, user: str, project: str, **changes: Any) -> Actual:
    made = spec.decide(policy, policy.user(user), project)
    actual = Actual(f"id-{project}", made.name, "running", "new", True, made.digest(), made, NOW - DAY)
    return replace(actual, **changes)


def image(name: str, project: str, fingerprint: str, owner: int = 2001, **more: Any) -> dict[str, Any]:
    labels = {
        "lab.server.owner": str(owner),
        "lab.server.project": project,
        "lab.server.fingerprint": fingerprint,
        "lab.server.base": "lab/python",
    }
    tags = [f"lab/{owner}/{project}:{fingerprint[:12]}"]
    return {"Id": name, "Labels": labels, "RepoTags": tags, "Size": 10, "Created": NOW - DAY, **more}


OLD, NEW = "a" * 64, "b" * 64
LATEST = image("new", "thesis", NEW, RepoTags=["lab/2001/thesis:latest", f"lab/2001/thesis:{NEW[:12]}"])
CURRENT = ProjectImage("new", "lab/2001/thesis", NEW, (("old", f"lab/2001/thesis:{OLD[:12]}"),))


def seen(policy: Policy, docker: Docker = NOTHING, **changes: Any) -> Seen:
    all_users: dict[str, Any] = {user.name: USAGE for user in policy.users}
    folders = {user.name: Folders() for user in policy.users}
    return replace(Seen(NOW, all_users, "", folders, (), (), docker), **changes)


def told(policy: Policy, docker: Docker = NOTHING, **changes: Any) -> dict[str, Any]:
    return report.report(policy, seen(policy, docker, **changes))


def snapshot(*there: Actual) -> Snapshot:
    return Snapshot({one.name: one for one in there}, {(2001, "thesis"): CURRENT})


def test_users_are_told_with_limits_quota_and_usage(policy: Policy) -> None:
    docker = Docker(snapshot=snapshot(container(policy, "alice", "thesis")))
    alice, bob = told(policy, docker)["users"]
    assert (alice["name"], alice["uid"], alice["limits"]["memory"]) == ("alice", 2001, 64 << 20)
    assert alice["quota"] == {"soft": 9 << 30, "hard": 10 << 30, "inodes_soft": 900, "inodes_hard": 1000}
    assert (alice["usage"]["used"], alice["usage"]["inodes"]) == (5 << 30, 77)
    assert alice["usage"]["quota"] == alice["quota"]
    assert (alice["containers"], bob["containers"]) == (["thesis._.2001"], [])


def test_usage_that_is_not_known_says_why(policy: Policy) -> None:
    (alice, _bob) = told(policy, usage={}, usage_problem="Quotas are not on.")["users"]
    assert (alice["usage"], alice["usage_problem"]) == (None, "Quotas are not on.")


def test_projects_are_those_of_the_policy_of_folders_of_images_and_of_containers(policy: Policy) -> None:
    docker = Docker(
        images=[LATEST, image("i", "built", OLD)], snapshot=snapshot(container(policy, "bob", "run"))
    )
    folders = {
        "alice": Folders([{"name": "new", "dockerfile": True}]),
        "bob": Folders(problem="Permission denied."),
    }
    found = {(one["user"], one["name"]): one for one in told(policy, docker, folders=folders)["projects"]}
    # An image that is not the current one is no reason to speak of a project.
    assert list(found) == [("alice", "new"), ("alice", "thesis"), ("bob", "net"), ("bob", "run")]
    thesis, new = found["alice", "thesis"], found["alice", "new"]
    assert (thesis["declared"], thesis["state"], thesis["folder"]) == (True, "started", False)
    assert (thesis["image"], thesis["container"]) == (f"lab/2001/thesis:{NEW[:12]}", "")
    assert (new["declared"], new["folder"], new["dockerfile"], new["state"]) == (False, True, True, "")
    assert found["bob", "run"]["container"] == "run._.2002"
    assert found["bob", "run"]["folder_problem"] == "Permission denied."


def test_the_packages_of_an_image_are_told_where_they_are_known(policy: Policy) -> None:
    name = f"lab/2001/thesis:{NEW[:12]}"
    docker = Docker(images=[LATEST, image("i", "built", OLD)], packages={name: ("numpy==1.0",)})
    found = {one["name"]: one["packages"] for one in told(policy, docker)["images"]}
    assert found == {name: ("numpy==1.0",), f"lab/2001/built:{OLD[:12]}": None}


def test_drift_of_a_declared_project_is_what_a_run_would_do(policy: Policy) -> None:
    plans = {("alice", "thesis"): ItemResult("thesis._.2001", changed=True, reason="there is none")}
    found = told(policy, Docker(plans=plans))["projects"]
    assert [(one["name"], one["drift"], one["reason"]) for one in found] == [
        ("thesis", True, "there is none"),
        ("net", False, ""),
    ]


def test_containers_are_told_with_spec_drift_and_why(policy: Policy) -> None:
    actual = container(policy, "alice", "thesis", image="old")
    planned = ItemResult(
        actual.name,
        changed=True,
        actions=["remove", "create", "start"],
        reason="the image is newer",
        diff={"before": {"image": "old"}, "after": {"image": "new"}},
    )
    docker = Docker(snapshot=snapshot(actual), plans={("alice", "thesis"): planned}, sizes={"id-thesis": 123})
    (one,) = told(policy, docker)["containers"]
    assert (one["image"], one["image_newer"]) == (f"lab/2001/thesis:{OLD[:12]}", True)
    assert (one["drift"], one["reason"]) == (True, "the image is newer")
    assert (one["actions"], one["diff"]) == (planned.actions, planned.diff)
    assert (one["spec"]["memory"], one["spec"]["pids"]) == (64 << 20, 64)
    assert (one["size"], one["declared"], one["running"]) == (123, True, True)


def test_a_container_that_holds_gpus_tells_for_how_long_they_did_nothing(policy: Policy) -> None:
    idle = {"id-thesis": 7200, "id-other": 5}
    for lease, told_of in (("a lease", 7200), ("", None)):
        docker = Docker(snapshot=snapshot(container(policy, "alice", "thesis", lease=lease)), gpu_idle=idle)
        (one,) = told(policy, docker)["containers"]
        assert one["gpu_idle"] == told_of


def test_a_container_as_it_should_be_does_not_drift(policy: Policy) -> None:
    actual = container(policy, "alice", "thesis")
    docker = Docker(snapshot=snapshot(actual), plans={("alice", "thesis"): ItemResult(actual.name)})
    (one,) = told(policy, docker)["containers"]
    assert (one["drift"], one["reason"], one["actions"], one["diff"]) == (False, "", [], {})
    assert one["size"] is None


def test_what_cannot_be_reconciled_drifts_with_the_reason(policy: Policy) -> None:
    actual = container(policy, "alice", "thesis")
    failed = ItemResult(actual.name, failed=True, message="memory: too much.")
    docker = Docker(snapshot=snapshot(actual), plans={("alice", "thesis"): failed})
    (one,) = told(policy, docker)["containers"]
    assert (one["drift"], one["reason"]) == (True, "memory: too much.")


def test_a_container_of_somebody_who_left_is_told(policy: Policy) -> None:
    actual = container(policy, "bob", "run")
    fewer = replace(policy, users=policy.users[:1], projects=policy.projects[:1])
    (one,) = told(fewer, Docker(snapshot=snapshot(actual)))["containers"]
    assert (one["user"], one["uid"], one["drift"]) == ("", 2002, True)
    assert one["reason"] == "its user is not in the policy"


def test_a_label_of_another_version_has_no_spec(policy: Policy) -> None:
    docker = Docker(snapshot=snapshot(container(policy, "alice", "thesis", spec=None)))
    assert told(policy, docker)["containers"][0]["spec"] is None


def test_what_is_not_ours_is_told_apart(policy: Policy) -> None:
    made = spec.decide(policy, policy.user("alice"), "thesis")
    kept = {"Id": "k", "Names": [f"/{made.name}.retired-{NOW - DAY}"], "Labels": spec.labels(made)}
    other = Actual("x", "database", "running", "i", False)
    aside = Actual("k", f"{made.name}.retired-{NOW - DAY}", "exited", "i", False)
    docker = Docker(
        snapshot=snapshot(other, aside), retired=among([kept]), sizes={"k": 5}, holds={"k": {"files": 2}}
    )
    answer = told(policy, docker)
    assert answer["retired"][0]["holds"] == {"files": 2}
    assert answer["containers"] == []
    assert answer["other_containers"] == [{"name": "database", "id": "x", "status": "running"}]
    (one,) = answer["retired"]
    assert (one["container"], one["user"], one["project"], one["size"]) == (made.name, "alice", "thesis", 5)
    assert (one["retired"], one["undo_until"]) == (NOW - DAY, NOW - DAY + policy.retire_keep_days * DAY)


def test_images_are_told_with_size_age_and_use(policy: Policy) -> None:
    old = image("old", "thesis", OLD, Created=NOW - 3 * DAY - 5, Size=20)
    docker = Docker(
        images=[old, LATEST, image("forged", "thesis", OLD, RepoTags=["evil:latest"])],
        snapshot=snapshot(container(policy, "alice", "thesis", image="old")),
    )
    newer, older = told(policy, docker)["images"]
    assert (newer["id"], newer["current"], newer["in_use"], newer["containers"]) == ("new", True, False, [])
    assert (older["id"], older["current"], older["in_use"]) == ("old", False, True)
    assert older["containers"] == ["thesis._.2001"]
    assert (older["size"], older["created"], older["age_days"]) == (20, NOW - 3 * DAY - 5, 3)
    assert (older["fingerprint"], older["base"], older["user"]) == (OLD, "lab/python", "alice")


def test_a_clock_behind_makes_no_negative_age(policy: Policy) -> None:
    docker = Docker(images=[image("i", "thesis", OLD, Created=NOW + DAY)])
    assert told(policy, docker)["images"][0]["age_days"] == 0


def test_base_images_are_those_of_the_policy_and_those_that_were(policy: Policy) -> None:
    made = {"Labels": {"lab.server.kind": "base"}, "Size": 7, "Created": NOW - DAY}
    there = [
        {**made, "Id": "p", "RepoTags": ["lab/python:latest"]},
        {**made, "Id": "g", "RepoTags": ["lab/gone:latest"]},
        {"Id": "f", "RepoTags": ["foreign:latest"], "Labels": None, "Size": 1, "Created": 1},
    ]
    found = told(policy, Docker(images=there))["base_images"]
    assert [(one["name"], one["declared"], one["here"], one["id"]) for one in found] == [
        ("lab/python", True, True, "p"),
        ("lab/r", True, False, ""),
        ("lab/gone", False, True, "g"),
    ]
    assert [one["source"] for one in found] == ["/x.tar", "r", ""]
    assert (found[0]["size"], found[0]["age_days"], found[1]["age_days"]) == (7, 1, 0)


def test_without_docker_the_rest_is_told(policy: Policy) -> None:
    answer = told(policy, Docker(problem="Docker Engine does not answer."))
    assert answer["docker"] == {"answers": False, "problem": "Docker Engine does not answer."}
    assert [user["name"] for user in answer["users"]] == ["alice", "bob"]
    assert (answer["containers"], answer["images"]) == ([], [])
    assert all(not one["drift"] for one in answer["projects"])


def test_storage_problems_and_missing_gpus_are_told(policy: Policy) -> None:
    none = gpus.Seen(problem="This server has no NVIDIA GPU.")
    answer = told(policy, storage_problems=["/home is not mounted."], gpus=none)
    assert answer["storage"]["problems"] == ["/home is not mounted."]
    assert (answer["gpus"], answer["gpus_problem"]) == ([], "This server has no NVIDIA GPU.")


def test_gpus_are_told_as_gpu_info_does(policy: Policy) -> None:
    seen = gpus.Seen((gpus.Gpu(0, "GPU-1", problem="It is lost."),), "550.1", "12.4")
    answer = told(policy, gpus=seen)
    assert answer["gpus"] == gpus.told(seen)["gpus"]
    assert (answer["gpus"][0]["healthy"], answer["gpu_driver"], answer["gpu_cuda"]) == (
        False,
        "550.1",
        "12.4",
    )


def test_a_file_system_that_is_not_mounted_has_no_size(policy: Policy, tmp_path: Any) -> None:
    there = Filesystem("data", str(tmp_path / "missing"), "", "ext4", (), False)
    table = mounts.parse("20 1 8:1 / / rw,relatime shared:1 - ext4 /dev/vda rw\n")
    shown, home = storage.spaces(replace(policy, filesystems=(there,)), table)
    assert (shown["mounted"], shown["size"], shown["device"]) == (False, 0, "")
    # Nobody declared where the homes are, and their quotas are promised of what holds them all the same.
    assert (home["role"], home["mount"], home["device"]) == ("home", "/home", "/dev/vda") and home["size"]


def test_the_answer_is_plain_data(policy: Policy) -> None:
    actual = container(policy, "alice", "thesis")
    answer = told(policy, Docker(images=[LATEST], snapshot=snapshot(actual)))
    # What Ansible hands back is this, and a tuple would come back as a list.
    assert json.loads(json.dumps(answer["projects"])) == answer["projects"]
    assert isinstance(json.dumps(answer), str)


def test_every_container_is_wished_for_as_declared_or_as_it_was_left(policy: Policy) -> None:
    there = [
        container(policy, "alice", "thesis"),
        container(policy, "alice", "own"),
        container(policy, "bob", "down"),
        container(policy, "bob", "foreign", ours=False),
    ]
    wished = list(report.wishes(policy, there, frozenset({"down._.2002"})))
    assert [(one.user, one.project, one.state) for one in wished] == [
        ("alice", "thesis", "started"),
        ("bob", "net", "absent"),
        ("alice", "own", "started"),
        ("bob", "down", "stopped"),
    ]
    assert wished[0] == Wanted.from_project(policy.projects[0])
