# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What somebody asks of GPUs: ``2``, ``1g.10gb``, ``2x1g.10gb``, ``memory=40G``, ``shared``, or by uuid.

A request is parsed into one frozen value, and rendered back into one canonical text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from .errors import InvalidInput
from .names import printable
from .sizes import parse_size

#: Kinds of requests: whole GPUs, MIG instances, any device with enough memory, a part of a GPU, named ones.
WHOLE, PROFILE, MEMORY, SHARED, NAMED = KINDS = ("whole", "profile", "memory", "shared", "named")
_MOST = 64
_COUNT = re.compile(r"[1-9][0-9]?")
# NVIDIA Multi-Instance GPU User Guide, "MIG Device Names": [c.]Ng.Mgb, with +me and the like behind it.
_PROFILE = re.compile(
    r"(?:([1-9][0-9]?)x)?((?:[1-7]c\.)?[1-7]g\.[1-9][0-9]{0,2}gb(?:[+-](?:me|gfx)(?:\.all)?)?)"
)
# nvidia-smi -L: GPU-<uuid>, MIG-<uuid>; before the driver 470 MIG-GPU-<uuid>/<gi>/<ci>, which is not taken.
_UUID = re.compile(r"(?:GPU|MIG)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_UNITS = ((1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K"), (1, ""))
_EXAMPLES = "Write a number such as 2, a MIG profile such as 1g.10gb, memory=40G, shared, or a uuid."


@dataclass(frozen=True)
class GpuRequest:
    """So many devices of a kind. ``memory`` is bytes that the device must at least have."""

    kind: str
    count: int = 1
    profile: str = ""
    memory: int = 0
    uuids: tuple[str, ...] = ()

    def render(self) -> str:
        """Return the canonical text; ``parse`` of it gives an equal request."""
        if self.kind == WHOLE:
            return str(self.count)
        if self.kind == PROFILE:
            return self.profile if self.count == 1 else f"{self.count}x{self.profile}"
        if self.kind == MEMORY:
            size, unit = next((size, unit) for size, unit in _UNITS if self.memory % size == 0)
            return f"memory={self.memory // size}{unit}"
        return SHARED if self.kind == SHARED else ",".join(self.uuids)

    @property
    def words(self) -> str:
        """What is asked for, in words."""
        return {
            WHOLE: f"{self.count} GPU{'s' if self.count > 1 else ''}",
            PROFILE: f"{self.count} MIG instance{'s' if self.count > 1 else ''} {self.profile}",
            MEMORY: f"a GPU or an instance with {self.render().partition('=')[2]} of memory",
            SHARED: "a part of a shared GPU",
            NAMED: f"the GPU{'s' if self.count > 1 else ''} {', '.join(self.uuids)}",
        }[self.kind]


def parse(value: object, where: str = "gpus") -> GpuRequest:
    """Return the request that a number, a text or a mapping (``{memory: 40G}``, ``{uuid: ...}``) means.

    Raises InvalidInput, which names ``where``.
    """
    if isinstance(value, Mapping):
        return _parse_mapping(value, where)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str):
        found = _parse_text(value.strip(), where)
        if found is not None:
            return found
    raise InvalidInput(f"{where}: {printable(repr(value))[:60]} asks for no GPU.", _EXAMPLES)


def _parse_mapping(value: Mapping[object, object], where: str) -> GpuRequest:
    if set(value) == {"memory"}:
        return _of_memory(value["memory"], where)
    if set(value) == {"uuid"} and isinstance(value["uuid"], str) and _UUID.fullmatch(value["uuid"]):
        return GpuRequest(NAMED, uuids=(str(value["uuid"]),))
    raise InvalidInput(f"{where}: {printable(repr(dict(value)))[:60]} asks for no GPU.", _EXAMPLES)


def _parse_text(text: str, where: str) -> GpuRequest | None:
    if _COUNT.fullmatch(text) and int(text) <= _MOST:
        return GpuRequest(WHOLE, int(text))
    match = _PROFILE.fullmatch(text)
    if match and int(match[1] or 1) <= _MOST:
        return GpuRequest(PROFILE, int(match[1] or 1), match[2])
    if text.startswith("memory="):
        return _of_memory(text.partition("=")[2], where)
    if text == SHARED:
        return GpuRequest(SHARED)
    uuids = tuple(sorted(text.split(",")))
    if len(set(uuids)) == len(uuids) <= _MOST and all(_UUID.fullmatch(uuid) for uuid in uuids):
        return GpuRequest(NAMED, len(uuids), uuids=uuids)
    return None


def is_uuid(text: str) -> bool:
    """Say whether a text is the uuid of a GPU or of a MIG instance, as nvidia-smi -L tells it."""
    return _UUID.fullmatch(text) is not None


def _of_memory(value: object, where: str) -> GpuRequest:
    memory = parse_size(value, f"{where}: memory")
    if memory < 1 << 20:
        raise InvalidInput(f"{where}: memory: {memory} bytes are less than any GPU has.", "Write 40G.")
    return GpuRequest(MEMORY, memory=memory)


def text_of(value: object, where: str) -> str:
    """Return the canonical text of a request; '' for None, '' and 0, which ask for none."""
    if value is None or value == "" or (value == 0 and not isinstance(value, bool)):
        return ""
    return parse(value, where).render()


def requested(text: str) -> GpuRequest | None:
    """Return the request of a canonical text; None for ''."""
    return parse(text) if text else None


def least(request: GpuRequest) -> Fraction:
    """Return the least that a request can come to, in GPU equivalents."""
    if request.kind == WHOLE:
        return Fraction(request.count)
    if request.kind == PROFILE:
        return request.count * share_of(request.profile)
    return Fraction(sum(uuid.startswith("GPU-") for uuid in request.uuids))


def share_of(profile: str) -> Fraction:
    """Return the part of a GPU that an instance of a MIG profile is: 1g of 7 slices (MIG User Guide)."""
    match = re.search(r"([1-7])g", profile)
    return Fraction(int(match[1]), 7) if match else Fraction(1)
