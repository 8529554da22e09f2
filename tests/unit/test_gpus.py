# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""GPUs through the real nvidia-ml-py, on a simulation of NVML (tests/simulated_nvml): facts, faults, cost."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Callable

import pytest
import yaml
from ansible_collections.lab.server.plugins.module_utils._core import gpus
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError
from ansible_collections.lab.server.plugins.module_utils._core.gpudevices import Device

ROOT = Path(__file__).resolve().parents[2]
SIMULATION = ROOT / "tests" / "simulated_nvml"
GIB = 1 << 30
DRIVER = "driver version=550.54.15 cuda=12040"
A100 = (
    f"gpu uuid=GPU-1 name=NVIDIA_A100 pci=00000000:01:00.0 memory={40 * GIB} used={3 * GIB} load=30 "
    "temperature=51 power=100500 limit=400000 ecc=0"
)
DIVIDED = f"gpu uuid=GPU-2 name=NVIDIA_A100 pci=00000000:81:00.0 memory={40 * GIB} mig=1"
PARTS = [
    f"mig gpu=1 uuid=MIG-{number} name=NVIDIA_A100_MIG_1g.5gb memory={5 * GIB} used={GIB}"
    for number in (1, 2)
]
Simulate = Callable[..., None]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the simulated library, built, and loaded here: a second opening of that name gets this one."""
    sys.path.insert(0, str(SIMULATION))
    try:
        from build import build  # type: ignore[import-not-found]  # a script, not a package
    finally:
        sys.path.pop(0)
    built: Path = build(tmp_path_factory.mktemp("nvml"))
    ctypes.CDLL(str(built))
    return built


@pytest.fixture
def bare(library: Path) -> Callable[[], None]:
    """Return the function that makes the bare calls of a look, and no more."""
    nvml: Any = pytest.importorskip("pynvml", reason="nvidia-ml-py is a package of tests alone")
    sys.path.insert(0, str(SIMULATION))
    try:
        from bare import bare as calls  # type: ignore[import-not-found]  # a script, not a package
    finally:
        sys.path.pop(0)
    return lambda: calls(nvml)


@pytest.fixture
def simulate(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Simulate:
    """Return a function that says, line by line, what the simulation serves."""
    state = tmp_path / "state"
    monkeypatch.setenv("LAB_SIMULATED_NVML", str(state))

    def serve(*lines: str) -> None:
        state.write_text("".join(f"{line}\n" for line in lines))

    return serve


def look(tmp_path: Path, log: str = "", *, on_bus: int = 1) -> gpus.Seen:
    """Look with a kernel log and a PCI bus of the test's own."""
    (tmp_path / "kmsg").write_text(log)
    for number in range(on_bus):
        device = tmp_path / "pci" / f"0000:0{number}:00.0"
        device.mkdir(parents=True, exist_ok=True)
        (device / "vendor").write_text("0x10de\n")
        (device / "class").write_text("0x030200\n")
    return gpus.look(kernel_log=str(tmp_path / "kmsg"), pci=str(tmp_path / "pci"))


def test_the_facts_of_a_gpu(simulate: Simulate, tmp_path: Path) -> None:
    simulate(DRIVER, A100)
    seen = look(tmp_path)
    assert (seen.problem, seen.driver, seen.cuda) == ("", "550.54.15", "12.4")
    (gpu,) = seen.gpus
    assert (gpu.uuid, gpu.name, gpu.pci) == ("GPU-1", "NVIDIA A100", "00000000:01:00.0")
    assert (gpu.memory, gpu.used, gpu.load, gpu.temperature) == (40 * GIB, 3 * GIB, 30, 51)
    assert (gpu.power, gpu.power_limit, gpu.ecc_errors, gpu.mig) == (100.5, 400.0, 0, None)
    assert gpu.healthy and gpu.instances == ()


def test_mig_instances_stand_for_their_gpu(simulate: Simulate, tmp_path: Path) -> None:
    simulate(DRIVER, A100, DIVIDED, *PARTS, f"process gpu=1 mig=1 pid={os.getpid()} memory={GIB}")
    gpu = look(tmp_path).gpus[1]
    assert (gpu.mig, gpu.load, gpu.processes) == (True, None, ())
    assert [(one.uuid, one.profile, one.index) for one in gpu.instances] == [
        ("MIG-1", "1g.5gb", "1:0"),
        ("MIG-2", "1g.5gb", "1:1"),
    ]
    assert [len(one.processes) for one in gpu.instances] == [0, 1]
    name = "NVIDIA A100 MIG 1g.5gb"
    assert gpus.devices() == [
        Device("GPU-1", "NVIDIA A100", 40 * GIB, None, None, "0"),
        Device("MIG-1", name, 5 * GIB, "1g.5gb", "GPU-2", "1:0"),
        Device("MIG-2", name, 5 * GIB, "1g.5gb", "GPU-2", "1:1"),
    ]


def test_a_process_has_an_owner_and_a_container(simulate: Simulate, tmp_path: Path) -> None:
    simulate(DRIVER, A100, f"process gpu=0 pid={os.getpid()} memory=77", "process gpu=0 pid=4194999 memory=1")
    own, ended = look(tmp_path).gpus[0].processes
    assert (own.pid, own.memory, own.uid) == (os.getpid(), 77, os.getuid())
    assert own.command and own.user
    assert (ended.pid, ended.uid, ended.command) == (4194999, None, "")


@pytest.mark.parametrize(
    ("cgroup", "container"),
    [
        (f"0::/lab.slice/lab-2001.slice/docker-{'a' * 64}.scope\n", "a" * 64),
        (f"12:cpu:/docker/{'b' * 64}\n1:name=systemd:/docker/{'b' * 64}\n", "b" * 64),
        (f"0::/lab.slice/docker-{'c' * 64}.scope/init\n", "c" * 64),
        ("0::/user.slice/user-2001.slice\n", ""),
        (f"0::/user.slice/docker-{'d' * 63}.scope\n", ""),
    ],
)
def test_the_container_is_told_by_the_control_group(tmp_path: Path, cgroup: str, container: str) -> None:
    (tmp_path / "77").mkdir()
    (tmp_path / "77" / "cgroup").write_text(cgroup)
    (tmp_path / "77" / "comm").write_text("python\n")
    found = gpus.process(77, None, str(tmp_path))
    assert (found.container, found.command) == (container, "python")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (9, "driver is not loaded"),
        (12, "library libnvidia-ml.so.1 is not on this server"),
        (18, "of different versions"),
        (4, "may not be opened"),
        (999, "error 999"),
    ],
)
def test_nvml_that_does_not_start_says_why(simulate: Simulate, tmp_path: Path, code: int, words: str) -> None:
    simulate(f"{DRIVER} init={code}", A100)
    seen = look(tmp_path)
    assert words in seen.problem and seen.gpus == ()
    assert "no NVIDIA GPU on the PCI bus" not in seen.problem
    with pytest.raises(HostError, match=words):
        gpus.devices()


def test_no_driver_where_there_is_no_gpu_either(simulate: Simulate, tmp_path: Path) -> None:
    simulate(f"{DRIVER} init=9")
    assert "There is no NVIDIA GPU on the PCI bus." in look(tmp_path, on_bus=0).problem


@pytest.mark.parametrize("there", [0, 2])
def test_without_the_binding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: int) -> None:
    monkeypatch.setattr(gpus, "WHEEL", str(tmp_path / "no.whl"))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    problem = look(tmp_path, on_bus=there).problem
    assert problem.startswith("nvidia-ml-py is not installed" if there else "This server has no NVIDIA GPU")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("handle=15", "GPU 1 is lost"),
        ("fault=15", "GPU 1 is lost"),
        ("fault=16", "GPU 1 must be reset"),
        ("fault=999", "GPU 1 does not answer"),
        ("remap_failure=1", "could not replace a bad row"),
        ("remap_pending=1", "is to replace a bad row"),
    ],
)
def test_a_gpu_that_is_ill_does_not_hide_the_others(
    simulate: Simulate, tmp_path: Path, fault: str, words: str
) -> None:
    simulate(DRIVER, A100, f"{A100.replace('GPU-1', 'GPU-2')} {fault}")
    well, ill = look(tmp_path).gpus
    assert well.healthy and words in ill.problem
    assert [one.uuid for one in gpus.devices() if one.healthy] == ["GPU-1"]


def test_what_is_out_of_service_is_as_what_is_ill(simulate: Simulate, tmp_path: Path) -> None:
    simulate(DRIVER, A100, DIVIDED, *PARTS)

    def well(*out_of_service: str) -> list[str]:
        return [one.uuid for one in gpus.devices(out_of_service) if one.healthy and one.problem is None]

    assert well() == ["GPU-1", "MIG-1", "MIG-2"] == well("GPU-9")
    assert well("GPU-1", "MIG-2") == ["MIG-1"]
    # A GPU takes its instances along.
    assert well("GPU-2") == ["GPU-1"]
    told = gpus.told(gpus.look(busy=False, out_of_service=["GPU-1", "MIG-2"], pci=str(tmp_path)))["gpus"]
    assert [(one["healthy"], one["problem"]) for one in told] == [
        (False, "GPU 0 is out of service (lab_gpu.out_of_service)."),
        (True, ""),
    ]
    parts = [one["problem"] for one in told[1]["instances"]]
    assert parts == ["", "MIG instance 1:1 is out of service (lab_gpu.out_of_service)."]


def test_what_is_wrong_with_a_gpu_is_told_though_it_is_out_of_service(simulate: Simulate) -> None:
    simulate(DRIVER, f"{A100} remap_failure=1")
    (one,) = gpus.devices(["GPU-1"])
    assert "could not replace a bad row" in str(one.problem)


def test_errors_of_memory_count_where_rows_cannot_be_replaced(simulate: Simulate, tmp_path: Path) -> None:
    simulate(DRIVER, A100.replace("ecc=0", "ecc=2"))
    assert "2 uncorrectable errors" in look(tmp_path).gpus[0].problem
    simulate(DRIVER, A100.replace("ecc=0", "ecc=2 remap_pending=0"))
    assert look(tmp_path).gpus[0].healthy


@pytest.mark.parametrize(
    ("line", "xids", "healthy"),
    [
        ("NVRM: Xid (PCI:0000:01:00): 79, pid='<unknown>', GPU has fallen off the bus.", (79,), False),
        ("NVRM: Xid (PCI:0000:01:00): 13, pid=77, Graphics Exception", (13,), True),
        ("NVRM: Xid (PCI:0000:81:00): 79, GPU has fallen off the bus.", (), True),
        ("a user wrote Xid 79", (), True),
    ],
)
def test_the_kernel_tells_of_errors(
    simulate: Simulate, tmp_path: Path, line: str, xids: tuple[int, ...], healthy: bool
) -> None:
    simulate(DRIVER, A100)
    (gpu,) = look(tmp_path, f"3,1,5,-;{line}\n SUBSYSTEM=pci\n3,2,6,-;{line}\n").gpus
    assert (gpu.xids, gpu.healthy) == (xids, healthy)


def test_only_gpus_of_nvidia_count_on_the_bus(tmp_path: Path) -> None:
    for name, vendor, kind in (
        ("a", "0x10de", "0x030000"),
        ("b", "0x10de", "0x040300"),
        ("c", "0x8086", "0x030000"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")
    assert gpus.on_bus(str(tmp_path)) == 1
    assert gpus.on_bus(str(tmp_path / "missing")) == 0


def test_nothing_is_asked_twice(simulate: Simulate, tmp_path: Path) -> None:
    log = tmp_path / "log"
    simulate(f"{DRIVER} log={log}", A100, DIVIDED, *PARTS)
    look(tmp_path)
    asked = Counter(log.read_text().splitlines())
    # The instances of a divided GPU are asked for by number, one after the other.
    asked.pop("nvmlDeviceGetMigDeviceHandleByIndex GPU-2")
    assert asked and set(asked.values()) == {1}


def test_the_bare_calls_that_a_look_is_compared_with_are_those_of_a_look(
    simulate: Simulate, tmp_path: Path, bare: Callable[[], None]
) -> None:
    log = tmp_path / "log"
    simulate(f"{DRIVER} log={log}", A100, A100.replace("GPU-1", "GPU-2"))
    look(tmp_path)
    asked = Counter(log.read_text().splitlines())
    log.unlink()
    bare()
    assert Counter(log.read_text().splitlines()) == asked


def test_a_look_costs_about_what_nvml_does(
    simulate: Simulate, tmp_path: Path, bare: Callable[[], None]
) -> None:
    """At most half as much again as the bare calls, of which each takes 0.2 ms, more on hardware.

    What is ours is the processor's time beyond theirs, which another program that runs does not lengthen;
    tests/benchmarks/gpus.py measures both by the clock.
    """
    simulate(DRIVER, *[A100.replace("GPU-1", f"GPU-{number}") for number in range(4)])
    calls = 4 + 4 * 13

    def seconds(what: Callable[[], object]) -> float:
        begun = time.process_time()
        what()
        return time.process_time() - begun

    turns = [(seconds(lambda: look(tmp_path)), seconds(bare)) for _turn in range(7)]
    ours, theirs = (min(side) for side in zip(*turns))
    bound = calls * 0.0002 / 2
    assert ours - theirs <= bound, f"{ours * 1e3:.1f} ms, the bare calls {theirs * 1e3:.1f} ms"


def test_the_answer_is_plain_data(simulate: Simulate, tmp_path: Path) -> None:
    simulate(DRIVER, A100, DIVIDED, *PARTS, f"process gpu=1 mig=0 pid={os.getpid()} memory=1")
    answer = gpus.told(look(tmp_path))
    assert json.loads(json.dumps(answer)) == answer
    assert answer["gpus"][0]["healthy"] is True
    assert answer["gpus"][1]["instances"][0]["processes"][0]["pid"] == os.getpid()


def _apt(place: Path, source: str) -> list[str]:
    """Return an apt-get that knows one source, and changes nothing on this computer."""
    for name in ("lists/partial", "cache/archives/partial", "parts"):
        (place / name).mkdir(parents=True)
    (place / "sources.list").write_text(source)
    own = {"Dir::Etc::SourceList": "sources.list", "Dir::Etc::SourceParts": "parts"}
    own |= {"Dir::State::Lists": "lists", "Dir::Cache": "cache"}
    options = [f"-o{key}={place / value}" for key, value in own.items()]
    options += ["-oAPT::Sandbox::User=root", "-oAcquire::Retries=1", "-oAcquire::http::Timeout=15"]
    return ["apt-get", "-q", *options]


@pytest.fixture(scope="module")
def debians(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of Debian's own NVML: unpacked, not installed."""
    if shutil.which("apt-get") is None:
        pytest.skip("there is no apt-get here, so Debian's libnvidia-ml1 cannot be fetched")
    place = tmp_path_factory.mktemp("apt")
    apt = _apt(place, "deb http://deb.debian.org/debian bookworm non-free\n")
    for command in ("update", "download"):
        names = ["libnvidia-ml1"] if command == "download" else []
        done = subprocess.run(
            [*apt, command, *names],
            cwd=place,
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode != 0 or "Failed to fetch" in done.stderr:
            pytest.skip(f"Debian's non-free packages cannot be reached: {done.stderr.strip()[-200:]}")
    (package,) = place.glob("libnvidia-ml1_*.deb")
    subprocess.run(["dpkg-deb", "-x", str(package), str(place / "root")], check=True)
    (library,) = (place / "root").rglob("libnvidia-ml.so.1")
    return library.parent


def test_nvidias_own_library_without_a_driver(debians: Path) -> None:
    """The real NVML: its answer on a computer without the driver is the one that the simulation gives."""
    if gpus.loaded():
        pytest.skip("this computer has an NVIDIA driver, so nothing is missing")
    library = "ansible_collections.lab.server.plugins.module_utils._core"
    code = f"from {library} import gpus; print(gpus.look().problem)"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(debians), "PYTHONPATH": os.pathsep.join(sys.path)}
    # As root NVIDIA's library makes the device files of a driver that it does not find: it may not here.
    without = ["setpriv", "--bounding-set=-mknod"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*without, sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "The NVIDIA driver is not loaded." in done.stdout


def test_the_stand_ins_of_nvidias_packages_are_a_repository_of_apt(tmp_path: Path) -> None:
    """What the role is tested with on a virtual machine: apt takes it, and the stand-in says what it is."""
    if shutil.which("apt-get") is None:
        pytest.skip("there is no apt-get here")
    made = tmp_path / "repository"
    subprocess.run([sys.executable, str(SIMULATION / "repository.py"), str(made)], check=True)
    apt = _apt(tmp_path / "apt", f"deb [trusted=yes] file:{made} /\n")
    subprocess.run([*apt, "update"], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    subprocess.run(
        [*apt, "download", "nvidia-container-toolkit"], cwd=tmp_path, check=True, capture_output=True
    )
    (package,) = tmp_path.glob("nvidia-container-toolkit_*.deb")
    subprocess.run(["dpkg-deb", "-x", str(package), str(tmp_path / "root")], check=True)
    tool = str(tmp_path / "root/usr/bin/nvidia-ctk")
    said = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout
    assert said.startswith("NVIDIA Container Toolkit CLI version 1.18.0\nsimulated")
    (tmp_path / "state").write_text(f"{DRIVER}\n{A100}\n{DIVIDED}\n{PARTS[0]}\n")
    environment = {**os.environ, "LAB_SIMULATED_NVML": str(tmp_path / "state")}
    written = tmp_path / "cdi" / "nvidia.yaml"
    subprocess.run([tool, "cdi", "generate", f"--output={written}"], check=True, env=environment)
    specification = yaml.safe_load(written.read_text())
    assert specification["kind"] == "nvidia.com/gpu"
    assert [one["name"] for one in specification["devices"]] == ["GPU-1", "GPU-2", "MIG-1"]
