# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What lab users type and see: the commands, their words, their exit codes, at 80 columns."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    calls,
    cli,
    cli_project,
    cli_workspace,
    mounts,
    privatetmp,
    protocol,
    quota,
    room,
)
from ansible_collections.lab.server.plugins.module_utils._core.errors import (
    EngineError,
    HostError,
    InvalidInput,
    NotFound,
    Refused,
)
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy, Quota, Share
from conftest import Run, result

LAUNCHED = result(
    container="thesis._.2001",
    status="created",
    image="lab/2001/thesis:0123456789ab",
    notes=["The image is newer."],
    kept=["/workspace", "/srv/data/vision"],
    read_only=["/srv/data"],
)
STEPS = [
    {"event": "progress", "text": f"Step {number}/3 : RUN pip install {'very-long-name ' * 9}"}
    for number in (1, 2, 3)
]


# ---- the command line ------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", cli.programs())
def test_every_program_explains_itself_in_80_columns(run: Run, program: str) -> None:
    code, out, _err = run(program, "--help")
    assert code == 0
    assert max(len(line) for line in out.splitlines()) <= 80
    group = next((one for one in cli.GROUPS if one.replace(" ", "-") == program), "")
    if not group:
        assert "example:" in out and "exit codes:" in out
    for verb in re.findall(r"^    (\w+) ", out, re.MULTILINE) if group else ():
        code, out, _err = run(program, verb, "--help")
        assert code == 0 and max(len(line) for line in out.splitlines()) <= 80
        if f"{group} {verb}" in cli.GROUPS:
            assert cli.GROUPS[f"{group} {verb}"] in out
        else:
            assert f"example:\n  {group} {verb}" in out and "exit codes:" in out


def test_a_group_in_a_group_is_called_by_words_and_by_a_hyphen(run: Run) -> None:
    for words in (("lab", "share", "list"), ("lab-share", "list"), ("lab-share-list",)):
        assert run(*words) == (0, "Nothing is published yet.\n", "")
    code, _out, err = run("lab", "share")
    assert code == 2 and "lab share --help" in err


@pytest.mark.parametrize(
    "words",
    [
        ["project"],
        ["project", "lunch"],
        ["project", "launch"],
        ["project", "launch", "a", "b"],
        ["project", "launch", "A"],
        ["project", "launch", "../x"],
        ["project", "launch", "x", "--det"],
        ["project-init", "x", "--type", "magic"],
        ["container", "list", "x"],
        ["image-update", "x\x1b[31m"],
    ],
)
def test_a_wrong_command_line_is_two_short_lines(run: Run, words: list[str]) -> None:
    code, out, err = run(*words)
    assert code == 2 and out == ""
    assert len(err.splitlines()) == 2 and "--help" in err and "\x1b" not in err


def test_a_wrong_name_is_told_the_rule(run: Run) -> None:
    assert "1 to 32 of a-z, 0-9 and '-'" in run("project", "init", "My_Thesis")[2]


def test_every_command_is_there_by_its_group_and_with_a_hyphen(run: Run) -> None:
    for command in cli.COMMANDS:
        hyphenated, grouped = run("-".join(command.words), "--help"), run(*command.words, "--help")
        assert hyphenated[0] == grouped[0] == 0
        assert hyphenated[1].partition("options:")[2] == grouped[1].partition("options:")[2]


def test_the_hyphenated_command_is_the_same(run: Run, broker: Callable[..., Path]) -> None:
    asked = broker(result(containers=[]))
    assert run("container-list") == run("container", "list")
    assert asked.read_text().splitlines() == [f"-n {protocol.BROKER} container-list"] * 2


@pytest.mark.parametrize(("uid", "word"), [(0, "root"), (4711, "not a lab user")])
def test_others_are_told_who_the_commands_are_for(
    run: Run, monkeypatch: pytest.MonkeyPatch, uid: int, word: str
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: uid)
    for words in (
        ["project", "list"],
        ["project", "init", "x"],
        ["workspace", "usage"],
        ["container", "stop", "x"],
    ):
        code, out, err = run(*words)
        assert code == 3 and word in err and out == ""


# ---- project ---------------------------------------------------------------------------------------------


def test_init_lays_out_a_project_once(run: Run, tmp_path: Path) -> None:
    code, out, _err = run("project", "init", "thesis", "--type", "ml")
    assert code == 0 and "project launch thesis" in out
    assert (tmp_path / "thesis/Dockerfile").read_text().count("FROM lab/python") == 1
    (tmp_path / "thesis/Dockerfile").write_text("mine")
    code, out, _err = run("project", "init", "thesis")
    assert code == 0 and "nothing was changed" in out
    assert (tmp_path / "thesis/Dockerfile").read_text() == "mine"
    code, out, _err = run("project-init", "thesis", "--json")
    assert json.loads(out)["changed"] is False


def test_a_preview_of_init_makes_nothing_and_tells_the_same(run: Run, tmp_path: Path) -> None:
    def init(*words: str) -> Any:
        return json.loads(run("project", "init", "net", "--json", *words)[1])

    promised = init("--dry-run")
    assert promised["changed"] and promised["dry_run"] and not (tmp_path / "net").exists()
    code, out, _err = run("project", "init", "net", "--dry-run")
    assert code == 0 and "  net/Dockerfile\n" in out and "nothing was made" in out
    done = init()
    assert done["created"] == promised["created"] and (tmp_path / "net/Dockerfile").is_file()
    for path in ("net/README.md", "net/data/raw/.gitkeep", "net/data/raw"):
        target = tmp_path / path
        if target.is_dir():
            target.rmdir()
        elif target.exists():
            target.unlink()
    promised = init("--dry-run")
    assert promised["changed"] and promised["created"] == init()["created"]
    assert not init("--dry-run")["changed"]


def test_init_offers_the_servers_images_alone(run: Run) -> None:
    code, _out, err = run("project", "init", "thesis", "--base", "lab/evil")
    assert code == 2 and "lab/python" in err


def test_launch_shows_the_steps_and_what_is_kept(run: Run, broker: Callable[..., Path]) -> None:
    noise = [
        " ---> 08df6a6bf2f5",
        "Removing intermediate container 1",
        "Step 3/3 : LABEL lab.server.owner=2001",
    ]
    asked = broker(*STEPS, *({"event": "progress", "text": text} for text in noise), LAUNCHED)
    code, out, err = run("project", "launch", "thesis", "--detach")
    assert len(err.splitlines()) == len(STEPS)
    assert code == 0 and asked.read_text() == f"-n {protocol.BROKER} project-launch thesis\n"
    assert "step 2 of 3: RUN pip" in err
    assert "kept:      /workspace, /srv/data/vision" in out and "read only: /srv/data" in out
    assert "note: The image is newer." in out and "lost" in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_a_preview_of_launch_says_what_would_be(run: Run, broker: Callable[..., Path]) -> None:
    facts = {"changed": True, "status": "created", "build": "there is none", "kept": ["/workspace"]}
    asked = broker(result(**facts, read_only=["/srv/data"], limits={"cpus": 2, "memory": 1 << 30}))
    code, out, err = run("project", "launch", "net", "--dry-run", "--cpus", "2", "--command", "make")
    assert (code, err) == (0, "")
    assert asked.read_text().split()[2:] == ["project-launch-check", "net", "cpus=2", "command=make"]
    assert out.splitlines() == [
        "net would be started in a new container. Nothing was changed.",
        "  image:     would be built: there is none",
        "  kept:      /workspace",
        "  read only: /srv/data",
        "  limits:    2 cpus, 1G of memory",
        "  lost when you retire the container: everything else in it",
        "  job:       the command would be begun in it",
    ]
    assert json.loads(run("project", "launch", "net", "--dry-run", "--json")[1])["dry_run"] is True


@pytest.mark.parametrize(
    ("words", "verb", "facts", "said"),
    [
        ("container undo", "container-undo-check", {"changed": True}, "would be brought back"),
        ("container undo", "container-undo-check", {"changed": False}, "was brought back already"),
        (
            "image update",
            "image-update-check",
            {"changed": True, "reason": "there is none"},
            "would be built: ",
        ),
        ("image update", "image-update-check", {"changed": False}, "nothing would be built"),
        ("image update --rebuild", "image-rebuild-check", {"changed": True}, "would be built"),
    ],
)
def test_a_preview_asks_the_broker_what_it_would_do(
    run: Run, broker: Callable[..., Path], words: str, verb: str, facts: dict[str, Any], said: str
) -> None:
    asked = broker(result(**facts))
    code, out, _err = run(*words.split()[:2], "net", *words.split()[2:], "--dry-run")
    assert code == 0 and said in out and asked.read_text().split()[2:] == [verb, "net"]
    assert json.loads(run(*words.split()[:2], "net", "--dry-run", "--json")[1])["dry_run"] is True


@pytest.mark.parametrize("answers", [True, False])
def test_launch_says_how_to_reach_jupyter(
    run: Run, broker: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    asked = broker(result(status="created", kept=["/workspace"], port=20007, token="a1b2"))
    waited: list[int] = []
    monkeypatch.setattr(cli_project, "_answers", lambda port: waited.append(port) or answers)
    code, out, _err = run("project", "launch", "net", "--jupyter")
    assert [line.split()[2:] for line in asked.read_text().splitlines()] == [
        ["project-launch", "net", "jupyter=yes"],
        ["project-jupyter", "net"],
    ]
    assert waited == [20007] and code == (0 if answers else 1)
    if answers:
        assert "  ssh -N -L 20007:127.0.0.1:20007 alice@" in out
        assert "  http://127.0.0.1:20007/lab?token=a1b2\n" in out
    else:
        assert "container exec net -- cat /tmp/jupyter.log" in out and "a1b2" not in out
    told = json.loads(run("project", "launch", "net", "--jupyter", "--json")[1])["jupyter"]
    assert told["port"] == 20007 and told["ready"] is answers and told["url"].endswith("?token=a1b2")


def test_launch_warns_when_the_quota_is_nearly_used_up(
    run: Run, broker: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker(LAUNCHED)
    monkeypatch.setattr(quota, "usage", usage(240 << 20, 7, LIMITS))
    assert "note: 96 % of your space is used" in run("project", "launch", "thesis")[1]
    monkeypatch.setattr(quota, "usage", usage(100 << 20, 7, LIMITS))
    assert "of your space" not in run("project", "launch", "thesis")[1]


def test_launch_does_not_attach_without_a_terminal(
    run: Run, broker: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker(LAUNCHED)
    monkeypatch.setattr(os, "execv", lambda *words: pytest.fail("attached"))
    assert run("project", "launch", "thesis")[0] == 0


def test_launch_attaches_on_a_terminal(
    run: Run, broker: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker(LAUNCHED)
    became: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, words: became.append(words))
    monkeypatch.setattr("sys.stdin", type("Keyboard", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    run("project", "launch", "thesis")
    assert became == [[calls.SUDO, "-n", protocol.BROKER, "attach", "thesis"]]
    run("project", "launch", "thesis", "--detach")
    run("project", "launch", "thesis", "--json")
    assert len(became) == 1


@pytest.mark.parametrize(
    ("kind", "code"), [("refused", 3), ("not-found", 4), ("failed", 1), ("usage", 2), ("new", 1)]
)
def test_the_brokers_errors_keep_their_words_and_codes(
    run: Run, broker: Callable[..., Path], kind: str, code: int
) -> None:
    broker({"event": "error", "kind": kind, "message": "It is so.\x1b[2J", "hint": "Do that."}, code=code)
    got, out, err = run("project", "launch", "thesis")
    assert got == code and out == ""
    assert err == "project launch: It is so.\\x1b[2J\nDo that.\n"
    got, out, err = run("project", "launch", "thesis", "--json")
    assert got == code and err == "" and json.loads(out)["error"]["hint"] == "Do that."


def test_a_broker_that_does_not_answer_is_told_with_its_last_words(
    run: Run, broker: Callable[..., Path]
) -> None:
    broker("sudo: a password is required", code=1)
    code, _out, err = run("container", "list")
    assert code == 1 and "sudo: a password is required" in err and "admins" in err


def test_a_server_without_sudo_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "SUDO", "/nowhere/sudo")
    code, _out, err = run("container", "list")
    assert code == 1 and "/nowhere/sudo" in err


def test_ctrl_c_says_that_the_work_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*words: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_project, "ask", interrupt)
    code, _out, err = run("project", "launch", "thesis")
    assert code == 130 and "goes on" in err
    assert "'project status thesis'" in err and "'image log thesis --follow'" in err


def container(project: str, **changes: Any) -> dict[str, Any]:
    """Return a container as the broker tells it."""
    return {
        "project": project,
        "container": f"{project}._.2001",
        "status": "running",
        "created": 1_700_000_000,
        "image": "i",
        "image_newer": False,
        **changes,
    }


def test_lists_fit_80_columns(run: Run, broker: Callable[..., Path]) -> None:
    long = "a" * 32
    broker(result(containers=[container(long, image_newer=True), container("b", status="exited")]))
    code, out, _err = run("container", "list")
    assert code == 0 and "stopped" in out and "running" in out and "retire" in out
    assert max(len(line) for line in out.splitlines()) <= 80
    project = {"name": long, "dockerfile": True, "container": container(long, image_newer=True)}
    bare = {"name": "b", "dockerfile": False, "container": None}
    gone = {"name": "c", "dockerfile": False, "folder": False, "container": container("c")}
    broker(result(projects=[project, bare, gone], note=""))
    code, out, _err = run("project", "list")
    assert code == 0 and "no container" in out and "no Dockerfile" in out and "the folder is gone" in out
    assert max(len(line) for line in out.splitlines()) <= 80
    broker(result(projects=[project, bare], note="Docker is down."))
    code, out, err = run("project", "list")
    assert code == 0 and "unknown" in out and "Docker is down." in err


def test_empty_lists_say_how_to_begin(run: Run, broker: Callable[..., Path]) -> None:
    broker(result(containers=[], projects=[], note=""))
    assert "project launch NAME" in run("container", "list")[1]
    assert "project init NAME" in run("project", "list")[1]
    assert json.loads(run("project", "list", "--json")[1])["projects"] == []


def test_retire_says_that_the_workspace_is_untouched_twice(run: Run, broker: Callable[..., Path]) -> None:
    broker(result(changed=True))
    code, out, _err = run("container", "retire", "thesis")
    assert code == 0 and "untouched" in out
    broker(result(changed=False))
    code, out, _err = run("container", "retire", "thesis")
    assert code == 0 and "nothing to do" in out and "untouched" in out


LOST = {
    "packages": ["numpy 1.26.0", "torch 2.1.0"],
    "files": 214,
    "bytes": 3 << 20,
    "paths": ["/home/alice/notes", "/tmp/\x1b[2Jx"],
    "complete": True,
}


def test_retire_says_what_was_lost_and_until_when_it_can_be_undone(
    run: Run, broker: Callable[..., Path]
) -> None:
    broker(result(changed=True, lost=LOST, undo_until=1_800_000_000, not_kept=""))
    code, out, _err = run("container", "retire", "thesis")
    assert code == 0
    assert "lost: 214 files, 3M" in out
    assert "packages: numpy 1.26.0, torch 2.1.0" in out
    assert "/home/alice/notes" in out
    assert "\x1b" not in out
    assert re.search(r"until 2027-01-1[45] [0-9:]{5} you can have it back: container undo thesis", out)
    assert max(len(line) for line in out.splitlines() if line.startswith("  ")) <= 80
    broker(result(changed=True, lost=LOST, undo_until=None, not_kept="it holds more than is kept"))
    out = run("container", "retire", "thesis")[1]
    assert "gone for good: it holds more than is kept." in out
    assert "container undo" not in out
    unknown = {"packages": [], "files": 0, "bytes": 0, "paths": [], "complete": False}
    broker(result(changed=True, lost=unknown, undo_until=1_800_000_000))
    assert "lost: at least 0 files" in run("container", "retire", "thesis")[1]
    broker(result(changed=True, lost={**unknown, "complete": True}, undo_until=None))
    assert "lost: nothing" in run("container", "retire", "thesis")[1]


def test_before_something_is_gone_for_good_it_is_asked(
    run: Run, broker: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: dict[str, Any] = {"lost": LOST, "undo_until": None, "not_kept": "its image has the VOLUME /x"}
    asked = broker(result(changed=False, asks=True, **lost))
    for words in ([], ["--json"]):
        code, out, err = run("container", "retire", "thesis", *words)
        assert code == 2 and "no terminal to answer on" in out + err and "--yes" in out + err
    assert {tuple(line.split()[2:]) for line in asked.read_text().splitlines()} == {
        ("container-retire", "thesis", "ask=yes")
    }
    asked.unlink()
    keyboard = io.StringIO("n\ny\n")
    monkeypatch.setattr(keyboard, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", keyboard)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    code, out, _err = run("container", "retire", "thesis")
    assert code == 1 and "Nothing was retired." in out
    assert out.index("lost: 214 files") < out.index("the VOLUME /x.") < out.index("Retire it? [y/N]")
    assert len(asked.read_text().splitlines()) == 1
    run("container", "retire", "thesis")
    assert asked.read_text().splitlines()[-1].split()[2:] == ["container-retire", "thesis"]
    asked.unlink()
    broker(result(changed=True, **lost))
    code, out, _err = run("container", "retire", "thesis", "--yes")
    assert code == 0 and "gone for good" in out
    assert asked.read_text().split()[2:] == ["container-retire", "thesis"]


def test_undo_brings_it_back(run: Run, broker: Callable[..., Path]) -> None:
    asked = broker(result(changed=True))
    code, out, _err = run("container", "undo", "thesis")
    assert code == 0 and "is back and runs" in out
    assert asked.read_text().split()[2:] == ["container-undo", "thesis"]
    broker(result(changed=True, holds=LOST))
    out = run("container", "undo", "thesis", "--dry-run")[1]
    assert "holds: 214 files, 3M" in out and "packages: numpy 1.26.0" in out
    run("container", "undo", "thesis", "--back", "2")
    assert asked.read_text().splitlines()[-1].split()[2:] == ["container-undo", "thesis", "back=2"]
    assert run("container", "undo", "thesis", "--back", "0")[0] == 2
    broker(result(changed=False))
    assert "already" in run("container", "undo", "thesis")[1]
    broker({"event": "error", "kind": "refused", "message": "In the way.", "hint": "Retire it first."})
    code, _out, err = run("container", "undo", "thesis")
    assert code == 3 and "Retire it first." in err


def test_a_preview_of_a_retire_says_what_would_be_lost(run: Run, broker: Callable[..., Path]) -> None:
    asked = broker(result(changed=True, lost=LOST, undo_until=1_800_000_000, not_kept=""))
    code, out, _err = run("container", "retire", "thesis", "--dry-run")
    assert code == 0 and "would be retired" in out and "lost: 214 files" in out and "container undo" in out
    assert asked.read_text().split()[2:] == ["container-retire-check", "thesis"]
    assert json.loads(run("container", "retire", "thesis", "--dry-run", "--json")[1])["dry_run"] is True
    broker(result(changed=False))
    assert "nothing to do" in run("container", "retire", "thesis", "--dry-run")[1]


def test_a_preview_of_a_stop_is_the_brokers(run: Run, broker: Callable[..., Path]) -> None:
    asked = broker(result(changed=True))
    code, out, _err = run("container", "stop", "thesis", "--dry-run")
    assert code == 0 and "would be stopped" in out
    assert asked.read_text().split()[2:] == ["container-stop-check", "thesis"]
    broker(result(changed=False))
    assert "stopped already" in run("container", "stop", "thesis", "--dry-run")[1]


def test_an_update_says_how_to_change_over(run: Run, broker: Callable[..., Path]) -> None:
    broker(*STEPS, result(changed=True, image="lab/2001/thesis:0123456789ab", in_use=True))
    code, out, _err = run("image-update", "thesis")
    assert code == 0 and "container retire thesis && project launch thesis" in out
    broker(result(changed=False, in_use=False))
    assert "up to date" in run("image-update", "thesis")[1]


@pytest.mark.parametrize(
    ("options", "verb"),
    [
        ([], "image-update"),
        (["--locked"], "image-update-locked"),
        (["--rebuild"], "image-rebuild"),
        (["--locked", "--rebuild"], "image-rebuild-locked"),
    ],
)
def test_image_update_tells_what_was_locked(
    run: Run, broker: Callable[..., Path], options: list[str], verb: str
) -> None:
    ours = [
        "Step 2/9 : COPY .lab-server-lock.txt /run/lab-server/lock.txt",
        "Step 3/9 : ARG PIP_CONSTRAINT=/run/lab-server/lock.txt",
        "Step 9/9 : LABEL lab.server.owner=2001",
    ]
    lock = {"image": "0123456789ab", "packages": 12, "left_out": [], "broken": ["numpy 1 -> 2"]}
    notes = ["The lock was not kept: numpy 1 -> 2.\x1b[2J"]
    asked = broker(
        *({"event": "progress", "text": text} for text in ours),
        result(changed=True, image="lab/2001/thesis:1", lock=lock, notes=notes),
    )
    code, out, err = run("image-update", "thesis", *options)
    assert (code, err) == (0, "")
    assert asked.read_text() == f"-n {protocol.BROKER} {verb} thesis\n"
    assert "locked: the versions of 12 packages, as in 0123456789ab" in out
    assert "note: The lock was not kept: numpy 1 -> 2." in out
    assert "\x1b" not in out


# ---- workspace -------------------------------------------------------------------------------------------


def usage(used: int, inodes: int, limits: Quota) -> Callable[..., quota.Usage]:
    """Return what stands in for the kernel's answer."""
    return lambda policy, user: quota.Usage(used=used, inodes=inodes, quota=limits)


LIMITS = Quota(soft=200 << 20, hard=250 << 20, inodes_soft=20000, inodes_hard=25000)


def test_an_install_says_what_is_there_now_and_what_comes(run: Run, broker: Callable[..., Path]) -> None:
    asked = broker(
        {"event": "progress", "text": "Collecting numpy"},
        result(changed=True, packages={"numpy>=2": "2.1.3"}, dockerfile=False),
    )
    code, out, err = run("image-install", "thesis", "numpy>=2")
    assert code == 0 and err == "Collecting numpy\n"
    assert asked.read_text().split("lab-broker ")[1] == "image-install thesis numpy>=2\n"
    assert "numpy>=2: 2.1.3 is installed in the container now" in out
    assert "recorded in ~/workspace/thesis/requirements.txt" in out
    assert "image-update thesis" in out and "let it install it" in out


def test_an_install_can_be_baked_and_previewed(run: Run, broker: Callable[..., Path]) -> None:
    asked = broker(result(changed=True, packages={"numpy": "2"}, image="lab/2001/thesis:0123456789ab"))
    code, out, _err = run("image-install", "thesis", "numpy", "--bake")
    assert code == 0 and "The image has it too" in out and "lab/2001/thesis:0123456789ab" in out
    code, out, _err = run("image-install", "thesis", "numpy", "--dry-run", "--bake")
    assert code == 0 and "nothing was installed or recorded" in out
    verbs = [line.split("lab-broker ")[1] for line in asked.read_text().splitlines()]
    assert verbs == ["image-install thesis numpy", "image-update thesis", "image-install-check thesis numpy"]


@pytest.mark.parametrize("word", ["--user", "/etc/passwd", "git+https://example.org/x", "x;y"])
def test_an_install_takes_requirements_alone(run: Run, broker: Callable[..., Path], word: str) -> None:
    asked = broker(result())
    code, _out, err = run("image-install", "thesis", word)
    assert code == 2 and not asked.exists() and "Traceback" not in err


def test_usage_shows_used_limit_and_the_largest(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(quota, "usage", usage(125 << 20, 25000, LIMITS))
    (tmp_path / "thesis/data").mkdir(parents=True)
    (tmp_path / "thesis/data" / "blob").write_bytes(b"x" * 100_000)
    code, out, _err = run("workspace", "usage")
    assert code == 0
    assert "50 %  125M of 250M" in out and "100 %  25000 of 25000" in out
    assert re.search(r"1 +~/workspace/thesis/data$", out, re.MULTILINE)
    assert max(len(line) for line in out.splitlines()) <= 80
    code, out, _err = run("workspace", "usage", "--json")
    shown = json.loads(out)
    assert shown["used"] == 125 << 20 and shown["hard"] == 250 << 20 and shown["complete"] is True
    assert shown["largest"][0]["path"] == "thesis" and shown["temporary"] == []
    assert "Your home and your workspace count together." in run("workspace", "usage")[1]


def test_usage_counts_temporary_files_of_ones_own(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(quota, "usage", usage(125 << 20, 25000, LIMITS))
    point = tmp_path / "mine"
    point.mkdir()
    (point / "model.pt").write_bytes(b"x" * 100_000)
    monkeypatch.setitem(privatetmp.FOLDERS, str(point), ("tmp", 10))
    own = mounts.Mount(str(point), "/dev/vdb", "ext4", frozenset({"rw"}), "8:1", "/.tmp/tmp-alice")
    monkeypatch.setattr(mounts, "read", lambda: (own,))
    code, out, _err = run("workspace", "usage")
    assert code == 0 and re.search(rf"[0-9.]+K +1 +{str(point)[:20]}", out, re.MULTILINE)
    assert f"Your home, your workspace, {point} count together." in " ".join(out.split())
    temporary = json.loads(run("workspace", "usage", "--json")[1])["temporary"]
    assert [(one["path"], one["files"]) for one in temporary] == [(str(point), 1)]


def test_shares_are_those_that_one_may_use(
    run: Run, lab: Policy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shares = (
        Share("datasets", "read-only", "vision", description="Published, for everybody"),
        Share("maps", "read-only", ""),
        Share("vision", "group", "vision", size=1 << 30),
        Share("others", "group", "others"),
        Share("vault", "admin", ""),
    )
    alice = replace(lab.user("alice"), groups=("vision",))
    monkeypatch.setattr(calls.Call, "user", lambda _call: alice)
    policy = replace(lab, shares=shares, data_root=str(tmp_path))
    monkeypatch.setattr(calls, "load", lambda _path: policy)
    (tmp_path / "vision").mkdir()
    told = json.loads(run("workspace", "share", "--json")[1])["shares"]
    assert [(one["name"], one["access"]) for one in told] == [
        ("datasets", "read, publish on the server"),
        ("maps", "read"),
        ("vision", "read and write"),
    ]
    assert [one["there"] for one in told] == [False, False, True]
    assert told[2]["size"] == 1 << 30 and told[2]["used"] > 0
    code, out, _err = run("workspace", "share")
    assert code == 0 and "datasets: Published, for everybody" in out and "of 1G" in out
    assert "others" not in out and "vault" not in out and max(map(len, out.splitlines())) <= 80
    policy = replace(policy, shares=())
    assert "no shared data" in run("workspace", "share")[1]


def test_usage_does_not_let_wait_for_many_files(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(quota, "usage", usage(125 << 20, 25000, LIMITS))
    monkeypatch.setattr(cli_workspace, "_GLANCE", 0.0)
    (tmp_path / "data").mkdir()
    for number in range(600):
        (tmp_path / "data" / str(number)).touch()
    _code, out, _err = run("workspace", "usage")
    assert "50 %  125M of 250M" in out and out.endswith("workspace usage --all\n")
    assert json.loads(run("workspace", "usage", "--json")[1])["complete"] is False
    _code, out, _err = run("workspace", "usage", "--all")
    assert re.search(r"600 +~/workspace/data$", out, re.MULTILINE) and "--all" not in out


def test_usage_without_a_limit_and_above_the_soft_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "usage", usage(1 << 20, 7, Quota(0, 0, 0, 0)))
    assert "1M used, no limit" in run("workspace", "usage")[1]
    monkeypatch.setattr(quota, "usage", usage(240 << 20, 7, LIMITS))
    assert "above the soft limit of 200M" in run("workspace", "usage")[1]


def test_usage_tells_what_containers_and_images_hold(
    run: Run, broker: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota, "usage", usage(1 << 20, 7, LIMITS))
    monkeypatch.setattr(quota, "device_of", lambda path: f"/dev/of{path.replace('/', '-')}")
    monkeypatch.setattr(quota, "enforced", lambda _device: frozenset({quota.USER}))
    monkeypatch.setattr(quota, "read", lambda _device, _kind, uid: quota.Usage(uid << 10, 3, LIMITS))
    asked = broker(result(images=[], together=3 << 30, limit=0))
    # The engine is not asked for it unless its user wants to know.
    assert "images  " not in run("workspace", "usage")[1] and not asked.exists()
    out = run("workspace", "usage", "--all")[1]
    assert "layers" in out and "images  3G used, no limit" in out
    assert asked.read_text().split()[-1] == "image-list"
    told = json.loads(run("workspace", "usage", "--all", "--json")[1])
    assert told["images"] == 3 << 30 and told["layers"] == os.getuid() << 10
    # What is not known now is left out, and the rest is told all the same.
    broker({"event": "error", "kind": "failed", "message": "Docker is down.", "hint": ""}, code=1)
    monkeypatch.setattr(quota, "enforced", lambda _device: frozenset())
    code, out, _err = run("workspace", "usage", "--all")
    assert code == 0 and "images" not in out and "layers" not in out
    assert json.loads(run("workspace", "usage", "--all", "--json")[1])["images"] is None


def test_the_time_that_is_left_above_a_soft_limit_is_told() -> None:
    over = quota.Usage(240 << 20, 7, LIMITS, space_until=1_000_000)
    assert "make room within 2 d" in room.over(over, 1_000_000 - 2 * 86400)
    assert "the grace is over" in room.over(over, 1_000_001)
    assert "20000 files: make room before" in room.over(quota.Usage(0, 20001, LIMITS), 1)
    assert room.over(quota.Usage(0, 20000, LIMITS), 1) == ""


def test_usage_without_quotas_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(policy: object, user: object) -> None:
        raise HostError("Quotas are not on.", "Ask.")

    monkeypatch.setattr(quota, "usage", refuse)
    assert run("workspace", "usage")[0] == 1


# ---- the streams -----------------------------------------------------------------------------------------


def test_closed_streams_break_nothing(
    run: Run, broker: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker(LAUNCHED)
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(f"sys.{name}", None)
    assert cli.main(["project", "launch", "thesis"]) == 0


def test_a_full_disk_under_the_output_is_an_error_of_one_line(
    run: Run, broker: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker(LAUNCHED)
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr("sys.stdout", full)
        code, _out, err = run("project", "launch", "thesis")
        assert code == 1 and "disk is full" in err and "Traceback" not in err


def test_other_encodings_get_escapes(
    run: Run, broker: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker({"event": "error", "kind": "failed", "message": "caf\u00e9", "hint": ""})
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(raw, encoding="ascii"))
    assert run("container", "list")[0] == 1
    assert raw.getvalue() == b"container list: caf\\xe9\n"


def test_kinds_and_errors_are_one_table() -> None:
    for error in (InvalidInput("m"), Refused("m"), NotFound("m"), HostError("m")):
        assert type(protocol.error_of(protocol.kind_of(error), "m", "")) is type(error)
    assert protocol.kind_of(EngineError("m")) == "failed"


@pytest.mark.parametrize("words", [("project", "list", "--json"), ("project", "init", "Thesis")])
def test_a_disk_that_is_full_is_told_without_a_stack_trace(words: tuple[str, ...]) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(cli.__file__).parents[1])!r}); from _core import cli; "
        f"sys.exit(cli.main({list(words)!r}))"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-I", "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode in (1, 2, 3) and "Traceback" not in done.stderr and "ignored" not in done.stderr
    assert done.stderr.count("\n") <= 3
