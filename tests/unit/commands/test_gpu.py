"""The commands ``gpu ...``: what they ask the broker, and how they say what it tells."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

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
