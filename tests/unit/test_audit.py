# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The audit log, read back: what was written comes out, and what is none of it does not."""

from __future__ import annotations

import json
import syslog
import time
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import audit, hostfiles, journal
from ansible_collections.lab.server.plugins.module_utils._core.errors import InvalidInput
from hypothesis import given
from hypothesis import strategies as st

NOW = 1_700_000_000.0


@given(st.dictionaries(st.sampled_from(["uid", "verb", "project", "detail"]), st.text(max_size=80)))
def test_what_was_written_is_read_back(values: dict[str, str]) -> None:
    from ansible_collections.lab.server.plugins.module_utils._core.names import printable

    expected = {key: printable(value) for key, value in values.items()}
    assert audit.fields(journal.line(**values)) == expected


@pytest.mark.parametrize("line", ["", "hello world", '"', "verb", 'verb="', "Accepted publickey for x"])
def test_another_line_is_no_act(line: str) -> None:
    assert audit.act({"MESSAGE": line}) is None


def entry(seconds: float = NOW, **values: object) -> dict[str, Any]:
    return {"MESSAGE": journal.line(**values), "__REALTIME_TIMESTAMP": str(int(seconds * 1_000_000))}


LOG = [
    entry(uid=2001, user="alice", verb="project-launch", project="thesis", outcome="done", changed=True),
    entry(
        NOW + 1, uid=2002, user="bob", verb="image-update", project="net", outcome="failed", detail="no base"
    ),
    entry(NOW + 2, uid=0, user="root", verb="boot-start", container="thesis._.2001", outcome="done"),
    {"MESSAGE": [1, 2, 3], "__REALTIME_TIMESTAMP": "1"},
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Let the journal hold LOG, and note how it is asked."""
    words: list[list[str]] = []

    def run(command: list[str], **_more: Any) -> Any:
        words.append(command)
        return type("Done", (), {"stdout": "\n".join([*map(json.dumps, LOG), "{cut"])})()

    monkeypatch.setattr(hostfiles, "run", run)
    return words


def test_acts_are_those_of_a_user_or_a_project(asked: list[list[str]]) -> None:
    assert [one.verb for one in audit.acts(None)] == ["project-launch", "image-update", "boot-start"]
    assert [one.verb for one in audit.acts(None, user="bob")] == ["image-update"]
    assert [one.verb for one in audit.acts(None, project="thesis")] == ["project-launch", "boot-start"]
    assert [one.verb for one in audit.acts(NOW, most=1)] == ["boot-start"]
    (act,) = audit.acts(None, user="bob")
    assert (act.time, act.outcome, act.more["detail"]) == (NOW + 1, "failed", "no base")
    # What users send looks alike; what root sent is told by a field that nobody can choose.
    assert all("_UID=0" in words and "SYSLOG_IDENTIFIER=lab-server" in words for words in asked)
    assert f"--since=@{int(NOW)}" in asked[3]


def test_the_last_session_of_each_account(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        {"USER_ID": "alice", "__REALTIME_TIMESTAMP": "3000000"},
        {"USER_ID": "bob", "__REALTIME_TIMESTAMP": "2000000"},
        {"USER_ID": "alice", "__REALTIME_TIMESTAMP": "1000000"},
        {"__REALTIME_TIMESTAMP": "9"},
    ]
    done = type("Done", (), {"stdout": "\n".join(map(json.dumps, lines))})
    monkeypatch.setattr(hostfiles, "run", lambda *_words, **_more: done())
    assert audit.logins() == {"alice": 3.0, "bob": 2.0}


@pytest.mark.parametrize(("text", "ago"), [("30min", 1800), ("12h", 43200), ("3d", 259200), ("2w", 1209600)])
def test_a_span_is_counted_back_from_now(text: str, ago: int) -> None:
    assert audit.since(text, NOW) == NOW - ago


def test_days_and_dates_are_local() -> None:
    there = time.localtime(NOW)
    midnight = audit.since("today", NOW)
    assert time.localtime(midnight)[:5] == (*there[:3], 0, 0) and 0 <= NOW - midnight < 90_000
    assert 0 < midnight - audit.since("yesterday", NOW) < 90_001
    assert time.localtime(audit.since("2026-11-26 08:30", NOW))[:5] == (2026, 11, 26, 8, 30)
    assert time.localtime(audit.since("2026-11-26", NOW))[:5] == (2026, 11, 26, 0, 0)


@pytest.mark.parametrize(
    "text", ["0h", "3", "3 d", "h", "-1d", "now", "2026-13-01", "--help", "9999999d", "\x1b"]
)
def test_no_time_is_one_sentence(text: str) -> None:
    with pytest.raises(InvalidInput, match="is no time"):
        audit.since(text, NOW)


def test_what_root_does_is_one_line_however_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[int, dict[str, object]]] = []
    monkeypatch.setattr(journal, "record", lambda priority, **values: written.append((priority, values)))
    with journal.acted("drill", "alice", owner=2001) as noted:
        noted.update(problem="", compared=3)
    with journal.acted("drill", "alice") as noted:
        noted["problem"] = "no disk"
    for error in (ValueError("odd"), KeyboardInterrupt()):
        with pytest.raises(type(error)), journal.acted("drill", "alice"):
            raise error
    root = {"uid": 0, "user": "root", "verb": "drill"}
    assert written == [
        (
            syslog.LOG_NOTICE,
            {**root, "owner": 2001, "outcome": "done", "detail": "alice", "compared": 3},
        ),
        (syslog.LOG_WARNING, {**root, "outcome": "failed", "detail": "alice: no disk"}),
        (syslog.LOG_WARNING, {**root, "outcome": "failed", "detail": "alice: odd"}),
        (syslog.LOG_WARNING, {**root, "outcome": "failed", "detail": "alice: KeyboardInterrupt"}),
    ]
