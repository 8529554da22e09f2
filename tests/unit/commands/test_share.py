# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the commands of datasets say, to whom, and how they end."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import calls, cli_dataset, journal, publishing
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy, Share
from conftest import Run

ABOUT = ("--source", "doi:10.24432/C56C76", "--licence", "CC-BY-4.0")


@pytest.fixture
def manager(run: Run, lab: Policy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Return a function that runs a command as alice, who publishes in one share of several."""
    shares = (
        Share("datasets", "read-only", "students"),
        Share("maps", "read-only", ""),
        Share("vision", "group", "students"),
        Share("vault", "admin", ""),
    )
    for share in shares:
        (tmp_path / share.name).mkdir()
    policy = replace(lab, shares=shares, data_root=str(tmp_path))
    monkeypatch.setattr(calls, "load", lambda _path: policy)
    # The process that tests is the one that writes, whoever it says that it is.
    (tmp_path / "iris").mkdir()
    (tmp_path / "iris" / "data.csv").write_text("1,2\n" * 300)
    return run


def publish(run: Run, tmp_path: Path, version: str, *more: str) -> tuple[int, str, str]:
    words = ("datasets", "iris", "--version", version, "--from", str(tmp_path / "iris"), *ABOUT, *more)
    return run("lab", "share", "publish", *words)


def test_a_dataset_from_its_publishing_to_its_end(manager: Run, tmp_path: Path) -> None:
    code, out, err = publish(manager, tmp_path, "1.0", "--dry-run")
    assert (code, err) == (0, "") and "Would publish 1 file, 1.2K" in out
    assert os.listdir(tmp_path / "datasets") == []
    code, out, err = publish(manager, tmp_path, "1.0", "--description", "Flowers, measured")
    assert (code, err) == (0, "") and f"is published: {tmp_path}/datasets/iris/1.0\n" in out
    assert "iris/current leads there" in out
    code, out, _err = publish(manager, tmp_path, "1.0")
    assert code == 0 and "already published" in out
    assert "already published; nothing" in publish(manager, tmp_path, "1.0", "--dry-run")[1]
    (tmp_path / "iris" / "data.csv").write_text("2,3\n")
    code, _out, err = publish(manager, tmp_path, "1.0")
    assert code == 3 and "another content" in err and "another version" in err
    assert publish(manager, tmp_path, "2.0")[0] == 0

    code, out, _err = manager("lab", "share", "list")
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    assert [line.split()[:4] for line in out.splitlines()[1:3]] == [
        ["datasets", "iris", "2.0*", "4"],
        ["datasets", "iris", "1.0", "1.2K"],
    ]
    code, out, _err = manager("lab", "share", "show", "datasets", "iris", "--version", "1.0")
    for words in (
        "iris 1.0\n",
        "Flowers, measured",
        "doi:10.24432/C56C76",
        "CC-BY-4.0",
        "by alice",
        "1 file,",
    ):
        assert words in out
    code, out, _err = manager("lab", "share", "verify", "datasets")
    assert code == 0 and out == "iris 2.0 is as it was published.\niris 1.0 is as it was published.\n"

    code, out, _err = manager("lab", "share", "retract", "datasets", "iris", "--version", "2.0", "--dry-run")
    assert code == 0 and out == "Would retract iris 2.0 (4) of datasets.\n"
    code, _out, err = manager("lab", "share", "retract", "datasets", "iris", "--version", "2.0")
    assert code == 2 and "no terminal" in err
    code, out, _err = manager("lab", "share", "retract", "datasets", "iris", "--version", "2.0", "--yes")
    assert code == 0 and out == "iris 2.0 is retracted; current is 1.0.\n"
    code, out, _err = manager("lab", "share", "retract", "datasets", "iris", "--version", "1.0", "--yes")
    assert code == 0 and out == "iris 1.0 is retracted; no version is left.\n"
    assert manager("lab", "share", "list")[1] == "Nothing is published yet.\n"
    code, _out, err = manager("lab", "share", "show", "datasets", "iris")
    assert code == 4 and "no dataset iris" in err


def test_the_answers_as_json(manager: Run, tmp_path: Path) -> None:
    told = json.loads(publish(manager, tmp_path, "1", "--dry-run", "--json")[1])
    assert told == {"would": {"name": "iris", "version": "1", "changed": True, "files": 1, "size": 1200}}
    told = json.loads(publish(manager, tmp_path, "1", "--json")[1])
    assert (told["changed"], told["current"], told["publisher"]) == (True, "1", "alice")
    assert told["path"] == f"{tmp_path}/datasets/iris/1" and told["files"] == 1
    assert json.loads(publish(manager, tmp_path, "1", "--json")[1])["changed"] is False
    for words in (("list",), ("list", "datasets"), ("show", "datasets", "iris")):
        (one,) = json.loads(manager("lab", "share", *words, "--json")[1])["datasets"]
        assert (one["share"], one["name"], one["version"], one["current"]) == ("datasets", "iris", "1", True)
        assert one["licence"] == "CC-BY-4.0" and one["manifest"] == told["manifest"]
    found = tmp_path / "datasets/iris/1/data.csv"
    found.chmod(0o644)
    found.write_text("forged")
    code, out, _err = manager("lab", "share", "verify", "datasets", "iris", "--json")
    (one,) = json.loads(out)["verified"]
    assert code == 1 and one["problems"] == ["data.csv was changed", "data.csv can be written"]
    code, out, _err = manager("lab", "share", "verify", "datasets", "iris")
    assert code == 1 and "iris 1: data.csv was changed\n" in out
    words = ("retract", "datasets", "iris", "--version", "1", "--yes", "--json")
    told = json.loads(manager("lab", "share", *words)[1])
    assert told["changed"] is True and told["current"] is None


@pytest.mark.parametrize(
    ("share", "code", "said"),
    [
        ("maps", 3, "In maps publish root alone."),
        ("vision", 4, "no share vision with datasets"),
        ("vault", 4, "no share vault with datasets"),
        ("../x\x1b[2J", 4, "no share ../x\\x1b[2J with datasets"),
    ],
)
def test_where_one_may_not_publish(manager: Run, tmp_path: Path, share: str, code: int, said: str) -> None:
    words = ("publish", share, "iris", "--version", "1", "--from", str(tmp_path / "iris"), *ABOUT)
    found, out, err = manager("lab", "share", *words)
    assert (found, out) == (code, "") and said in err and "Traceback" not in err
    found, out, err = manager("lab", "share", "retract", share, "iris", "--version", "1", "--yes")
    assert (found, out) == (code, "") and said in err


def test_who_is_no_manager_looks_and_does_not_publish(
    manager: Run, lab: Policy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publish(manager, tmp_path, "1")
    other = replace(lab.user("alice"), group="guests")
    monkeypatch.setattr(calls.Call, "user", lambda _call: other)
    code, _out, err = publish(manager, tmp_path, "2")
    assert code == 3 and "In datasets publish members of the group students." in err
    assert "iris" in manager("lab", "share", "list")[1]
    assert manager("lab", "share", "verify", "datasets", "iris")[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("iris", "--version", "current"), "version: 'current' is not allowed"),
        (("iris", "--version", "../1"), "version: '../1' is not allowed"),
        (("Iris!", "--version", "1"), "DATASET: 'Iris!' is not allowed"),
        (("iris", "--version", "1", "--licence", "do what you want"), "no expression of SPDX"),
        (("iris", "--version", "1", "--source", "javascript:x"), "is no URL"),
        (("iris", "--version", "1", "--description", "a\nb"), "must be one line"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_read(
    manager: Run, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    code, _out, err = manager(
        "lab", "share", "publish", "datasets", *words[:3], "--from", "/none", *ABOUT, *words[3:]
    )
    assert code == 2 and said in err
    assert os.listdir(tmp_path / "datasets") == []


def test_ctrl_c_says_that_nothing_goes_on(
    manager: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(publishing, "_fill", stopped)
    code, _out, err = publish(manager, tmp_path, "1")
    assert code == 130 and "as a whole or not at all" in err and "goes on" not in err
    assert sorted(os.listdir(tmp_path / "datasets")) == [".publish.lock", "CATALOGUE.md"]


def test_a_share_shows_what_is_published_in_it(manager: Run, tmp_path: Path) -> None:
    publish(manager, tmp_path, "1")
    publish(manager, tmp_path, "2")
    code, out, _err = manager("workspace", "share")
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    assert ["2", "1.2K", "CC-BY-4.0"] in [line.split()[1:] for line in out.splitlines()]
    told = json.loads(manager("workspace", "share", "--json")[1])["shares"]
    published = {share["name"]: share["datasets"] for share in told}
    (one,) = published["datasets"]
    assert (one["version"], one["path"]) == ("2", f"{tmp_path}/datasets/iris/current")
    assert published["maps"] == published["vision"] == []
    for number in range(25):
        words = ("datasets", f"d{number}", "--version", "1", "--from", str(tmp_path / "iris"), *ABOUT)
        assert manager("lab", "share", "publish", *words)[0] == 0
    assert "and 6 more: lab share list" in manager("workspace", "share")[1]


def test_what_root_retracts_is_written_down_and_what_a_manager_does_is_not(
    manager: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[dict[str, Any]] = []
    monkeypatch.setattr(journal, "record", lambda _priority, **values: written.append(values))
    publish(manager, tmp_path, "1")
    retract = ("lab", "share", "retract", "datasets", "iris", "--version", "1")
    assert manager(*retract, "--yes")[0] == 0 and not written
    publish(manager, tmp_path, "1")
    monkeypatch.setattr(
        cli_dataset,
        "_managed",
        lambda call: (next(s for s in call.policy().shares if s.name == "datasets"), "root"),
    )
    assert manager(*retract, "--dry-run")[0] == 0 and not written
    assert manager(*retract, "--yes")[0] == 0
    assert [(one["verb"], one["outcome"], one["detail"]) for one in written] == [
        ("share-retract", "done", "iris 1 of datasets")
    ]
