"""Images from the project's own Dockerfile and requirements (A9, F2, F6)."""

from __future__ import annotations

import json

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


def test_pip_install_is_temporary_and_the_requirements_are_for_ever(server: Server) -> None:
    server.inside(
        "my-thesis", ALICE, "pip install --quiet --no-input iniconfig && python3 -c 'import iniconfig'"
    )
    server.user("alice", "container retire my-thesis && project launch my-thesis --detach")
    assert server.inside("my-thesis", ALICE, "python3 -c 'import iniconfig'", check=False).rc != 0

    server.user("alice", "echo iniconfig >> ~/workspace/my-thesis/requirements.txt")
    assert update(server)["changed"] is True
    assert server.inside("my-thesis", ALICE, "python3 -c 'import iniconfig'", check=False).rc != 0
    server.user("alice", "container retire my-thesis && project launch my-thesis --detach")
    server.inside("my-thesis", ALICE, "python3 -c 'import iniconfig'")


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


def test_a_missing_base_is_said(server: Server) -> None:
    server.user("bob", "project init nobase && echo 'FROM lab/nothing-here' > ~/workspace/nobase/Dockerfile")
    failed = server.user("bob", "image-update nobase", check=False)
    server.user("bob", "rm -rf ~/workspace/nobase")
    assert failed.rc != 0 and "lab/nothing-here" in failed.text and "Traceback" not in failed.text
