"""Leases under everything that can happen: launches, reservations, processes that die, reboots, faults.

A launch is taken apart into the steps between which another process can come in or this one can die. The
engine is the model of Docker; the record of root's is kept in memory, and a write can be the last thing that
a process did. LAB_TEST_LEASE_ROUNDS sets the number of rounds (default 30).
"""

from __future__ import annotations

import contextlib
import os
import random
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    ending,
    gpuhandover,
    gpuleases,
    gpuqueue,
    gpurequests,
    gpureservations,
    gpureserve,
    leases,
    names,
)
from ansible_collections.lab.server.plugins.module_utils._core import spec as specs
from ansible_collections.lab.server.plugins.module_utils._core.errors import LabError, Refused
from ansible_collections.lab.server.plugins.module_utils._core.gpudevices import Device
from ansible_collections.lab.server.plugins.module_utils._core.leases import Lease
from ansible_collections.lab.server.plugins.module_utils._core.plan import actual_of
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy, User, from_inventory
from docker_model import Model, PowerLoss, Row
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

ROUNDS = int(os.environ.get("LAB_TEST_LEASE_ROUNDS", "30"))
LIMITS = {"containers": 50, "cpus": 2, "memory": "1g", "pids": 512, "shm": "64m"}
QUOTA = {"soft": 0, "hard": 0, "inodes_soft": 0, "inodes_hard": 0}
USERS = 6
SHARED_BY = 2
MOST = 3  # devices that a user of the group students has at once
STEP, LENGTH = 120.0, 7200.0  # seconds between two looks, and of a reservation
ENGINE = specs.EngineFacts("systemd", 8, cdi=True)
IMAGE = "sha256:" + "c" * 64


def policy() -> Policy:
    made, _keys = from_inventory(
        {
            "lab_groups": [
                {"name": "students", "gid": 3101, "limits": {**LIMITS, "gpus": 2}, "quota": QUOTA},
                {"name": "research", "gid": 3102, "limits": {**LIMITS, "gpus": 8}, "quota": QUOTA},
            ],
            "lab_users": [
                {"name": f"user{n}", "uid": 2001 + n, "group": "research" if n % 3 == 0 else "students"}
                for n in range(USERS)
            ],
            "lab_gpu": {
                "shared_by": SHARED_BY,
                "groups": {"students": {"container": 2, "devices": MOST}, "research": {"weight": 2}},
                "reserve": {"gpus": 8, "ahead_days": 7, "hours": 12, "notice_hours": 1, "grace_minutes": 60},
            },
        }
    )
    return made


def uuid(number: int, kind: str = "GPU") -> str:
    return f"{kind}-{number:08x}-0000-4000-8000-000000000000"


def layout(cut: int, order: int) -> dict[str, Device]:
    """Return 8 GPUs, of which the first ``cut`` are in MIG instances, numbered by chance."""
    cards = list(range(8))
    random.Random(order).shuffle(cards)
    found = []
    for index, card in enumerate(cards):
        found.append(Device(uuid(card), "GPU (simulated)", 80 << 30, index=str(index)))
        if card < cut:
            found += [
                Device(uuid(card * 16 + n, "MIG"), "MIG", 10 << 30, "1g.10gb", uuid(card), f"{index}:{n}")
                for n in range(1, 8)
            ]
    return {one.uuid: one for one in found}


class Engine(Model):
    """The model, which also knows what GPUs a container was made with."""

    facts = ENGINE

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, list[dict[str, Any]]] = {}

    def inspect(self, container: str) -> dict[str, Any]:
        return {
            **super().inspect(container),
            "HostConfig": {"DeviceRequests": self.given.get(container, [])},
        }

    def made(self, name: str, spec: specs.ContainerSpec, lease: Lease) -> Row:
        row = self.add(name, "created", IMAGE, specs.labels(spec, lease.render()), worked=False)
        self.given[row.id] = specs.device_requests(lease.uuids, ENGINE)
        return row


class Records:
    """The state directory in memory. A write can be the last one: with it, or just before it, all ends."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.writes_left: int | None = None

    def read_record(self, name: str) -> str | None:
        return self.files.get(name)

    def write_record(self, name: str, text: str) -> None:
        if self.writes_left == 0:
            raise PowerLoss
        if self.writes_left is not None:
            self.writes_left -= 1
        self.files[name] = text


@dataclass
class Process:
    """A launch at work. ``stage``: "waits", "leased", "created"."""

    number: int
    user: User
    spec: specs.ContainerSpec
    stage: str
    lease: Lease | None = None
    container: str = ""


REQUESTS = ["1", "1", "2", "8", "1g.10gb", "2x1g.10gb", "memory=8G", "memory=40G", "shared", uuid(3)]


class Leases(RuleBasedStateMachine):
    """Launches, ends and faults in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = policy()
        self.engine = Engine()
        self.records = Records()
        self.devices = layout(2, 0)
        self.processes: dict[str, Process] = {}
        self.numbers = 0
        self.boot = 0
        self.acting = 0
        self.late: list[Process] = []
        # By the clock, and since the boot.
        self.now, self.up = 1e9, 1000.0
        #: Of a reservation that nothing of the kind befell since it was made, all is to come true.
        self.undisturbed: set[int] = set()
        self.calm = False
        #: For how long containers were told of a hand-over, and when the last look was.
        self.told: dict[str, float] = {}
        self.looked: float | None = None
        self.stack = contextlib.ExitStack()
        clock = SimpleNamespace(
            time=lambda: self.now,
            clock_gettime=lambda _clock: self.up,
            sleep=lambda _seconds: None,
            CLOCK_BOOTTIME=7,
        )
        for module, target, value in (
            (gpuleases, "state", self.records),
            (gpuleases, "time", clock),
            (gpuleases, "this_process", lambda: f"{self.boot}.{self.acting}"),
            (gpuleases, "alive", lambda maker: maker in self.alive()),
            (gpuleases, "of_this_boot", lambda maker: maker.startswith(f"{self.boot}.")),
            (gpuleases, "inventory", lambda _policy: self.inventory()),
            (gpureserve, "time", clock),
            (gpuhandover, "time", clock),
            (gpuhandover, "state", self.records),
            (gpuhandover.events, "boot_id", lambda: str(self.boot)),
            (ending, "stop", self.stop_by_server),
            (ending, "journal", mock.Mock()),
        ):
            self.stack.enter_context(mock.patch.object(module, target, value))
        # One process acts at a time here; that the lock dies with its holder is the kernel's doing.
        no_lock = contextlib.nullcontext()
        self.stack.enter_context(mock.patch.object(gpuleases.locks, "hold", return_value=no_lock))

    @initialize(calm=st.booleans())
    def begin(self, calm: bool) -> None:
        """On a calm server nothing breaks, so that what was reserved is to be had when it is."""
        self.calm = calm

    def teardown(self) -> None:
        try:
            self.nothing_is_lost()
        finally:
            self.stack.close()

    def alive(self) -> set[str]:
        found = {f"{self.boot}.{one.number}" for one in self.processes.values()}
        return {*found, f"{self.boot}.{self.acting}"} if self.acting else found

    def inventory(self) -> list[Device]:
        return list(self.devices.values())

    @contextlib.contextmanager
    def act(self, number: int, crash: int | None = None) -> Any:
        """Act as a process; with ``crash`` it dies at its so manyth write of a record."""
        self.acting, self.records.writes_left = number, crash
        self.now += 7
        self.up += 7
        try:
            yield
        finally:
            self.acting, self.records.writes_left = 0, None

    def rows(self, holder: str) -> list[Row]:
        return [row for row in self.engine.rows.values() if gpuleases.base_of(row.name) == holder]

    def spec(self, user: User, project: str, request: str) -> specs.ContainerSpec | None:
        try:
            return specs.decide(
                self.policy, user, project, own=specs.OwnWishes(gpus=request), wishes=specs.Wishes()
            )
        except Refused:
            return None

    # Launches, step by step

    @rule(
        user=st.integers(0, USERS - 1),
        project=st.integers(0, 9),
        request=st.sampled_from(REQUESTS),
        crash=st.none() | st.integers(0, 2),
        waits=st.booleans(),
    )
    def launch(self, user: int, project: int, request: str, crash: int | None, waits: bool) -> None:
        self.begin_launch(user, project, request, crash, waits)

    def begin_launch(self, user: int, project: int, request: str, crash: int | None, waits: bool) -> None:
        who = self.policy.users[user]
        spec = self.spec(who, f"p{project}", request)
        if (
            spec is None
            or spec.name in self.processes
            or any(r.state != "created" for r in self.rows(spec.name))
        ):
            return
        for row in self.rows(spec.name):  # one that was never started gives way, under the container's lock
            self.engine.remove(row.id)
        self.numbers += 1
        process = Process(self.numbers, who, spec, "waits")
        with contextlib.suppress(Refused, PowerLoss), self.act(process.number, crash):
            if waits:
                gpuleases.join(
                    self.engine, self.policy, who, spec.project, gpurequests.parse(spec.gpus), ("wait=yes",)
                )
            else:
                process.lease = gpuleases.obtain(self.engine, self.policy, who, spec, self.inventory)
                process.stage = "leased"
            self.processes[spec.name] = process

    @rule(
        user=st.integers(0, USERS - 1),
        project=st.integers(0, 9),
        request=st.sampled_from(["1", "2", "8", "1g.10gb", "shared"]),
    )
    def use(self, user: int, project: int, request: str) -> None:
        """A launch from its beginning to its end."""
        self.begin_launch(user, project, request, None, False)
        self.finish_launches()

    @precondition(lambda self: self.processes)
    @rule(which=st.integers(0, 99), crash=st.none() | st.integers(0, 3))
    def step(self, which: int, crash: int | None) -> None:
        self.step_of(sorted(self.processes)[which % len(self.processes)], crash)

    def step_of(self, holder: str, crash: int | None) -> None:
        process = self.processes[holder]
        if process.stage == "waits":
            self.take_turn(process, crash)
        elif process.stage == "leased" and process.lease is not None:
            process.container = self.engine.made(holder, process.spec, process.lease).id
            process.stage = "created"
        else:
            self.engine.start(process.container)
            del self.processes[holder]

    def take_turn(self, process: Process, crash: int | None) -> None:
        request = gpurequests.parse(process.spec.gpus)
        arguments = (self.engine, self.policy, process.user, process.spec.project, request)
        try:
            with self.act(process.number, crash):
                if gpuleases.turn(*arguments, self.inventory()):
                    process.lease = gpuleases.obtain(
                        self.engine, self.policy, process.user, process.spec, self.inventory
                    )
                    process.stage = "leased"
        except (Refused, PowerLoss):
            del self.processes[process.spec.name]

    @precondition(lambda self: self.processes)
    @rule(which=st.integers(0, 99), in_flight=st.booleans())
    def die(self, which: int, in_flight: bool) -> None:
        """A process is killed. What it asked of Docker may still be done by it."""
        process = self.processes.pop(sorted(self.processes)[which % len(self.processes)])
        if in_flight and process.stage == "leased":
            self.late.append(process)
        if in_flight and process.stage == "created":
            self.engine.start(process.container)

    @precondition(lambda self: self.late)
    @rule()
    def come_late(self) -> None:
        process = self.late.pop()
        name = process.spec.name
        free = self.engine.named(name) is None and name not in self.processes
        if process.lease is not None and free:
            self.engine.made(process.spec.name, process.spec, process.lease)

    # Reservations

    @rule(
        user=st.integers(0, USERS - 1),
        request=st.sampled_from(REQUESTS),
        ahead=st.integers(0, 16),
        halves=st.integers(1, 8),
        crash=st.none() | st.integers(0, 1),
    )
    def reserve(self, user: int, request: str, ahead: int, halves: int, crash: int | None) -> None:
        self.reserve_some(user, request, ahead, halves, crash)

    def reserve_some(self, user: int, request: str, ahead: int, halves: int, crash: int | None) -> None:
        who, wanted = self.policy.users[user], gpurequests.parse(request)
        start, length = self.now + 1800.0 * ahead, 1800.0 * halves
        arguments = (self.engine, self.policy, who, wanted, start, length, self.inventory)
        self.numbers += 1
        with contextlib.suppress(Refused, PowerLoss), self.act(self.numbers, crash):
            self.undisturbed.add(gpureserve.reserve(*arguments)["number"])

    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        found = gpuleases.read_reserved()
        if found:
            one = found[which % len(found)]
            with contextlib.suppress(LabError):
                user = self.policy.user_by_uid(one.uid)
                gpureserve.cancel(self.engine, self.policy, one.number, user)

    def stop_by_server(self, _engine: object, user: User, project: str, **_more: object) -> None:
        row = self.engine.named(names.container_name(project, user.uid))
        if row is not None:
            self.engine.stop(row.id)

    @rule(looks=st.integers(1, 18), crash=st.none() | st.integers(0, 3))
    def pass_time(self, looks: int, crash: int | None) -> None:
        """Time passes, and every ten minutes the server looks; it may fail to do so once."""
        self.let_pass(looks, crash)

    def let_pass(self, looks: int, crash: int | None) -> None:
        for number in range(looks):
            self.finish_launches()
            self.now += 600
            self.up += 600
            self.numbers += 1
            with contextlib.suppress(PowerLoss), self.act(self.numbers, crash if number == 0 else None):
                self.look()
            self.owners_have_what_they_reserved(looked=crash is None or number > 0)

    @rule(
        user=st.integers(0, USERS - 1),
        request=st.sampled_from(REQUESTS),
        ahead=st.integers(0, 8),
        halves=st.integers(1, 8),
    )
    def keep_a_date(self, user: int, request: str, ahead: int, halves: int) -> None:
        """Somebody reserves, others go on, and the owner comes when the window begins."""
        self.reserve_some(user, request, ahead, halves, None)
        for number in range(USERS):
            self.begin_launch(number, number, "1", None, False)
        self.let_pass(3 * ahead + 1, None)
        self.begin_launch(user, 9, request, None, False)
        self.finish_launches()

    def finish_launches(self) -> None:
        """No launch takes as long."""
        for holder, process in list(self.processes.items()):
            while holder in self.processes and process.stage != "waits":
                self.step_of(holder, None)

    def look(self) -> None:
        gpuleases.forget_dead()
        found, record = gpuhandover.look(self.engine, self.policy)
        passed = 0.0 if self.looked is None else self.up - self.looked
        keys = {f"{one.held.container} {one.end.number}": one for one in found}
        told = {key: self.told[key] + passed if key in self.told else 0.0 for key in keys}
        for key, one in keys.items():
            # Whatever the clock says, nobody is stopped who was not told for as long as is promised.
            assert one.left > 0 or told[key] >= one.end.notice
            assert not ending._hand_over(self.engine, self.policy, one, check=False).problem
        gpuhandover.keep(record)
        self.told, self.looked = told, self.up

    def owners_have_what_they_reserved(self, *, looked: bool) -> None:
        rules, seen = self.policy.gpu.reserve, gpuleases.survey(self.engine, self.policy)
        seen = gpuleases.settled(seen, self.policy, self.inventory(), write=False)
        for one in seen.reserved:
            if not gpureservations.stands(one, self.now, rules) or not one.is_on(self.now):
                continue
            if one.number not in self.undisturbed or not looked or not one.devices:
                assert one.devices or one.number not in self.undisturbed
                continue
            if gpureservations.holds(seen.leases, one) or any(w.uid == one.uid for w in seen.waiting):
                continue  # it has some of it, or another launch of its owner comes first
            there = replace(seen, held=tuple(held for held in seen.held if not held.abandoned))
            user, request = self.policy.user_by_uid(one.uid), gpurequests.parse(one.request)
            limits = leases.bounds(self.policy, user)
            with contextlib.suppress(leases.OverLimit):
                arguments = (there, self.policy, user, "", request, self.inventory(), limits)
                got = gpuleases._chosen(*arguments, last=True)
                # Of two reservations of one owner, what fits is given of either.
                own = {uuid for other in seen.reserved if other.uid == one.uid for uuid in other.uuids}
                assert own.issuperset(got.uuids) or request.kind == gpurequests.MEMORY, (one, got)

    @precondition(lambda self: not self.calm)
    @rule(minutes=st.sampled_from([-100000, -300, -61, 61, 300, 100000]))
    def set_the_clock(self, minutes: int) -> None:
        self.now += 60.0 * minutes
        self.undisturbed.clear()

    # Ends

    def some(self, which: int, *states: str) -> Row | None:
        found = sorted(
            (row for row in self.engine.rows.values() if row.state in states and gpuleases.base_of(row.name)),
            key=lambda row: row.id,
        )
        found = [row for row in found if row.name not in self.processes]
        return found[which % len(found)] if found else None

    @rule(which=st.integers(0, 99))
    def stop(self, which: int) -> None:
        row = self.some(which, "running")
        if row is not None:
            self.engine.stop(row.id)

    @rule(which=st.integers(0, 99), crash=st.none() | st.integers(0, 1))
    def start(self, which: int, crash: int | None) -> None:
        row = self.some(which, "exited")
        if row is not None:
            self.start_again(row, crash)

    def start_again(
        self, row: Row, crash: int | None = None, user: User | None = None, name: str = ""
    ) -> None:
        actual = actual_of(self.listed(row), name or row.name)
        self.numbers += 1
        with contextlib.suppress(Refused, PowerLoss), self.act(self.numbers, crash):
            gpuleases.hold_again(
                self.engine, self.policy, actual, name or row.name, self.inventory, user=user
            )
            if name:
                self.engine.rename(row.id, name)
            self.engine.start(row.id)

    def listed(self, row: Row) -> dict[str, Any]:
        return next(one for one in self.engine.containers() if one["Id"] == row.id)

    @rule(which=st.integers(0, 99))
    def retire(self, which: int) -> None:
        row = self.some(which, "running", "exited")
        if row is not None:
            self.engine.stop(row.id)
            self.numbers += 1
            self.engine.rename(row.id, f"{row.name}.retired-{self.numbers}")

    @rule(which=st.integers(0, 99), crash=st.none() | st.integers(0, 1))
    def undo(self, which: int, crash: int | None) -> None:
        found = sorted(
            (row for row in self.engine.rows.values() if ".retired-" in row.name), key=lambda r: r.id
        )
        if not found:
            return
        row = found[which % len(found)]
        name = row.name.partition(".retired-")[0]
        if name in self.processes or self.rows(name):
            return
        user = self.policy.user_by_uid(names.parse_container_name(name)[1])
        self.start_again(row, crash, user, name)

    # Faults

    @precondition(lambda self: not self.calm)
    @rule(cut=st.sampled_from([0, 2, 4]), order=st.integers(0, 9))
    def reboot(self, cut: int, order: int) -> None:
        """All processes end; the GPUs are numbered anew and may be cut otherwise."""
        self.boot += 1
        waiting = {holder: one for holder, one in self.processes.items() if one.stage == "waits"}
        self.processes.clear()
        self.late.clear()
        self.undisturbed.clear()
        self.up, self.looked = 10.0, None
        self.devices = layout(cut, order)
        running = [row for row in self.engine.rows.values() if row.live]
        for row in running:
            row.state = "exited"
        for row in running:
            if gpuleases.base_of(row.name) == row.name:
                self.start_again(row)
        self.wait_on(waiting)

    def wait_on(self, waiting: dict[str, Process]) -> None:
        """Who waited when the server went down waits on, in the place that it had."""
        interrupted = {one.holder for one in gpuleases.interrupted()}
        assert interrupted.issuperset(waiting)
        for holder in sorted(interrupted):
            if holder not in waiting:  # it was killed shortly before
                gpuleases.leave(holder)
                continue
            self.numbers += 1
            old = waiting[holder]
            with contextlib.suppress(Refused), self.act(self.numbers):
                request = gpurequests.parse(old.spec.gpus)
                gpuleases.join(self.engine, self.policy, old.user, old.spec.project, request, ("wait=yes",))
                self.processes[holder] = Process(self.numbers, old.user, old.spec, "waits")
        assert not gpuleases.interrupted()

    @precondition(lambda self: not self.calm)
    @rule(card=st.integers(0, 7), healthy=st.booleans())
    def fall_off(self, card: int, healthy: bool) -> None:
        for one in list(self.devices.values()):
            if one.card == uuid(card):
                self.undisturbed.clear()
                problem = None if healthy else "it fell off the bus"
                self.devices[one.uuid] = replace(one, healthy=healthy, problem=problem)

    @precondition(lambda self: not self.calm)
    @rule(name=st.sampled_from(["gpus/leases.json", "gpus/usage.json", "gpus/queue.json"]))
    def lose_a_record(self, name: str) -> None:
        # Not while something is only in it: a process that makes a container is alive then.
        if not self.processes and name in self.records.files:
            self.records.files[name] = self.records.files[name][: len(self.records.files[name]) // 2]

    # What holds always

    def in_use(self) -> list[tuple[int, Lease]]:
        """Return the leases of the containers that run, and of the launches that are at work."""
        found = []
        for row in self.engine.rows.values():
            if row.live:
                base = gpuleases.base_of(row.name)
                lease = leases.parse(row.labels[specs.LABEL_GPUS], base, int(base.rpartition(".")[2]))
                assert sorted(lease.uuids) == specs.given_gpus(self.engine.inspect(row.id))
                found.append((lease.uid, lease))
        for process in self.processes.values():
            if process.lease is not None:
                found.append((process.user.uid, process.lease))
        return found

    @invariant()
    def no_device_is_given_twice(self) -> None:
        alone: Counter[str] = Counter()
        shared: Counter[str] = Counter()
        whole: Counter[str] = Counter()
        parts: set[str] = set()
        for _uid, lease in self.in_use():
            for one in lease.devices:
                (shared if lease.shared else alone)[one.uuid] += 1
                if one.uuid == one.card:
                    whole[one.uuid] += 1
                else:
                    parts.add(one.card)
        assert all(count == 1 for count in alone.values())
        assert all(count <= SHARED_BY for count in shared.values())
        assert not set(alone) & set(shared)
        assert not set(whole) & parts

    @invariant()
    def nobody_is_above_the_policy(self) -> None:
        held: dict[int, Fraction] = {}
        devices: Counter[int] = Counter()
        for uid, lease in self.in_use():
            held[uid] = held.get(uid, Fraction(0)) + lease.cost
            devices[uid] += len(lease.devices)
        for uid, cost in held.items():
            user = self.policy.user_by_uid(uid)
            assert cost <= user.limits.gpus
            assert user.group != "students" or devices[uid] <= MOST

    @invariant()
    def nothing_is_reserved_twice(self) -> None:
        rules = self.policy.gpu.reserve
        # As each decision settles it first: a clock that was put back may have brought one back.
        seen = gpuleases.survey(self.engine, self.policy)
        seen = gpuleases.settled(seen, self.policy, self.inventory(), write=False)
        found = [one for one in seen.reserved if gpureservations.stands(one, self.now, rules)]
        for number, one in enumerate(found):
            for other in found[:number]:
                for mine in one.devices if one.overlaps(other) else ():
                    for theirs in other.devices:
                        if mine.uuid == theirs.uuid:
                            assert one.shared and other.shared
                        else:
                            assert mine.uuid != theirs.card and theirs.uuid != mine.card
            for place in one.uuids if one.shared else ():
                same = [other for other in found if place in other.uuids and other.is_on(one.start)]
                assert len(same) <= SHARED_BY

    def nothing_is_lost(self) -> None:
        """When all is given up, all that is sound can be had again."""
        self.processes.clear()
        for row in [row for row in self.engine.rows.values() if row.state != "created"]:
            self.engine.stop(row.id)
            self.engine.rename(row.id, f"{gpuleases.base_of(row.name) or row.name}.retired-{row.id[:9]}0")
        root = replace(
            self.policy.users[0], limits=replace(self.policy.users[0].limits, gpus=64), group="research"
        )
        stock = leases.Stock(self.inventory(), [])
        sound = sorted(one.uuid for one in self.inventory() if stock.is_sound(one))
        gpuleases.write_reserved([])
        self.numbers += 1
        with self.act(self.numbers):
            for number, one in enumerate(sound):
                spec = specs.decide(self.policy, root, f"last{number}", specs.Wishes(gpus=one))
                got = gpuleases.obtain(self.engine, self.policy, root, spec, self.inventory)
                assert got.uuids == (one,)


TestLeases = Leases.TestCase
TestLeases.settings = settings(
    max_examples=ROUNDS,
    stateful_step_count=120,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.thorough) for n in (1, 2))])
def test_nobody_starves(seed: int) -> None:
    """A stream of small requests by many; every one who waits, for one GPU or for all, is served in time."""
    chance = random.Random(seed)
    made = policy()
    devices = [Device(uuid(n), "GPU (simulated)", 80 << 30) for n in range(8)]
    held: dict[str, tuple[Lease, float]] = {}
    waiting: list[gpuqueue.Waiting] = []
    usage, served, longest, now = gpuqueue.Usage(1.0), 0, 0.0, 1.0
    for number in range(3000):
        now += 60
        held = {name: (lease, end) for name, (lease, end) in held.items() if end > now}
        usage = gpuqueue.aged(usage, [lease for lease, _end in held.values()], now)
        if number < 2000 and len(waiting) < 60:
            user = chance.choice(made.users)
            request = "8" if user.limits.gpus == 8 and chance.random() < 0.1 else "1"
            name = names.container_name(f"p{number}", user.uid)
            waiting.append(gpuqueue.Waiting(name, user.uid, f"p{number}", request, now, "x"))
        for one in list(gpuqueue.order(waiting, made, usage, now)):
            before = []
            for other in gpuqueue.order(waiting, made, usage, now):
                if other is one:
                    break
                limits = leases.bounds(made, made.user_by_uid(other.uid))
                before.append((gpurequests.parse(other.request), other.holder, other.uid, limits))
            current = [lease for lease, _end in held.values()]
            limits = leases.bounds(made, made.user_by_uid(one.uid))
            with contextlib.suppress(Refused):
                kept = leases.set_aside(before, devices, current)
                lease = leases.choose(
                    gpurequests.parse(one.request), one.holder, one.uid, devices, kept, limits
                )
                held[one.holder] = (lease, now + chance.randint(300, 3600))
                waiting.remove(one)
                served, longest = served + 1, max(longest, now - one.since)
            if len(before) > 10:
                break
    assert not waiting and served > 200
    # The stream lasts for 33 hours, but nobody needs the patience of a day.
    assert longest < gpuqueue.PATIENCE


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.thorough)])
def test_nobody_starves_though_others_reserve_and_owners_come_on_time(seed: int) -> None:
    """The same stream, of which a part reserves: who waits is served in time, owners at the minute."""
    chance = random.Random(seed)
    made = policy()
    rules = made.gpu.reserve
    devices = [Device(uuid(n), "GPU (simulated)", 80 << 30) for n in range(8)]
    held: dict[str, tuple[Lease, float]] = {}
    waiting: list[gpuqueue.Waiting] = []
    reserved: list[gpureservations.Reservation] = []
    usage, served, came, longest, now = gpuqueue.Usage(1.0), 0, 0, 0.0, 1.0

    def asked(entry: gpuqueue.Waiting) -> tuple[gpurequests.GpuRequest, str, int, leases.Bounds]:
        limits = leases.bounds(made, made.user_by_uid(entry.uid))
        return gpurequests.parse(entry.request), entry.holder, entry.uid, limits

    for number in range(4000):
        if number > 2000 and not waiting:
            break
        now += STEP
        current = [lease for lease, _end in held.values()]
        reserved = gpureservations.settle(reserved, devices, current, now, rules, SHARED_BY)
        ends = gpureservations.ends(reserved, [(lease, 0.0) for lease in current], now, rules, SHARED_BY)
        gone = {current[index].holder for index, end in ends.items() if end.at <= now}
        held = {name: it for name, it in held.items() if it[1] > now and name not in gone}
        current = [lease for lease, _end in held.values()]
        usage = gpuqueue.aged(usage, current, now)
        for one in [one for one in reserved if one.start <= now < one.start + STEP]:
            if gpureservations.holds(current, one):
                continue  # its owner has some of it already
            kept = gpureservations.kept(reserved, current, now, rules, near=True)
            holder = names.container_name(f"own{one.number}", one.uid)
            request, limits = gpurequests.parse(one.request), leases.Bounds(99, shared_by=SHARED_BY)
            lease = leases.choose(request, holder, one.uid, devices, [*current, *kept], limits)
            own = {uuid for other in reserved if other.uid == one.uid for uuid in other.uuids}
            assert lease.uuids and own.issuperset(lease.uuids)
            held[holder] = (lease, one.end)
            current.append(lease)
            came += 1
        if number < 2000 and chance.random() < 0.04:
            start = now + 60 * chance.randint(90, 600)
            new = gpureservations.Reservation(
                number, chance.choice(made.users).uid, str(chance.randint(1, 2)), start, start + LENGTH
            )
            taken = [gpureservations.booked(one) for one in reserved if one.overlaps(new)]
            overdue = [asked(one) for one in waiting if now - one.since >= gpuqueue.PATIENCE]
            taken += gpureservations.overdue(overdue, devices, reserved, now, rules)
            placed = gpureservations.place(new, devices, taken, SHARED_BY)
            reserved += [placed] if placed is not None else []
        if number < 2000 and len(waiting) < 40:
            user = chance.choice(made.users)
            request_text = "8" if user.limits.gpus == 8 and chance.random() < 0.02 else "1"
            name = names.container_name(f"p{number}", user.uid)
            waiting.append(gpuqueue.Waiting(name, user.uid, f"p{number}", request_text, now, "x"))
        before: list[tuple[gpurequests.GpuRequest, str, int, leases.Bounds]] = []
        for entry in list(gpuqueue.order(waiting, made, usage, now))[:12]:
            current = [lease for lease, _end in held.values()]
            kept = gpureservations.kept(reserved, current, now, rules, near=True)
            with contextlib.suppress(Refused):
                aside = leases.set_aside(before, devices, [*current, *kept])
                request, holder, uid, limits = asked(entry)
                lease = leases.choose(request, holder, uid, devices, aside, limits)
                held[holder] = (lease, now + chance.randint(300, 3600))
                waiting.remove(entry)
                served, longest = served + 1, max(longest, now - entry.since)
                continue
            before.append(asked(entry))
    assert not waiting and served > 400 and came > 20
    # After a day nothing more is reserved of what is waited for; what was before is over within half a day.
    assert longest < gpuqueue.PATIENCE + 600 * 60 + LENGTH + 3600
