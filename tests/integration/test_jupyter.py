"""Jupyter in a container, on a real engine; the program itself is simulated by a small web server.

One test has the real JupyterLab, on the base image of the example. It fetches 47 MB from the index of
packages that pip is set up for, and runs where the variable LAB_TEST_JUPYTERLAB is set.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import cli_project, containers, jupyter
from ansible_collections.lab.server.plugins.module_utils._core.errors import EngineError, NotFound, Refused

# It takes Jupyter's options, and shows what it was given: its arguments, its token, and where it started.
SIMULATED = """#!/bin/sh
for word; do case "$word" in --port=*) port="${word#--port=}";; esac; done
mkdir -p /tmp/served && cd /tmp/served || exit 1
echo "$*" >arguments
echo "$JUPYTER_TOKEN" >token
echo "$OLDPWD" >folder
exec busybox httpd -f -p "$port" -h /tmp/served
"""


@pytest.fixture
def notebook(thesis, tiny):
    thesis.write(
        "Dockerfile",
        f"FROM {tiny}\nCOPY simulated-jupyter /bin/jupyter-lab\nRUN chmod 755 /bin/jupyter-lab\n",
    )
    thesis.write("simulated-jupyter", SIMULATED)
    return thesis


def get(port: int, path: str) -> str:
    """Return what the server answers, once it does."""
    for _try in range(100):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as answer:
                return answer.read().decode().strip()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise AssertionError("nobody answers")


def test_it_is_reached_on_loopback_alone_with_a_token_of_its_own(engine, policy, alice, notebook, docker):
    launched = containers.launch(engine, policy, alice, "thesis", with_jupyter=True)
    (port,) = launched.facts["ports"]
    assert port["container"] == 8888 and 20000 <= port["host"] <= 29999
    told = containers.run_jupyter(engine, alice, "thesis")
    assert told["port"] == port["host"] and len(told["token"]) == 48
    assert get(told["port"], "token") == told["token"] and get(told["port"], "folder") == "/workspace/thesis"
    name = "thesis._.2001"
    # Neither in an argument, nor in what the engine tells of the container.
    assert told["token"] not in get(told["port"], "arguments") + docker("inspect", name)
    assert told["token"] not in docker("top", name, "-eo", "pid,args")
    bound = docker("inspect", "--format", "{{json .HostConfig.PortBindings}}", name)
    assert '"HostIp":"127.0.0.1"' in bound
    # Once it runs, another call says the same; after a stop it is a new one at the same place.
    assert containers.run_jupyter(engine, alice, "thesis") == told
    containers.stop(engine, alice, "thesis")
    with pytest.raises(NotFound):
        containers.run_jupyter(engine, alice, "thesis")
    containers.launch(engine, policy, alice, "thesis", with_jupyter=True)
    again = containers.run_jupyter(engine, alice, "thesis")
    assert again["port"] == told["port"] and again["token"] != told["token"]
    assert get(again["port"], "token") == again["token"]
    assert not containers.launch(engine, policy, alice, "thesis").changed


def test_it_must_be_asked_for_when_the_container_is_made(engine, policy, alice, bob, notebook):
    containers.launch(engine, policy, alice, "thesis")
    for ask in (
        lambda: containers.run_jupyter(engine, alice, "thesis"),
        lambda: containers.launch(engine, policy, alice, "thesis", with_jupyter=True),
    ):
        with pytest.raises(Refused, match="without a port") as refused:
            ask()
        assert "container retire thesis" in refused.value.hint
    with pytest.raises(NotFound):
        containers.run_jupyter(engine, bob, "thesis")


def test_an_image_without_it_is_told_what_to_do(engine, policy, alice, thesis):
    containers.launch(engine, policy, alice, "thesis", with_jupyter=True)
    with pytest.raises(EngineError, match="has no Jupyter") as missing:
        containers.run_jupyter(engine, alice, "thesis")
    assert "image-install thesis jupyterlab" in missing.value.hint


WHEELS = "--only-binary :all: --implementation cp --python-version 3.11 --abi cp311 --abi abi3 --abi none"
PLATFORMS = "--platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform any"


def status_of(port: int, token: str = "") -> tuple[int, dict[str, object]]:
    """Return what Jupyter's API answers: the status, and the facts where they are given."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/status")
    if token:
        request.add_header("Authorization", f"token {token}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, {}


def own_address() -> str:
    """Return the address that this computer has for others."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # nothing is sent (RFC 5737)
        return str(probe.getsockname()[0])


@pytest.mark.skipif(
    "LAB_TEST_JUPYTERLAB" not in os.environ,
    reason="it fetches 47 MB and takes minutes: LAB_TEST_JUPYTERLAB=1",
)
def test_the_real_jupyterlab_lets_in_who_has_the_token(engine, policy, alice, thesis, docker, inside, capsys):
    tool = Path(__file__).parents[2] / "tools/base_image.py"
    found = subprocess.run(
        [sys.executable, tool, "path", "python"], capture_output=True, text=True, check=True
    )
    docker("load", "--input", found.stdout.strip())
    wheels = thesis.path / "wheels"
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", wheels, "jupyterlab"]
    subprocess.run([*fetch, *WHEELS.split(), *PLATFORMS.split()], check=True)
    thesis.write("requirements.txt", "jupyterlab\n")
    thesis.write(
        "Dockerfile",
        "FROM lab/python\nCOPY requirements.txt wheels /tmp/\n"
        "RUN python3 -m pip install --no-index --find-links /tmp -r /tmp/requirements.txt\n",
    )
    user = replace(alice, limits=replace(alice.limits, memory=1 << 30, pids=256))
    started = time.monotonic()
    launched = containers.launch(engine, policy, user, "thesis", with_jupyter=True)
    built = time.monotonic()
    told = containers.run_jupyter(engine, user, "thesis")
    assert cli_project._answers(told["port"])
    ready = time.monotonic()
    code, status = status_of(told["port"], told["token"])
    assert code == 200 and status["kernels"] == 0
    assert status_of(told["port"])[0] == status_of(told["port"], "0" * 48)[0] == 403
    # The page itself is that of JupyterLab.
    page = f"http://127.0.0.1:{told['port']}/lab?token={told['token']}"
    with urllib.request.urlopen(page, timeout=60) as answer:
        assert answer.status == 200 and b"<title>JupyterLab</title>" in answer.read()
    # From another computer nobody reaches it.
    assert own_address() != "127.0.0.1"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((own_address(), told["port"]), timeout=5)
    # It is the user's, in the project, and its token is not for others to see.
    assert told["token"] not in docker("inspect", "thesis._.2001") + docker("top", "thesis._.2001")
    version = inside(user, "thesis", "jupyter-lab --version").strip()
    with capsys.disabled():
        print(
            f"\nJupyterLab {version}: built and launched in {built - started:.0f} s, "
            f"answers after {ready - built:.1f} s; memory {_memory(engine, launched.facts['id']) >> 20} MiB"
        )


def _memory(engine, container: str) -> int:
    return int(engine.stats(container)["memory_stats"]["usage"])


def test_ports_are_given_once_and_those_in_use_are_left_out():
    first = jupyter.choose_port("a._.1", [])
    assert jupyter.choose_port("a._.1", []) == first != jupyter.choose_port("b._.1", [])
    assert jupyter.choose_port("a._.1", [first]) == first + 1
    with socket.create_server(("127.0.0.1", first)):
        assert jupyter.choose_port("a._.1", []) == first + 1
    with pytest.raises(Refused):
        jupyter.choose_port("a._.1", range(20000, 30000))
