# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""GPUs that are held and do nothing: what NVML tells (simulated), what is counted, and who is told of it."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import test_gpu_leases
import test_gpus
from ansible_collections.lab.server.plugins.module_utils._core import (
    calls,
    cli_gpu,
    cli_lab_gpus,
    ending,
    gpuhandover,
    gpuidle,
    gpuleases,
    gpurequests,
    gpus,
    gpuview,
    greeting,
    notices,
    verbs_gpu,
)
from ansible_collections.lab.server.plugins.module_utils._core.containers import ContainerInfo
from ansible_collections.lab.server.plugins.module_utils._core.gpuleases import Held
from ansible_collections.lab.server.plugins.module_utils._core.gpus import Gpu, Instance, Process, Seen
from ansible_collections.lab.server.plugins.module_utils._core.leases import Given, Lease
from ansible_collections.lab.server.plugins.module_utils._core.lifecycle import (
    IDLE,
    Counted,
    Look,
    Record,
    count,
    parse,
)
from ansible_collections.lab.server.plugins.module_utils._core.liferules import HOUR
from ansible_collections.lab.server.plugins.module_utils._core.terminal import Terminal
from test_gpu_leases import Server
from test_gpus import A100, DIVIDED, DRIVER, PARTS, Simulate
from test_lease_model import uuid

library, simulate, server = test_gpus.library, test_gpus.simulate, test_gpu_leases.server
MINE, OTHER = "a" * 64, "b" * 64
BUSY, STILL = A100, A100.replace("load=30", "load=0")


@pytest.fixture
def owners(monkeypatch: pytest.MonkeyPatch) -> None:
    """Say whose processes 7 and 8 are; 9 has just ended."""
    of = {7: MINE, 8: OTHER}
    monkeypatch.setattr(
        gpus,
        "process",
        lambda pid, memory: (
            Process(pid, memory, 2001, "alice", "python", of[pid]) if pid in of else Process(pid, memory)
        ),
    )


def held(*uuids: str, live: bool = True) -> Held:
    return Held(Lease("a._.2001", 2001, tuple(Given(one, one) for one in uuids), live=live), MINE)


@pytest.mark.parametrize(
    ("lines", "devices", "works"),
    [
        ((BUSY, "process gpu=0 pid=7 memory=1"), ["GPU-1"], True),
        ((STILL, "process gpu=0 pid=7 memory=1"), ["GPU-1"], False),
        ((BUSY, "process gpu=0 pid=8 memory=1"), ["GPU-1"], False),
        ((BUSY, "process gpu=0 pid=8 memory=1", "process gpu=0 pid=7 memory=1"), ["GPU-1"], True),
        ((BUSY, "process gpu=0 pid=9 memory=1"), ["GPU-1"], True),
        # What draws and does not compute is not listed; what tells no load may work.
        ((BUSY,), ["GPU-1"], True),
        ((STILL,), ["GPU-1"], False),
        ((A100.replace(" load=30", ""), "process gpu=0 pid=7 memory=1"), ["GPU-1"], True),
        # A part of a divided GPU tells no load; one in which nothing runs does nothing.
        ((STILL, DIVIDED, *PARTS, "process gpu=1 mig=1 pid=7 memory=1"), ["MIG-2"], True),
        ((STILL, DIVIDED, *PARTS, "process gpu=1 mig=1 pid=7 memory=1"), ["MIG-1"], False),
        # One of two is enough, and so is one of which nothing is known.
        ((STILL, BUSY.replace("GPU-1", "GPU-2"), "process gpu=1 pid=7 memory=1"), ["GPU-1", "GPU-2"], True),
        ((STILL,), ["GPU-1", "GPU-9"], True),
        ((f"{STILL} fault=15",), ["GPU-1"], True),
    ],
)
@pytest.mark.usefixtures("owners")
def test_whether_gpus_work_and_in_doubt_they_do(
    simulate: Simulate, lines: tuple[str, ...], devices: list[str], works: bool
) -> None:
    simulate(DRIVER, *lines)
    seen = gpus.look()
    assert gpuidle.works(held(*devices), seen) is works
    assert not gpuidle.works(held(*devices, live=False), seen)


def test_without_a_driver_or_a_list_of_processes_it_counts_as_work() -> None:
    assert gpuidle.works(held("GPU-1"), Seen(problem="The driver is not loaded."))
    part = Instance("MIG-1", "MIG", "1g.5gb", "0:0", 1, 0)
    for unlisted in (True, False):
        cut = Gpu(0, "GPU-1", mig=True, instances=(replace(part, unlisted=unlisted),))
        assert gpuidle.works(held("MIG-1"), Seen((cut,))) is unlisted
        assert gpuidle.works(held("GPU-2"), Seen((Gpu(0, "GPU-2", load=5, unlisted=unlisted),)))
    assert "unlisted" not in json.dumps(gpus.told(Seen((cut,))))


def after(now: Counted, hours: float, gpu: bool | None, *, live: bool = True) -> Counted:
    """Look after so many hours in which no processor was used to speak of."""
    return count(now, Look("a._.1", "1", live, cpu=now.cpu if live else 0, gpu=gpu), hours * HOUR)


def test_work_on_a_gpu_is_work_though_no_processor_is_used() -> None:
    now = after(Counted("1", about=IDLE, noticed=5.0), 2, True)
    assert (now.idle, now.noticed, now.gpu_idle) == (0, None, 0)
    assert after(now, 2, False).idle == after(now, 2, None).idle == 2 * HOUR


def test_a_lease_is_idle_under_a_busy_processor_and_while_its_container_is_down() -> None:
    busy = Look("a._.1", "1", True, cpu=10**15, gpu=False)
    now = count(Counted("1"), busy, HOUR)
    assert (now.idle, now.gpu_idle) == (0, HOUR)
    now = after(now, 3, False, live=False)
    assert (
        now.gpu_idle == 4 * HOUR
        and parse(f'{{"boot": "b", "up": 1, "counted": {{"a": {json.dumps(vars(now))}}}}}', "x").counted[0][1]
        == now
    )
    # A start, a gap between looks, and a lease that is gone begin anew.
    assert after(now, 1, False).gpu_idle == 0
    assert after(after(Counted("1"), 5, False), 7, False).gpu_idle == 0
    assert after(now, 1, None, live=False).gpu_idle == 0


class Clocked:
    """A server whose lifecycle looks when told to, with GPUs that do nothing."""

    def __init__(self, server: Server, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.server, self.up = server, 0.0
        self.busy: set[str] = set()
        monkeypatch.setattr(ending, "_now", lambda: ("b", self.up))
        monkeypatch.setattr(ending, "listing_all", self.listing)
        monkeypatch.setattr(
            ending, "_look", lambda _engine, info, _typed: Look(info.name, info.id, info.running)
        )
        monkeypatch.setattr(ending.sessions, "typed", lambda _names: {})
        monkeypatch.setattr(gpuhandover, "look", lambda *_words, **_more: ([], gpuhandover.Record()))
        monkeypatch.setattr(gpuhandover, "keep", lambda _record: None)
        monkeypatch.setattr(gpuleases, "forget_dead", lambda: None)
        monkeypatch.setattr(notices.os, "chown", lambda *_words: None)
        monkeypatch.setattr(gpus, "look", lambda **_how: self.seen())
        for module in (ending, gpuidle):
            monkeypatch.setattr(module, "state", server.records)
        for module in (ending, notices):
            monkeypatch.setattr(module, "NOTICES", str(folder / "notices"))

    def seen(self) -> Seen:
        cards = [Gpu(n, uuid(n), load=90 if uuid(n) in self.busy else 0) for n in range(4)]
        return Seen(tuple(cards))

    def listing(self, *_words: object) -> list[ContainerInfo]:
        rows = [row for row in self.server.engine.rows.values() if ".retired-" not in row.name]
        return [
            ContainerInfo(
                row.name, row.name.split(".")[0], "", int(row.name.rpartition(".")[2]), row.id, "i",
                "running" if row.live else "exited", 1, False, "",
            )
            for row in rows
        ]  # fmt: skip  # one line a field says nothing

    def hours(self, hours: float) -> None:
        """Let so much time pass, with a look at the end of each hour."""
        for _hour in range(int(hours)):
            self.up += HOUR
            # Nobody's limits end anything here.
            assert ending.tick(self.server.engine, self.server.policy) == []

    def told(self) -> dict[str, Any]:
        made: dict[str, Any] = gpuview.shown(
            self.server.policy,
            self.seen(),
            gpuleases.survey(self.server.engine, self.server.policy),
            {},
            idle=gpuidle.idle(),
        )
        return made


@pytest.fixture
def clocked(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clocked:
    return Clocked(server, monkeypatch, tmp_path)


def wait(server: Server, number: int, project: str) -> None:
    gpuleases.join(server.engine, server.policy, server.user(number), project, gpurequests.parse("2"))


def test_an_idle_lease_is_told_to_admins_to_its_owner_and_to_those_who_wait(clocked: Clocked) -> None:
    server = clocked.server
    server.launch(server.user(0), "thesis", "2")
    row = server.launch(server.user(3), "net", "1")
    clocked.busy = {uuid(2)}
    clocked.hours(24)
    assert gpuview.attention(clocked.told())[1] == [] and notices.idle_gpus(2001) == {}
    clocked.hours(3)
    assert gpuidle.idle() == {
        server.engine.rows[one].id: idle for one, idle in zip(server.engine.rows, (26 * HOUR, 0))
    }
    # Nobody waits; after a day it is told all the same.
    assert gpuview.attention(clocked.told())[1] == ["GPU 0, 1 of user0/thesis has done nothing for 26 hours"]
    wait(server, 0, "own")
    assert gpuview.attention(clocked.told())[1] == ["GPU 0, 1 of user0/thesis has done nothing for 26 hours"]
    wait(server, 1, "b")
    wait(server, 3, "c")
    clocked.hours(1)
    said = "has done nothing for 27 hours, and 2 wait"
    assert gpuview.attention(clocked.told())[1] == [f"GPU 0, 1 of user0/thesis {said}"]
    assert notices.idle_gpus(2001) == {"thesis": said} and notices.idle_gpus(2004) == {}
    lines = cli_lab_gpus._row(clocked.told()["devices"][0])
    assert lines[-1].endswith(", idle for 1 d")
    # Whose it is, is not told to those who wait.
    queue = server.ask("gpu-queue", server.user(1))
    listed = server.ask("gpu-list", server.user(1))["devices"]
    assert server.ask("gpu-queue", server.user(0))["idle"] == 0  # those are their own
    assert queue["idle"] == 2 and [one["idle"] for one in listed] == [27 * HOUR, 27 * HOUR, 0, None]
    assert cli_gpu._state(listed[0]) == "in use, idle for 1 d" and cli_gpu._state(listed[2]) == "in use"
    assert "thesis" not in json.dumps([queue, listed]) and "user0" not in json.dumps([queue, listed])
    server.engine.stop(row.id)
    clocked.busy = {uuid(1)}
    clocked.hours(1)
    assert gpuview.attention(clocked.told())[1] == [
        "GPU 2 of user3/net is held by a container that is stopped, and 2 wait"
    ]
    assert notices.idle_gpus(2001) == {}
    assert notices.idle_gpus(2004) == {"net": "is held by a container that is stopped, and 2 wait"}


def test_its_owner_is_told_at_login_and_in_the_list_of_containers() -> None:
    out = Terminal(io.StringIO(), {})
    said = "is held by a container that is stopped, and 1 waits"
    assert notices.idle_words(5, 1, stopped=True) == said
    assert notices.idle_words(5, 0, stopped=True) == notices.idle_words(None, 3, stopped=False) == ""
    lines = greeting._of_gpus(out, {"thesis": said}, 200)
    assert lines == [f"GPU     that of thesis {said}; give it back: container retire thesis"]
    assert (
        calls.remark_on({"gpu": "has done nothing for 26 hours"}) == "its GPU has done nothing for 26 hours"
    )


def test_a_damaged_record_tells_nothing_and_is_not_hidden_by_this(clocked: Clocked) -> None:
    clocked.server.records.files[gpuidle.RECORD] = "{"
    assert gpuidle.idle() == {}
    row = clocked.server.launch(clocked.server.user(0), "thesis", "1")
    assert [one["idle"] for one in clocked.told()["devices"][0]["holders"]] == [None]
    assert (
        verbs_gpu._idle(uuid(0), gpuleases.survey(clocked.server.engine, clocked.server.policy), {row.id: 5})
        == 5
    )


def test_a_notice_does_not_stand_on_while_there_is_no_limit(clocked: Clocked) -> None:
    row = clocked.server.launch(clocked.server.user(0), "thesis", "1")
    stood = Counted(row.id, ran=90 * HOUR, noticed=24.0 * HOUR, about="run")
    clocked.server.records.files[gpuidle.RECORD] = Record("b", 0.0, ((row.name, stood),)).render()
    clocked.hours(1)
    ((_name, now),) = parse(clocked.server.records.files[gpuidle.RECORD], "x").counted
    assert (now.noticed, now.about, now.gpu_idle) == (None, "", HOUR)


def test_work_on_a_gpu_keeps_a_container_from_its_end_for_idling(
    clocked: Clocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, stopped = clocked.server, []
    user = server.user(0)
    limited = replace(user, limits=replace(user.limits, idle_hours=3))
    life = replace(server.policy.life, notice_hours=1)
    server.policy = replace(server.policy, users=(limited, *server.policy.users[1:]), life=life)
    monkeypatch.setattr(ending, "stop", lambda *words, **_more: stopped.append(words[2]))
    monkeypatch.setattr(ending, "journal", mock.Mock())
    server.launch(user, "thesis", "1")
    server.launch(user, "essay", "1")
    clocked.busy = {uuid(0)}
    for _hour in range(6):
        clocked.up += HOUR
        ending.tick(server.engine, server.policy)
    assert set(stopped) == {"essay"}
