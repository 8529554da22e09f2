"""Jupyter in a container, on a real engine; the program itself is simulated by a small web server."""

from __future__ import annotations

import socket
import time
import urllib.error
import urllib.request

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import containers, jupyter
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


def test_ports_are_given_once_and_those_in_use_are_left_out():
    first = jupyter.choose_port("a._.1", [])
    assert jupyter.choose_port("a._.1", []) == first != jupyter.choose_port("b._.1", [])
    assert jupyter.choose_port("a._.1", [first]) == first + 1
    with socket.create_server(("127.0.0.1", first)):
        assert jupyter.choose_port("a._.1", []) == first + 1
    with pytest.raises(Refused):
        jupyter.choose_port("a._.1", range(20000, 30000))
