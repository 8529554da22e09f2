"""Images from the project's own Dockerfile and requirements (A10, F2, F6; A9: test_26_seed_sequence.py)."""

from __future__ import annotations

import json
import re

import pytest
from conftest import ALICE, Server

IMAGE = f"docker image inspect -f '{{{{.Id}}}}' lab/{ALICE}/my-thesis:latest"


def update(server: Server, *, check: bool = True) -> dict[str, object]:
    outcome = server.user("alice", "image-update my-thesis --json", check=check)
    answer: dict[str, object] = json.loads(outcome.out.splitlines()[-1])
    return answer


def test_the_declared_requirements_are_in_the_container(server: Server) -> None:
    assert (
        server.inside("my-thesis", ALICE, "python3 -c 'import tabulate; print(tabulate.__name__)'").out
        == "tabulate"
    )


def test_an_unchanged_project_is_not_built_again(server: Server) -> None:
    server.user("alice", "image-update my-thesis")
    before = server.root(IMAGE).out
    assert update(server)["changed"] is False
    assert server.root(IMAGE).out == before


def test_image_install_is_there_at_once_and_in_the_next_image(server: Server) -> None:
    # Typed in the container, then on the host.
    server.inside("my-thesis", ALICE, "image-install six")
    server.user("alice", "image-install my-thesis attrs --bake")
    both = "python3 -c 'import six, attrs'"
    server.inside("my-thesis", ALICE, both)
    recorded = server.user("alice", "cat ~/workspace/my-thesis/requirements.txt").out
    assert re.search(r"^six==[0-9.]+$", recorded, re.MULTILINE)
    assert re.search(r"^attrs==[0-9.]+$", recorded, re.MULTILINE)
    server.user("alice", "container retire my-thesis && project launch my-thesis --detach")
    server.inside("my-thesis", ALICE, both)
    assert server.inside("my-thesis", ALICE, "ls ~/.local/lib", check=False).rc != 0  # from the image alone
    refused = server.user(
        "alice", "image-install my-thesis -- --index-url=http://127.0.0.1/ six", check=False
    )
    assert refused.rc == 2 and "Traceback" not in refused.text


def test_a_broken_dockerfile_keeps_the_image_and_the_container_and_names_the_step(server: Server) -> None:
    image, container = server.root(IMAGE).out, server.inspect("my-thesis", ALICE)["Id"]
    server.user(
        "alice",
        "cd ~/workspace/my-thesis && cp Dockerfile Dockerfile.good && "
        "echo 'RUN this-is-no-command' >> Dockerfile",
    )
    failed = server.user("alice", "image-update my-thesis", check=False)
    server.user("alice", "cd ~/workspace/my-thesis && mv Dockerfile.good Dockerfile")
    assert failed.rc != 0
    assert "this-is-no-command" in failed.text
    assert "Traceback" not in failed.text
    assert server.root(IMAGE).out == image
    assert server.inspect("my-thesis", ALICE)["Id"] == container
    assert server.inspect("my-thesis", ALICE)["State"]["Running"] is True


@pytest.mark.thorough
def test_a_missing_base_is_said(server: Server) -> None:
    server.user("bob", "project init nobase && echo 'FROM lab/nothing-here' > ~/workspace/nobase/Dockerfile")
    failed = server.user("bob", "image-update nobase", check=False)
    server.user("bob", "rm -rf ~/workspace/nobase")
    assert failed.rc != 0 and "lab/nothing-here" in failed.text and "Traceback" not in failed.text
