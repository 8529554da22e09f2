"""A launch that waited for GPUs when the server went down is taken up again after its start."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    boot,
    broker,
    events,
    gpuleases,
    gpurequests,
    processes,
    resuming,
    verbs,
    verbs_gpu,
)
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError, Refused
from test_gpu_leases import Server

WORDS = {"command": "python train.py\n", "cpus": 0.5, "memory": 8 << 30, "gpus": "2x1g.10gb", "wait": True}


class Booted(Server):
    """A server that can be started anew: processes of an earlier boot are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.boot = "one"
        self.ran: list[list[str]] = []
        self.active = False
        self.happened: list[tuple[int, str, str, str, str]] = []

    def wait(self, number: int, project: str, gpus: str = "4") -> None:
        request = gpurequests.parse(gpus)
        gpuleases.join(
            self.engine, self.policy, self.user(number), project, request, verbs.launch_words({"gpus": gpus})
        )

    def run(self, arguments: Sequence[str], accept: Sequence[int] = (0,), **_more: object) -> Any:
        self.ran.append(list(arguments))
        code = 0 if self.active or arguments[1] != "is-active" else 3
        if code not in accept:
            raise HostError("failed")
        return subprocess.CompletedProcess(arguments, code, "", "")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Booted:
    made = Booted()
    monkeypatch.setattr(gpuleases, "state", made.records)
    monkeypatch.setattr(gpuleases.locks, "hold", lambda *_words, **_named: contextlib.nullcontext())
    monkeypatch.setattr(gpuleases, "inventory", lambda _policy: list(made.devices))
    monkeypatch.setattr(verbs_gpu, "connected", lambda: contextlib.nullcontext(made.engine))
    monkeypatch.setattr(processes.events, "boot_id", lambda: made.boot)
    monkeypatch.setattr(resuming, "load", lambda: made.policy)
    monkeypatch.setattr(resuming.hostfiles, "run", made.run)
    monkeypatch.setattr(resuming.journal, "record", lambda *words, **values: None)
    monkeypatch.setattr(resuming.events, "record", lambda *words: made.happened.append(words))
    monkeypatch.setattr(broker, "identify", lambda uid, policy: policy.user_by_uid(uid))
    monkeypatch.setattr(resuming.os, "umask", lambda mask: 0)
    return made


def test_the_words_of_a_launch_ask_for_the_same_again() -> None:
    words = verbs.launch_words(WORDS)
    assert verbs.VERBS["project-launch"].further(words) == WORDS
    assert verbs.launch_words({}) == ()


def test_who_waited_waits_on_in_the_same_place(server: Booted, monkeypatch: pytest.MonkeyPatch) -> None:
    """By how long each has waited, whoever is taken up first, and before who comes after the reboot."""
    now = [1e9]
    monkeypatch.setattr(gpuleases.time, "time", lambda: now[0])
    up = [5000.0]
    monkeypatch.setattr(gpuleases, "_up", lambda: up[0])
    server.wait(3, "first")
    now[0], up[0] = now[0] + 90000, up[0] + 90000
    server.wait(0, "second")
    server.boot, now[0], up[0] = "two", now[0] + 100, 20.0
    assert [one.project for one in gpuleases.interrupted()] == ["first", "second"]
    server.wait(1, "third", "2")
    assert [one.project for one in gpuleases.interrupted()] == ["first", "second"]
    told = server.ask("gpu-queue", server.user(3))
    assert told["interrupted"] == [{"project": "first", "gpus": "4"}] and len(told["waiting"]) == 1
    server.wait(0, "second")
    server.wait(3, "first")
    assert gpuleases.interrupted() == []
    told = server.ask("gpu-queue", server.user(3))["waiting"]
    assert [one["project"] for one in told][:1] == ["first"] and told[0]["waited"] == 90100


@pytest.mark.parametrize("jump", [-1e8, 1e8])
def test_a_clock_that_is_wrong_after_the_reboot_keeps_nobody_from_waiting(
    server: Booted, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    now = [1e9]
    monkeypatch.setattr(gpuleases.time, "time", lambda: now[0])
    server.wait(3, "first")
    server.boot, now[0] = "two", now[0] + jump
    server.wait(3, "first")
    (one,) = server.ask("gpu-queue", server.user(3))["waiting"]
    assert 0 <= one["waited"] <= 30 * 86400 + 60


def test_each_is_started_once_as_a_unit_of_its_own(server: Booted) -> None:
    server.wait(3, "first")
    server.wait(0, "second")
    assert resuming.resume(server.policy) == [] and server.ran == []  # they live
    server.boot = "two"
    assert resuming.resume(server.policy) == []
    started = [words for words in server.ran if words[0] == "systemd-run"]
    assert [words[-3:] for words in started] == [
        ["/usr/local/sbin/lab-boot", "--launch", "first._.2004"],
        ["/usr/local/sbin/lab-boot", "--launch", "second._.2001"],
    ]
    # What others can read of a unit says neither who nor what.
    assert not any("first" in word or "second" in word for words in started for word in words[:-1])
    server.ran, server.active = [], True
    assert resuming.resume(server.policy) == []
    assert not any(words[0] == "systemd-run" for words in server.ran)


def test_one_whose_user_has_left_is_forgotten_and_told(server: Booted) -> None:
    server.wait(3, "first")
    server.boot = "two"
    policy = replace(server.policy, users=server.policy.users[:3])
    (problem,) = resuming.resume(policy)
    assert "first._.2004 does not wait for GPUs any more" in problem
    assert gpuleases.interrupted() == []
    assert server.happened[0][:4] == (2004, "first", events.NOT_STARTED, events.BOOT)


def test_it_launches_as_it_was_asked_for(server: Booted, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[verbs.Request] = []
    monkeypatch.setattr(verbs, "_project_launch", lambda request: asked.append(request) or {})
    server.wait(3, "first")
    server.boot = "two"
    assert boot.main(["lab-boot", "--launch", "first._.2004"]) == 0
    assert (asked[0].user.uid, asked[0].project, asked[0].options) == (2004, "first", {"gpus": "4"})
    gpuleases.leave("first._.2004")
    assert boot.main(["lab-boot", "--launch", "first._.2004"]) == 0 and len(asked) == 1


def test_what_it_cannot_launch_its_user_can_ask_for(server: Booted, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_request: verbs.Request) -> dict[str, Any]:
        raise Refused("gpus: 4 GPUs is more than the limit of 2 for you.")

    monkeypatch.setattr(verbs, "_project_launch", refused)
    server.wait(3, "first")
    server.boot = "two"
    assert resuming.launch("first._.2004") == 1
    assert gpuleases.interrupted() == []
    assert "its launch waited for GPUs: gpus: 4 GPUs is more" in server.happened[0][4]


def test_one_of_which_nobody_knows_what_it_was_to_launch_is_left_alone(server: Booted) -> None:
    server.wait(3, "first")
    gpuleases._write_queue([replace(gpuleases._read_queue()[0], words=())])
    server.boot = "two"
    assert gpuleases.interrupted() == [] and resuming.resume(server.policy) == []


def test_one_that_was_killed_before_is_not_taken_up_again(server: Booted) -> None:
    server.wait(3, "first")
    entry = replace(gpuleases._read_queue()[0], maker="1 2 one")
    gpuleases._write_queue([entry])
    gpuleases.forget_dead()
    server.boot = "two"
    assert gpuleases.interrupted() == []


def test_a_place_is_kept_while_docker_does_not_answer(server: Booted) -> None:
    """It goes down before the launches do, and comes back after an upgrade of its own."""
    pauses: list[float] = []
    said: list[str] = []

    def pause(seconds: float) -> None:
        assert [one.project for one in gpuleases._read_queue()] == ["a"]
        pauses.append(seconds)
        server.engine.again(refuses_at=1 if len(pauses) == 1 else 0)

    server.launch(server.user(0), "other", "4")
    server.engine.remove(next(iter(server.engine.rows)))
    server.engine.again(silent_at=2)
    request = gpurequests.parse("4")
    gpuleases.wait(
        server.engine,
        server.policy,
        server.user(3),
        "a",
        request,
        lambda: list(server.devices),
        progress=said.append,
        pause=pause,
    )
    assert len(pauses) == 2 and "does not answer" in said[0]
    assert "a._.2004" in gpuleases._read_leases() and gpuleases._read_queue() == []


def test_who_waits_ends_with_the_server_and_keeps_the_place(
    server: Booted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, seen = tmp_path / "comm", []
    monkeypatch.setattr(gpuleases, "_FIRST_PROCESS", str(first))
    first.write_text("systemd\n")

    def pause(_seconds: float) -> None:
        first.write_text("systemd-shutdow\n")

    def kill(pid: int, number: int) -> None:
        seen.append((pid, number, [one.project for one in gpuleases._read_queue()]))
        raise SystemExit

    monkeypatch.setattr(gpuleases.os, "kill", kill)
    server.launch(server.user(0), "other", "4")
    with pytest.raises(SystemExit):
        gpuleases.wait(
            server.engine,
            server.policy,
            server.user(3),
            "a",
            gpurequests.parse("4"),
            lambda: list(server.devices),
            pause=pause,
        )
    assert seen == [(os.getpid(), signal.SIGKILL, ["a"])]


def test_damaged_entries_are_left_out(server: Booted) -> None:
    server.wait(3, "first")
    good = asdict(gpuleases._read_queue()[0])
    for bad in ({**good, "holder": "other._.2001"}, {**good, "words": 3}, {**good, "request": "x"}, 7, None):
        server.records.files["gpus/queue.json"] = json.dumps([bad])
        assert gpuleases._read_queue() == []
