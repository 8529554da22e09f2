# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The clean-up's program: what it says, what it notes, and what it returns."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import cleanup, install, journal
from ansible_collections.lab.server.plugins.module_utils._core.collecting import Collected
from ansible_collections.lab.server.plugins.module_utils._core.engine import Engine
from ansible_collections.lab.server.plugins.module_utils._core.errors import EngineError
from ansible_collections.lab.server.plugins.module_utils._core.plan import Actual
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy
from ansible_collections.lab.server.plugins.module_utils._core.retired import Kept

GONE = Kept(
    "thesis._.2001", "thesis", 2001, 7, Actual("i", "thesis._.2001.retired-7", "exited", "image", True)
)


class Docker:
    """A connection that is only opened and closed."""

    def close(self) -> None:
        """Do nothing."""


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch, lab: Policy) -> list[dict[str, Any]]:
    """Return what was noted in the audit log, on a server with one container that is too old."""
    noted: list[dict[str, Any]] = []
    monkeypatch.setattr(cleanup, "load", lambda: lab)
    monkeypatch.setattr(Engine, "connect", Docker)
    monkeypatch.setattr(cleanup, "clean_up", lambda engine, policy, now, **_more: [GONE])
    collected = Collected(("lab/2001/thesis:0123456789ab",), ("bob/paper is being built.",))
    monkeypatch.setattr(cleanup, "collect", lambda engine, policy, now, check: collected)
    monkeypatch.setattr(journal, "record", lambda *priority, **values: noted.append(values))
    return noted


def test_what_went_is_said_and_noted(notes: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert cleanup.main(["lab-cleanup"]) == 0
    said = capsys.readouterr().out
    assert "gone: thesis._.2001.retired-7" in said and "gone: the image lab/2001/thesis:0123456789ab" in said
    assert "bob/paper is being built." in said
    assert "1 retired container(s) and 1 image(s) removed." in said
    assert notes[1]["image"] == "lab/2001/thesis:0123456789ab"
    assert notes[0]["container"] == "thesis._.2001.retired-7"
    assert notes[0]["owner"] == 2001


def test_a_check_notes_nothing(notes: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert cleanup.main(["lab-cleanup", "--check"]) == 0
    assert "would go: thesis._.2001.retired-7" in capsys.readouterr().out
    assert notes == []


def test_other_words_do_nothing(notes: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert cleanup.main(["lab-cleanup", "--all"]) == 2
    assert "usage" in capsys.readouterr().out
    assert notes == []


def test_docker_that_is_down_is_a_sentence(
    notes: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def down() -> Any:
        raise EngineError("Docker is down.", "Look at: systemctl status docker.")

    monkeypatch.setattr(Engine, "connect", down)
    assert cleanup.main(["lab-cleanup"]) == 1
    assert capsys.readouterr().out == "Docker is down. Look at: systemctl status docker.\n"


def test_the_program_is_installed() -> None:
    assert "_core.cleanup" in install.programs()["/usr/local/sbin/lab-cleanup"]
