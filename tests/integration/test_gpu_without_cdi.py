"""An engine that has CDI off, by its settings or by its age: what is asked of it, and what a user is told."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import spec as specs
from ansible_collections.lab.server.plugins.module_utils._core.engine import Engine
from ansible_collections.lab.server.plugins.module_utils._core.errors import EngineError
from conftest import TINY, root_file_system

UUID = "GPU-00000000-51d0-4000-8000-000000000000"


@pytest.fixture(scope="module")
def engine(url: str) -> Iterator[Engine]:
    """Run a further engine of the same kind, with CDI off; it gives its containers no network."""
    # Below the folder of the engine of the tests: what is left there is ended with it.
    folder = Path(url.removeprefix("unix://")).parent / "without-cdi"
    folder.mkdir(mode=0o700)
    address = f"unix://{folder}/docker.sock"
    (folder / "daemon.json").write_text(json.dumps({"features": {"cdi": False}}))
    places = [f"--{name}={folder}/{name}" for name in ("data-root", "exec-root", "pidfile")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                os.environ.get("LAB_TEST_DOCKER_DAEMON", "/usr/sbin/dockerd"),
                *(f"--host={address}", f"--config-file={folder}/daemon.json", *places),
                *("--bridge=none", "--iptables=false", "--ip6tables=false"),
                *("--containerd-namespace=labtest2", "--containerd-plugins-namespace=labtest2-plugins"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        connected = _connected(address, process, folder / "log")
        done = subprocess.run(
            [os.environ["LAB_TEST_DOCKER_BINARY"], "-H", address, "import", "-", TINY],
            input=root_file_system(),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        yield connected
        connected.close()
    finally:
        process.terminate()
        process.wait(60)


def _connected(address: str, process: subprocess.Popen[bytes], log: Path) -> Engine:
    end = time.monotonic() + 60
    while True:
        try:
            return Engine.connect(address)
        except EngineError:
            if process.poll() is not None or time.monotonic() > end:
                raise AssertionError(log.read_text()[-3000:]) from None
        time.sleep(0.3)


def asked(engine: Engine, requests: list[dict[str, object]]) -> str:
    host = {"NetworkMode": "none", "DeviceRequests": requests}
    return engine.create("asks-for-gpus", {"Image": TINY, "Entrypoint": ["true"], "HostConfig": host})


@pytest.mark.parametrize("cdi", [False, True])
def test_it_is_asked_by_the_hook_and_says_in_a_sentence_that_it_has_none(engine: Engine, cdi: bool) -> None:
    """``cdi``: a container that was made while CDI was on."""
    assert engine.facts.cdi is False
    facts = specs.EngineFacts(engine.facts.cgroup_driver, engine.facts.cpus, cdi)
    requests = specs.device_requests([UUID], facts if cdi else engine.facts)
    assert requests[0]["Driver"] == ("cdi" if cdi else "nvidia")
    made = asked(engine, requests)
    try:
        with pytest.raises(EngineError, match="could not select device driver") as error:
            engine.start(made)
        assert "\n" not in error.value.message and "features.cdi in daemon.json" in error.value.hint
    finally:
        engine.remove(made)
