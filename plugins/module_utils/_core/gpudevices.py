# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A device that computes: a whole GPU, or a MIG instance of one. Found by NVML, given out by leases."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """A GPU or a MIG instance. ``uuid`` names it for good; ``index`` changes from boot to boot."""

    uuid: str
    name: str
    #: Bytes.
    memory: int
    #: The profile of a MIG instance, such as "1g.10gb"; None for a whole GPU.
    profile: str | None = None
    #: The uuid of the GPU that a MIG instance is a part of; None for a whole GPU.
    parent: str | None = None
    #: "0" for a GPU, "0:3" for a MIG instance.
    index: str = ""
    healthy: bool = True
    #: What is wrong with it, in a sentence; None where nothing is.
    problem: str | None = None

    @property
    def card(self) -> str:
        """The uuid of the GPU that this is, or is a part of."""
        return self.parent or self.uuid
