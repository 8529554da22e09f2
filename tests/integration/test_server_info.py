"""What server_info tells of a real engine: what is there, and how it differs from the policy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import containers, images, report, state
from private_root import next_second


@pytest.fixture
def launched(engine: Any, policy: Any, alice: Any, thesis: Any) -> Any:
    return containers.launch(engine, policy, alice, "thesis")


def test_a_container_as_its_user_made_it(launched: Any, engine: Any, url: str, policy: Any) -> None:
    found = report.server(policy, url, sizes=True)
    (one,) = found["containers"]
    assert (one["name"], one["id"], one["running"]) == ("thesis._.2001", launched.facts["id"], True)
    assert (one["drift"], one["reason"], one["declared"]) == (False, "", False)
    assert one["spec"]["memory"] == 64 << 20
    assert one["size"] > 0
    (image,) = found["images"]
    assert (image["name"], image["current"], image["containers"]) == (one["image"], True, [one["name"]])
    assert image["size"] > 0 and image["age_days"] == 0
    (project,) = found["projects"]
    assert (project["folder"], project["dockerfile"], project["container"]) == (True, True, one["name"])
    assert [user["containers"] for user in found["users"]] == [[one["name"]], []]
    assert found["base_images"][0]["here"]
    assert report.server(policy, url)["containers"][0]["size"] is None


def test_drift_has_its_reason(
    launched: Any, engine: Any, url: str, policy: Any, alice: Any, thesis: Any
) -> None:
    less = replace(alice, limits=replace(alice.limits, pids=32))
    tighter = replace(policy, users=(less, *policy.users[1:]))
    (one,) = report.server(tighter, url)["containers"]
    assert (one["drift"], one["reason"]) == (True, "the policy changed (pids)")
    assert (one["diff"]["before"]["pids"], one["diff"]["after"]["pids"]) == (64, 32)
    assert one["actions"] == ["remove", "create", "start"]
    next_second()
    thesis.write("word", "two\n")
    images.build(engine, policy, alice, "thesis")
    found = report.server(policy, url)
    (one,) = found["containers"]
    assert (one["image_newer"], one["reason"]) == (True, "the image is newer")
    assert [image["current"] for image in found["images"]] == [True, False]
    assert [image["in_use"] for image in found["images"]] == [False, True]
    assert one["image"] == found["images"][1]["name"]


def test_what_ended_by_itself_differs_and_what_was_stopped_does_not(
    launched: Any, engine: Any, url: str, policy: Any, alice: Any
) -> None:
    engine.stop(launched.facts["id"], 0)
    (one,) = report.server(policy, url)["containers"]
    assert (one["drift"], one["reason"], one["stopped_on_purpose"]) == (True, "it does not run", False)
    state.mark_stopped(one["name"])
    (one,) = report.server(policy, url)["containers"]
    assert (one["drift"], one["running"], one["stopped_on_purpose"]) == (False, False, True)


def test_retired_and_other_containers(
    launched: Any, engine: Any, url: str, policy: Any, alice: Any, inside: Any, docker: Any
) -> None:
    inside(alice, "thesis", "echo hello > ~/made")
    assert containers.retire(engine, policy, alice, "thesis").changed
    other = docker("create", "lab-test/tiny", "true").strip()
    try:
        found = report.server(policy, url, sizes=True)
    finally:
        docker("rm", other)
    assert found["containers"] == []
    assert [one["id"] for one in found["other_containers"]] == [other]
    (one,) = found["retired"]
    assert (one["container"], one["user"], one["project"]) == ("thesis._.2001", "alice", "thesis")
    assert one["undo_until"] - one["retired"] == policy.retire_keep_days * 86400
    assert one["size"] >= len("hello\n")
    assert one["holds"]["paths"] == ["/home/alice/made"]
    assert found["images"][0]["in_use"]
    # It is gone, and nobody declared it.
    assert [(project["container"], project["drift"]) for project in found["projects"]] == [("", False)]
