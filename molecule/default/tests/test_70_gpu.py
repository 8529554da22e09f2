"""GPUs on a server that has none (G1, G2): NVML and NVIDIA's packages are simulated, all else is real."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any, Callable

import pytest
import simulated_gpus
from conftest import ALICE, DAVE, MACHINES, PATIENCE, PlayOutcome, Server
from simulated_gpus import PLACE, given, knows_cdi

PIN = "/etc/apt/preferences.d/nvidia-container-toolkit.pref"

pytestmark = pytest.mark.thorough

Play = Callable[..., PlayOutcome]


def python(server: Server, code: str, libraries: str = "") -> str:
    """Run a line with the library that is on the server."""
    place = "/usr/local/lib/lab-server/current"
    code = f"import json, sys; sys.path.insert(0, '{place}'); from _core import gpus; {code}"
    return server.root(f'LD_LIBRARY_PATH={libraries} python3 -c "{code}"').out


def test_a_server_without_a_gpu_says_so(server: Server) -> None:
    assert python(server, "print(gpus.look().problem)") == "This server has no NVIDIA GPU."
    assert (
        server.root("test -e /etc/apt/sources.list.d/nvidia-container-toolkit.sources", check=False).rc == 1
    )


@pytest.fixture(scope="module")
def equipped(server: Server, play: Play, tmp_path_factory: pytest.TempPathFactory) -> PlayOutcome:
    """Let the role work on the server as on one with GPUs."""
    wheel = simulated_gpus.bring(server, tmp_path_factory.mktemp("gpu"), ("repository.py", "repository"))
    settings = {
        "nvidia_container_toolkit_apply": "always",
        "nvidia_container_toolkit_repository_url": f"file:{PLACE}/repository",
        "nvidia_container_toolkit_repository_trusted": True,
        "nvidia_container_toolkit_wheel": str(wheel),
    }
    held = play(
        "--tags", "gpus", "-e", json.dumps({**settings, "nvidia_container_toolkit_version": "1.18.0"})
    )
    assert held.rc == 0, held.text[-3000:]
    assert "Pin: version 1.18.0-*" in server.root(f"cat {PIN}").out
    done = play("--tags", "gpus", "--diff", "-e", json.dumps(settings))
    assert done.rc == 0, done.text[-3000:]
    return done


def test_a_version_that_is_not_held_any_more_has_no_pin(server: Server, equipped: PlayOutcome) -> None:
    assert server.root(f"test -e {PIN}", check=False).rc == 1


def test_the_toolkit_is_installed_and_nobody_gets_gpus_unasked(server: Server, equipped: PlayOutcome) -> None:
    assert "simulated" in server.root("nvidia-ctk --version").out
    config = server.root("cat /etc/nvidia-container-runtime/config.toml").out
    first_table = config.index("[")
    assert config.index("accept-nvidia-visible-devices-envvar-when-unprivileged = false") < first_table
    daemon = json.loads(server.root("cat /etc/docker/daemon.json").out)
    assert daemon["runtimes"]["nvidia"]["path"] == "/usr/bin/nvidia-container-runtime"
    assert "default-runtime" not in daemon
    info = json.loads(server.root("docker info --format '{{json .}}'").out)
    assert "nvidia" in info["Runtimes"] and info["DefaultRuntime"] == "runc"


def test_the_gpus_are_told(server: Server, equipped: PlayOutcome) -> None:
    told = json.loads(python(server, "print(json.dumps(gpus.told(gpus.look())))", f"{PLACE}/lib"))
    assert (told["problem"], told["driver"]) == ("", "550.54.15")
    assert [gpu["uuid"] for gpu in told["gpus"]] == ["GPU-one", "GPU-two"]
    assert told["gpus"][1]["instances"][0]["profile"] == "1g.5gb"


def test_docker_gives_devices_by_name_where_it_knows_how(server: Server, equipped: PlayOutcome) -> None:
    assert "GPU-one" in server.root("cat /run/cdi/nvidia.yaml").out
    # Older ones than 25 do not know the setting, and start with it.
    assert json.loads(server.root("cat /etc/docker/daemon.json").out)["features"]["cdi"] is True
    if not knows_cdi(server):
        pytest.skip("this Docker knows no CDI: it needs the toolkit's hook, which is not simulated")
    assert "/run/cdi" in server.root("docker info --format '{{json .CDISpecDirs}}'").out
    run = "docker run --rm --network none --device nvidia.com/gpu={} lab/python env"
    assert "LAB_SIMULATED_GPU=MIG-one" in server.root(run.format("MIG-one")).out
    assert server.root(run.format("GPU-none"), check=False).rc != 0


# ---- lab users -------------------------------------------------------------------------------------------


def ssh(user: str, command: str, *, code: int = 0) -> str:
    """Log in as a lab user, run a command, and return what it prints: its output, then its errors."""
    config = MACHINES / os.environ["LAB_VM_NAME"] / "ssh_config"
    done = subprocess.run(
        ["ssh", "-F", str(config), "-o", "BatchMode=yes", "-l", user, "server", command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == code and "Traceback" not in said, f"{command}: {said}"
    return said


def uses(told: str) -> dict[str, str]:
    """Return what each device is to who asked, from the answer of ``gpu list --json``."""
    return {one["uuid"]: one["use"] for one in json.loads(told.splitlines()[0])["devices"]}


@pytest.fixture(scope="module")
def gpus(server: Server, equipped: PlayOutcome) -> Iterator[None]:
    """Let alice and dave have one GPU each of those that NVML tells, and a project to use it in."""
    server.root(f"echo {PLACE}/lib > /etc/ld.so.conf.d/lab-simulated.conf && ldconfig")
    simulated_gpus.allow(server, "alice", "dave")
    for user in ("alice", "dave"):
        server.user(user, "rm -rf ~/workspace/train && project init train --base lab/python")
    yield
    for user in ("alice", "dave"):
        server.user(user, "container retire train; rm -rf ~/workspace/train", check=False)
    simulated_gpus.take_away(server)


def verdict(server: Server) -> tuple[str, str]:
    """Return what ``lab verify`` says of GPUs: the verdict, and its detail."""
    told = server.root("lab verify --check gpus --json", check=False).out
    (check,) = json.loads(told)["checks"]
    return check["verdict"], check["detail"]


def test_a_user_gets_a_gpu_and_gives_it_back(server: Server, gpus: None) -> None:
    if not knows_cdi(server):
        pytest.skip("this Docker knows no CDI: it needs the toolkit's hook, which is not simulated")
    assert uses(ssh("dave", "gpu list --json")) == {"GPU-one": "free", "MIG-one": "free"}
    had = json.loads(ssh("dave", "project launch train --gpus 1 --detach --json").splitlines()[0])["gpus"]
    assert had == ["GPU-one"] and given(server, f"train._.{DAVE}") == ["GPU-one"]
    assert ssh("dave", "container exec train -- ls -l /dev/simulated-GPU-one").startswith("crw")
    (request,) = server.inspect("train", DAVE)["HostConfig"]["DeviceRequests"]
    assert (request["Driver"], request["DeviceIDs"]) == ("cdi", ["nvidia.com/gpu=GPU-one"])

    # Who has it: dave himself, an admin by name, and others not by name.
    assert uses(ssh("dave", "gpu list --json"))["GPU-one"] == "yours"
    others = ssh("alice", "gpu list --json; gpu list")
    assert "in use" in others and "dave" not in others and "train" not in others
    told: dict[str, Any] = json.loads(server.root("lab gpus --json").out)
    (holder,) = next(one["holders"] for one in told["devices"] if one["uuid"] == "GPU-one")
    assert (holder["user"], holder["project"], holder["state"]) == ("dave", "train", "running")
    for command in ("lab gpus", "gpu list", "lab gpus dave", "lab status"):
        shown = server.root(command).out
        assert max(map(len, shown.splitlines())) <= 80 and "dave" in shown and "train" in shown
    assert verdict(server)[0] == "pass"

    # Nobody else gets it, and what is taken by hand is found.
    refused = ssh("alice", "project launch train --gpus 1 --detach", code=3)
    assert "0 of 1 free" in refused and f"train._.{ALICE}" not in server.containers(everything=True)
    taken = "docker run -d --rm --name by-hand --network none --device nvidia.com/gpu=GPU-one lab/python"
    server.root(f"{taken} sleep 300")
    try:
        said = verdict(server)
    finally:
        server.root("docker rm -f by-hand")
    assert said[0] == "fail" and "by-hand is nobody's project" in said[1]

    ssh("dave", "container retire train")
    assert uses(ssh("alice", "gpu list --json"))["GPU-one"] == "free"
    ssh("alice", "project launch train --gpus 1 --detach")
    assert given(server, f"train._.{ALICE}") == ["GPU-one"]
    ssh("alice", "container retire train")
    assert json.loads(server.root("lab gpus --json").out)["devices"][0]["holders"] == []


def test_an_engine_that_can_give_no_gpus_says_so_in_a_sentence(server: Server, gpus: None) -> None:
    if knows_cdi(server):
        pytest.skip("this Docker gives GPUs by CDI; that of Debian 12 needs a hook, which is not there")
    said = " ".join(ssh("dave", "project launch train --gpus 1 --detach", code=1).split())
    assert "could not select device driver" in said and "nvidia_container_toolkit" in said
    # It holds nothing.
    assert uses(ssh("dave", "gpu list --json"))["GPU-one"] == "free"
    assert f"train._.{DAVE}" not in server.containers(everything=True)
