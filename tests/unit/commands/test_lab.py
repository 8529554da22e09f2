# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The command of admins: what it shows at 80 columns, its exit codes, and that others get one sentence."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    accounts,
    audit,
    cli_lab,
    overview,
    report,
    state,
    units,
    verify,
)
from ansible_collections.lab.server.plugins.module_utils._core.containers import Snapshot
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError
from ansible_collections.lab.server.plugins.module_utils._core.inspection import Check, Outcome
from ansible_collections.lab.server.plugins.module_utils._core.items import ItemResult
from ansible_collections.lab.server.plugins.module_utils._core.plan import Actual
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy, Quota
from ansible_collections.lab.server.plugins.module_utils._core.quota import Usage
from ansible_collections.lab.server.plugins.module_utils._core.report import Docker, Folders, Seen
from ansible_collections.lab.server.plugins.module_utils._core.spec import decide
from conftest import Run

NOW = 1_700_000_000.0
LIMIT = Quota(200 << 20, 250 << 20, 20000, 25000)


@pytest.fixture
def admin(run: Run, lab: Policy, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs a command as root, on the server of ``lab``."""
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(cli_lab, "load", lambda _path: lab)
    return run


def container(lab: Policy, user: str, project: str, state: str = "running") -> Actual:
    made = decide(lab, lab.user(user), project)
    return Actual(f"id-{project}", made.name, state, "image", True, made.digest(), made, int(NOW))


@pytest.fixture
def seen(lab: Policy, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that makes the server be so; without arguments all is well."""

    def make(
        used: float = 0.1,
        docker: Docker | None = None,
        disk: float = 0.3,
        unit: str = "active",
        left: bool = False,
        home: int = 100 << 10,
        problems: tuple[str, ...] = (),
    ) -> None:
        there = [container(lab, "alice", "thesis"), container(lab, "bob", "net", "exited")]
        snapshot = Snapshot({one.name: one for one in there}, {})
        usage = Usage(int(used * LIMIT.hard), 10, LIMIT)
        found = Seen(
            NOW,
            {"alice": usage, "bob": Usage(0, 0, LIMIT)},
            "",
            {user.name: Folders() for user in lab.users},
            [
                {
                    "role": role,
                    "mount": point,
                    "size": size << 20,
                    "free": size << 20,
                    "available": size << 20,
                }
                for role, point, size in (("home", "/home", home), ("docker", "/var/lib/docker", 100 << 10))
            ],
            problems,
            docker or Docker(snapshot=snapshot),
        )
        monkeypatch.setattr(report, "look", lambda *_arguments, **_more: found)
        disks = [
            {
                "mount": point,
                "device": "/dev/x",
                "fstype": "ext4",
                "size": 100 << 30,
                "used": int(disk * (100 << 30)),
                "space": disk if point == "/srv/data" else 0.2,
                "inodes": 0.01,
            }
            for point in ("/", "/home", "/srv/data", "/var/lib/docker")
        ]
        monkeypatch.setattr(overview, "_disks", lambda _policy: disks)
        monkeypatch.setattr(
            units,
            "states",
            lambda names: {name: {"ActiveState": unit, "UnitFileState": "enabled"} for name in names},
        )
        eve = accounts.Account("eve", 2009, 2009, home="/home/eve")
        actual = accounts.Actual(
            users={"eve": eve} if left else {}, known=frozenset({2009}) if left else frozenset()
        )
        monkeypatch.setattr(accounts, "read_actual", lambda _desired: actual)
        monkeypatch.setattr(audit, "logins", lambda: {"alice": NOW})

    make()
    return make


@pytest.mark.parametrize("verb", ["status", "users", "verify", "events", "gpus"])
def test_who_is_not_root_is_told_so_in_one_sentence(run: Run, verb: str) -> None:
    code, out, err = run("lab", verb)
    assert (code, out) == (3, "") and "admins" in err and "sudo" in err
    assert json.loads(run("lab", verb, "--json")[1])["error"]["kind"] == "refused"


# ---- lab status ------------------------------------------------------------------------------------------


def test_a_server_that_is_well_fits_a_screen(admin: Run, seen: Callable[..., None]) -> None:
    code, out, _err = admin("lab", "status")
    assert code == 0 and max(map(len, out.splitlines())) <= 80 and len(out.splitlines()) <= 24
    assert "lab.server" in out.splitlines()[0]
    assert "alice" in out and "thesis" in out and "1 of 2 containers run" in out
    assert "2; 0 above 80 %, 0 above 95 % of the quota" in out
    assert "cleanup active" in out


@pytest.mark.parametrize(
    ("change", "level", "words"),
    [
        ({"used": 0.81}, "warn", "alice has used 81 % of the quota"),
        ({"used": 0.96}, "bad", "alice has used 96 % of the quota"),
        ({"disk": 0.8}, "warn", "/srv/data is 80 % full"),
        ({"disk": 0.97}, "bad", "/srv/data is 97 % full"),
        ({"unit": "failed"}, "bad", "docker.service failed"),
        ({"unit": "inactive"}, "warn", "docker.service is not active"),
        ({"left": True}, "warn", "eve left, and the account is open"),
        ({"home": 300}, "warn", "/home: 500M promised of 300M (1.7 times)"),
        ({"docker": Docker(problem="It does not answer.")}, "bad", "Docker: It does not answer."),
        ({"problems": ("/srv/data is not mounted.",)}, "bad", "/srv/data is not mounted."),
        (
            {
                "docker": Docker(
                    plans={("alice", "thesis"): ItemResult("x", changed=True, reason="there is none")}
                )
            },
            "warn",
            "alice/thesis is not as declared: there is none",
        ),
    ],
)
def test_what_needs_a_hand_comes_first(
    admin: Run, seen: Callable[..., None], change: dict[str, Any], level: str, words: str
) -> None:
    seen(**change)
    code, out, _err = admin("lab", "status")
    lines = out.splitlines()
    assert code == 0 and max(map(len, lines)) <= 80
    assert f"{level:<6}{words}" in lines[1:6]
    assert {"level": level, "text": words} in json.loads(admin("lab", "status", "--json")[1])["attention"]


def test_nothing_is_said_to_need_a_hand_where_nothing_does(seen: Callable[..., None], lab: Policy) -> None:
    assert overview.look(lab)["attention"] == []


def test_a_damaged_record_is_bad(
    seen: Callable[..., None], lab: Policy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen()
    monkeypatch.setattr(state, "STATE_DIRECTORY", str(tmp_path))
    state.write_record("gpus/reservations.json", "[")
    (told,) = overview.look(lab)["attention"]
    assert told["level"] == "bad" and "reservations.json is damaged" in told["text"]


def test_the_page_is_written_for_root_alone(
    admin: Run, seen: Callable[..., None], tmp_path: Path, run: Run
) -> None:
    seen(used=0.96)
    place = tmp_path / "lab.html"
    (tmp_path / "other").write_text("mine")
    place.symlink_to(tmp_path / "other")
    code, out, _err = admin("lab", "status", "--html", str(place))
    text = place.read_text()
    assert (code, out) == (0, "") and "alice has used 96 % of the quota" in text and "bob/net" in text
    # A link that somebody put there was replaced, not followed, and what the page tells is not for all.
    assert (tmp_path / "other").read_text() == "mine"
    fresh = tmp_path / "fresh.html"
    assert json.loads(admin("lab", "status", "--html", str(fresh), "--json")[1]) == {"written": str(fresh)}
    assert fresh.stat().st_mode & 0o777 == 0o600
    # Whom an admin lets read it still may when it is written again.
    fresh.chmod(0o640)
    admin("lab", "status", "--html", str(fresh))
    assert fresh.stat().st_mode & 0o777 == 0o640
    code, out, _err = admin("lab", "status", "--html", "-")
    assert code == 0 and out.startswith("<!DOCTYPE html>") and out.endswith("</html>\n")


# ---- lab metrics -----------------------------------------------------------------------------------------

SAMPLE = re.compile(
    r'lab_server_[a-z_]+(\{[a-z]+="[^"\\]*"(,[a-z]+="[^"\\]*")*\})? -?[0-9]+(\.[0-9]+)?(e\+[0-9]+)?'
)


def test_metrics_are_what_prometheus_reads(admin: Run, seen: Callable[..., None], tmp_path: Path) -> None:
    seen(used=0.96)
    code, out, _err = admin("lab", "metrics")
    lines = out.splitlines()
    assert code == 0 and all(SAMPLE.fullmatch(line) for line in lines if not line.startswith("# "))
    # One HELP and one TYPE for each metric, before its samples, as the format wants it.
    named = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(named) == len(set(named)) and {re.split("[{ ]", x)[0] for x in lines if x[0] != "#"} == set(
        named
    )
    assert f'lab_server_user_used_bytes{{user="alice"}} {int(0.96 * (250 << 20))}' in lines
    assert 'lab_server_containers{user="alice",state="running"} 1' in lines
    assert 'lab_server_containers{user="bob",state="stopped"} 1' in lines
    assert 'lab_server_attention{level="bad"} 1' in lines
    assert admin("lab", "metrics", "--write", str(tmp_path / "lab.prom"))[:2] == (0, "")
    assert "lab_server_docker_up 1" in (tmp_path / "lab.prom").read_text().splitlines()
    assert (tmp_path / "lab.prom").stat().st_mode & 0o777 == 0o644
    seen(docker=Docker(problem="down"))
    text = admin("lab", "metrics")[1]
    # What is not known is not zero.
    assert "lab_server_docker_up 0" in text and "lab_server_containers" not in text


# ---- lab users -------------------------------------------------------------------------------------------


def test_users_in_a_table(admin: Run, seen: Callable[..., None]) -> None:
    seen(used=0.5, left=True)
    code, out, _err = admin("lab", "users")
    head, alice, bob, eve = out.splitlines()
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    assert head.split() == ["USER", "GROUP", "USED", "QUOTA", "%", "RUN", "DOCKER", "LAST", "LOGIN"]
    assert (
        alice.split()[:7] == ["alice", "students", "125M", "250M", "50", "1/1", "0"] and "2023-11-1" in alice
    )
    assert bob.split()[4:6] == ["0", "0/1"] and "not known" in bob
    assert "eve (2009)" in eve and "still open" in eve


def image(name: str, owner: int, gigabytes: int) -> dict[str, Any]:
    """Return an image of a project as Docker lists it."""
    labels = {
        "lab.server.owner": str(owner),
        "lab.server.project": "p",
        "lab.server.fingerprint": "a" * 64,
        "lab.server.base": "lab/python",
    }
    tags = [f"lab/{owner}/p:{'a' * 12}"]
    return {"Id": name, "Labels": labels, "RepoTags": tags, "Size": gigabytes << 30, "Created": int(NOW)}


def test_who_has_most_of_a_disk_is_told(admin: Run, seen: Callable[..., None]) -> None:
    seen(used=0.5, left=True, docker=Docker(images=[image("x", 2002, 3), image("y", 2009, 7)]))
    code, out, _err = admin("lab", "status")
    lines = out.splitlines()
    at = lines.index("most       of /home: alice 125M")
    told = " ".join(" ".join(lines[at + 1 : at + 3]).split())
    # Who left is among them; who has nothing is not.
    assert told.startswith("of Docker's disk: eve 7G, bob 3G; images with what they share")
    assert code == 0 and max(map(len, lines)) <= 80
    rows = {line.split()[0]: line.split() for line in admin("lab", "users")[1].splitlines()}
    assert (rows["alice"][6], rows["bob"][6]) == ("0", "3G")
    seen(docker=Docker(problem="down"))
    assert admin("lab", "users")[1].splitlines()[1].split()[6] == "?"
    assert "Docker's disk:" not in admin("lab", "status")[1]


def test_one_user_or_who_left(admin: Run, seen: Callable[..., None]) -> None:
    seen(left=True)
    code, out, _err = admin("lab", "users", "alice")
    assert code == 0 and "alice (2001)" in out and "thesis._.2001" in out
    assert json.loads(admin("lab", "users", "alice", "--json")[1])["running"] == ["thesis._.2001"]
    assert "/home/eve" in admin("lab", "users", "eve")[1]
    code, out, err = admin("lab", "users", "mallory\x1b")
    assert code == 4 and out == "" and "lab users" in err and "\x1b" not in err


# ---- lab verify ------------------------------------------------------------------------------------------


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that puts checks with these verdicts in the place of all."""

    def make(*verdicts: str) -> None:
        made = tuple(
            Check(f"c{number}", "it is so", lambda _server, v=verdict: Outcome(v, "seen " * 30, "Do it."))
            for number, verdict in enumerate(verdicts)
        )
        monkeypatch.setattr(verify, "CHECKS", made)

    return make


@pytest.mark.parametrize(
    ("verdicts", "code", "words"),
    [
        (("pass", "pass"), 0, "2 passed"),
        (("pass", "warn", "skip"), 0, "1 passed, 1 warned, 1 skipped"),
        (("pass", "fail"), 1, "1 passed, 1 failed"),
    ],
)
def test_verify_ends_with_1_when_a_check_failed(
    admin: Run, checks: Callable[..., None], verdicts: tuple[str, ...], code: int, words: str
) -> None:
    checks(*verdicts)
    ended, out, err = admin("lab", "verify")
    assert (ended, out.splitlines()[-1], err) == (code, words, "")
    assert max(map(len, out.splitlines())) <= 80
    told = json.loads(admin("lab", "verify", "--json")[1])
    assert told["passed"] is (code == 0) and [one["verdict"] for one in told["checks"]] == list(verdicts)


def test_junit_goes_to_a_file_or_alone_to_the_output(
    admin: Run, checks: Callable[..., None], tmp_path: Path
) -> None:
    checks("pass", "fail")
    (tmp_path / "other").write_text("mine")
    (tmp_path / "v.xml").symlink_to(tmp_path / "other")
    code, out, _err = admin("lab", "verify", "--junit", str(tmp_path / "v.xml"))
    assert code == 1 and "1 failed" in out
    code, out, _err = admin("lab", "verify", "--junit", "-")
    assert code == 1
    for text in (out, (tmp_path / "v.xml").read_text()):
        (suite,) = ElementTree.fromstring(text.split("\n", 1)[1])
        assert suite.get("failures") == "1"
    # A link that somebody put there was replaced, not followed.
    assert (tmp_path / "other").read_text() == "mine"


def test_a_check_is_chosen_by_name(admin: Run, checks: Callable[..., None]) -> None:
    checks("pass", "fail")
    assert admin("lab", "verify", "--check", "c0")[0] == 0
    assert admin("lab", "verify", "--check", "c0", "--check", "c1")[0] == 1
    code, out, err = admin("lab", "verify", "--check", "c9")
    assert code == 2 and out == "" and "c0, c1" in err


# ---- lab events ------------------------------------------------------------------------------------------


def test_events_are_lines(admin: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def acts(begin: float | None, **more: Any) -> list[audit.Act]:
        asked.append({"begin": begin, **more})
        return [audit.Act(NOW, "alice", "project-launch", "thesis", "failed", {"detail": "no\x1b room"})]

    monkeypatch.setattr(audit, "acts", acts)
    code, out, _err = admin("lab", "events", "--since", "2023-11-14", "--user", "alice")
    assert code == 0 and "\x1b" not in out
    assert "alice" in out and "project-launch" in out and r"failed: no\x1b room" in out
    assert asked[0]["user"] == "alice" and asked[0]["begin"] is not None
    assert json.loads(admin("lab", "events", "--json")[1])["events"][0]["more"]["detail"] == "no\x1b room"
    assert admin("lab", "events", "--since", "soon")[0] == 2
    assert admin("lab", "events", "--lines", "0")[0] == 2
    monkeypatch.setattr(audit, "acts", lambda *_arguments, **_more: [])
    assert "Nothing of that kind" in admin("lab", "events")[1]


def test_what_cannot_be_read_is_a_sentence(admin: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: Any, **_more: Any) -> list[audit.Act]:
        raise HostError("The tool journalctl is missing.", "Install its package.")

    monkeypatch.setattr(audit, "acts", broken)
    code, out, err = admin("lab", "events")
    assert (code, out) == (1, "") and "journalctl is missing" in err
