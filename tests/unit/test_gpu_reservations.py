"""Reservations of GPUs: made within bounds, kept, handed over with notice; lapses, faults and clocks."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Callable
from unittest import mock

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    adminnotes,
    ending,
    gpuhandover,
    gpuleases,
    gpurequests,
    gpureservations,
    gpureserve,
    notices,
    verbs_gpu,
)
from ansible_collections.lab.server.plugins.module_utils._core.errors import (
    HostError,
    InvalidInput,
    LabError,
    NotFound,
    Refused,
)
from ansible_collections.lab.server.plugins.module_utils._core.leases import Busy, Given, Lease, OverLimit
from ansible_collections.lab.server.plugins.module_utils._core.lifecycle import Decision
from ansible_collections.lab.server.plugins.module_utils._core.policy_gpus import GpuRule, ReserveRules
from docker_model import Row
from test_gpu_leases import CARDS, Server
from test_lease_model import uuid

HOUR = 3600.0
# Users 0 and 3 may have 8 GPUs, the others 2.
RULES = ReserveRules(gpus=4, ahead_days=7, hours=12, open=2, notice_hours=2, grace_minutes=60)


class Reserving(Server):
    """A server with four GPUs, a clock, and a look every ten minutes."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = replace(self.policy, gpu=replace(self.policy.gpu, reserve=RULES))
        self.zero = self.now = 1_800_000_000.0
        self.up, self.boot = 5000.0, "one"

    def reserve(self, number: int, gpus: str, start: float, hours: float, **more: Any) -> int:
        """Reserve from so many hours after the beginning."""
        told = gpureserve.reserve(
            self.engine,
            self.policy,
            self.user(number),
            gpurequests.parse(gpus),
            self.zero + start * HOUR,
            hours * HOUR,
            lambda: list(self.devices),
            **more,
        )
        return int(told["number"])

    def look(self) -> list[gpuhandover.Handover]:
        found, record = gpuhandover.look(self.engine, self.policy)
        for one in found:
            assert not ending._hand_over(self.engine, self.policy, one, check=False).problem
        gpuhandover.keep(record)
        return found

    def until(self, hours: float) -> None:
        """Let time pass until so many hours after the beginning, with its looks."""
        while self.now < self.zero + hours * HOUR - 1:
            step = min(600.0, self.zero + hours * HOUR - self.now)
            self.now, self.up = self.now + step, self.up + step
            self.look()

    def stop(self, _engine: object, user: Any, project: str, **_more: object) -> None:
        row = self.engine.named(f"{project}._.{user.uid}")
        assert row is not None
        self.engine.stop(row.id)

    def states(self, number: int) -> list[tuple[int | None, str]]:
        told = self.ask("gpu-reserved", self.user(number))["reservations"]
        return [(one["number"], one["state"]) for one in told]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Reserving:
    made = Reserving()
    clock = SimpleNamespace(
        time=lambda: made.now,
        clock_gettime=lambda _clock: made.up,
        sleep=lambda _seconds: None,
        CLOCK_BOOTTIME=7,
    )
    for module in (gpuleases, gpureserve, gpuhandover, verbs_gpu):
        monkeypatch.setattr(module, "time", clock)
    for module in (gpuleases, gpuhandover):
        monkeypatch.setattr(module, "state", made.records)
    monkeypatch.setattr(gpuleases.locks, "hold", lambda *_words, **_named: contextlib.nullcontext())
    monkeypatch.setattr(gpuleases, "inventory", lambda _policy: list(made.devices))
    monkeypatch.setattr(gpuhandover.events, "boot_id", lambda: made.boot)
    monkeypatch.setattr(verbs_gpu, "connected", lambda: contextlib.nullcontext(made.engine))
    monkeypatch.setattr(ending, "stop", made.stop)
    monkeypatch.setattr(ending, "journal", mock.Mock())
    return made


def fill(server: Reserving, number: int = 0) -> list[Row]:
    """Let a user hold all four GPUs, each by a container of its own."""
    return [server.launch(server.user(number), f"p{n}", uuid(n)) for n in range(4)]


# Made, within bounds


@pytest.mark.parametrize(
    ("number", "gpus", "start", "hours", "words"),
    [
        (0, "1", -1, 2, "is over"),
        (0, "1", 24 * 7 + 1, 1, "more than 7 days ahead"),
        (0, "1", 5, 13, "longer than 12 hours"),
        (1, "3", 5, 1, "more than the limit of 2"),
        (0, "5", 5, 1, "no such thing that works"),
        (0, "2g.20gb", 5, 1, "no such thing that works"),
    ],
)
def test_what_is_beyond_the_bounds_is_refused_and_not_written(
    server: Reserving, number: int, gpus: str, start: float, hours: float, words: str
) -> None:
    with pytest.raises(Refused, match=words):
        server.reserve(number, gpus, start, hours)
    assert gpuleases.read_reserved() == []


def test_users_reserve_nothing_unless_it_is_allowed_and_admins_do(server: Reserving) -> None:
    server.policy = replace(server.policy, gpu=replace(server.policy.gpu, reserve=ReserveRules()))
    with pytest.raises(Refused, match="You may reserve no GPUs"):
        server.reserve(0, "1", 30, 1)
    assert server.reserve(0, "4", 24 * 30, 100, admin=True) == 1
    with pytest.raises(Refused, match="limit of 2"):
        server.reserve(1, "3", 30, 1, admin=True)
    rule = (("user1", GpuRule(reserve=1)),)
    server.policy = replace(server.policy, gpu=replace(server.policy.gpu, users=rule))
    with pytest.raises(Refused, match="2 GPUs would be reserved for that time, of 1 at most"):
        server.reserve(1, "2", 30, 1)
    assert server.reserve(1, "1", 30, 1) == 2


def test_nobody_has_more_open_or_at_once_than_is_allowed(server: Reserving) -> None:
    server.reserve(1, "1", 5, 2)
    with pytest.raises(Refused, match="3 GPUs would be reserved for that time, of 2 at most"):
        server.reserve(1, "2", 6, 2)
    second = server.reserve(1, "1", 6, 2)
    with pytest.raises(Refused, match="2 reservations that are not over"):
        server.reserve(1, "1", 20, 1)
    gpureserve.cancel(server.engine, server.policy, second, server.user(1))
    assert server.reserve(1, "1", 20, 1) == 3


def test_no_two_are_promised_the_same_for_one_instant(server: Reserving) -> None:
    server.reserve(0, "3", 5, 4)
    with pytest.raises(Refused, match="reserved by others for a part of that time"):
        server.reserve(3, "2", 8, 4)
    server.reserve(3, "1", 8, 4)
    with pytest.raises(Refused, match="reserved by others"):
        server.reserve(1, "1", 8.5, 0.25)
    server.reserve(1, "2", 9, 1)  # a window ends just before the next one begins
    server.reserve(2, "2", 3, 2)


def test_so_soon_that_nobody_could_be_told_only_what_is_free_is_reserved(server: Reserving) -> None:
    rows = fill(server)
    with pytest.raises(Refused, match="not free now, and who has them is told 2 h before"):
        server.reserve(3, "1", 2, 1)
    server.engine.remove(rows[2].id)
    gpuleases.join(server.engine, server.policy, server.user(1), "w", gpurequests.parse("1"))
    with pytest.raises(Refused, match="not free now"):
        server.reserve(3, "1", 0, 1)  # nor what is left for who waits
    gpuleases.leave("w._.2002")
    server.reserve(3, "1", 0, 1)
    assert gpuleases.read_reserved()[0].uuids == {uuid(2)}


def test_what_somebody_has_waited_for_a_day_for_is_reserved_by_nobody_else(server: Reserving) -> None:
    for number in range(4):
        server.launch(server.user(number % 2), f"p{number}", uuid(number))
    gpuleases.join(server.engine, server.policy, server.user(3), "w", gpurequests.parse("2"))
    # This one waits for the own limit, and keeps nothing.
    gpuleases.join(server.engine, server.policy, server.user(1), "more", gpurequests.parse("1"))
    server.policy = replace(server.policy, gpu=replace(server.policy.gpu, reserve=replace(RULES, open=9)))
    server.reserve(0, "4", 23, 2)  # so long nobody has waited yet
    server.now, server.up = server.now + 24 * HOUR, server.up + 24 * HOUR
    with pytest.raises(Refused, match="others have waited for a day, and come before"):
        server.reserve(0, "3", 40, 1)
    server.reserve(0, "2", 40, 1)
    server.reserve(3, "2", 40, 1)  # who waits may
    server.reserve(0, "3", 50, 1, admin=True)
    gpuleases.leave("w._.2004")
    server.reserve(0, "3", 60, 1)


def test_a_dry_run_says_the_same_and_writes_nothing(server: Reserving) -> None:
    options = {"gpus": "2", "from": "now", "for": HOUR}
    told = server.ask("gpu-reserve-check", server.user(0), **options)
    assert gpuleases.read_reserved() == []
    assert server.ask("gpu-reserve", server.user(0), **options) == told
    assert told["number"] == 1 and told["state"] == "on" and told["end"] - told["start"] == 3600
    check = server.ask("gpu-unreserve-check", server.user(0), number=1)
    assert server.states(0) == [(1, "on")]
    assert server.ask("gpu-unreserve", server.user(0), number=1) == check
    assert server.states(0) == []


def test_numbers_are_not_given_again_and_what_is_over_is_forgotten_at_last(server: Reserving) -> None:
    first = server.reserve(0, "1", 5, 1)
    for number in range(2, 500):
        assert server.reserve(3, "1", 5, 1) == number
        gpureserve.cancel(server.engine, server.policy, number, server.user(3))
    assert [one.number for one in gpuleases.read_reserved()] == [first, 499]


def test_what_somebody_reserved_who_has_left_is_for_all_again(server: Reserving) -> None:
    server.reserve(0, "4", 5, 4)
    server.policy = replace(server.policy, users=server.policy.users[1:])
    server.reserve(2, "4", 5, 4)
    assert len(gpuleases.read_reserved()) == 1


# Kept for its owner


def test_in_the_window_it_is_its_owners_whoever_waits(server: Reserving) -> None:
    server.reserve(1, "2", 3, 2)
    server.until(3)
    gpuleases.join(server.engine, server.policy, server.user(0), "all", gpurequests.parse("4"))
    with pytest.raises(Busy, match="2 kept for reservations of others"):
        server.obtain(server.user(3), "x", "3")
    assert server.ask("gpu-why", server.user(3), gpus="3")["now"] is False
    assert set(server.obtain(server.user(1), "y", "2").uuids) == gpuleases.read_reserved()[0].uuids


def test_of_the_next_window_only_what_ones_own_has_is_given(server: Reserving) -> None:
    server.reserve(1, uuid(0), 3, 2)
    server.reserve(3, "4", 5, 2)
    server.until(3.5)
    assert server.obtain(server.user(1), "own", "1").uuids == (uuid(0),)
    with pytest.raises(Busy, match="3 kept for reservations of others"):
        server.obtain(server.user(1), "more", "1")


def test_what_is_reserved_for_later_is_given_last_and_told(server: Reserving) -> None:
    server.reserve(0, f"{uuid(0)}", 10, 2)
    assert [server.obtain(server.user(3), f"p{n}", "1").uuids[0] for n in range(4)] == [
        uuid(1),
        uuid(2),
        uuid(3),
        uuid(0),
    ]
    assert gpureserve.until(server.policy, server.user(3), [uuid(1)]) == []
    (told,) = gpureserve.until(server.policy, server.user(3), [uuid(0)])
    assert "reserved for somebody else from" in told and "in 10 h" in told


def test_who_could_not_be_told_in_time_is_not_given_it(server: Reserving) -> None:
    server.reserve(0, "4", 4, 2)
    server.until(1.5)
    server.launch(server.user(3), "early", "1")
    server.until(1.75)  # two hours of notice, and the margin for the looks
    with pytest.raises(Busy, match="kept for reservations"):
        server.obtain(server.user(3), "late", "1")
    told = server.ask("gpu-list", server.user(3))["devices"]
    assert sorted(one["use"] for one in told) == ["reserved"] * 3 + ["yours"]
    assert server.obtain(server.user(0), "own", "1")


# Handed over


def test_who_is_in_the_way_is_told_stopped_at_the_start_and_loses_nothing(server: Reserving) -> None:
    rows = fill(server)
    server.reserve(1, "1", 6, 2)
    (device,) = gpuleases.read_reserved()[0].uuids
    victim = next(row for row in rows if server.actual(row).lease.count(device))
    server.until(3)
    assert server.look() == []
    server.until(4)
    (told,) = server.look()
    assert (told.held.container, told.left) == (victim.id, 2 * HOUR)
    server.until(6 - 0.01)
    assert all(row.live for row in rows)
    with pytest.raises(Busy):
        server.obtain(server.user(1), "mine", "1")
    server.until(6)
    assert [row.live for row in rows].count(False) == 1 and not victim.live
    own = server.launch(server.user(1), "mine", "1")
    assert set(server.actual(own).lease.split('"')) & {device}
    with pytest.raises(Busy, match=r"(reserved|given) (for|to) somebody else"):
        server.again(victim)
    # The window ends, and what was given in it does, too.
    server.until(8)
    assert not own.live
    server.again(victim)
    server.engine.start(victim.id)
    assert sum(device in uuids for _holder, uuids in server.held()) == 1


def test_what_gave_way_holds_nothing_and_comes_back_within_the_limit(server: Reserving) -> None:
    row = server.launch(server.user(1), "a", uuid(0))
    server.reserve(3, uuid(0), 6, 1)
    server.until(7.2)
    assert not row.live and server.held() == []
    server.launch(server.user(1), "b", "2")
    with pytest.raises(OverLimit):
        server.again(row)


def test_a_stopped_container_in_the_way_gives_way_too(server: Reserving) -> None:
    row = server.launch(server.user(3), "a", uuid(0))
    server.reserve(0, uuid(0), 6, 1)
    server.engine.stop(row.id)
    server.until(6)
    assert server.obtain(server.user(0), "own", uuid(0))


def test_back_to_back_windows_of_two_people(server: Reserving) -> None:
    server.reserve(0, uuid(0), 6, 1)
    server.reserve(3, uuid(0), 7, 1)
    server.until(6)
    first = server.launch(server.user(0), "a", uuid(0))
    with pytest.raises(Busy):
        server.obtain(server.user(3), "b", uuid(0))
    server.until(7)
    assert not first.live
    assert server.launch(server.user(3), "b", uuid(0)).live


def test_of_those_who_share_the_last_one_gives_way(server: Reserving) -> None:
    server.devices[:] = CARDS[:1]
    first = server.launch(server.user(0), "a", "shared")
    server.now += 60
    second = server.launch(server.user(1), "b", "shared")
    server.reserve(3, "shared", 6, 1)
    server.until(6)
    assert first.live and not second.live
    assert server.launch(server.user(3), "c", "shared").live


def test_who_reserved_one_part_of_a_shared_gpu_and_has_two_gives_one_way(server: Reserving) -> None:
    server.devices[:] = CARDS[:1]
    server.reserve(0, "shared", 0, 12)
    first = server.launch(server.user(0), "a", "shared")
    server.now += 60
    second = server.launch(server.user(0), "b", "shared")
    server.reserve(3, "shared", 6, 1)
    server.until(6)
    assert first.live and not second.live
    assert server.launch(server.user(3), "c", "shared").live


def test_nothing_of_it_used_for_the_grace_it_lapses(server: Reserving) -> None:
    number = server.reserve(1, "2", 3, 4)
    server.until(3.9)
    with pytest.raises(Busy):
        server.obtain(server.user(0), "x", "4")
    server.until(4.1)
    assert len(server.obtain(server.user(0), "x", "4").uuids) == 4
    assert server.states(1) == [(number, "lapsed")] and server.states(0) == []
    (note,) = server.ask("gpu-why", server.user(1), gpus="1")["notes"]
    assert "lapsed: nothing of it was used for 60 minutes" in note


def test_one_that_is_in_use_does_not_lapse_and_is_not_given_up(server: Reserving) -> None:
    number = server.reserve(1, "2", 3, 4)
    server.until(3.5)
    row = server.launch(server.user(1), "a", "1")
    server.until(5.5)
    assert server.states(1) == [(number, "on")]
    with pytest.raises(Refused, match="is in use"):
        gpureserve.cancel(server.engine, server.policy, number, server.user(1))
    server.engine.remove(row.id)
    with pytest.raises(NotFound):
        gpureserve.cancel(server.engine, server.policy, number, server.user(0))
    gpureserve.cancel(server.engine, server.policy, number, server.user(1))
    assert server.states(1) == []


def test_a_window_that_begins_between_two_looks_is_waited_for(
    server: Reserving, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The program sleeps until then, and looks again; one that is far, or that failed, it leaves."""

    def of(do: str, left: float, problem: str = "") -> list[ending.Ended]:
        return [ending.Ended("a._.2001", Decision(do, ending.RESERVED, left), problem)]

    slept: list[float] = []
    monkeypatch.setattr(ending, "load", lambda: server.policy)
    noted = mock.Mock()
    monkeypatch.setattr(adminnotes, "refresh", noted)
    monkeypatch.setattr(ending.Engine, "connect", mock.Mock)
    monkeypatch.setattr(ending.time, "sleep", slept.append)
    for looks, naps, code in (
        ([of("notice", 90.0), of("stop", 0.0)], [91.0], 0),
        ([of("notice", 4000.0)], [], 0),
        ([of("stop", 0.0, "it hangs")], [], 1),
    ):
        monkeypatch.setattr(ending, "tick", lambda *_words, looks=looks, **_named: looks.pop(0))
        slept.clear()
        assert ending.main(["lab-lifecycle"]) == code
        assert slept == naps and not looks
    assert noted.call_count == 3
    monkeypatch.setattr(ending, "tick", lambda *_words, **_named: [])
    assert ending.main(["lab-lifecycle", "--check"]) == 0
    assert noted.call_count == 3
    assert "a._.2001 is stopped (reserved)." in capsys.readouterr().out


def test_a_hand_over_is_told_as_nothing_to_put_off() -> None:
    told: dict[int, list[dict[str, Any]]] = {2001: [{"project": "a", "at": None}, {"project": "b", "at": 5}]}
    for project in ("a", "b", "c"):
        lease = Lease(f"{project}._.2001", 2001, (Given(uuid(0), uuid(0)),))
        end = gpureservations.End(time.time() + 60, 1, 0.0)
        ending._tell_first(told, gpuhandover.Handover(gpuleases.Held(lease, "x"), end, 60.0))
    b, a, c = told[2001]
    assert b == {"project": "b", "at": 5} and a["firm"] and c["project"] == "c"
    assert "reserved for somebody else" in notices.advice(a, "a")
    assert notices.advice(b, "b") == "put it off: container extend b"


# Faults, reboots, clocks


def ill(server: Reserving, *numbers: int) -> None:
    server.devices[:] = [
        replace(one, healthy=False, problem="it is lost") if n in numbers else one
        for n, one in enumerate(CARDS)
    ]


def test_faults_move_it_and_the_one_made_last_loses(server: Reserving) -> None:
    first, last = server.reserve(0, "2", 5, 4), server.reserve(3, "1", 5, 4)
    ill(server, 0, 1)
    server.look()
    assert server.states(0)[0] == (first, "ahead") and server.states(3) == [(None, "ahead"), (last, "lost")]
    note = server.ask("gpu-why", server.user(3), gpus="1")["notes"][0]
    assert f"Your reservation {last}" in note and "too few of this server's work" in note
    ill(server)
    server.look()
    assert server.states(3)[1] == (last, "ahead")
    server.until(5)
    assert len(server.obtain(server.user(0), "a", "2").uuids) == 2
    assert len(server.obtain(server.user(3), "a", "1").uuids) == 1


def test_one_in_use_keeps_its_gpus_before_an_earlier_one(server: Reserving) -> None:
    server.reserve(0, "3", 5, 4)
    used = server.reserve(3, "1", 5, 4)
    server.until(5)
    row = server.launch(server.user(3), "a", "1")
    ill(server, 0)
    server.look()
    assert server.states(3)[-1] == (used, "on") and server.states(0)[0][1] == "lost" and row.live


def test_a_clock_that_jumps_stops_nobody_before_the_notice_has_stood(server: Reserving) -> None:
    rows = fill(server)
    server.reserve(3, "4", 6, 12)
    server.look()
    server.now += 8 * HOUR  # by itself, two hours into the window
    assert [one.left for one in server.look()] == [2 * HOUR] * 4
    server.until(8 + 1.9)
    assert all(row.live for row in rows)
    server.until(8 + 2)
    assert not any(row.live for row in rows)


def test_a_clock_that_is_put_back_takes_the_notice_back(server: Reserving) -> None:
    rows = fill(server)
    server.reserve(3, "4", 6, 2)
    server.until(5)
    server.now -= 5 * HOUR
    assert server.look() == [] and all(row.live for row in rows)
    # It begins anew, and stands for its whole time again.
    server.until(5.99)
    assert all(row.live for row in rows)
    server.until(6)
    assert not any(row.live for row in rows)


def test_a_reboot_does_not_make_a_notice_shorter(server: Reserving) -> None:
    rows = fill(server)
    server.reserve(3, "4", 6, 4)
    server.until(5)
    server.now, server.up, server.boot = server.now + HOUR, 10.0, "two"  # it was off for an hour
    server.engine.again()
    (left, *_rest) = [one.left for one in server.look()]
    assert 0.5 * HOUR < left <= 2 * HOUR and all(row.live for row in rows)
    server.until(6 + left / HOUR)
    assert not any(row.live for row in rows)


def test_what_a_reboot_left_down_in_the_way_gives_way_at_once(server: Reserving) -> None:
    rows = fill(server)
    server.reserve(3, "4", 6, 4)
    server.until(5)
    server.now, server.up, server.boot = server.now + 2 * HOUR, 10.0, "two"
    for row in rows:
        server.engine.stop(row.id)
        with pytest.raises(Busy, match="reserved for somebody else"):
            server.again(row)
    server.look()
    assert len(server.obtain(server.user(3), "own", "4").uuids) == 4


def test_records_that_are_damaged_stop_nobody(server: Reserving) -> None:
    rows = fill(server)
    server.reserve(3, "4", 6, 4)
    server.until(5)
    server.records.files["gpus/handover.json"] = '{"boot": "one", "up": 0.0, "stood": {"x": NaN}}'
    assert {one.left for one in server.look()} == {2 * HOUR}
    for text in ("[", "{}", '[{"number": 1}]', "[3]", "null"):
        server.records.files["gpus/reservations.json"] = text
        assert server.look() == [] and all(row.live for row in rows)
        with pytest.raises(HostError, match="damaged"):
            server.states(3)


def test_nobody_is_told_who_reserved(server: Reserving) -> None:
    server.reserve(0, "2", 5, 1)
    said = json.dumps(server.ask("gpu-reserved", server.user(1)))
    assert '"number": null' in said and "user0" not in said and "2001" not in said
    (told,) = gpureserve.listed(server.policy)
    assert told["user"] == "user0" and told["number"] == 1


# What people write


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def put(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield put
    monkeypatch.delenv("TZ", raising=False)
    time.tzset()


def test_times_are_those_of_the_zone_of_the_process(zone: Callable[[str], None]) -> None:
    parse = gpureservations.parse_start
    zone("UTC0")
    utc = parse("2026-12-01T09:00", 0.0)
    assert parse("2026-12-01 09:00", 0.0) == utc and parse("now", 7.0) == 7.0
    assert gpureservations.words(utc) == "2026-12-01 09:00 UTC"
    zone("CET-1CEST,M3.5.0,M10.5.0/3")
    assert parse("2026-12-01T09:00", 0.0) == utc - HOUR
    assert parse("2026-07-01T09:00", 0.0) % 86400 == 7 * HOUR
    assert gpureservations.words(utc) == "2026-12-01 10:00 CET"
    with pytest.raises(InvalidInput, match="left out where clocks are put forward"):
        parse("2026-03-29T02:30", 0.0)


@pytest.mark.parametrize(
    "text", ["", "tomorrow", "2026-12-01", "2026-13-01T09:00", "09:00", "2026-12-01T09:00Z"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is no time"):
        gpureservations.parse_start(text, 0.0)


def test_lengths() -> None:
    assert [gpureservations.parse_length(one) for one in ("90min", "8h", "2d")] == [5400, 8 * HOUR, 172800]
    for text in ("", "8", "0h", "-1h", "8 h", "1w", "99999h", "1.5h"):
        with pytest.raises(InvalidInput, match="no length of time"):
            gpureservations.parse_length(text)


@pytest.mark.parametrize(
    "words", [["number=0"], ["number=x"], ["gpus=all"], ["from=x"], ["for=8"], ["user=bob"]]
)
def test_the_door_takes_what_it_knows_alone(words: list[str]) -> None:
    for verb in ("gpu-reserve", "gpu-unreserve"):
        with pytest.raises(LabError):
            verbs_gpu.VERBS[verb].further(words)


# A record that is damaged


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "{}",
        lambda text: text.replace('"uid"', '"who"'),
        lambda text: text.replace('"used": 0.0', '"used": NaN'),
    ],
)
def test_a_damaged_record_is_written_over_by_nobody_and_launches_go_on(
    server: Reserving, damage: Callable[[str], str]
) -> None:
    server.reserve(1, "1", 24, 2)
    record = "gpus/reservations.json"
    good = server.records.files[record]
    broken = server.records.files[record] = damage(good)
    assert broken != good
    for what in (
        lambda: server.reserve(0, "1", 30, 2),
        lambda: server.reserve(0, "1", 30, 2, check=True),
        lambda: gpureserve.cancel(server.engine, server.policy, 1),
        lambda: gpureserve.listed(server.policy),
    ):
        with pytest.raises(HostError, match=r"reservations\.json is damaged.* mv .*numbers begin at 1"):
            what()
    server.launch(server.user(0), "work", uuid(0))
    server.look()
    (note,) = gpureserve.notes(server.policy, server.user(1))
    assert "reservations.json is damaged" in note
    assert server.records.files[record] == broken
    # It is as before as soon as the record is brought back.
    server.records.files[record] = good
    assert [one["number"] for one in gpureserve.listed(server.policy)] == [1]
    assert server.reserve(0, "1", 30, 2) == 2


def test_a_record_that_is_begun_anew_is_told(server: Reserving, monkeypatch: pytest.MonkeyPatch) -> None:
    told = mock.Mock()
    monkeypatch.setattr(gpuleases.journal, "record", told)
    gpuleases._write_queue([])
    assert not told.called
    server.records.files["gpus/queue.json"] = '[{"holder'
    gpuleases._write_queue([])
    assert told.call_args.kwargs["outcome"] == "damaged" and "queue.json" in told.call_args.kwargs["detail"]
    gpuleases._write_queue([])
    assert told.call_count == 1
