# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The bare calls of NVML that a look at whole GPUs needs, with which its cost is compared."""

from __future__ import annotations

import contextlib
from typing import Any

# What takes the GPU alone, in the words of nvidia-ml-py.
FACTS = (
    *("UUID", "Name", "PciInfo", "MemoryInfo", "MigMode", "RemappedRows", "UtilizationRates"),
    *("PowerUsage", "EnforcedPowerLimit", "ComputeRunningProcesses"),
)


def bare(nvml: Any) -> None:
    """Ask ``nvml``, which is nvidia-ml-py, for all facts of all GPUs, and do nothing with them."""
    nvml.nvmlInit()
    nvml.nvmlSystemGetDriverVersion()
    nvml.nvmlSystemGetCudaDriverVersion()
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        nvml.nvmlDeviceGetTotalEccErrors(handle, 1, 0)
        nvml.nvmlDeviceGetTemperature(handle, 0)
        for name in FACTS:
            # Not every GPU knows all of them.
            with contextlib.suppress(nvml.NVMLError):
                getattr(nvml, f"nvmlDeviceGet{name}")(handle)
    nvml.nvmlShutdown()
