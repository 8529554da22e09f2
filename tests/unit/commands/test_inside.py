# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Entering, running a command, reading logs and measuring: words, and what the broker is asked."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    calls,
    cli_inside,
    notices,
    protocol,
    quota,
    stats,
)
from conftest import Run, result


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return what this process would have become, each time."""
    programs: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _path, words: programs.append(words))
    return programs


def test_attach_hands_over_the_terminal(run: Run, became: list[list[str]]) -> None:
    assert run("container", "attach", "thesis")[0] == 0
    assert became == [[calls.SUDO, "-n", protocol.BROKER, "attach", "thesis"]]


@pytest.fixture
def end_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that says when the container of ``thesis`` ends, as the last look found it."""
    monkeypatch.setattr(notices, "NOTICES", str(tmp_path / "notices"))
    (tmp_path / "notices").mkdir()

    def write(seconds: float, **changes: Any) -> None:
        told = {"project": "thesis", "do": "stop", "at": int(time.time() + seconds), "noticed": True}
        (tmp_path / "notices/2001").write_text(json.dumps([{**told, "why": "", **changes}]))

    return write


def test_who_enters_is_told_before_when_the_container_ends(
    run: Run, became: list[list[str]], broker: Callable[..., Path], end_at: Callable[..., None]
) -> None:
    said = "This container is to be stopped in 3 h; put it off: container extend thesis\n"
    broker(result(status="running"))
    commands = (
        ["container", "attach", "thesis"],
        ["container", "run", "thesis", "--", "id"],
        ["project", "launch", "thesis", "--detach"],
    )
    end_at(3 * 3600 + 60)
    shown = [run(*words) for words in commands]
    assert shown[0] == (0, said, "") and shown[1] == (0, "", said) and said in shown[2][1]
    assert [words[3] for words in became] == ["attach", "container-exec"]
    # What is far off is not said, nor what another project's container has before it.
    for changes in ({"noticed": False}, {"project": "essay"}):
        end_at(3 * 3600 + 60, **changes)
        assert not any("put it off" in text for words in commands for text in run(*words)[1:])


def test_a_command_is_handed_over_word_by_word(run: Run, became: list[list[str]]) -> None:
    command = ["python", "-c", "print(1)", "--", "--json", "-h"]
    for words in (["container", "exec", "thesis"], ["container-exec", "thesis"]):
        assert run(*words, "--", *command)[0] == 0
    assert became == [[calls.SUDO, "-n", protocol.BROKER, "container-exec", "thesis", *command]] * 2


@pytest.mark.parametrize(
    "words", [["thesis"], ["thesis", "--"], ["thesis", "id"], ["thesis", "-u0", "--", "id"], ["--", "id"]]
)
def test_a_command_needs_its_dashes(run: Run, became: list[list[str]], words: list[str]) -> None:
    code, out, err = run("container", "exec", *words)
    assert code == 2 and out == "" and len(err.splitlines()) == 2 and not became


def test_help_tells_all_that_may_stand_before_the_dashes(run: Run) -> None:
    for program in ("container run", "container-run"):
        said = run(*program.split(), "--help")[1]
        assert said.startswith(f"usage: {program} [-h] [--dry-run] NAME [-- COMMAND...]\n")
    assert run("container", "exec", "-h")[1].startswith("usage: container exec [-h] NAME -- COMMAND...\n")


def test_run_launches_first_and_leaves_the_output_to_the_command(
    run: Run, became: list[list[str]], broker: Callable[..., Path]
) -> None:
    asked = broker(result(status="created", notes=["The disk fills."]))
    code, out, err = run("container", "run", "thesis", "--", "make", "--help")
    assert (code, out) == (0, "") and "note: The disk fills." in err
    assert asked.read_text().split()[2:] == ["project-launch", "thesis"]
    assert became == [[calls.SUDO, "-n", protocol.BROKER, "container-exec", "thesis", "make", "--help"]]
    code, _out, err = run("container", "run", "thesis")
    assert code == 2 and "container run thesis -- COMMAND" in err and len(became) == 1
    asked.unlink()
    for status, words in (("created", "would be made"), ("started", "again"), ("running", "runs already")):
        broker(result(status=status))
        assert words in run("container", "run", "thesis", "--dry-run", "--", "make")[1]
    assert set(asked.read_text().split()[2::4]) == {"project-launch-check"} and len(became) == 1


def test_start_starts_what_is_there(run: Run, broker: Callable[..., Path]) -> None:
    asked = broker(result(changed=True, containers=[{"project": "thesis", "status": "exited"}]))
    assert "runs again" in run("container", "start", "thesis")[1]
    assert "would be started" in run("container", "start", "thesis", "--dry-run")[1]
    assert json.loads(run("container", "start", "thesis", "--dry-run", "--json")[1])["changed"] is True
    verbs = [line.split("lab-broker ")[1] for line in asked.read_text().splitlines()]
    assert verbs == ["container-start thesis", *["container-start-check thesis"] * 2]
    broker(result(changed=False))
    assert "running already" in run("container", "start", "thesis")[1]
    # Which GPUs it has again, or would have.
    broker(result(changed=True, gpus=["GPU-1", "GPU-2"]))
    for words in (["start"], ["start", "--dry-run"], ["undo"], ["undo", "--dry-run"]):
        assert "\n  gpus:      GPU-1, GPU-2\n" in run("container", words[0], "thesis", *words[1:])[1]


def job(**changes: Any) -> dict[str, Any]:
    """Return a job as the broker tells it."""
    return {
        "command": "python train.py",
        "log": "logs/2026-11-26-013122.log",
        "started": 1_800_000_000,
        "running": False,
        "ended": 1_800_000_100,
        "exit_code": 3,
        **changes,
    }


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return the file of the job of ``thesis``."""
    path = tmp_path / "thesis" / str(job()["log"])
    path.parent.mkdir(parents=True)
    return path


END = "\n--- exit code 3 ---\n"


def test_logs_shows_the_end_with_nothing_that_steers_the_terminal(
    run: Run, broker: Callable[..., Path], log: Path
) -> None:
    lines = [f"line {number}\n".encode() for number in range(100)]
    log.write_bytes(b"".join(lines) + b" 1%\r99%\r100%\n\x1b[2J\xff" + END.encode())
    asked = broker(result(job=job(), container=[]))
    code, out, _err = run("container", "logs", "thesis", "--lines", "5")
    assert code == 0 and "container-logs thesis lines=5" in asked.read_text()
    head, *shown = out.splitlines()
    assert "~/workspace/thesis/logs/" in head and "its job ended (3)" in head
    assert shown == ["line 98", "line 99", "100%", "\\x1b[2J\ufffd", "--- exit code 3 ---"]
    answer = json.loads(run("container", "logs", "thesis", "--json")[1])
    assert answer["job"]["exit_code"] == 3 and len(answer["lines"]) == 50
    assert run("container", "logs", "thesis", "--json", "--follow")[0] == 2


def test_logs_of_a_long_file_are_read_from_its_end(run: Run, broker: Callable[..., Path], log: Path) -> None:
    log.write_text("x" * 199_999 + "\n" + "".join(f"{number:07}\n" for number in range(100_000)))
    broker(result(job=job(), container=[]))
    lines = run("container", "logs", "thesis", "--lines", "9999")[1].splitlines()[1:]
    assert lines == [f"{number:07}" for number in range(90_001, 100_000)]
    assert len(run("container", "logs", "thesis", "--lines", "0")[1].splitlines()) == 1


@pytest.mark.parametrize("plant", ["nothing", "link", "fifo", "folder"])
def test_logs_follows_no_link_and_waits_for_no_pipe(
    run: Run, broker: Callable[..., Path], log: Path, tmp_path: Path, plant: str
) -> None:
    (tmp_path / "secret").write_text("secret")
    if plant == "link":
        log.symlink_to(tmp_path / "secret")
    elif plant == "fifo":
        os.mkfifo(log)
    elif plant == "folder":
        log.mkdir()
    broker(result(job=job(), container=[]))
    code, out, err = run("container", "logs", "thesis")
    assert code == 4 and "secret" not in out + err and "cannot be read" in err


def test_logs_without_a_job_says_how_to_begin(run: Run, broker: Callable[..., Path]) -> None:
    broker(result(job=None, container=[]))
    assert "--command" in run("container", "logs", "thesis")[1]
    broker(result(job=None, container=["exec sleep failed\x1b"]))
    out = run("container", "logs", "thesis")[1]
    assert "exec sleep failed\\x1b" in out


def test_follow_ends_with_the_job(
    run: Run, broker: Callable[..., Path], log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_inside, "_PAUSE", 0.01)
    log.write_text("one\n")
    broker(result(job=job(running=True, exit_code=None), container=[]))

    def write() -> None:
        for text in ("two\nth", "ree\n", END):
            time.sleep(0.05)
            with log.open("a") as file:
                file.write(text)

    writer = threading.Thread(target=write)
    writer.start()
    code, out, _err = run("container", "logs", "thesis", "--follow")
    writer.join()
    assert code == 0
    assert out.splitlines()[1:] == ["one", "two", "three", "", "--- exit code 3 ---"]


def test_follow_keeps_no_more_of_a_bar_of_progress_than_shows() -> None:
    line = ""
    for number in range(1000):
        line = cli_inside._end_of(line + f"{number} %\r")
    assert line == "999 %\r"
    assert cli_inside._end_of("10 %\r20 %") == "20 %"
    assert len(cli_inside._end_of("x" * 100_000)) == 1 << 16


def test_follow_ends_though_the_job_was_cut_off(
    run: Run, broker: Callable[..., Path], log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_inside, "_PAUSE", 0.01)
    monkeypatch.setattr(cli_inside, "_LOOK_AGAIN", 0.05)
    log.write_text("one\nhalf")
    answers = [{"job": job(running=True)}, {"job": job(running=True)}, {"job": job(exit_code=None)}]
    monkeypatch.setattr(cli_inside, "ask", lambda *_words: answers.pop(0))
    code, out, _err = run("container", "logs", "thesis", "--follow")
    assert code == 0 and out.splitlines()[-2:] == ["one", "half"] and not answers


def test_stats_fit_80_columns(run: Run, broker: Callable[..., Path]) -> None:
    used = {"cpus": 1.98, "cpus_limit": 2.0, "memory": 900 << 20, "memory_limit": 1 << 30}
    running = {"container": f"{'a' * 32}._.2001", "status": "running", "pids": 7, "pids_limit": 512, **used}
    stopped = {"container": "b._.2001", "status": "exited", "cpus": None, "memory": None, "pids": None}
    asked = broker(result(containers=[running, stopped]))
    code, out, _err = run("container", "stats")
    assert code == 0 and max(len(line) for line in out.splitlines()) <= 80
    assert "1.98 of 2.0" in out and "900M of 1G (88 %)" in out and "7 of 512" in out and "stopped" in out
    run("container", "stats", "thesis", "--json")
    verbs = [line.split("lab-broker ")[1] for line in asked.read_text().splitlines()]
    assert verbs == ["container-stats-all", "container-stats thesis"]
    broker(result(containers=[]))
    assert "project launch NAME" in run("container", "stats")[1]


def test_what_is_used_is_measured_between_two_looks() -> None:
    before = {"cpu_stats": {"cpu_usage": {"total_usage": 1_000_000_000}}}
    after = {
        "cpu_stats": {"cpu_usage": {"total_usage": 1_750_000_000}},
        "memory_stats": {"usage": 100, "stats": {"inactive_file": 40}},
        "pids_stats": {"current": 3},
    }
    assert stats.measured(before, after, 0.5) == {"cpus": 1.5, "memory": 60, "pids": 3}
    # cgroup v1; a container that was started anew meanwhile; nothing said at all.
    old = {"memory_stats": {"usage": 100, "stats": {"total_inactive_file": 30}}}
    assert stats.measured(after, old, 0.5) == {"cpus": 0.0, "memory": 70, "pids": 0}
    assert stats.measured({}, {"memory_stats": None}, 0) == {"cpus": 0.0, "memory": 0, "pids": 0}


@pytest.mark.parametrize(
    ("line", "file", "text", "kills"),
    [
        ("0::/lab.slice/x.scope", "lab.slice/x.scope/memory.events", "low 0\noom 2\noom_kill 2\n", 2),
        ("0::/x", "x/memory.events", "oom 0\noom_kill 0\n", 0),
        ("4:memory:/lab/x", "memory/lab/x/memory.oom_control", "under_oom 0\noom_kill 1\n", 1),
        ("0::/x", "x/memory.events", "what is this", 0),
        ("0::/x", "x/other", "", 0),
        ("nothing", "x/other", "", 0),
    ],
)
def test_processes_that_were_ended_for_memory_are_counted(
    tmp_path: Path, line: str, file: str, text: str, kills: int
) -> None:
    for path, content in (("proc/7/cgroup", f"1:name=systemd:/x\n{line}\n"), (f"cgroup/{file}", text)):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(content)
    assert stats.oom_kills(7, str(tmp_path / "proc"), str(tmp_path / "cgroup")) == kills
    assert stats.oom_kills(8, str(tmp_path / "proc"), str(tmp_path / "cgroup")) == 0


def test_a_job_says_where_its_output_is(
    run: Run, broker: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "execv", lambda *words: pytest.fail("attached"))
    asked = broker(result(container="thesis._.2001", status="created", job=job(running=True)))
    code, out, _err = run("project", "launch", "thesis", "--command", "python train.py; x > y")
    assert code == 0 and "logs/2026-11-26-013122.log" in out and "container logs thesis --follow" in out
    assert "project-launch thesis command=python train.py; x > y\n" in asked.read_text()
    for wrong in ("", " ", "\x1b", "x" * 4097):
        assert run("project", "launch", "thesis", "--command", wrong)[0] == 2


def test_how_a_job_stands_is_in_the_list(run: Run, broker: Callable[..., Path]) -> None:
    states = [job(running=True), job(), job(exit_code=None), None]
    broker(
        result(
            containers=[
                {"project": "x", "container": f"{n}._.2001", "status": "running", "created": 1, "job": one}
                for n, one in enumerate(states)
            ]
        )
    )
    lines = run("container", "list")[1].splitlines()[1:]
    assert [line.split("  ")[-1] for line in lines[:3]] == [
        "a job runs",
        "its job ended (3)",
        "its job was cut off",
    ]


STATUS = {
    "project": "thesis",
    "folder": True,
    "dockerfile": True,
    "note": "",
    "container": {"container": "thesis._.2001", "status": "running", "created": int(time.time()) - 86400},
    "job": job(running=True),
    "image": {
        "fingerprint": "0123456789abcdef",
        "created": int(time.time()) - 86400,
        "size": 1 << 30,
        "matches_files": False,
    },
    "images": 2,
    "replaced": {"time": 1_800_000_000, "reason": "the image is newer"},
    "undo_until": 1_800_000_000,
    "drift": {"memory": {"is": "1G", "would_be": "2G\x1b"}},
    "kept": ["/workspace", "/srv/data/vision"],
}


def test_status_tells_all_that_there_is(
    run: Run, broker: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/blob").write_bytes(b"x" * 100_000)
    limits = quota.Quota(soft=0, hard=250 << 20, inodes_soft=0, inodes_hard=0)
    monkeypatch.setattr(quota, "usage", lambda _policy, _user: quota.Usage(125 << 20, 9, limits))
    broker(result(**STATUS))
    code, out, _err = run("project", "status", "thesis")
    assert code == 0 and "\x1b" not in out
    assert max(len(line) for line in out.splitlines()) <= 80
    out = " ".join(out.split())
    for words in (
        "running, 1 d old; a job runs",
        "the files changed since: image update thesis",
        "memory is 1G, and would be 2G\\x1b",
        "container retire thesis && project launch thesis",
        "/srv/data/vision; the rest goes",
        "container retire thesis, then container undo thesis",
        "by IT's run, ",
        "50 % of 250M; 100K of it in this project",
    ):
        assert words in out
    assert json.loads(run("project", "status", "thesis", "--json")[1])["usage"]["project"] >= 100_000


def test_status_of_a_long_name_fits(run: Run, broker: Callable[..., Path], tmp_path: Path) -> None:
    name = "a-rather-long-name-1"
    (tmp_path / name).mkdir()
    broker(result(**STATUS))
    out = run("project", "status", name)[1]
    assert max(len(line) for line in out.splitlines()) <= 80
    assert f"container undo {name}" in " ".join(out.split())


def test_status_tells_what_it_can_without_docker(run: Run, broker: Callable[..., Path]) -> None:
    broker(result(project="thesis", folder=True, dockerfile=False, note="Docker is down."))
    code, out, _err = run("project", "status", "thesis")
    assert code == 0 and "not known: Docker is down." in out and "without a Dockerfile" in out
    broker(
        result(**{**STATUS, "container": None, "image": None, "job": None, "drift": {}, "undo_until": None})
    )
    out = run("project", "status", "thesis")[1]
    assert "no container" in out and "none yet" in out and "kept" not in out


def test_a_launch_asks_for_what_the_policy_decides(run: Run, broker: Callable[..., Path]) -> None:
    asked = broker(
        result(container="thesis._.2001", status="created", limits={"cpus": 0.5, "memory": 512 << 20})
    )
    code, out, _err = run(
        "project", "launch", "thesis", "--detach", "--cpus", "0.5", "--memory", "512m", "--rebuild"
    )
    assert code == 0 and "limits:    0.5 cpus, 512M of memory" in out
    assert "project-launch thesis cpus=0.5 memory=512m rebuild=yes\n" in asked.read_text()
    asked.unlink()
    for words in (["--cpus", "-1"], ["--cpus", "many"], ["--memory", "all"], ["--memory", ""]):
        code, _out, err = run("project", "launch", "thesis", *words)
        assert code == 2 and len(err.splitlines()) == 2 and not asked.exists()
