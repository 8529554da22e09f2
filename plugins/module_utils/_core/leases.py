# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who has which GPU, and who gets which: pure decisions on devices, leases and bounds.

A lease gives devices, by uuid, to a container for as long as there is one. Of two leases none gives the same
device, nor a GPU and a MIG instance of it; a whole GPU is shared where both ask for a part of a shared one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from . import gpurequests
from .errors import InvalidInput, Refused
from .gpudevices import Device
from .gpurequests import MEMORY, NAMED, PROFILE, SHARED, WHOLE, GpuRequest
from .policy import Policy, User


class Busy(Refused):
    """What is asked for is given to others now; it can be had later."""


class OverLimit(Refused):
    """The user holds too much now; with less of it, what is asked for could be had."""


@dataclass(frozen=True)
class Given:
    """A device of a lease, and the GPU that it is, or is a part of; both are uuids."""

    uuid: str
    card: str


@dataclass(frozen=True)
class Lease:
    """Devices that a container (``holder``, its name) of the user ``uid`` has.

    ``cost`` is in GPU equivalents. ``live``: the container's processes may use them at this instant.
    ``kept_for``: it is none, but what is kept for users of these uids, who may be given it.
    """

    holder: str
    uid: int
    devices: tuple[Given, ...]
    shared: bool = False
    cost: Fraction = Fraction(0)
    live: bool = True
    kept_for: frozenset[int] = frozenset()

    @property
    def uuids(self) -> tuple[str, ...]:
        """The devices, by uuid."""
        return tuple(one.uuid for one in self.devices)

    def render(self) -> str:
        """Return the text of the container's label."""
        data = {
            "devices": [[one.uuid, one.card] for one in self.devices],
            "shared": self.shared,
            "cost": str(self.cost),
        }
        return json.dumps(data, sort_keys=True, separators=(",", ":"))

    def same(self, other: Lease) -> bool:
        """Say whether the other lease gives the same."""
        return (self.devices, self.shared) == (other.devices, other.shared)


def parse(text: str, holder: str, uid: int, *, live: bool = True) -> Lease:
    """Return the lease of a label; raise InvalidInput for anything that ``render`` does not write."""
    try:
        data = json.loads(text)
        lease = Lease(
            holder,
            uid,
            tuple(Given(str(uuid), str(card)) for uuid, card in data["devices"]),
            data["shared"],
            Fraction(data["cost"]),
            live,
        )
        sound = lease.render() == text and bool(lease.devices)
    except (ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        raise InvalidInput("A container's label holds no lease of GPUs.") from error
    if not sound:
        raise InvalidInput("A container's label holds a lease that is not in canonical form.")
    return lease


@dataclass(frozen=True)
class Bounds:
    """What a user may have: GPU equivalents and devices at once, devices in one container, whole GPUs."""

    equivalents: int
    devices: int | None = None
    container: int | None = None
    whole: bool = True
    shared_by: int = 1


def request_of(lease: Lease) -> GpuRequest:
    """Return the request for just what a lease gives, to hold it to the bounds again."""
    if lease.shared:
        return GpuRequest(SHARED, len(lease.devices))
    return GpuRequest(NAMED, len(lease.devices), uuids=lease.uuids)


def bounds(policy: Policy, user: User) -> Bounds:
    """Return what the policy lets a user have."""
    rule = policy.gpu.rule(user.name, user.group)
    return Bounds(
        user.limits.gpus, rule.devices, rule.container, rule.whole is not False, policy.gpu.shared_by
    )


def check_possible(request: GpuRequest, bounds: Bounds) -> None:
    """Raise Refused for what the policy never gives to this user, whatever is free."""
    if not bounds.equivalents:
        raise Refused("gpus: you may have none (limit gpus).", "Ask IT for a higher limit.")
    if gpurequests.least(request) > bounds.equivalents:
        raise Refused(
            f"gpus: {request.words} is more than the limit of {bounds.equivalents} for you.",
            "Ask for less, or ask IT for a higher limit.",
        )
    for limit, words in ((bounds.container, "in one container"), (bounds.devices, "at once")):
        if limit is not None and request.count > limit:
            raise Refused(f"gpus: you may have {limit} {words}, not {request.count}.", "Ask for less.")
    whole = request.kind == WHOLE or any(uuid.startswith("GPU-") for uuid in request.uuids)
    if whole and not bounds.whole:
        raise Refused(
            "gpus: you may have MIG instances and shared GPUs, not whole ones.",
            "See what there is: gpu list. Ask for a profile, such as 1g.10gb, or for 'shared'.",
        )
    if request.kind == SHARED and bounds.shared_by < 2:
        raise Refused("gpus: this server shares no GPUs.", "Ask for a whole one, or for a MIG profile.")


class Stock:
    """The devices of a server and what of them is free, given the leases of others."""

    def __init__(self, devices: Sequence[Device], leases: Iterable[Lease], shared_by: int = 1) -> None:
        self.devices = {device.uuid: device for device in devices}
        self.split = {device.parent for device in devices if device.parent}
        self.shared_by = shared_by
        self._alone: set[str] = set()
        self._sharers: Counter[str] = Counter()
        self._cards: set[str] = set()
        self.parts: Counter[str] = Counter()
        for lease in leases:
            self._count(lease)
        for device in devices:
            if device.parent and self.is_free(device):
                self.parts[device.parent] += 1

    def _count(self, lease: Lease) -> None:
        for one in lease.devices:
            if not lease.live and (one.uuid not in self.devices or one.uuid in self.split):
                continue  # it is gone, or cut into instances: the container cannot start, the rest is free
            if lease.shared:
                self._sharers[one.uuid] += 1
            else:
                self._alone.add(one.uuid)
            if one.uuid != one.card:
                self._cards.add(one.card)

    def is_sound(self, device: Device) -> bool:
        """Say whether a device can be given at all: it is healthy, and not cut into instances."""
        return device.healthy and device.problem is None and device.uuid not in self.split

    def is_free(self, device: Device, *, shared: bool = False) -> bool:
        """Say whether a device can be given, to be used alone or with others."""
        sharers = self._sharers[device.uuid]
        return (
            self.is_sound(device)
            and not {device.uuid, device.card} & self._alone
            and not self._sharers[device.card] * (device.parent is not None)
            and not (device.parent is None and device.uuid in self._cards)
            and (sharers < self.shared_by if shared else not sharers)
        )

    def fitting(self, request: GpuRequest, *, whole: bool = True) -> list[Device]:
        """Return the sound devices that a request means, free or not, those first that are given first.

        An instance comes from the GPU that has the fewest free ones, so that the others stay whole; the
        smallest that is enough comes first. Nothing depends on the index, which changes from boot to boot.
        """
        found = [one for one in self.devices.values() if self.is_sound(one) and _means(request, one)]
        if not whole:
            found = [one for one in found if one.parent or request.kind == SHARED]
        if request.kind == SHARED:
            return sorted(found, key=lambda one: (-self._sharers[one.uuid], one.memory, one.uuid))
        return sorted(
            found,
            key=lambda one: (one.parent is None, one.memory, self.parts[one.card], one.card, one.uuid),
        )

    def free(self, request: GpuRequest, *, whole: bool = True) -> list[Device]:
        """Return those of the devices that a request means that can be given, in the same order."""
        shared = request.kind == SHARED
        return [one for one in self.fitting(request, whole=whole) if self.is_free(one, shared=shared)]


def _means(request: GpuRequest, device: Device) -> bool:
    if request.kind == PROFILE:
        return device.profile == request.profile
    if request.kind == MEMORY:
        return device.memory >= request.memory
    if request.kind == NAMED:
        return device.uuid in request.uuids
    return device.parent is None


def cost_of(device: Device, *, shared: bool, shared_by: int) -> Fraction:
    """Return what a device counts, in GPU equivalents."""
    if device.parent is None:
        return Fraction(1, max(1, shared_by)) if shared else Fraction(1)
    return gpurequests.share_of(device.profile or "")


def choose(
    request: GpuRequest,
    holder: str,
    uid: int,
    devices: Sequence[Device],
    leases: Collection[Lease],
    bounds: Bounds,
    later: Collection[str] = (),
) -> Lease:
    """Return the lease that a request gets, always the same for the same facts.

    What ``holder`` has itself counts as free, and is given again where it is what is asked for; then comes
    what is kept for ``uid``, and last what others have reserved for ``later`` (uuids). Raises Busy,
    OverLimit, or another Refused for what can never be had.
    """
    check_possible(request, bounds)
    mine = {one.uuid for lease in leases if uid in lease.kept_for for one in lease.devices}
    leases = [lease for lease in leases if uid not in lease.kept_for]
    stock = Stock(devices, [one for one in leases if one.holder != holder], bounds.shared_by)
    shared = request.kind == SHARED
    fitting = stock.fitting(request, whole=bounds.whole)
    if len(fitting) < request.count:
        raise not_there(request, devices)
    left = left_to(uid, holder, leases, bounds, request)
    own = {one.uuid for lease in leases if lease.holder == holder for one in lease.devices}
    free = [one for one in fitting if stock.is_free(one, shared=shared)]
    free.sort(key=lambda one: (one.uuid not in own, one.uuid not in mine, one.uuid in later))
    if request.kind == WHOLE:
        free = _alike(free, request.count, own | mine, later)
    if request.kind == MEMORY:
        # The first may be more than is left to the user, and another one not.
        affordable = [one for one in free if cost_of(one, shared=False, shared_by=1) <= left]
        free = affordable or free
    if len(free) < request.count:
        raise Busy(
            f"gpus: {request.words}: {len(free)} of {len(fitting)} free.",
            "Wait for it: project launch NAME --gpus ... --wait. What there is: gpu list.",
        )
    chosen = free[: request.count]
    cost = sum((cost_of(one, shared=shared, shared_by=bounds.shared_by) for one in chosen), Fraction(0))
    if cost > left:
        raise OverLimit(
            f"gpus: you hold {shown(bounds.equivalents - left)} of {bounds.equivalents} GPUs (limit gpus), "
            f"and this is {shown(cost)} more.",
            "Retire a container that has one (gpu list shows yours), or ask IT for a higher limit.",
        )
    return Lease(holder, uid, tuple(Given(one.uuid, one.card) for one in chosen), shared, cost)


def left_to(uid: int, holder: str, leases: Iterable[Lease], bounds: Bounds, request: GpuRequest) -> Fraction:
    """Return the GPU equivalents that are left to a user; raise OverLimit for too many devices."""
    mine = [lease for lease in leases if lease.uid == uid and lease.holder != holder]
    count = sum(len(lease.devices) for lease in mine)
    if bounds.devices is not None and count + request.count > bounds.devices:
        raise OverLimit(
            f"gpus: you hold {count} of {bounds.devices} devices.",
            "Retire a container that has one (gpu list shows yours).",
        )
    return bounds.equivalents - sum((lease.cost for lease in mine), Fraction(0))


def not_there(request: GpuRequest, devices: Iterable[Device]) -> Refused:
    """Return the error for what the server does not have."""
    profiles = sorted({one.profile for one in devices if one.profile and one.healthy})
    there = f"MIG profiles: {', '.join(profiles)}." if profiles else "there are no MIG instances."
    return Refused(
        f"gpus: this server has no such thing that works: {request.words}.", f"See gpu list; {there}"
    )


def _alike(free: Sequence[Device], count: int, own: Collection[str], later: Collection[str]) -> list[Device]:
    """Return the devices with those first that are of one model, of which there are enough."""
    models: dict[tuple[int, str], list[Device]] = {}
    for one in free:
        models.setdefault((one.memory, one.name), []).append(one)

    def rank(item: tuple[tuple[int, str], list[Device]]) -> tuple[bool, bool, tuple[int, str]]:
        model, alike = item
        return (
            not any(one.uuid in own for one in alike),
            any(one.uuid in later for one in alike[:count]),
            model,
        )

    for _model, alike in sorted(models.items(), key=rank):
        if len(alike) >= count:
            return alike
    return list(free)


def still_there(lease: Lease, devices: Sequence[Device], leases: Iterable[Lease], shared_by: int) -> None:
    """Raise Refused when a container cannot be started again with the devices that it was made with."""
    stock = Stock(devices, [one for one in leases if one.holder != lease.holder], max(2, shared_by))
    fresh = "Start a new one: container retire NAME, then project launch NAME --gpus ..."
    for one in lease.devices:
        device = stock.devices.get(one.uuid)
        if device is None:
            raise Refused(f"Its GPU {one.uuid} is not there any more.", fresh)
        if not stock.is_sound(device):
            why = device.problem or "it is broken, or cut into MIG instances"
            raise Refused(f"Its GPU {one.uuid} cannot be used: {why.rstrip('.')}.", fresh)
        if not stock.is_free(device, shared=lease.shared):
            raise Busy(f"Its GPU {one.uuid} is given to somebody else by now.", fresh)


def set_aside(
    waiting: Iterable[tuple[GpuRequest, str, int, Bounds]],
    devices: Sequence[Device],
    leases: Collection[Lease],
) -> list[Lease]:
    """Return the leases with what must be left to those who wait, in their order.

    Who could have everything is given it; for who waits for more, what is free of it already is kept. So no
    stream of small requests keeps a large one waiting for ever. Who waits for the own limit keeps nothing.
    """
    found = list(leases)
    for request, holder, uid, limits in waiting:
        try:
            found.append(choose(request, holder, uid, devices, found, limits))
        except Busy:
            there = [lease for lease in found if uid not in lease.kept_for]
            stock = Stock(devices, there, limits.shared_by)
            free = stock.free(request, whole=limits.whole)[: request.count]
            found.append(Lease(holder, -1, tuple(Given(one.uuid, one.card) for one in free)))
        except Refused:
            continue
    return found


def shown(amount: Fraction) -> str:
    """Return GPU equivalents for people: 2, 3/7, 1 1/2."""
    whole, rest = divmod(amount, 1)
    return " ".join(filter(None, [str(whole) if whole or not rest else "", str(rest) if rest else ""]))


def without(leases: Iterable[Lease], holder: str) -> list[Lease]:
    """Return the leases of all others."""
    return [lease for lease in leases if lease.holder != holder]


def stopped(lease: Lease) -> Lease:
    """Return the lease of a container that does not run."""
    return replace(lease, live=False)
