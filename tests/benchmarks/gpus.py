# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Measure what gpu_info asks for against the bare calls of NVML, and print its row for docs/performance.md.

NVML is simulated (tests/simulated_nvml, which needs gcc) and takes 0.2 ms for each call. 8 GPUs, none of them
divided, with a process on each. Both are asked by turns in one process; the kernel's log and PCI bus are the
computer's own.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [
    str(ROOT / ".ansible" / "collections"),
    str(ROOT / "tools"),
    str(ROOT / "tests" / "simulated_nvml"),
]

from ansible_collections.lab.server.plugins.module_utils._core import gpus  # noqa: E402  # needs the path above
from bare import bare  # noqa: E402  # as above
from bench_engine import Promise, Report, seconds  # noqa: E402  # as above
from build import build  # noqa: E402  # as above

CARDS, DELAY, TURNS, ALLOWED = 8, 200, 25, 1.5


def served() -> str:
    """Return what the simulation serves."""
    lines = [f"driver version=550.54.15 cuda=12040 delay={DELAY}"]
    for n in range(CARDS):
        lines += [
            f"gpu uuid=GPU-{n} name=NVIDIA_A100 pci=00000000:{n:02x}:00.0 memory={40 << 30} used={1 << 30} "
            "load=30 temperature=51 power=100500 limit=400000 ecc=0",
            f"process gpu={n} pid={os.getpid()} memory={1 << 30}",
        ]
    return "\n".join([*lines, ""])


def took(work: Callable[[], object]) -> float:
    """Return the seconds that something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> int:
    """Measure, print the row; return 0 when the promise is kept."""
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder, "state")
        state.write_text(served())
        os.environ["LAB_SIMULATED_NVML"] = str(state)
        # A second opening of that name gets this one.
        ctypes.CDLL(str(build(Path(folder))))
        nvml = importlib.import_module("pynvml")
        seen = gpus.look()
        if seen.problem or len(seen.gpus) != CARDS or any(gpu.load != 30 for gpu in seen.gpus):
            sys.exit(f"The simulation is not what was asked: {seen.problem or seen.gpus}")
        turns = [(took(lambda: gpus.told(gpus.look())), took(lambda: bare(nvml))) for _turn in range(TURNS)]
    ours, theirs = (median(side) for side in zip(*turns))
    text = (
        f"what `gpu_info` tells of {CARDS} GPUs, against the bare calls of NVML, of {DELAY / 1000:g} ms each"
    )
    report.add(text, f"{seconds(ours)} against {seconds(theirs)}: {ours / theirs:.2f} times")
    report.promises.append(Promise(text, ours / theirs, ALLOWED, " times"))
    print(report.markdown())
    return 0 if all(one.kept for one in report.promises) else 1


if __name__ == "__main__":
    sys.exit(main())
