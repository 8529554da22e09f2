"""GPUs on a server that has none: NVML is simulated, and who may have them is put into the policy."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pynvml
from conftest import ROOT, Server

SIMULATION = ROOT / "tests" / "simulated_nvml"
PLACE = "/opt/lab-simulated"
POLICY = "/etc/lab-server/policy.json"
WHEEL = "/usr/local/lib/lab-server-nvml.whl"
STATE = """driver version=550.54.15 cuda=12040
gpu uuid=GPU-one name=Simulated_GPU pci=00000000:01:00.0 memory=8589934592 load=7
gpu uuid=GPU-two name=Simulated_GPU pci=00000000:02:00.0 memory=8589934592 mig=1
mig gpu=1 uuid=MIG-one name=Simulated_GPU_MIG_1g.5gb memory=1073741824
"""
_LINKER = "/etc/ld.so.conf.d/lab-simulated.conf"
_ALLOW = f"""python3 - <<'END'
import json
policy = json.load(open("{POLICY}"))
for user in policy["users"]:
    if user["name"] in USERS:
        user["limits"].update(gpus=1)
json.dump(policy, open("{POLICY}", "w"))
END"""


def bring(server: Server, folder: Path, *scripts: tuple[str, str]) -> Path:
    """Put the simulation of NVML on the server, and what further scripts make; return the wheel of pynvml.

    A script is its name and the folder of PLACE that it fills.
    """
    for script, place in (("build.py", "lib"), *scripts):
        (folder / place).mkdir()
        subprocess.run([sys.executable, str(SIMULATION / script), str(folder / place)], check=True)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(folder, ".")
    text = base64.b64encode(packed.getvalue()).decode()
    server.root(f"mkdir -p {PLACE} && echo {text} | base64 -d | tar -xz --no-same-owner -C {PLACE}")
    server.root(f"printf '%s' '{STATE}' > /etc/lab-simulated-nvml.conf")
    wheel = folder / "nvidia_ml_py.whl"
    # It goes to the server as one word of a command, which must not be long.
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(str(Path(pynvml.__file__)), "pynvml.py")
    return wheel


def install(server: Server, wheel: Path) -> None:
    """Let the library on the server find the simulated NVML and its binding, also after a reboot."""
    text = base64.b64encode(wheel.read_bytes()).decode()
    server.root(f"echo {text} | base64 -d > {WHEEL} && echo {PLACE}/lib > {_LINKER} && ldconfig")


def allow(server: Server, *users: str) -> None:
    """Let these users have one GPU each."""
    server.root(f"cp -p {POLICY} {POLICY}.kept\n{_ALLOW.replace('USERS', repr(users))}")


def take_away(server: Server) -> None:
    """Let the server have no GPUs again, and the policy be as it was."""
    server.root(f"mv {POLICY}.kept {POLICY}; rm -f {_LINKER}; ldconfig", check=False)


def knows_cdi(server: Server) -> bool:
    """Say whether Docker is of a version that gives devices by name (CDI): 25 and later."""
    return int(server.root("docker version --format '{{.Server.Version}}'").out.split(".")[0]) >= 25


def given(server: Server, container: str) -> list[str]:
    """Return the simulated GPUs in the environment of a container's first process, as the kernel has it."""
    found = server.root(
        f"tr '\\0' '\\n' < /proc/$(docker inspect -f '{{{{.State.Pid}}}}' {container})/environ"
    ).out
    return [line.partition("=")[2] for line in found.splitlines() if line.startswith("LAB_SIMULATED_GPU")]
