# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The GPUs of this server, as NVML tells them: what there is, who has it, how busy and how healthy it is.

NVML is asked through nvidia-ml-py, which is imported on first use, once for each fact. What a GPU does not
know (the load of one that is divided, say) is None; what is wrong is a sentence. Sizes are bytes.

Sources: NVML API Reference Guide; NVIDIA's catalog of Xid errors; proc(5); the kernel's
Documentation/ABI/testing/dev-kmsg.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pwd
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from .errors import HostError
from .gpudevices import Device

T = TypeVar("T")

WHEEL = "/usr/local/lib/lab-server-nvml.whl"
"""The wheel of nvidia-ml-py, where no package brings it: pure Python, imported from the wheel itself."""
PCI = "/sys/bus/pci/devices"
KERNEL_LOG = "/dev/kmsg"
# nvmlReturn_t. Anything that is not here ends the look at a device.
_UNKNOWN_FACT = frozenset({2, 3, 4, 6, 13, 21, 25, 26})
_LOST, _RESET = 15, 16
_DRIVER, _LIBRARY, _DIFFER, _PERMISSION = 9, 12, 18, 4
_FUNCTION_NOT_FOUND = 13
# Xid errors after which a GPU is of no use before it was reset, or at all. The others are those of programs,
# or are dealt with by the driver: https://docs.nvidia.com/deploy/xid-errors/
_FATAL_XIDS: Mapping[int, str] = {
    48: "an uncorrectable error of its memory",
    62: "its microcontroller halted",
    64: "a bad row of its memory could not be replaced",
    79: "it has fallen off the bus",
    95: "an uncontained error of its memory",
    119: "its system processor does not answer",
    120: "its system processor reported an error",
    140: "an unrecovered error of its memory",
}
_XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+)")
_CONTAINER = re.compile(r"(?:docker-|/docker/)([0-9a-f]{64})(?:\.scope)?(?:/|$)", re.MULTILINE)
_PROFILE = re.compile(r"MIG ([0-9a-z.+]+)$")


@dataclass(frozen=True)
class Process:
    """A process that computes on a device. ``uid`` is None, the texts are empty where it has just ended."""

    pid: int
    memory: int | None
    uid: int | None = None
    user: str = ""
    command: str = ""
    #: The id of its Docker container; empty for one of the host.
    container: str = ""


@dataclass(frozen=True)
class Instance:
    """A MIG instance of a GPU."""

    uuid: str
    name: str
    profile: str
    index: str
    memory: int
    used: int
    processes: tuple[Process, ...] = ()
    #: What is wrong with it alone; what is wrong with its GPU is told there.
    problem: str = ""
    #: Whether nobody knows what runs on it: NVML lists no processes.
    unlisted: bool = False


@dataclass(frozen=True)
class Gpu:
    """A GPU. One that does not answer has its number and its problem, and what was known before it failed."""

    index: int
    uuid: str = ""
    name: str = ""
    pci: str = ""
    memory: int = 0
    used: int = 0
    #: Whether it is divided into instances; None for a GPU that cannot be.
    mig: bool | None = None
    #: Per cent of the time in which it computed.
    load: int | None = None
    #: Degrees Celsius.
    temperature: int | None = None
    #: Watts.
    power: float | None = None
    power_limit: float | None = None
    #: Uncorrectable errors of its memory since the driver was loaded.
    ecc_errors: int | None = None
    #: The Xid errors that the kernel has logged of it, in their order, each once.
    xids: tuple[int, ...] = ()
    instances: tuple[Instance, ...] = ()
    processes: tuple[Process, ...] = ()
    problem: str = ""
    #: As of Instance.
    unlisted: bool = False

    @property
    def healthy(self) -> bool:
        """Whether work can be given to it."""
        return not self.problem


@dataclass(frozen=True)
class Seen:
    """All GPUs at one instant; ``problem`` says why NVML tells nothing, and is empty where it does."""

    gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    cuda: str = ""
    problem: str = ""


# What is told of it


def devices(out_of_service: Collection[str] = ()) -> list[Device]:
    """Return what can be given to containers: each GPU that is not divided, and each MIG instance.

    A GPU that does not even tell its uuid is left out. ``out_of_service``: as of ``look``. Raises HostError
    with the reason where NVML tells nothing.
    """
    seen = look(busy=False, out_of_service=out_of_service)
    if seen.problem:
        raise HostError(seen.problem)
    return [device for gpu in seen.gpus for device in devices_of(gpu)]


def devices_of(gpu: Gpu) -> Iterator[Device]:
    """Yield the devices that a GPU is or is divided into."""
    if gpu.mig:
        for one in gpu.instances:
            ill = gpu.problem or one.problem or None
            yield Device(one.uuid, one.name, one.memory, one.profile, gpu.uuid, one.index, ill is None, ill)
    elif gpu.uuid:
        ill = gpu.problem or None
        yield Device(gpu.uuid, gpu.name, gpu.memory, None, None, str(gpu.index), ill is None, ill)


def told(seen: Seen) -> dict[str, Any]:
    """Return what was seen as plain data."""
    return {
        "driver": seen.driver,
        "cuda": seen.cuda,
        "problem": seen.problem,
        "gpus": [_told(gpu) for gpu in seen.gpus],
    }


def _told(gpu: Gpu) -> dict[str, Any]:
    plain = asdict(gpu)
    plain["healthy"] = gpu.healthy
    del plain["unlisted"]
    for key in ("xids", "processes", "instances"):
        plain[key] = list(plain[key])
    for instance in plain["instances"]:
        instance["processes"] = list(instance["processes"])
        del instance["unlisted"]
    return plain


def on_bus(root: str = PCI) -> int:
    """Return how many NVIDIA GPUs are on the PCI bus, driver or not: vendor 10de, class 03 (displays).

    Source: PCI Code and ID Assignment Specification; sysfs-bus-pci of the kernel's ABI documentation.
    """
    count = 0
    for name in _listed(root):
        place = os.path.join(root, name)
        if _line(f"{place}/vendor") == "0x10de" and _line(f"{place}/class").startswith("0x03"):
            count += 1
    return count


def loaded(proc: str = "/proc") -> bool:
    """Return whether the NVIDIA driver is in the kernel (the driver's README: The /proc interface)."""
    return os.path.exists(f"{proc}/driver/nvidia/version")


def look(
    *,
    busy: bool = True,
    out_of_service: Collection[str] = (),
    kernel_log: str = KERNEL_LOG,
    pci: str = PCI,
) -> Seen:
    """Return all GPUs. Without ``busy``, only what they are and whether they are healthy.

    ``out_of_service``: the uuids of those that are to be given to nobody (``lab_gpu``), as if they were ill.
    Never raises for what is wrong with a GPU, the driver or the library: that is told in ``problem``.
    """
    try:
        nvml = _binding()
    except ImportError:
        return Seen(problem=_without_binding(on_bus(pci)))
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Seen(problem=_no_start(_code(error), on_bus(pci)))
    try:
        xids = _xids(kernel_log)
        gpus = tuple(_gpu(nvml, index, xids, busy) for index in range(nvml.nvmlDeviceGetCount()))
        cuda = _known(nvml, nvml.nvmlSystemGetCudaDriverVersion)
        return withdrawn(Seen(gpus, nvml.nvmlSystemGetDriverVersion(), _cuda(cuda or 0)), out_of_service)
    except nvml.NVMLError as error:
        return Seen(problem=f"NVML failed: {_words(error)}. Look at: journalctl -k -g NVRM.")
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def withdrawn(seen: Seen, out_of_service: Collection[str]) -> Seen:
    """Return what was seen with those ill that are out of service; a GPU takes its instances along."""
    if not out_of_service:
        return seen
    return replace(seen, gpus=tuple(_withdrawn(gpu, out_of_service) for gpu in seen.gpus))


def _withdrawn(gpu: Gpu, out_of_service: Collection[str]) -> Gpu:
    why = "is out of service (lab_gpu.out_of_service)."
    parts = tuple(
        replace(one, problem=f"MIG instance {one.index} {why}") if one.uuid in out_of_service else one
        for one in gpu.instances
    )
    out = gpu.uuid in out_of_service and not gpu.problem
    return replace(gpu, instances=parts, problem=f"GPU {gpu.index} {why}" if out else gpu.problem)


def _binding() -> Any:
    """Return nvidia-ml-py, of a package or else of the wheel that the role has put here; or ImportError."""
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        if not os.path.exists(WHEEL):
            raise
    sys.path.append(WHEEL)
    return importlib.import_module("pynvml")


def _without_binding(there: int) -> str:
    if not there:
        return "This server has no NVIDIA GPU."
    return "nvidia-ml-py is not installed, so the GPUs are not known. Run the role nvidia_container_toolkit."


def _no_start(code: int, there: int) -> str:
    """Say in a sentence why NVML does not start."""
    none = "" if there else " There is no NVIDIA GPU on the PCI bus."
    if code == _LIBRARY:
        return (
            f"The driver's library libnvidia-ml.so.1 is not on this server.{none} Install the NVIDIA driver."
        )
    if code == _DRIVER:
        return (
            f"The NVIDIA driver is not loaded.{none} Load it (modprobe nvidia), or reboot after an "
            "installation; the reason is in: journalctl -k -g NVRM."
        )
    if code == _DIFFER:
        return (
            "The NVIDIA driver in the kernel and its library are of different versions, as after an upgrade. "
            "Reboot the server."
        )
    if code == _PERMISSION:
        return "The GPUs' device files may not be opened. Ask as root."
    return f"NVML does not start (error {code}). Look at: journalctl -k -g NVRM."


# A GPU, fact by fact


def _gpu(nvml: Any, index: int, xids: Mapping[str, Sequence[int]], busy: bool) -> Gpu:
    gpu = Gpu(index)
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        gpu = replace(gpu, uuid=nvml.nvmlDeviceGetUUID(handle), name=nvml.nvmlDeviceGetName(handle))
        pci = nvml.nvmlDeviceGetPciInfo(handle).busId
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        mig = _known(nvml, nvml.nvmlDeviceGetMigMode, handle)
        gpu = replace(
            gpu,
            pci=pci.decode() if isinstance(pci, bytes) else str(pci),
            memory=memory.total,
            used=memory.used,
            mig=None if mig is None else bool(mig[0]),
            ecc_errors=_known(
                nvml,
                nvml.nvmlDeviceGetTotalEccErrors,
                handle,
                nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
                nvml.NVML_VOLATILE_ECC,
            ),
        )
        gpu = replace(gpu, xids=tuple(dict.fromkeys(xids.get(_place(gpu.pci), ()))))
        rows = _known(nvml, nvml.nvmlDeviceGetRemappedRows, handle)
        gpu = replace(gpu, problem=_illness(gpu, rows))
        if gpu.mig:
            gpu = replace(gpu, instances=tuple(_instances(nvml, handle, index, busy)))
        return _with_load(nvml, handle, gpu) if busy else gpu
    except nvml.NVMLError as error:
        return replace(gpu, problem=_failure(index, error))


def _with_load(nvml: Any, handle: Any, gpu: Gpu) -> Gpu:
    load = None if gpu.mig else _known(nvml, nvml.nvmlDeviceGetUtilizationRates, handle)
    # The processes of a divided GPU are those of its instances.
    listed = () if gpu.mig else _processes(nvml, handle)
    return replace(
        gpu,
        load=None if load is None else load.gpu,
        temperature=_temperature(nvml, handle),
        power=_watts(_known(nvml, nvml.nvmlDeviceGetPowerUsage, handle)),
        power_limit=_watts(_known(nvml, nvml.nvmlDeviceGetEnforcedPowerLimit, handle)),
        processes=listed or (),
        unlisted=listed is None,
    )


def _instances(nvml: Any, handle: Any, index: int, busy: bool) -> Iterator[Instance]:
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        # The numbers of instances have gaps once one was removed.
        part = _known(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
        if part is None:
            continue
        name = nvml.nvmlDeviceGetName(part)
        profile = _PROFILE.search(name)
        memory = nvml.nvmlDeviceGetMemoryInfo(part)
        listed = _processes(nvml, part) if busy else ()
        yield Instance(
            uuid=nvml.nvmlDeviceGetUUID(part),
            name=name,
            profile=profile.group(1) if profile else "",
            index=f"{index}:{number}",
            memory=memory.total,
            used=memory.used,
            processes=listed or (),
            unlisted=listed is None,
        )


def _known(nvml: Any, ask: Callable[..., T], *arguments: Any) -> T | None:
    """Return what NVML answers, or None where a GPU or an older driver does not know such a thing."""
    try:
        return ask(*arguments)
    except nvml.NVMLError as error:
        if _code(error) in _UNKNOWN_FACT:
            return None
        raise


def _temperature(nvml: Any, handle: Any) -> int | None:
    try:
        return int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
    except nvml.NVMLError as error:
        if _code(error) not in _UNKNOWN_FACT:
            raise
        newer = getattr(nvml, "nvmlDeviceGetTemperatureV", None)
        if _code(error) != _FUNCTION_NOT_FOUND or newer is None:
            return None
    # CUDA 14 is to have this one only.
    return _known(nvml, newer, handle, nvml.NVML_TEMPERATURE_GPU)


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _cuda(number: int) -> str:
    """Return 12040 as "12.4"."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else ""


# Health


def _illness(gpu: Gpu, rows: Sequence[int] | None) -> str:
    """Return what makes a GPU that answers unfit for work; empty if nothing does."""
    for xid in gpu.xids:
        if xid in _FATAL_XIDS:
            return (
                f"GPU {gpu.index} had the error Xid {xid}: {_FATAL_XIDS[xid]}. Reset it (nvidia-smi "
                f"--gpu-reset -i {gpu.index}, then dmesg --clear) or reboot; if it comes again, replace it."
            )
    if rows is not None and rows[3]:
        return f"GPU {gpu.index} could not replace a bad row of its memory. Have it replaced."
    if rows is not None and rows[2]:
        return f"GPU {gpu.index} is to replace a bad row of its memory. Reset it or reboot."
    if rows is None and gpu.ecc_errors:
        return f"GPU {gpu.index} had {gpu.ecc_errors} uncorrectable errors of its memory. Reset it or reboot."
    return ""


def _failure(index: int, error: Exception) -> str:
    """Say in a sentence that a GPU does not answer."""
    if _code(error) == _LOST:
        return (
            f"GPU {index} is lost: it has fallen off the bus. Reboot; if it comes again, have it looked at."
        )
    if _code(error) == _RESET:
        return (
            f"GPU {index} must be reset before it works again: nvidia-smi --gpu-reset -i {index}, or reboot."
        )
    return f"GPU {index} does not answer: {_words(error)}. Look at: journalctl -k -g NVRM."


def _code(error: Exception) -> int:
    return int(getattr(error, "value", 999))


def _words(error: Exception) -> str:
    return str(error) or f"error {_code(error)}"


def _xids(path: str) -> dict[str, list[int]]:
    """Return the Xid errors in the kernel's log, by the place on the bus; none where it cannot be read."""
    found: dict[str, list[int]] = {}
    for place, xid in _XID.findall(_kernel_log(path)):
        found.setdefault(_place(place), []).append(int(xid))
    return found


def _place(bus: str) -> str:
    """Return "00000000:01:00.0" and "0000:01:00" as the same: "0:01:00"."""
    domain, _colon, rest = bus.lower().partition(":")
    return f"{domain.lstrip('0') or '0'}:{rest.split('.')[0]}"


def _kernel_log(path: str) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return ""
    parts = []
    try:
        # What came before the last "dmesg --clear" is left out.
        with contextlib.suppress(OSError):
            os.lseek(descriptor, 0, os.SEEK_DATA)
        while True:
            try:
                part = os.read(descriptor, 8192)
            except BrokenPipeError:
                continue  # records were overwritten meanwhile; the next read goes on behind them
            except OSError:
                break  # EAGAIN: this was the last one
            if not part:
                break
            parts.append(part)
    finally:
        os.close(descriptor)
    return b"".join(parts).decode(errors="replace")


# Processes


def _processes(nvml: Any, handle: Any) -> tuple[Process, ...] | None:
    """Return the processes that compute on a device; None where NVML lists none of it at all."""
    found = _known(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle)
    return None if found is None else tuple(process(one.pid, one.usedGpuMemory) for one in found)


def process(pid: int, memory: int | None, root: str = "/proc") -> Process:
    """Return a process with its owner, command and container, as the kernel tells them."""
    place = f"{root}/{pid}"
    try:
        uid = os.stat(place).st_uid
    except OSError:
        return Process(pid, memory)
    container = _CONTAINER.search(_text(f"{place}/cgroup"))
    return Process(
        pid, memory, uid, _name(uid), _line(f"{place}/comm"), container.group(1) if container else ""
    )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def _listed(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


def _line(path: str) -> str:
    return _text(path).strip()
