"""What an admin is told of GPUs: names, processes, the queue, and what needs a hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import test_gpu_leases
from ansible_collections.lab.server.plugins.module_utils._core import (
    cli_lab_gpus,
    engine,
    gpuleases,
    gpurequests,
    gpus,
    gpuview,
)
from ansible_collections.lab.server.plugins.module_utils._core.errors import EngineError
from ansible_collections.lab.server.plugins.module_utils._core.gpus import Gpu, Instance, Process, Seen
from test_gpu_leases import Server
from test_lease_model import uuid

server = test_gpu_leases.server
CARD = {"name": "GPU (simulated)", "memory": 80 << 30}
Look = Callable[..., dict[str, Any]]


@pytest.fixture
def look(server: Server, monkeypatch: pytest.MonkeyPatch) -> Look:
    """Return a function that tells what NVML sees, GPU by GPU, and returns what an admin is told of it."""
    monkeypatch.setattr(server.engine, "close", lambda: None, raising=False)
    monkeypatch.setattr(engine.Engine, "connect", lambda *_where: server.engine)

    def make(*cards: Gpu, problem: str = "") -> dict[str, Any]:
        found = cards or tuple(Gpu(n, uuid(n), **CARD) for n in range(4))
        return gpuview.look(server.policy, "model://", Seen(() if problem else found, problem=problem))

    return make


def test_an_admin_is_told_who_has_what_by_name(server: Server, look: Look) -> None:
    row = server.launch(server.user(0), "thesis", "1")
    server.launch(server.user(1), "net", "1")
    server.engine.stop(row.id)
    told = look()
    holders = [one["holders"] for one in told["devices"]]
    assert [[(one["user"], one["project"], one["state"]) for one in each] for each in holders] == [
        [("user0", "thesis", "stopped")],
        [("user1", "net", "running")],
        [],
        [],
    ]
    assert holders[0][0]["group"] == "research" and holders[0][0]["gpus"] == "1"
    assert [one["free"] for one in told["devices"]] == [False, False, True, True]
    assert gpuview.attention(told) == ([], [])
    json.dumps(told)


def test_one_who_left_is_told_by_number(server: Server, look: Look) -> None:
    server.launch(server.user(0), "thesis", "1")
    server.policy = type(server.policy)(**{**vars(server.policy), "users": server.policy.users[1:]})
    (holder,) = look()["devices"][0]["holders"]
    assert (holder["user"], gpuview.owner(holder)) == ("", "2001/thesis")


def test_a_process_is_its_projects_or_nobody_gave_it_the_gpu(server: Server, look: Look) -> None:
    row = server.launch(server.user(0), "thesis", "1")
    other = server.launch(server.user(1), "net", "1")
    good = Process(7, 1 << 30, 2001, "user0", "python", row.id)
    bad = Process(8, None, 2002, "user1", "python", other.id)
    host = Process(9, 1 << 20, 0, "root", "miner", "")
    ended = Process(10, None)
    cards = [Gpu(n, uuid(n), **CARD, processes=(good, bad, host, ended) if n == 0 else ()) for n in range(4)]
    told = look(*cards)
    found = [(one["pid"], one["project"], one["leased"]) for one in told["devices"][0]["processes"]]
    assert found == [(7, "thesis", True), (8, "net", False), (9, "", False), (10, "", False)]
    # Of one that has ended already nobody knows whose it was.
    assert gpuview.attention(told) == (
        [],
        [
            "python (8) of user1 uses GPU 0, which nobody gave it",
            "miner (9) of root uses GPU 0, which nobody gave it",
        ],
    )


def test_ill_gone_and_empty_gpus_are_not_overlooked(server: Server, look: Look) -> None:
    server.launch(server.user(0), "thesis", uuid(3))
    lost = Gpu(0, problem="GPU 0 is lost.")
    empty = Gpu(1, uuid(1), **CARD, mig=True)
    part = Instance(uuid(17, "MIG"), "MIG 1g.10gb", "1g.10gb", "2:0", 10 << 30, 1 << 30)
    cut = Gpu(2, uuid(2), **CARD, mig=True, instances=(part,))
    told = look(lost, empty, cut)
    assert [(one["index"], one["free"], one["used"]) for one in told["devices"]] == [
        ("0", False, 0),
        ("1", False, 0),
        ("2:0", True, 1 << 30),
    ]
    bad, warn = gpuview.attention(told)
    assert bad == ["GPU 0 is lost.", f"the GPU {uuid(3)} of user0/thesis is not there any more"] and not warn
    # One cause, one sentence: without the driver all of them are away.
    assert gpuview.attention(look(problem="The driver is not loaded.")) == ([], ["The driver is not loaded."])


def test_what_is_out_of_service_is_told_and_not_called_bad(server: Server, look: Look) -> None:
    part = Instance(uuid(17, "MIG"), "MIG 1g.10gb", "1g.10gb", "1:0", 10 << 30, 1 << 30)
    cards = (Gpu(0, uuid(0), **CARD), Gpu(1, uuid(1), **CARD, mig=True, instances=(part,)))
    out = (uuid(0), part.uuid)
    server.policy = replace(server.policy, gpu=replace(server.policy.gpu, out_of_service=out))
    told = look(*gpus.withdrawn(Seen(cards), out).gpus)
    assert [(one["out_of_service"], one["healthy"], one["free"]) for one in told["devices"]] == [
        (True, False, False),
        (True, False, False),
    ]
    why = "is out of service (lab_gpu.out_of_service)."
    assert gpuview.attention(told) == ([], [f"GPU 0 {why}", f"MIG instance 1:0 {why}"])


def test_who_waits_is_told_by_name_in_the_order_of_the_queue(server: Server, look: Look) -> None:
    server.launch(server.user(0), "a", "4")
    for number, project in ((3, "c"), (1, "b")):
        request = gpurequests.parse("2")
        gpuleases.join(server.engine, server.policy, server.user(number), project, request)
    waiting = look()["waiting"]
    assert [one["place"] for one in waiting] == [1, 2]
    # The group of user3 has had all of them lately, that of user1 none.
    assert {one["project"]: one["user"] for one in waiting} == {"b": "user1", "c": "user3"}


def test_without_docker_the_gpus_are_told_all_the_same(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_where: str) -> None:
        raise EngineError("Docker Engine does not answer.")

    monkeypatch.setattr(engine.Engine, "connect", refuse)
    process = Process(7, 1, 2001, "user0", "python", "c" * 64)
    told = look(Gpu(0, uuid(0), **CARD, processes=(process,)))
    assert told["docker"] == {"answers": False, "problem": "Docker Engine does not answer."}
    # Whether somebody gave it that GPU is not known, so nobody is accused.
    assert len(told["devices"]) == 1 and gpuview.attention(told) == ([], [])
    assert cli_lab_gpus.fact(told) == [("gpus", "1; who has them is not known")]


def test_the_line_of_lab_status(server: Server, look: Look) -> None:
    server.launch(server.user(0), "thesis", "2")
    server.launch(server.user(1), "net", "1")
    gpuleases.join(server.engine, server.policy, server.user(1), "b", gpurequests.parse("2"))
    assert cli_lab_gpus.fact(look()) == [
        ("gpus", "3 of 4 given, 1 wait (lab gpus); user0/thesis: 0, 1; user1/net: 2")
    ]
    assert cli_lab_gpus.fact(look(problem="No driver.")) == [("gpus", "none that answers")]
    assert cli_lab_gpus.fact(None) == []


def test_a_server_without_gpus_is_not_asked_for_leases(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "on_bus", lambda: 0)
    assert not gpuview.is_wanted(Seen(), [])
    assert gpuview.is_wanted(Seen((Gpu(0),)), [])
    assert gpuview.is_wanted(Seen(), [server.actual(server.launch(server.user(0), "a", "1"))])
    monkeypatch.setattr(gpus, "on_bus", lambda: 1)
    assert gpuview.is_wanted(Seen(), [])


@pytest.mark.parametrize(
    ("wanted", "now", "later", "word"),
    [("1", True, True, ""), ("2", False, True, "you hold 1 of 2"), ("3", False, False, "limit of 2")],
)
def test_of_one_user_it_is_told_what_could_be_had(
    server: Server,
    look: Look,
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    now: bool,
    later: bool,
    word: str,
) -> None:
    server.launch(server.user(1), "net", "1")
    cards = tuple(Gpu(n, uuid(n), **CARD) for n in range(4))
    monkeypatch.setattr(gpus, "look", lambda **_how: Seen(cards))
    told = gpuview.person(server.policy, server.user(1), wanted, "model://")
    assert (told["now"], told["later"], told["held"]) == (now, later, "1") and word in told["why"]
    assert [(one["project"], one["uuids"]) for one in told["holds"]] == [("net", [uuid(0)])]
    assert told["limits"]["container"] == 2
