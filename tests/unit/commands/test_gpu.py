"""The commands ``gpu ...``: what they ask the broker, and how they say what it tells."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    cli_lab_gpus,
    cli_lab_reserve,
    gpurequests,
    gpureserve,
    gpuview,
    verbs,
)
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy
from conftest import Run, result

Broker = Callable[..., Path]
UUID = "GPU-00000000-0000-4000-8000-00000000000"
GPU = {"name": "H100", "memory": 80 << 30, "profile": None, "gpu": None, "problem": None, "usable": True}


def device(number: int, use: str, **more: object) -> dict[str, object]:
    return {**GPU, "uuid": f"{UUID}{number}", "index": str(number), "use": use, "projects": [], **more}


def test_list_says_of_each_what_it_is_to_me(run: Run, broker: Broker) -> None:
    devices = [
        device(0, "yours", projects=["thesis"]),
        device(1, "in use"),
        device(2, "free"),
        device(3, "in use", shared=True),
        device(4, "", problem="GPU 4 is lost."),
        device(5, "", usable=False),
        device(6, "free", profile="1g.10gb", gpu=f"{UUID}5"),
    ]
    data = {"devices": devices, "gone": [], "problem": "", "held": "1", "limit": 2, "waiting": 3}
    asked = broker(result(**data))
    code, out, _err = run("gpu", "list")
    lines = out.splitlines()
    assert code == 0 and "gpu-list" in asked.read_text()
    for line, words in zip(
        lines[1:], ["yours", "in use", "free", "in use, shared", "GPU 4 is lost.", "in instances", "1g.10gb"]
    ):
        assert words in line
    assert "thesis" in lines[1]
    assert lines[-1] == "You hold 1 of 2 GPUs. 3 wait: gpu queue."
    code, out, _err = run("gpu", "list", "--json")
    assert code == 0 and json.loads(out) == data


def test_list_says_in_a_sentence_why_there_are_none(run: Run, broker: Broker) -> None:
    gone = [{"uuid": f"{UUID}9", "project": "thesis"}]
    broker(
        result(devices=[], gone=gone, problem="This server has no NVIDIA GPU.", held="0", limit=0, waiting=0)
    )
    code, out, _err = run("gpu", "list")
    assert code == 0
    assert out.splitlines()[0] == "This server has no NVIDIA GPU."
    assert f"The GPU {UUID}9 of thesis is not there any more." in out


def test_queue_names_ones_own_projects_alone(run: Run, broker: Broker) -> None:
    waiting = [
        {"place": 1, "yours": False, "project": None, "gpus": "2", "waited": 60, "estimate": None},
        {"place": 2, "yours": True, "project": "thesis", "gpus": "1", "waited": 5, "estimate": 3600},
    ]
    broker(result(waiting=waiting))
    code, out, _err = run("gpu", "queue")
    _head, first, second = out.splitlines()
    assert code == 0 and "(another's)" in first and "unknown" in first
    assert "thesis" in second and "about 1 h" in second
    broker(result(waiting=[]))
    assert run("gpu", "queue")[1] == "Nobody waits for GPUs.\n"


def test_release_says_what_it_does_and_would_do(run: Run, broker: Broker) -> None:
    asked = broker(result(changed=True))
    assert "would be given up" in run("gpu", "release", "thesis", "--dry-run")[1]
    assert "gpu-release thesis check=yes" in asked.read_text()
    assert run("gpu", "release", "thesis")[1] == "thesis does not wait for GPUs any more.\n"
    broker({"event": "error", "kind": "NotFound", "message": "thesis does not wait for GPUs.", "hint": ""})
    code, _out, err = run("gpu", "release", "thesis")
    assert code != 0 and "does not wait" in err


def test_why_says_yes_or_the_reason(run: Run, broker: Broker) -> None:
    asked = broker(result(now=True, later=True, devices=[f"{UUID}0"], why="", hint=""))
    code, out, _err = run("gpu", "why")
    assert code == 0 and "You can have that now" in out and "project launch NAME --gpus 1" in out
    assert "gpu-why gpus=1" in asked.read_text()
    broker(result(now=False, later=True, devices=[], why="gpus: 1 GPU: 0 of 2 free.", hint="Wait for it."))
    assert run("gpu", "why", "--gpus", "1")[1].splitlines() == ["gpus: 1 GPU: 0 of 2 free.", "Wait for it."]


def test_what_asks_for_no_gpu_never_reaches_the_broker(run: Run, broker: Broker) -> None:
    asked = broker(result())
    for words in (("gpu", "why", "--gpus", "all"), ("project", "launch", "thesis", "--gpus", "0x1")):
        code, _out, err = run(*words)
        assert code != 0 and "asks for no GPU" in err
    assert not asked.exists()


def test_a_dry_run_of_a_launch_asks_for_its_check_with_all_that_was_said(run: Run, broker: Broker) -> None:
    note = "gpus: 2 GPUs: 0 of 8 free. It would wait for them."
    asked = broker(result(changed=True, actions=["create"], status="created", build="", notes=[note]))
    code, out, _err = run("project", "launch", "thesis", "--gpus", "2", "--wait", "--dry-run")
    assert code == 0 and "It would wait for them." in " ".join(out.split())
    words = asked.read_text()
    assert "project-launch-check thesis" in words and "gpus=2" in words and "wait=yes" in words


RESERVED = {
    "changed": True,
    "number": 7,
    "gpus": "2",
    "start": 1796112000,
    "end": 1796140800,
    "from": "2026-12-01 09:00 CET",
    "until": "2026-12-01 17:00 CET",
    "state": "ahead",
    "grace_minutes": 60,
}
WINDOW = ("--gpus", "2", "--from", "2026-12-01T09:00", "--for", "8h")


def test_reserve_says_what_is_reserved_and_what_comes_of_it(run: Run, broker: Broker) -> None:
    asked = broker(result(**RESERVED))
    code, out, _err = run("gpu", "reserve", *WINDOW)
    assert code == 0 and "2 reserved: number 7." in out and "2026-12-01 09:00 CET" in out
    assert "60 minutes" in out and all(len(line) <= 80 for line in out.splitlines())
    assert asked.read_text().splitlines()[-1].endswith("gpu-reserve gpus=2 from=2026-12-01T09:00 for=8h")
    code, out, _err = run("gpu", "reserve", *WINDOW, "--dry-run")
    assert code == 0 and "would be reserved. Nothing was changed." in out
    assert " gpu-reserve-check gpus=2 " in asked.read_text().splitlines()[-1]
    code, out, _err = run("gpu", "reserve", *WINDOW, "--dry-run", "--json")
    assert json.loads(out) == {**RESERVED, "dry_run": True}


def test_reserve_lists_what_is_reserved_and_names_nobody(run: Run, broker: Broker) -> None:
    others = {**RESERVED, "number": None, "yours": False, "state": "on"}
    data = {"reservations": [others, {**RESERVED, "yours": True}], "gpus": 4, "ahead_days": 14, "hours": 24}
    broker(result(**data))
    code, out, _err = run("gpu", "reserve", "--list")
    _head, first, second, rules = out.splitlines()
    assert code == 0 and first.split()[:2] == ["-", "(another)"] and second.split()[:2] == ["7", "you"]
    assert rules == "You may reserve 4 GPUs for 24 hours at most, 14 days ahead."
    assert all(len(line) <= 80 for line in out.splitlines())
    assert run("gpu", "reserve")[1] == out
    assert json.loads(run("gpu", "reserve", "--json")[1]) == data
    broker(result(reservations=[], gpus=0))
    lines = run("gpu", "reserve")[1].splitlines()
    assert lines == ["No GPUs are reserved.", "You may reserve none; your admins can do it for you."]


def test_reserve_gives_up_what_is_said(run: Run, broker: Broker) -> None:
    asked = broker(result(**RESERVED))
    assert "would be given up" in run("gpu", "reserve", "--cancel", "7", "--dry-run")[1]
    assert run("gpu", "reserve", "--cancel", "7")[1] == "Reservation 7 is given up.\n"
    assert [line.split()[2:] for line in asked.read_text().splitlines()] == [
        ["gpu-unreserve-check", "number=7"],
        ["gpu-unreserve", "number=7"],
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (WINDOW[:4], "--gpus, --from and --for are needed"),
        ((*WINDOW, "--list"), "do not go together"),
        (("--list", "--cancel", "7"), "do not go together"),
        (("--cancel", "0"), "use the number that --list shows"),
        (("--cancel", "x"), "use the number that --list shows"),
        (("--gpus", "all", *WINDOW[2:]), "asks for no GPU"),
    ],
)
def test_reserve_asks_nothing_that_makes_no_sense(
    run: Run, broker: Broker, words: tuple[str, ...], said: str
) -> None:
    asked = broker(result())
    code, _out, err = run("gpu", "reserve", *words)
    assert code == 2 and said in err and not asked.exists()


def test_queue_says_what_goes_on_after_the_start_of_the_server(run: Run, broker: Broker) -> None:
    broker(result(waiting=[], interrupted=[{"project": "thesis", "gpus": "2"}]))
    first, second = run("gpu", "queue")[1].splitlines()
    assert first == "Nobody waits for GPUs." and second.startswith("thesis waited for 2 when the server went")


def test_why_tells_how_own_reservations_stand(run: Run, broker: Broker) -> None:
    note = "Your reservation 7 lapsed."
    broker(result(now=True, later=True, devices=[f"{UUID}0"], why="", hint="", notes=[note]))
    assert run("gpu", "why")[1].splitlines()[-1] == f"  note: {note}"


# Admins


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch, lab: Policy, run: Run) -> Run:
    """Return ``run`` as root, on a server where a reservation is only told."""
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(cli_lab_reserve, "load", lambda _path: lab)
    monkeypatch.setattr(cli_lab_reserve.journal, "record", lambda **_values: None)
    monkeypatch.setattr(verbs, "connected", lambda: contextlib.nullcontext("engine"))
    monkeypatch.setenv("TZ", "CET-1")  # of the caller; the server's is what counts
    return run


def test_lab_reserve_reserves_for_a_user_in_the_zone_of_the_server(
    root: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []

    def reserve(*words: object, admin: bool, check: bool) -> dict[str, object]:
        asked.append((*words, admin, check))
        return dict(RESERVED)

    monkeypatch.setattr(gpureserve, "reserve", reserve)
    code, out, err = root("lab", "reserve", "alice", *WINDOW)
    assert code == 0, err
    assert "reserved: number 7" in out and "TZ" not in os.environ
    _engine, _policy, user, request, start, length, _devices, admin, check = asked[0]
    assert (getattr(user, "name", ""), request, length, admin, check) == (
        "alice",
        gpurequests.parse("2"),
        28800.0,
        True,
        False,
    )
    assert start == time.mktime((2026, 12, 1, 9, 0, 0, 0, 0, -1))
    assert json.loads(root("lab", "reserve", "alice", *WINDOW, "--json", "--dry-run")[1])["user"] == "alice"
    assert asked[-1][-1] is True
    assert root("lab", "reserve", "nobody", *WINDOW)[0] == 4
    assert root("lab", "reserve", "alice", *WINDOW[:4])[0] == 2


def test_lab_reserve_lists_with_names_and_gives_up_anybodys(
    root: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up: list[tuple[object, ...]] = []
    monkeypatch.setattr(gpureserve, "listed", lambda _policy: [{**RESERVED, "yours": False, "user": "bob"}])
    monkeypatch.setattr(
        gpureserve, "cancel", lambda *words, check: given_up.append((*words[2:], check)) or dict(RESERVED)
    )
    assert "bob" in root("lab", "reserve")[1].splitlines()[1]
    assert root("lab", "reserve", "--cancel", "7", "--dry-run")[1] == "Reservation 7 would be given up.\n"
    assert root("lab", "reserve", "--cancel", "7")[1] == "Reservation 7 is given up.\n"
    assert given_up == [(7, True), (7, False)]


def test_lab_reserve_is_for_admins(run: Run) -> None:
    code, _out, err = run("lab", "reserve")
    assert code == 3 and "for the admins" in err


# ---- root ------------------------------------------------------------------------------------------------

HOLDER = {
    "user": "alice",
    "uid": 2001,
    "group": "students",
    "project": "thesis",
    "container": "thesis._.2001",
}
HELD = {**HOLDER, "state": "running", "since": 0.0, "gpus": "1"}
WAITS = {**HOLDER, "user": "bob", "place": 1, "project": "net", "gpus": "2", "waited": 60, "estimate": None}


def seen(**changes: Any) -> dict[str, Any]:
    """Return what an admin is told of two GPUs, one of which alice has."""
    facts = {"used": 1 << 30, "load": 71, "problem": "", "free": True, "shared": False, "processes": []}
    facts["out_of_service"] = False
    one, two = (
        {**device(number, ""), **facts, "memory": 80 << 30, "healthy": True, "holders": []}
        for number in (0, 1)
    )
    process = {"pid": 77, "memory": 1 << 30, "uid": 2001, "user": "alice", "command": "python"}
    found = {**process, "container": "thesis._.2001", "project": "thesis", "leased": True}
    one = {**one, "free": False, "holders": [HELD], "processes": [found]}
    docker = {"answers": True, "problem": ""}
    told = {"problem": "", "docker": docker, "devices": [one, two], "gone": [], "waiting": [WAITS]}
    return {**told, **changes}


@pytest.fixture
def admin(run: Run, lab: Policy, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs a command as root, who is told of ``seen``."""
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(cli_lab_gpus, "load", lambda _path: lab)
    monkeypatch.setattr(gpuview, "look", lambda _policy: seen())
    return run


@pytest.mark.parametrize("words", [("lab", "gpus"), ("gpu", "list")])
def test_root_is_told_who_has_what(admin: Run, words: tuple[str, str]) -> None:
    code, out, _err = admin(*words)
    lines = out.splitlines()
    assert code == 0 and max(map(len, lines)) <= 80
    assert lines[1].split()[:2] == ["0", "H100"] and "given" in lines[1] and "alice/thesis" in lines[1]
    assert "free" in lines[2]
    assert lines[4].split() == ["0", "77", "alice", "thesis", "1G", "python"]
    assert lines[-1].split() == ["1", "bob", "net", "2", "60", "s", "unknown"]
    assert json.loads(admin(*words, "--json")[1]) == seen()


def test_root_is_told_the_queue_by_name(admin: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _err = admin("gpu", "queue")
    assert code == 0 and out.splitlines()[1].split()[:3] == ["1", "bob", "net"]
    assert json.loads(admin("gpu", "queue", "--json")[1]) == {"waiting": [WAITS]}
    monkeypatch.setattr(gpuview, "look", lambda _policy: seen(waiting=[]))
    assert admin("gpu", "queue")[1] == "Nobody waits for GPUs.\n"


def test_root_is_told_what_is_wrong_in_sentences(admin: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    told = seen(docker={"answers": False, "problem": "Docker does not answer."})
    told["devices"][1]["problem"] = "GPU 1 is lost."
    monkeypatch.setattr(gpuview, "look", lambda _policy: told)
    code, out, _err = admin("lab", "gpus")
    assert code == 0 and "GPU 1 is lost." in out.splitlines()
    assert "ill" in out.splitlines()[2] and out.endswith("is not known: Docker does not answer.\n")
    told["devices"][1]["out_of_service"] = True
    assert "out of service" in admin("lab", "gpus")[1].splitlines()[2]


def test_root_asks_why_for_a_user(admin: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    limits = {"equivalents": 2, "devices": 3, "container": None, "whole": False, "shared_by": 1}
    told = {"user": "alice", "uid": 2001, "group": "students", "limits": limits, "held": "1", "gpus": "2"}
    told |= {"holds": [{**HELD, "uuids": [f"{UUID}0"]}], "waiting": [], "now": False, "why": "gpus: no."}

    def person(_policy: Policy, user: Any, wanted: str) -> dict[str, Any]:
        asked.append((user.name, wanted))
        return told

    monkeypatch.setattr(gpuview, "person", person)
    code, out, _err = admin("lab", "gpus", "alice", "--gpus", "2")
    assert (code, asked) == (0, [("alice", "2")])
    assert "1 of 2 GPUs held, 3 devices at once, no whole ones" in out and f"{UUID}0" in out
    assert out.splitlines()[-1] == "a launch: 2: gpus: no."
    for words, word in (
        (("lab", "gpus", "--gpus", "2"), "needs the name of a user"),
        (("lab", "gpus", "eve"), "is not a lab user"),
        (("lab", "gpus", "alice", "--gpus", "all"), "asks for no GPU"),
        (("gpu", "why"), "lab gpus USER"),
        (("gpu", "release", "thesis"), "you are root"),
    ):
        code, _out, err = admin(*words)
        assert code != 0 and word in err
