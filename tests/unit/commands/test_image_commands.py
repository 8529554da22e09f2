# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The commands ``image ...`` about the images that there are: their words, and what the broker is asked."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, result


def image(number: int, **changes: Any) -> dict[str, Any]:
    """Return an image as the broker tells it."""
    digest = f"{number:064x}"[::-1]
    return {
        "image": f"lab/2001/thesis:{digest[:12]}",
        "fingerprint": digest,
        "created": int(time.time()) - 3 * 86400 * number,
        "size": 1300 << 20,
        "base": "lab/python",
        "current": False,
        "in_use": False,
        **changes,
    }


CURRENT, OLDER = image(1, current=True, in_use=True), image(2)


def asked_of(asked: Path) -> list[str]:
    """Return what the broker was asked, call by call."""
    return [line.split("lab-broker ")[1] for line in asked.read_text().splitlines()]


def test_all_images_are_listed_in_80_columns(run: Run, broker: Callable[..., Path]) -> None:
    broker(result(images=[{"project": "a" * 32, **CURRENT}, {"project": "b", **OLDER, "pinned": True}]))
    code, out, _err = run("image", "list")
    assert code == 0
    assert max(len(line) for line in out.splitlines()) <= 80
    assert out.splitlines()[1].split() == [
        "a" * 32,
        "100000000000",
        "3",
        "d",
        "1.3G",
        "current,",
        "in",
        "use",
    ]
    assert len(json.loads(run("image-list", "--json")[1])["images"]) == 2
    broker(result(images=[{"project": "b", **OLDER}], together=3 << 30, limit=4 << 30))
    assert "without base images: 3G of 4G." in run("image", "list")[1]
    broker(result(images=[]))
    assert "project launch NAME" in run("image", "list")[1]


def test_history_says_how_to_go_back(run: Run, broker: Callable[..., Path]) -> None:
    asked = broker(result(images=[{**CURRENT, "packages": ["numpy==1"]}, {**OLDER, "packages": None}]))
    code, out, _err = run("image", "history", "thesis")
    assert code == 0 and asked_of(asked) == ["image-history thesis"]
    assert [line.split()[4:5] for line in out.splitlines()[1:3]] == [["1"], ["?"]]
    assert "image rollback thesis --to DIGITS" in out


def test_show_tells_base_size_age_and_packages(run: Run, broker: Callable[..., Path]) -> None:
    asked = broker(result(**CURRENT, packages=["numpy==1.26.0", "x\x1b[2J==1"]))
    code, out, _err = run("image", "show", "thesis", "--to", "1000")
    assert code == 0 and asked_of(asked) == ["image-show thesis to=1000"]
    for words in ("base:     lab/python", "age:      3 d", "1.3G", "current, in use", "2 of Python"):
        assert words in out
    assert "  numpy==1.26.0\n" in out and "\x1b" not in out
    broker(result(**OLDER, packages=None))
    assert "not known" in run("image", "show", "thesis")[1]


def test_a_rollback_says_how_long_it_lasts_and_how_to_change_over(
    run: Run, broker: Callable[..., Path]
) -> None:
    asked = broker(result(changed=True, image=OLDER["image"], pinned=True, in_use=True))
    code, out, _err = run("image", "rollback", "thesis")
    assert code == 0 and f"{OLDER['image']} is the current image of thesis." in out
    assert "until the project's files change" in out
    assert "container retire thesis && project launch thesis" in out
    out = run("image", "rollback", "thesis", "--to", "2", "--dry-run")[1]
    assert "would be the current image" in out
    assert asked_of(asked) == ["image-rollback thesis", "image-rollback-check thesis to=2"]
    broker(result(changed=False, image=OLDER["image"]))
    assert "was already" in run("image", "rollback", "thesis")[1]


@pytest.mark.parametrize(
    "words",
    [["install", "thesis", "numpy"], ["rollback", "thesis"], ["remove", "thesis"]],
    ids=lambda w: w[0],
)
def test_an_answer_of_a_dry_run_says_so(run: Run, broker: Callable[..., Path], words: list[str]) -> None:
    broker(result(changed=True, image=OLDER["image"], removed=[OLDER]))
    assert json.loads(run("image", *words, "--dry-run", "--json")[1])["dry_run"] is True
    done = run("image", *words, "--json", *(["--yes"] if words[0] == "remove" else []))[1]
    assert "dry_run" not in json.loads(done)


@pytest.mark.parametrize("word", ["", "latest", "0x1", "ABC", "0" * 65, "0,1"])
def test_an_image_is_named_by_its_first_digits(run: Run, broker: Callable[..., Path], word: str) -> None:
    asked = broker(result())
    for command in ("show", "rollback", "remove"):
        code, _out, err = run("image", command, "thesis", "--to", word)
        assert code == 2 and not asked.exists() and len(err.splitlines()) == 2


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that puts somebody at the terminal who answers so."""

    def sit(word: str) -> None:
        keyboard = io.StringIO(word + "\n")
        monkeypatch.setattr(keyboard, "isatty", lambda: True)
        monkeypatch.setattr("sys.stdin", keyboard)
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)

    return sit


def test_remove_asks_and_removes_what_it_showed(
    run: Run, broker: Callable[..., Path], answers: Callable[[str], None]
) -> None:
    asked = broker(result(changed=True, removed=[OLDER, image(3)], kept=[CURRENT]))
    answers("n")
    code, out, _err = run("image", "remove", "thesis")
    assert code == 1 and "Nothing was removed." in out
    assert "200000000000" in out and "Remove these 2? [y/N]" in out
    assert "These stay: 100000000000 (current, in use)" in out
    answers("y")
    code, out, _err = run("image", "remove", "thesis")
    assert code == 0 and "200000000000 is removed." in out
    assert asked_of(asked) == [
        "image-remove-check thesis",
        "image-remove-check thesis",
        "image-remove thesis to=200000000000,300000000000",
    ]


def test_remove_does_not_ask_where_nobody_can_answer(run: Run, broker: Callable[..., Path]) -> None:
    asked = broker(result(changed=True, removed=[OLDER], kept=[]))
    for words in ([], ["--json"]):
        code, out, err = run("image", "remove", "thesis", *words)
        assert code == 2 and "--yes" in out + err and not asked.exists()
    assert run("image", "remove", "thesis", "--yes", "--all", "--to", "2", "--to", "3")[0] == 0
    assert json.loads(run("image", "remove", "thesis", "--dry-run", "--json")[1])["removed"] == [OLDER]
    assert asked_of(asked) == ["image-remove thesis to=2,3 all=yes", "image-remove-check thesis"]
    broker(result(changed=False, removed=[], kept=[CURRENT]))
    assert "Nothing to remove" in run("image", "remove", "thesis", "--dry-run")[1]
    assert "No image of thesis was removed" in run("image", "remove", "thesis", "--yes")[1]


BUILD = {"project": "thesis", "started": 1_800_000_000, "seconds": 190.0, "message": ""}
LINES = {"event": "lines", "lines": ["Step 1/2 : FROM x", "error: \x1b[2J"]}


def test_the_log_of_a_build_is_shown_whole_and_harmless(run: Run, broker: Callable[..., Path]) -> None:
    asked = broker(LINES, {"event": "lines", "lines": ["end"]}, result(**BUILD, outcome="done"))
    code, out, err = run("image", "log", "thesis")
    assert code == 0 and out == "Step 1/2 : FROM x\nerror: \\x1b[2J\nend\n"
    assert "done after 3 min" in " ".join(err.split())
    run("image-log", "thesis", "--lines", "7")
    assert asked_of(asked) == ["image-log thesis", "image-log thesis lines=7"]
    told = json.loads(run("image-log", "thesis", "--json")[1])
    assert told["lines"][-1] == "end" and told["outcome"] == "done"


@pytest.mark.parametrize(("outcome", "code"), [("done", 0), ("failed", 1), ("broken off", 1), ("running", 0)])
def test_following_a_build_exits_as_it_ended(
    run: Run, broker: Callable[..., Path], outcome: str, code: int
) -> None:
    asked = broker(LINES, result(**{**BUILD, "message": "Line 2 failed: no\x07."}, outcome=outcome))
    ended, out, err = run("image", "log", "thesis", "--follow")
    assert ended == code and out.splitlines()[0] == "Step 1/2 : FROM x"
    assert "Line 2 failed: no\\x07." in err
    assert asked_of(asked) == ["image-log thesis follow=yes"]
    # Who only reads it has done so, however it ended.
    assert run("image", "log", "thesis")[0] == 0
    assert run("image", "log", "thesis", "--follow", "--json")[0] == 2


def test_show_tells_how_the_last_build_ended(run: Run, broker: Callable[..., Path]) -> None:
    broker(result(**CURRENT, packages=[], build={**BUILD, "outcome": "failed"}))
    assert "build:    failed after 3 min" in run("image", "show", "thesis")[1]
    broker(result(**CURRENT, packages=[], build={**BUILD, "outcome": "running", "seconds": None}))
    out = run("image", "show", "thesis")[1]
    assert "build:    at work since 2027-01-1" in out and "image log thesis --follow" in out
