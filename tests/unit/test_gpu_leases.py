"""What the library finds out of leases, checks again, and tells: on the model of Docker."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    containers,
    gpuleases,
    gpus,
    images,
    leases,
    verbs,
    verbs_gpu,
)
from ansible_collections.lab.server.plugins.module_utils._core import spec as specs
from ansible_collections.lab.server.plugins.module_utils._core.broker import VERBS
from ansible_collections.lab.server.plugins.module_utils._core.errors import InvalidInput, NotFound, Refused
from ansible_collections.lab.server.plugins.module_utils._core.gpudevices import Device
from ansible_collections.lab.server.plugins.module_utils._core.leases import Busy, Lease, OverLimit
from ansible_collections.lab.server.plugins.module_utils._core.plan import Actual, actual_of
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy, User
from ansible_collections.lab.server.plugins.module_utils._core.verbs import Request
from docker_model import Row
from test_lease_model import Engine, Records, policy, uuid

CARDS = [Device(uuid(n), "GPU (simulated)", 80 << 30, index=str(n)) for n in range(4)]


class Server:
    """A server with some GPUs: the model of Docker, and the records in memory."""

    def __init__(self) -> None:
        self.policy: Policy = policy()
        self.engine = Engine()
        self.records = Records()
        self.devices = list(CARDS)

    def user(self, number: int) -> User:
        return self.policy.users[number]

    def spec(self, user: User, project: str, gpus: str) -> specs.ContainerSpec:
        return specs.decide(self.policy, user, project, own=specs.OwnWishes(gpus=gpus))

    def obtain(self, user: User, project: str, gpus: str) -> Lease:
        spec = self.spec(user, project, gpus)
        return gpuleases.obtain(self.engine, self.policy, user, spec, lambda: self.devices)

    def launch(self, user: User, project: str, gpus: str) -> Row:
        """Make and start a container, and let the process that did it end."""
        lease = self.obtain(user, project, gpus)
        spec = self.spec(user, project, gpus)
        row = self.engine.made(spec.name, spec, lease)
        self.engine.start(row.id)
        self.end_of_processes()
        return row

    def end_of_processes(self) -> None:
        said = json.loads(self.records.files["gpus/leases.json"])
        for one in said.values():
            one["maker"] = ""
        self.records.files["gpus/leases.json"] = json.dumps(said)

    def actual(self, row: Row) -> Actual:
        listed = next(one for one in self.engine.containers() if one["Id"] == row.id)
        return actual_of(listed, gpuleases.base_of(row.name) or row.name.partition(".retired-")[0])

    def again(self, row: Row, *, user: User | None = None) -> None:
        actual = self.actual(row)
        holder = row.name.partition(".retired-")[0]
        gpuleases.hold_again(self.engine, self.policy, actual, holder, lambda: list(self.devices), user=user)

    def held(self) -> list[tuple[str, tuple[str, ...]]]:
        seen = gpuleases.survey(self.engine, self.policy)
        return [(one.holder, one.uuids) for one in seen.leases]

    def ask(self, verb: str, user: User, project: str = "", **options: Any) -> dict[str, Any]:
        return VERBS[verb].run(Request(self.policy, user, project, lambda _text: None, options))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(gpuleases, "state", made.records)
    monkeypatch.setattr(gpuleases.locks, "hold", lambda *_words, **_named: contextlib.nullcontext())
    monkeypatch.setattr(gpuleases, "inventory", lambda _policy: list(made.devices))
    monkeypatch.setattr(verbs_gpu, "connected", lambda: contextlib.nullcontext(made.engine))
    return made


# Users 0 and 3 may have 8 GPUs, the others 2.


# What the label, the record and Docker say


def test_docker_decides_where_the_label_says_something_else(server: Server) -> None:
    """A label of another device, or of none that can be read, does not make the true one free."""
    row = server.launch(server.user(0), "a", uuid(0))
    spec = server.spec(server.user(0), "a", uuid(0))
    for label in ("all", specs.labels(spec, Lease("x", 1, (leases.Given(uuid(3), uuid(3)),)).render())):
        row.labels[specs.LABEL_GPUS] = label if label == "all" else label[specs.LABEL_GPUS]
        assert server.held() == [("a._.2001", (uuid(0),))]
        with pytest.raises(Busy):
            server.obtain(server.user(3), "b", uuid(0))


def test_docker_decides_where_the_record_says_something_else(server: Server) -> None:
    server.launch(server.user(0), "a", uuid(0))
    said = json.loads(server.records.files["gpus/leases.json"])
    lease = json.loads(said["a._.2001"]["lease"])
    lease["devices"] = [[uuid(3), uuid(3)]]
    said["a._.2001"]["lease"] = json.dumps(lease, sort_keys=True, separators=(",", ":"))
    for text in (json.dumps(said), "{}", '{"a._.2001": 3}', "[", None):
        if text is None:
            del server.records.files["gpus/leases.json"]
        else:
            server.records.files["gpus/leases.json"] = text
        assert server.held() == [("a._.2001", (uuid(0),))]


def test_a_label_that_docker_gave_nothing_for_holds_nothing(server: Server) -> None:
    """An image's own label, or one of somebody's with the socket: it takes no GPU away."""
    row = server.launch(server.user(0), "a", uuid(0))
    server.engine.given[row.id] = []
    server.records.files.clear()
    assert server.held() == []
    assert server.obtain(server.user(3), "b", "4").uuids == tuple(uuid(n) for n in range(4))


def test_who_holds_as_recorded_is_not_inspected(server: Server) -> None:
    for number in range(3):
        server.launch(server.user(0), f"p{number}", "1")
    server.engine.again()
    gpuleases.survey(server.engine, server.policy)
    assert server.engine.calls == ["containers"]


# Started again, and brought back


def test_what_is_started_again_is_checked_and_recorded(server: Server) -> None:
    row = server.launch(server.user(0), "a", "1")
    server.engine.stop(row.id)
    server.devices[0] = Device(uuid(0), "GPU (simulated)", 80 << 30, healthy=False, problem="it is lost")
    with pytest.raises(Refused, match="it is lost"):
        server.again(row)
    server.devices[:] = CARDS[1:]
    with pytest.raises(Refused, match="not there any more"):
        server.again(row)
    server.devices[:] = CARDS
    server.records.files.clear()
    server.again(row)
    assert "a._.2001" in json.loads(server.records.files["gpus/leases.json"])


def test_a_container_that_is_stopped_holds_its_gpus_also_against_those_who_wait(server: Server) -> None:
    row = server.launch(server.user(0), "a", "1")
    server.engine.stop(row.id)
    request = gpuleases.gpurequests.parse("4")
    gpuleases.join(server.engine, server.policy, server.user(3), "b", request)
    server.again(row)  # what it holds is its own, whoever waits


def retired(server: Server, number: int, project: str, gpus: str) -> Row:
    row = server.launch(server.user(number), project, gpus)
    server.engine.stop(row.id)
    server.engine.rename(row.id, f"{row.name}.retired-1000000000")
    return row


def test_one_that_comes_back_finds_its_gpu_given_to_somebody_else(server: Server) -> None:
    row = retired(server, 0, "a", "1")
    assert server.held() == []
    other = server.launch(server.user(3), "b", uuid(0))
    with pytest.raises(Busy, match="given to somebody else"):
        server.again(row, user=server.user(0))
    assert server.held() == [("b._.2004", (uuid(0),))]
    server.engine.remove(other.id)
    server.again(row, user=server.user(0))
    assert ("a._.2001", (uuid(0),)) in server.held()


def test_one_that_comes_back_is_within_the_limits_again(server: Server) -> None:
    row = retired(server, 1, "a", "1")
    server.launch(server.user(1), "b", "2")
    with pytest.raises(OverLimit, match="you would hold 3 of 2"):
        server.again(row, user=server.user(1))


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"devices": 2}, "you hold 2 of 2 devices"),
        ({"whole": False}, "not whole ones"),
        ({"container": 1}, "you may have 1 in one container, not 2"),
    ],
)
def test_one_that_comes_back_is_within_the_rules_for_gpus_again(
    server: Server, rule: dict[str, Any], said: str
) -> None:
    row = retired(server, 0, "a", "2")
    server.launch(server.user(0), "b", "2")
    groups = dict(server.policy.gpu.groups)
    groups["research"] = replace(groups["research"], **rule)
    gpu = replace(server.policy.gpu, groups=tuple(groups.items()))
    server.policy = replace(server.policy, gpu=gpu)
    with pytest.raises(Refused, match=said):
        server.again(row, user=server.user(0))
    assert [holder for holder, _uuids in server.held()] == ["b._.2001"]


def test_one_that_comes_back_passes_nobody_who_waits(server: Server) -> None:
    row = retired(server, 0, "a", "1")
    server.launch(server.user(3), "b", "3")
    gpuleases.join(server.engine, server.policy, server.user(3), "c", gpuleases.gpurequests.parse("2"))
    with pytest.raises(Busy, match="given to somebody else"):
        server.again(row, user=server.user(0))


# One process that does many things


def test_what_a_process_retired_is_free_though_it_lives_on(server: Server) -> None:
    """Its record would stand for a container that is still being made, and pass those who wait."""
    lease = server.obtain(server.user(0), "a", "4")
    spec = server.spec(server.user(0), "a", "4")
    row = server.engine.made(spec.name, spec, lease)
    actual = server.actual(row)
    server.engine.remove(row.id)
    with pytest.raises(Busy):
        server.obtain(server.user(3), "b", "1")
    gpuleases.end(actual)
    assert server.held() == []
    assert len(server.obtain(server.user(3), "b", "4").uuids) == 4
    assert gpuleases._read_usage().length >= 1


# What is told


def test_nobody_is_told_the_names_of_others(server: Server) -> None:
    server.launch(server.user(0), "secret", "1")
    server.launch(server.user(1), "mine", "1")
    told = server.ask("gpu-list", server.user(1))
    assert [(one["use"], one["projects"]) for one in told["devices"]] == [
        ("in use", []),
        ("yours", ["mine"]),
        ("free", []),
        ("free", []),
    ]
    gpuleases.join(server.engine, server.policy, server.user(0), "hidden", gpuleases.gpurequests.parse("4"))
    queue = server.ask("gpu-queue", server.user(1))
    assert [(one["place"], one["yours"], one["project"]) for one in queue["waiting"]] == [(1, False, None)]
    said = json.dumps([told, queue, server.ask("gpu-why", server.user(1), gpus="1")])
    for name in ("user0", "secret", "hidden", "2001"):
        assert name not in said
    assert (told["held"], told["limit"]) == ("1", 2)


def test_ill_and_divided_gpus_are_told_as_such(server: Server) -> None:
    server.devices[:] = [
        Device(uuid(0), "GPU", 80 << 30, index="0", healthy=False, problem="GPU 0 is lost."),
        Device(uuid(1), "GPU", 80 << 30, index="1"),
        Device(uuid(17, "MIG"), "MIG", 10 << 30, "1g.10gb", uuid(1), "1:0"),
    ]
    told = server.ask("gpu-list", server.user(0))["devices"]
    assert [(one["use"], one["usable"], one["free"]) for one in told] == [
        ("", False, False),
        ("", False, False),
        ("free", True, True),
    ]


def test_why_says_what_is_missing_and_whether_it_will_ever_be(server: Server) -> None:
    assert server.ask("gpu-why", server.user(1), gpus="2")["now"]
    server.launch(server.user(0), "a", "4")
    answer = server.ask("gpu-why", server.user(1), gpus="1")
    assert (answer["now"], answer["later"]) == (False, True) and "0 of 4 free" in answer["why"]
    answer = server.ask("gpu-why", server.user(1), gpus="3")
    assert (answer["now"], answer["later"]) == (False, False) and "limit of 2" in answer["why"]
    assert answer["hint"]


def test_a_place_is_given_up_by_its_owner_alone(server: Server) -> None:
    server.launch(server.user(0), "a", "4")
    gpuleases.join(server.engine, server.policy, server.user(1), "b", gpuleases.gpurequests.parse("1"))
    with pytest.raises(NotFound):
        server.ask("gpu-release", server.user(3), "b")
    assert server.ask("gpu-release", server.user(1), "b", check=True)["changed"]
    assert len(gpuleases._read_queue()) == 1
    assert server.ask("gpu-release", server.user(1), "b")["changed"]
    with pytest.raises(NotFound, match="does not wait"):
        server.ask("gpu-release", server.user(1), "b")


@pytest.mark.parametrize("words", [["gpus=all"], ["gpus=2 --privileged"], ["user=bob"], ["gpus"], ["x"]])
def test_the_door_takes_requests_alone(words: list[str]) -> None:
    with pytest.raises(InvalidInput):
        VERBS["gpu-why"].further(words)


# Out of service


@pytest.fixture
def cards(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the devices be those that NVML tells, by the policy that is asked with."""
    part = gpus.Instance(uuid(17, "MIG"), "MIG 1g.10gb", "1g.10gb", "1:0", 10 << 30, 0)
    seen = gpus.Seen(
        (
            gpus.Gpu(0, uuid(0), "GPU (simulated)", memory=80 << 30),
            gpus.Gpu(1, uuid(1), "GPU (simulated)", memory=80 << 30, mig=True, instances=(part,)),
            gpus.Gpu(2, uuid(2), "GPU (simulated)", memory=80 << 30),
        )
    )

    def inventory(policy: Policy) -> list[Device]:
        found = gpus.withdrawn(seen, policy.gpu.out_of_service)
        return [device for gpu in found.gpus for device in gpus.devices_of(gpu)]

    monkeypatch.setattr(gpuleases, "inventory", inventory)


def withdraw(server: Server, *uuids: str) -> None:
    """Take GPUs out of service, as a run of IT's does."""
    server.policy = replace(server.policy, gpu=replace(server.policy.gpu, out_of_service=uuids))
    server.devices = gpuleases.inventory(server.policy)


def test_a_gpu_out_of_service_is_given_to_nobody_and_taken_from_nobody(server: Server, cards: None) -> None:
    withdraw(server)
    row = server.launch(server.user(0), "a", uuid(0))
    withdraw(server, uuid(0), uuid(1))
    assert server.held() == [("a._.2001", (uuid(0),))]
    assert server.obtain(server.user(0), "b", "1").uuids == (uuid(2),)
    for request in (uuid(0), "1g.10gb"):
        with pytest.raises(Refused, match="no such thing that works"):
            server.obtain(server.user(3), "c", request)
    told = server.ask("gpu-list", server.user(3))["devices"]
    assert [(one["index"], one["free"], one["usable"]) for one in told][:2] == [
        ("0", False, False),
        ("1:0", False, False),
    ]
    assert told[0]["problem"] == "GPU 0 is out of service (lab_gpu.out_of_service)."
    assert not server.ask("gpu-why", server.user(3), gpus=uuid(0))["now"]
    with pytest.raises(Refused, match="no such thing that works"):
        server.ask("gpu-reserve", server.user(3), **{"gpus": uuid(0), "from": "now", "for": 3600.0})
    server.engine.stop(row.id)
    with pytest.raises(Refused, match=r"cannot be used: GPU 0 is out of service \(.*\)\. Start a new one"):
        server.again(row)
    withdraw(server)
    server.again(row)


def test_who_waits_is_not_given_what_was_taken_out_of_service_since(
    server: Server, cards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, asked = server.user(0), server.policy
    withdraw(server, uuid(0))
    monkeypatch.setattr(verbs, "load", lambda: server.policy)
    monkeypatch.setattr(containers, "decided", lambda *_words: server.spec(user, "a", "1"))
    monkeypatch.setattr(containers, "observe", lambda *_words: SimpleNamespace(containers={}))
    monkeypatch.setattr(images, "build", lambda *_words, **_more: None)
    request = Request(asked, user, "a", lambda _text: None, {"wait": True, "gpus": "1"})
    with verbs.in_turn(server.engine, request, None):
        assert [uuids for _holder, uuids in server.held()] == [(uuid(2),)]
