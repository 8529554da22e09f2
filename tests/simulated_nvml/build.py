# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Build the simulation of NVML: ``build.py DIRECTORY`` puts a libnvidia-ml.so.1 there, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml.c")
# The real nvidia-ml-py opens the library by this name; a process that has one of it loaded gets that one.
NAME = "libnvidia-ml.so.1"


def build(directory: Path) -> Path:
    """Return the path of the library, built in ``directory``; the compiler must be there (package gcc)."""
    library = directory / NAME
    arguments = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", f"-Wl,-soname,{NAME}"]
    subprocess.run([*arguments, "-o", str(library), str(SOURCE)], check=True, timeout=60)
    return library


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
