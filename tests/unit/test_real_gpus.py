# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What real GPUs said (tests/fixtures/gpus, made by tools/real_gpu.py) is what the library takes it for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_gpus
import yaml
from ansible_collections.lab.server.plugins.module_utils._core import gpurequests
from ansible_collections.lab.server.plugins.module_utils._core.spec import CDI_KIND, given_gpus
from test_gpus import GIB, ROOT

library = test_gpus.library
KEPT = sorted((ROOT / "tests" / "fixtures" / "gpus").glob("*.json"))
# "GPU 0: NVIDIA A100 (UUID: GPU-...)", and below it "  MIG 1g.5gb     Device  0: (UUID: MIG-...)".
LISTED = re.compile(r"^(?:GPU (\d+): (.+?)|\s+MIG (\S+)\s+Device\s+\d+:) \(UUID: (\S+)\)\s*$", re.MULTILINE)


def hold(kept: dict[str, Any]) -> None:
    """Hold what the library made of a server's GPUs to what NVIDIA's own tools say of them."""
    told, devices = kept["gpu_info"], kept["devices"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", kept["date"]) and re.match(r"\d+\.\d+", kept["driver"])
    assert not told["problem"] and told["driver"] == kept["driver"] and told["gpus"] and devices
    smi = LISTED.findall(kept["commands"]["nvidia-smi -L"]["stdout"])
    assert [(str(gpu["index"]), gpu["name"], gpu["uuid"]) for gpu in told["gpus"]] == [
        (index, name, uuid) for index, name, _profile, uuid in smi if index
    ]
    assert [(one["profile"], one["uuid"]) for gpu in told["gpus"] for one in gpu["instances"]] == [
        (profile, uuid) for _index, _name, profile, uuid in smi if profile
    ]
    for gpu in told["gpus"]:
        assert re.fullmatch(r"[0-9A-Fa-f]{8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.0", gpu["pci"])
        assert gpu["memory"] >= gpu["used"] >= 0 and gpu["memory"] >= GIB
    for device in devices:
        request = gpurequests.parse(device["uuid"])
        assert request.uuids == (device["uuid"],)
        if device["profile"] is not None:
            assert gpurequests.parse(device["profile"]).profile == device["profile"]
    names = cdi_names(kept)
    if names is not None:
        wanted = [CDI_KIND + device["uuid"] for device in devices]
        assert set(wanted) <= names
        inspected = {"HostConfig": {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": wanted}]}}
        assert given_gpus(inspected) == sorted(device["uuid"] for device in devices)


def cdi_names(kept: dict[str, Any]) -> set[str] | None:
    """Return the names of devices in the specification that NVIDIA's toolkit makes; None without one."""
    made = kept["commands"]["nvidia-ctk cdi generate"]
    if made is None:
        return None
    assert made["rc"] == 0, made["stderr"]
    specification = yaml.safe_load(made["stdout"])
    return {f"{specification['kind']}={one['name']}" for one in specification["devices"]}


@pytest.mark.skipif(not KEPT, reason="no output of a real GPU is kept yet: make it with tools/real_gpu.py")
def test_real_gpus_are_what_nvidias_tools_say_of_them() -> None:
    for path in KEPT:
        hold(json.loads(path.read_text()))


WHOLE, CUT, PART = (
    "GPU-00000001-0000-4000-8000-000000000000",
    "GPU-00000002-0000-4000-8000-000000000000",
    "MIG-00000003-0000-4000-8000-000000000000",
)
SMI = f"""\
GPU 0: NVIDIA A100 (UUID: {WHOLE})
GPU 1: NVIDIA A100 (UUID: {CUT})
  MIG 1g.5gb      Device  0: (UUID: {PART})
"""
CDI = "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n" + "".join(
    f'- name: "{name}"\n' for name in ("0", "1:0", WHOLE, PART, "all")
)


@pytest.fixture
def simulated(library: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that runs the tool where NVML and NVIDIA's programs are simulated."""
    card = "name=NVIDIA_A100 pci=00000000:0{}:00.0 memory=42949672960 used=1073741824"
    (tmp_path / "state").write_text(
        "driver version=550.54.15 cuda=12040\n"
        f"gpu uuid={WHOLE} {card.format(1)} load=3\ngpu uuid={CUT} {card.format(2)} mig=1\n"
        f"mig gpu=1 uuid={PART} name=NVIDIA_A100_MIG_1g.5gb memory=5368709120\n"
        f"process gpu=0 pid={os.getpid()} memory=1\n"
    )

    def run(**programs: str) -> dict[str, Any]:
        folder = tmp_path / "bin"
        folder.mkdir()
        for name, text in programs.items():
            program = folder / name.replace("_", "-")
            program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n")
            program.chmod(0o755)
        binding = str(Path(pytest.importorskip("pynvml").__file__).parent)
        environment = {
            "LD_LIBRARY_PATH": str(library.parent),
            "LAB_SIMULATED_NVML": str(tmp_path / "state"),
            "PATH": f"{folder}:/usr/bin:/bin",
        }
        command = [sys.executable, "-I", str(ROOT / "tools" / "real_gpu.py"), "--binding", binding]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        made: dict[str, Any] = json.loads(done.stdout)
        return made

    return run


def test_the_tool_tells_what_is_there_and_nobody_by_name(simulated: Callable[..., dict[str, Any]]) -> None:
    kept = simulated(nvidia_smi=SMI, nvidia_ctk=CDI)
    hold(kept)
    (process,) = kept["gpu_info"]["gpus"][0]["processes"]
    assert (process["pid"], process["user"], process["command"]) == (os.getpid(), "", "")


def test_without_nvidias_toolkit_the_rest_is_told(simulated: Callable[..., dict[str, Any]]) -> None:
    kept = simulated(nvidia_smi=SMI)
    assert kept["commands"]["nvidia-ctk cdi list"] is None
    hold(kept)


@pytest.mark.parametrize(
    ("program", "was", "is_now"),
    [
        ("nvidia_smi", WHOLE, CUT),
        ("nvidia_smi", "1g.5gb", "2g.10gb"),
        ("nvidia_smi", "NVIDIA A100", "NVIDIA H100"),
        ("nvidia_ctk", PART, "1:1"),
        ("nvidia_ctk", "nvidia.com/gpu", "example.com/gpu"),
    ],
)
def test_what_nvidias_tools_say_otherwise_is_noticed(
    simulated: Callable[..., dict[str, Any]], program: str, was: str, is_now: str
) -> None:
    said = {"nvidia_smi": SMI, "nvidia_ctk": CDI}
    said[program] = said[program].replace(was, is_now)
    with pytest.raises(AssertionError):
        hold(simulated(**said))
