"""The modules through Ansible itself: what they promise on a bare server, and one that keeps its promise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import policy as policies

ROOT = Path(__file__).resolve().parents[2]
PROJECT = {"user": "alice", "name": "thesis", "memory": "32m", "environment": {"A": "b"}}


@pytest.fixture
def play(tmp_path):
    """Return a function that runs modules on this computer, and returns their results in order."""

    def run(*tasks: tuple[str, dict], check: bool) -> list[dict]:
        listed = [{"name": f"Task {n}", name: given} for n, (name, given) in enumerate(tasks)]
        playbook = [{"name": "Test", "hosts": "localhost", "gather_facts": False, "tasks": listed}]
        (tmp_path / "play.yml").write_text(json.dumps(playbook))
        command = [
            str(Path(sys.executable).parent / "ansible-playbook"),
            "-i",
            "localhost,",
            "-c",
            "local",
            "--diff",
        ]
        command += ["-e", f"ansible_python_interpreter={sys.executable}", str(tmp_path / "play.yml")]
        done = subprocess.run(
            [*command, "--check"] if check else command,
            cwd=ROOT,
            env={
                **os.environ,
                "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
                "ANSIBLE_HOME": str(ROOT / ".ansible"),
            },
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        answers = json.loads(done.stdout[done.stdout.index("{") :])["plays"][0]["tasks"]
        return [task["hosts"]["localhost"] for task in answers]

    return run


@pytest.fixture
def plain(policy, root):
    """Return the policy as the play hands it over, for a server on which nothing is there yet."""
    return policies.dump(policy)


def test_bare_server_in_check_mode(play, plain):
    address = {"docker_host": "unix:///nonexistent/docker.sock"}
    projects = {"policy": plain, "projects": [PROJECT]}
    results = play(
        ("lab.server.workspaces", projects),
        ("lab.server.base_images", {**address, "images": [{"name": "lab/x", "archive": "/nonexistent.tar"}]}),
        ("lab.server.project_images", {**address, **projects}),
        ("lab.server.project_containers", {**address, **projects}),
        check=True,
    )
    assert [result["changed"] for result in results] == [True] * 4
    assert [item["name"] for item in results[0]["results"]] == ["alice", "bob"]
    assert results[3]["results"][0]["actions"] == ["create", "start"]
    assert results[3]["diff"][0]["after"]["memory"] == "32M"
    assert not Path("/home/.workspaces/alice").exists()


def test_base_images_twice(play, url, docker, tiny, tmp_path):
    archive = tmp_path / "tiny.tar"
    docker("tag", tiny, "lab-test/source")
    docker("save", "-o", str(archive), "lab-test/source")
    task = (
        "lab.server.base_images",
        {"docker_host": url, "images": [{"name": "lab-test/module", "archive": str(archive)}]},
    )
    promise = play(task, check=True)[0]
    deed, again = play(task, task, check=False)
    docker("rmi", "lab-test/module")
    assert promise["results"] == deed["results"]
    assert (deed["changed"], again["changed"]) == (True, False)
