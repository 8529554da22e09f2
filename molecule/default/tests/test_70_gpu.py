"""GPUs on a server that has none (G1, G2): NVML and NVIDIA's packages are simulated, all else is real."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Callable

import pynvml
import pytest
from conftest import ROOT, PlayOutcome, Server

SIMULATION = ROOT / "tests" / "simulated_nvml"
PLACE = "/opt/lab-simulated"
STATE = """driver version=550.54.15 cuda=12040
gpu uuid=GPU-one name=Simulated_GPU pci=00000000:01:00.0 memory=8589934592 load=7
gpu uuid=GPU-two name=Simulated_GPU pci=00000000:02:00.0 memory=8589934592 mig=1
mig gpu=1 uuid=MIG-one name=Simulated_GPU_MIG_1g.5gb memory=1073741824
"""
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
    folder = tmp_path_factory.mktemp("gpu")
    for script, place in (("build.py", "lib"), ("repository.py", "repository")):
        (folder / place).mkdir()
        subprocess.run([sys.executable, str(SIMULATION / script), str(folder / place)], check=True)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(folder, ".")
    text = base64.b64encode(packed.getvalue()).decode()
    server.root(f"mkdir -p {PLACE} && echo {text} | base64 -d | tar -xz --no-same-owner -C {PLACE}")
    server.root(f"printf '%s' '{STATE}' > /etc/lab-simulated-nvml.conf")
    wheel = folder / "nvidia_ml_py.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(str(Path(pynvml.__file__)), "pynvml.py")
    settings = {
        "nvidia_container_toolkit_apply": "always",
        "nvidia_container_toolkit_repository_url": f"file:{PLACE}/repository",
        "nvidia_container_toolkit_repository_trusted": True,
        "nvidia_container_toolkit_wheel": str(wheel),
    }
    done = play("--tags", "gpus", "--diff", "-e", json.dumps(settings))
    assert done.rc == 0, done.text[-3000:]
    return done


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


def test_a_container_gets_the_gpu_that_it_is_given(server: Server, equipped: PlayOutcome) -> None:
    assert "GPU-one" in server.root("cat /run/cdi/nvidia.yaml").out
    version = int(server.root("docker version --format '{{.Server.Version}}'").out.split(".")[0])
    if version < 25:
        pytest.skip(
            f"Docker Engine {version} knows no CDI: it needs the toolkit's hook, which is not simulated"
        )
    run = "docker run --rm --network none --device nvidia.com/gpu={} lab/python env"
    assert "LAB_SIMULATED_GPU=MIG-one" in server.root(run.format("MIG-one")).out
    assert server.root(run.format("GPU-none"), check=False).rc != 0
