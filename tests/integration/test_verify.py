"""What lab verify says of a real engine: nothing of what we make, and one thing of each sabotage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import containers, images, verify
from ansible_collections.lab.server.plugins.module_utils._core.inspection import Server
from private_root import next_second

NAMES = ["docker", "network", "options", "owners", "data", "images", "strangers"]


@pytest.fixture
def launched(engine: Any, policy: Any, alice: Any, bob: Any, thesis: Any, project_of: Any, tiny: str) -> str:
    """Launch a container of alice, and one of bob, who has a share."""
    containers.launch(engine, policy, alice, "thesis")
    project_of(bob, "net").write("Dockerfile", f"FROM {tiny}\n")
    containers.launch(engine, policy, bob, "net")
    return "thesis._.2001"


@pytest.fixture
def verdicts(policy: Any, url: str) -> Any:
    """Return a function that makes the checks of Docker anew and returns what did not pass."""

    def make() -> dict[str, str]:
        server = Server(policy, url)
        try:
            found = list(verify.run(server, verify.chosen(NAMES)))
        finally:
            server.close()
        return {one.check: one.outcome.detail for one in found if one.outcome.verdict != "pass"}

    return make


def test_what_we_make_passes(launched: str, verdicts: Any, engine: Any, policy: Any, alice: Any) -> None:
    assert verdicts() == {}
    containers.stop(engine, alice, "thesis")
    containers.retire(engine, policy, policy.user("bob"), "net")
    assert verdicts() == {}


def test_an_older_version_is_no_fault(
    launched: str, verdicts: Any, engine: Any, policy: Any, alice: Any, thesis: Any
) -> None:
    next_second()
    thesis.write("word", "two\n")
    assert images.build(engine, policy, alice, "thesis").changed
    assert verdicts() == {}


@pytest.mark.parametrize(
    ("command", "check", "word"),
    [
        (["update", "--pids-limit", "-1", "NAME"], "options", "processes"),
        (["update", "--memory-swap", "-1", "NAME"], "options", "memory"),
        (["update", "--restart", "always", "NAME"], "options", "restarts it by itself"),
        (["network", "connect", "bridge", "NAME"], "options", "network bridge"),
    ],
)
def test_what_was_changed_by_hand_is_named(
    launched: str, verdicts: Any, docker: Any, command: list[str], check: str, word: str
) -> None:
    docker(*(launched if each == "NAME" else each for each in command))
    found = verdicts()
    assert list(found) == [check] and launched in found[check] and word in found[check]


def test_a_name_of_another_image_is_named(launched: str, verdicts: Any, docker: Any, tiny: str) -> None:
    docker("tag", tiny, "lab/2002/net:latest")
    found = verdicts()
    assert list(found) == ["images"] and "lab/2002/net:latest" in found["images"]


@pytest.fixture
def stranger(docker: Any, tiny: str) -> Iterator[str]:
    """Run a container that is nobody's project."""
    made = docker("run", "-d", "--init", "--name", "lab-test-stranger", tiny, "sleep", "600").strip()
    yield made
    docker("rm", "-f", made)


def test_a_container_beside_them_is_told(launched: str, stranger: str, verdicts: Any) -> None:
    assert list(verdicts()) == ["strangers"]


def test_shared_data_of_another_disk_is_seen(launched: str, verdicts: Any, root: Any) -> None:
    data = root / "srv"
    # What happens when a disk comes back late: the host has new folders, the container the old ones.
    data.rename(root / "old")
    data.mkdir()
    for share in ("datasets", "vision", "admin"):
        (data / share).mkdir()
    found = verdicts()
    assert list(found) == ["data"]
    assert f"{data} in thesis._.2001 is not {data} of the host" in found["data"]
    assert f"{data}/vision in net._.2002" in found["data"]


def test_a_user_who_left_has_a_container_that_runs(launched: str, url: str, policy: Any) -> None:
    server = Server(replace(policy, users=policy.users[1:]), url)
    try:
        found = {one.check: one.outcome for one in verify.run(server, verify.chosen(NAMES))}
    finally:
        server.close()
    assert found["owners"].verdict == "fail"
    assert "thesis._.2001: its owner is not declared any more" in found["owners"].detail
