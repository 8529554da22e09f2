"""Which GPU a request gets: exactly what it says, packed well, never twice, within the policy."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import gpuqueue, gpurequests, leases
from ansible_collections.lab.server.plugins.module_utils._core.errors import InvalidInput, Refused
from ansible_collections.lab.server.plugins.module_utils._core.gpudevices import Device
from ansible_collections.lab.server.plugins.module_utils._core.leases import (
    Bounds,
    Busy,
    Given,
    Lease,
    OverLimit,
)
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy, from_inventory
from hypothesis import given
from hypothesis import strategies as st

GIB = 1 << 30
BOUNDS = Bounds(8)


def uuid(number: int, kind: str = "GPU") -> str:
    return f"{kind}-{number:08x}-0000-4000-8000-000000000000"


def gpu(number: int, memory: int = 80 * GIB, **more: Any) -> Device:
    return Device(uuid(number), "H100 (simulated)", memory, index=str(number), **more)


def mig(number: int, card: int, profile: str = "1g.10gb", memory: int = 10 * GIB, **more: Any) -> Device:
    return Device(uuid(number, "MIG"), "H100 MIG", memory, profile, uuid(card), f"{card}:{number}", **more)


def choose(
    text: object,
    devices: list[Device],
    held: list[Lease] | None = None,
    bounds: Bounds = BOUNDS,
    *,
    holder: str = "new._.2001",
    uid: int = 2001,
) -> Lease:
    return leases.choose(gpurequests.parse(text), holder, uid, devices, held or [], bounds)


def of(number: int, lease: Lease) -> Lease:
    """Return the lease as that of another's container."""
    return Lease(f"p{number}._.{3000 + number}", 3000 + number, lease.devices, lease.shared, lease.cost)


def test_whole_gpus_are_given_by_uuid_and_the_order_of_the_list_does_not_matter() -> None:
    devices = [gpu(n) for n in range(4)]
    lease = choose(2, devices)
    assert lease.uuids == (uuid(0), uuid(1)) and lease.cost == 2
    assert choose(2, devices[::-1]) == lease


def test_what_others_have_is_not_given() -> None:
    devices = [gpu(n) for n in range(2)]
    first = of(1, choose(1, devices))
    second = of(2, choose(1, devices, [first]))
    assert {*first.uuids, *second.uuids} == {uuid(0), uuid(1)}
    with pytest.raises(Busy, match=r"1 GPU: 0 of 2 free"):
        choose(1, devices, [first, second])


def test_the_smallest_gpus_of_one_model_that_are_enough_are_given() -> None:
    devices = [gpu(0), gpu(1), gpu(2, 24 * GIB), gpu(3, 24 * GIB)]
    assert choose(2, devices).uuids == (uuid(2), uuid(3))
    assert choose(3, [*devices, gpu(4)]).uuids == (uuid(0), uuid(1), uuid(4))


def test_instances_are_packed_on_the_gpu_that_has_the_fewest_free_ones() -> None:
    devices = [mig(card * 10 + n, card) for card in (1, 2) for n in range(7)]
    held = [of(1, choose(uuid(20, "MIG"), devices))]
    lease = choose("1g.10gb", devices, held)
    assert lease.uuids == (uuid(21, "MIG"),) and lease.cost == Fraction(1, 7)


def test_memory_gets_the_smallest_device_that_has_it() -> None:
    devices = [gpu(0), mig(10, 1), mig(11, 1, "3g.40gb", 40 * GIB)]
    assert choose({"memory": "8g"}, devices).uuids == (uuid(10, "MIG"),)
    assert choose("memory=20G", devices).uuids == (uuid(11, "MIG"),)
    assert choose("memory=60G", devices).uuids == (uuid(0),)
    with pytest.raises(Refused, match="no such thing"):
        choose("memory=100G", devices)


def test_a_gpu_that_is_cut_into_instances_is_not_given_whole_and_the_other_way_round() -> None:
    cut = [gpu(1), mig(10, 1), mig(11, 1)]
    with pytest.raises(Refused, match="no such thing"):
        choose(1, cut)
    held = [of(1, choose("1g.10gb", cut))]
    # The instances went with the next boot, but the container that has one still runs.
    with pytest.raises(Busy):
        choose(1, [gpu(1)], held)
    assert choose(1, [gpu(1)], [leases.stopped(held[0])]).uuids == (uuid(1),)
    # The other way round: the whole GPU is held, and now it is in instances.
    whole = [of(1, choose(1, [gpu(1)]))]
    with pytest.raises(Busy):
        choose("1g.10gb", cut, whole)
    assert leases.set_aside([], cut, whole) == whole


@pytest.mark.parametrize("broken", [{"healthy": False}, {"problem": "fell off the bus"}])
def test_what_is_broken_is_never_given(broken: dict[str, Any]) -> None:
    devices = [gpu(0, **broken), gpu(1)]
    assert choose(1, devices).uuids == (uuid(1),)
    for text in (2, uuid(0)):
        with pytest.raises(Refused, match="no such thing that works"):
            choose(text, devices)


def test_a_shared_gpu_is_filled_before_the_next_and_never_given_whole() -> None:
    devices, bounds = [gpu(0), gpu(1)], Bounds(1, shared_by=2)
    held: list[Lease] = []
    for number in range(3):
        held.append(of(number, choose("shared", devices, held, bounds)))
    assert [one.uuids for one in held] == [(uuid(0),), (uuid(0),), (uuid(1),)]
    assert held[0].cost == Fraction(1, 2)
    with pytest.raises(Busy):
        choose(1, devices, held, bounds)
    held.append(of(4, choose("shared", devices, held, bounds)))
    with pytest.raises(Busy):
        choose("shared", devices, held, bounds)


@pytest.mark.parametrize(
    ("text", "bounds", "said"),
    [
        (1, Bounds(0), "you may have none"),
        (3, Bounds(2), "more than the limit of 2"),
        (2, Bounds(4, container=1), "1 in one container, not 2"),
        (2, Bounds(4, devices=1), "1 at once, not 2"),
        (1, Bounds(4, whole=False), "not whole ones"),
        (uuid(0), Bounds(4, whole=False), "not whole ones"),
        ("shared", Bounds(4), "shares no GPUs"),
        ("8x1g.10gb", Bounds(1), "more than the limit of 1"),
    ],
)
def test_the_policy_says_what_is_never_given(text: object, bounds: Bounds, said: str) -> None:
    with pytest.raises(Refused, match=said) as error:
        choose(text, [gpu(n) for n in range(4)], bounds=bounds)
    assert not isinstance(error.value, (Busy, OverLimit)) and error.value.hint


def test_what_a_user_holds_counts_and_what_is_given_up_does_not() -> None:
    devices = [gpu(n) for n in range(4)]
    mine = choose(2, devices, holder="a._.2001")
    with pytest.raises(OverLimit, match="you hold 2 of 2 GPUs"):
        choose(1, devices, [mine], Bounds(2), holder="b._.2001")
    with pytest.raises(OverLimit, match="you hold 2 of 3 devices"):
        choose(2, devices, [mine], Bounds(4, devices=3), holder="b._.2001")
    # A container that is made anew has the same ones again.
    assert choose(2, devices, [mine], Bounds(2), holder="a._.2001") == mine
    sevenths = [mig(n, 9) for n in range(10, 17)]
    held = [choose("6x1g.10gb", sevenths, holder="a._.2001")]
    assert choose("1g.10gb", sevenths, held, Bounds(1), holder="b._.2001").cost == Fraction(1, 7)


def test_a_user_without_whole_gpus_gets_memory_from_an_instance_alone() -> None:
    devices = [gpu(0), mig(10, 1)]
    assert choose("memory=10G", devices, bounds=Bounds(1, whole=False)).uuids == (uuid(10, "MIG"),)
    with pytest.raises(Refused):
        choose("memory=20G", devices, bounds=Bounds(1, whole=False))


def test_nobody_who_waits_for_many_is_passed_by_those_who_want_one() -> None:
    devices = [gpu(n) for n in range(4)]
    held = [of(1, choose(2, devices))]
    big = (gpurequests.parse(4), "big._.2002", 2002, BOUNDS)
    with pytest.raises(Busy):
        choose(1, devices, leases.set_aside([big], devices, held))
    # One who may have no more now keeps nobody waiting.
    blocked = (gpurequests.parse(2), "more._.3001", 3001, Bounds(2))
    assert choose(1, devices, leases.set_aside([blocked], devices, held)).uuids == (uuid(2),)
    one = (gpurequests.parse(1), "one._.2003", 2003, BOUNDS)
    assert choose(1, devices, leases.set_aside([one], devices, held)).uuids == (uuid(3),)


@pytest.mark.parametrize("keeps", [True, False])
def test_who_waits_for_all_is_served_when_the_last_lease_that_was_there_ends(keeps: bool) -> None:
    """A request for one GPU comes each minute, and each lease lasts an hour: not a minute more is waited.

    Where nothing is kept for who waits, the same stream never lets all GPUs be free at once.
    """
    devices, came, lasts = [gpu(n) for n in range(8)], 100, 60
    big = (gpurequests.parse(8), "big._.2002", 2002, BOUNDS)
    held: list[tuple[Lease, int]] = []
    served = 0
    for now in range(came + 10 * lasts):
        held = [(lease, end) for lease, end in held if end > now]
        current = [lease for lease, _end in held]
        if now >= came:
            try:
                leases.choose(big[0], big[1], big[2], devices, current, BOUNDS)
                served = now
                break
            except Busy:
                current = leases.set_aside([big], devices, current) if keeps else current
        with contextlib.suppress(Busy):
            small = choose(1, devices, current, holder=f"p{now}._.3001", uid=3001 + now)
            held.append((small, now + lasts))
    assert (came < served <= came + lasts) if keeps else not served


def two_groups(**gpu: Any) -> Policy:
    """Return a policy with alice of the group greedy, and bob of the group modest."""
    limits = {"containers": 9, "cpus": 1, "memory": "1g", "pids": 64, "shm": "1m", "gpus": 8}
    quota = {"soft": 0, "hard": 0, "inodes_soft": 0, "inodes_hard": 0}
    made, _keys = from_inventory(
        {
            "lab_groups": [
                {"name": name, "gid": 3101 + number, "limits": limits, "quota": quota}
                for number, name in enumerate(("greedy", "modest"))
            ],
            "lab_users": [
                {"name": "alice", "uid": 2001, "group": "greedy"},
                {"name": "bob", "uid": 2002, "group": "modest"},
            ],
            **({"lab_gpu": gpu} if gpu else {}),
        }
    )
    return made


def test_who_waited_for_a_day_comes_first_and_not_a_second_earlier() -> None:
    made = two_groups()
    usage = gpuqueue.Usage(1.0, ((2001, 1e9),))
    greedy = gpuqueue.Waiting("a._.2001", 2001, "a", "8", 1000.0, "")
    others = [gpuqueue.Waiting(f"p{n}._.2002", 2002, f"p{n}", "1", 1001.0 + n, "") for n in range(50)]
    for waited, place in ((gpuqueue.PATIENCE - 1, 50), (gpuqueue.PATIENCE, 0)):
        ordered = gpuqueue.order([*others, greedy], made, usage, greedy.since + waited)
        assert ordered.index(greedy) == place


def test_a_group_of_three_times_the_weight_may_have_had_three_times_as_much() -> None:
    alice = gpuqueue.Waiting("a._.2001", 2001, "a", "1", 1000.0, "")
    bob = gpuqueue.Waiting("b._.2002", 2002, "b", "1", 1001.0, "")
    for weight, had, first in ((1, 101.0, bob), (3, 299.0, alice), (3, 301.0, bob)):
        made = two_groups(groups={"greedy": {"weight": weight}})
        usage = gpuqueue.Usage(1.0, ((2001, had), (2002, 100.0)))
        assert gpuqueue.order([alice, bob], made, usage, 1002.0)[0] == first


def test_the_estimate_is_the_next_end_of_a_lease_and_rounds_of_leases_beyond() -> None:
    held = [Lease(f"p{n}._.2001", 2001, (Given(uuid(n), uuid(n)),)) for n in range(2)]
    since = {"p0._.2001": 400.0, "p1._.2001": 900.0}
    usage = gpuqueue.Usage(1000.0, (), 1000.0)  # a lease lasts a thousand seconds
    told = [gpuqueue.estimate(place, held, usage, since, 1000.0) for place in range(1, 6)]
    assert told == [400, 900, 1400, 1900, 2400]
    assert gpuqueue.estimate(1, held, usage, since, 2000.0) == 0  # it is overdue
    assert gpuqueue.estimate(1, [], usage, since, 1000.0) == -1
    assert gpuqueue.estimate(1, held, gpuqueue.Usage(1000.0), since, 1000.0) == -1


def test_a_container_starts_again_only_with_what_it_was_made_with() -> None:
    devices = [gpu(0), gpu(1)]
    lease = choose(1, devices)
    leases.still_there(lease, devices, [lease], 1)
    for now, held, said in (
        ([gpu(1)], [], "not there any more"),
        ([gpu(0, problem="Xid 79"), gpu(1)], [], "Xid 79"),
        ([gpu(0), mig(10, 0)], [], "cut into MIG instances"),
        (devices, [of(1, lease)], "given to somebody else"),
    ):
        with pytest.raises(Refused, match=said):
            leases.still_there(lease, now, held, 1)


def test_what_cannot_start_any_more_keeps_nothing_of_a_gpu_that_was_cut_since() -> None:
    cut, whole = [gpu(0), mig(10, 0), mig(11, 0)], choose(1, [gpu(0)])
    down = [leases.stopped(of(1, whole))]
    assert choose("2x1g.10gb", cut, down).uuids == (uuid(10, "MIG"), uuid(11, "MIG"))
    with pytest.raises(Busy):  # it has it again when the GPU is whole again
        choose(1, [gpu(0)], down)
    with pytest.raises(Busy):  # its processes have it still
        choose("1g.10gb", cut, [of(1, whole)])


requests = st.one_of(
    st.integers(1, 64).map(str),
    st.builds("{}g.{}gb".format, st.integers(1, 7), st.integers(1, 999)),
    st.builds("{}x{}g.{}gb".format, st.integers(2, 64), st.integers(1, 7), st.integers(1, 999)),
    st.integers(1 << 20, 1 << 50).map("memory={}".format),
    st.just("shared"),
    st.sets(
        st.builds(uuid, st.integers(0, 999), st.sampled_from(["GPU", "MIG"])), min_size=1, max_size=4
    ).map(",".join),
)


@given(requests)
def test_requests_are_rendered_as_they_are_parsed(text: str) -> None:
    request = gpurequests.parse(text)
    assert gpurequests.parse(request.render()) == request
    assert gpurequests.parse(request.render()).render() == request.render()
    assert request.words


@pytest.mark.parametrize(
    "value",
    [
        *(
            "0",
            "-1",
            "65",
            "1.5",
            "all",
            "none",
            "void",
            "1g",
            "8g.80gb",
            "0x1g.10gb",
            "1g.10gb,2",
            "memory=",
        ),
        *("memory=1", "memory=-5g", "GPU-1", f"{uuid(1)},{uuid(1)}", f"{uuid(1)} --privileged", "2\n", "٢"),
        *(True, False, 1.5, None, [], {}, {"memory": "40g", "count": 2}, {"uuid": "0"}, {"uuid": 3}, -1, 0),
    ],
)
def test_what_asks_for_no_gpu_is_refused(value: object) -> None:
    if value == "2\n":
        assert gpurequests.parse(value).count == 2  # white space around it is nothing
        return
    with pytest.raises(InvalidInput):
        gpurequests.parse(value)


@given(
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=8),
    st.booleans(),
    st.fractions(0, 8),
)
def test_leases_are_read_as_they_are_written(
    pairs: list[tuple[int, int]], shared: bool, cost: Fraction
) -> None:
    given_ = tuple(leases.Given(uuid(a), uuid(b)) for a, b in pairs)
    lease = Lease("a._.2001", 2001, given_, shared, cost)
    assert leases.parse(lease.render(), "a._.2001", 2001) == lease


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", "x", '{"devices":[]}', "all"])
def test_a_label_that_is_no_lease_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        leases.parse(text, "a._.2001", 2001)


@pytest.mark.parametrize(
    ("amount", "words"), [(0, "0"), (2, "2"), (Fraction(3, 7), "3/7"), (Fraction(3, 2), "1 1/2")]
)
def test_equivalents_are_shown_as_people_write_them(amount: Fraction, words: str) -> None:
    assert leases.shown(Fraction(amount)) == words
