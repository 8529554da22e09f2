# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tell what a real GPU says to gpu_info and to NVIDIA's own tools, as one JSON, for tests/fixtures/gpus.

``real_gpu.py > tests/fixtures/gpus/NAME.json`` on a computer with a GPU and its driver; neither Ansible nor
Docker is needed. ``--binding`` is the folder of pynvml.py, or the wheel of nvidia-ml-py, where that is not
installed. Whose processes run there, and what they are called, is left out. test_real_gpus.py reads what is
kept. It ends with 1 where NVML tells nothing; the JSON says why.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

LIBRARY = Path(__file__).resolve().parents[1] / "plugins" / "module_utils"
# As lab-server-cdi.service makes it.
GENERATE = ("--device-name-strategy=uuid", "--device-name-strategy=index")
COMMANDS = {
    "nvidia-smi -L": ("nvidia-smi", "-L"),
    "nvidia-ctk cdi list": ("nvidia-ctk", "cdi", "list"),
    "nvidia-ctk cdi generate": ("nvidia-ctk", "cdi", "generate", *GENERATE),
}


def said(command: tuple[str, ...]) -> dict[str, Any] | None:
    """Return what a command prints; None where there is none of that name."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired:
        return {"rc": -1, "stdout": "", "stderr": "It took longer than 120 s."}
    return {"rc": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


def without_people(told: dict[str, Any]) -> dict[str, Any]:
    """Return what gpu_info tells without users and commands."""
    for gpu in told["gpus"]:
        for part in (gpu, *gpu["instances"]):
            part["processes"] = [{**one, "uid": None, "user": "", "command": ""} for one in part["processes"]]
    return told


def look() -> dict[str, Any]:
    """Return all that is to be kept."""
    # Without Ansible there is no ansible_collections; the library itself needs none of it.
    sys.path.insert(0, str(LIBRARY))
    gpus = import_module("_core.gpus")
    seen = gpus.look()
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "driver": seen.driver,
        "gpu_info": {**without_people(gpus.told(seen)), "on_bus": gpus.on_bus(), "loaded": gpus.loaded()},
        "devices": [asdict(device) for gpu in seen.gpus for device in gpus.devices_of(gpu)],
        "commands": {name: said(command) for name, command in COMMANDS.items()},
    }


def main() -> int:
    """Print the JSON; return 0, or 1 where NVML tells nothing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--binding", metavar="PATH", help="where pynvml.py is: its folder, or a wheel")
    given = parser.parse_args()
    if given.binding:
        sys.path.insert(0, given.binding)
    found = look()
    print(json.dumps(found, indent=1, sort_keys=True))
    return 1 if found["gpu_info"]["problem"] else 0


if __name__ == "__main__":
    sys.exit(main())
