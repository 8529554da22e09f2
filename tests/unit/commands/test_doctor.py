# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The doctor: what every fact means, how facts are gathered, and how they are told."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    calls,
    cli_doctor,
    doctor,
    quota,
    symptoms,
)
from ansible_collections.lab.server.plugins.module_utils._core.doctor import (
    BAD,
    OK,
    UNKNOWN,
    WARN,
    Account,
    Link,
)
from ansible_collections.lab.server.plugins.module_utils._core.doctor import Project as Facts
from ansible_collections.lab.server.plugins.module_utils._core.errors import EngineError, HostError
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy, Project, Quota, User

Run = Callable[..., tuple[int, str, str]]

PLACE = "/home/.workspaces/alice"
LIMITS = Quota(soft=200 << 20, hard=250 << 20, inodes_soft=200, inodes_hard=250)


def usage(used: int = 0, inodes: int = 0, limits: Quota = LIMITS) -> quota.Usage:
    return quota.Usage(used, inodes, limits)


ACCOUNT = Account("alice", 2001, PLACE, "/srv/data", ("lab/python", "lab/debian"), PLACE, usage(1 << 20, 9))
RUNNING = {"project": "thesis", "status": "running", "created": 1000, "image_newer": False}
LOST: dict[str, Any] = {
    "files": 2,
    "bytes": 3 << 20,
    "paths": ["/tmp/x"],
    "packages": ["a 1"],
    "complete": True,
}
WELL = Facts(
    "thesis",
    container=RUNNING,
    lost={"lost": {**LOST, "files": 0}},
    mounted=True,
    dockerfile="FROM lab/python\nCOPY requirements.txt /opt/\n",
    requirements="# none\nnumpy\n",
    changed=(999.0, "Dockerfile"),
    weights=(("src", 4096, 3),),
    git=True,
    git_owners=(2001, 2001),
    gitignore="data/\n",
    data=True,
    links=(Link("data/raw", "../../datasets/x", True),),
)


def verdict(check: str, facts: Account | Facts) -> doctor.Finding:
    """Return what a check says of these facts, with everything else well."""
    account, project = (facts, WELL) if isinstance(facts, Account) else (ACCOUNT, facts)
    found = doctor.examine(account, [project])
    return next(one.finding for one in found if one.check == check)


def test_all_is_well() -> None:
    found = doctor.examine(ACCOUNT, [WELL])
    assert [one for one in found if one.finding.verdict != OK or one.finding.fix] == []
    assert len(found) == len(doctor.ACCOUNT_CHECKS) + len(doctor.PROJECT_CHECKS)


def test_of_a_project_that_is_nothing_yet_only_the_dockerfile_is_bad() -> None:
    found = doctor.examine(ACCOUNT, [Facts("thesis")])
    assert {one.check for one in found if one.finding.verdict == BAD} == {"dockerfile"}


@pytest.mark.parametrize(
    ("check", "expected", "changes", "word"),
    [
        ("link", BAD, {"link": ""}, "missing"),
        ("link", BAD, {"link": None}, "no link"),
        ("link", BAD, {"link": "/home/.workspaces/bob"}, "bob"),
        ("link", OK, {"link": PLACE + "/"}, PLACE),
        ("quota", UNKNOWN, {"usage": None, "usage_problem": "Quotas are off."}, "Quotas are off."),
        ("quota", OK, {"usage": usage(limits=Quota(0, 0, 0, 0))}, "no limit"),
        ("quota", WARN, {"usage": usage(201 << 20)}, "80 % of 250M"),
        ("quota", WARN, {"usage": usage(205 << 20)}, "above the soft limit of 200M"),
        ("quota", BAD, {"usage": usage(240 << 20)}, "96 %"),
        ("quota", BAD, {"usage": usage(1, 250)}, "files: 100 %"),
        ("half done", WARN, {"halves": (".thesis-20260101-000000.part",)}, ".part"),
    ],
)
def test_what_facts_of_the_account_mean(
    check: str, expected: str, changes: dict[str, Any], word: str
) -> None:
    finding = verdict(check, replace(ACCOUNT, **changes))
    assert finding.verdict == expected and word in finding.evidence
    assert bool(finding.fix) == (expected in (WARN, BAD))


@pytest.mark.parametrize(
    ("check", "expected", "changes", "word"),
    [
        ("mount", BAD, {"mounted": False}, "not your workspace"),
        ("mount", UNKNOWN, {"mounted": None}, "no process"),
        ("mount", OK, {"container": {**RUNNING, "status": "exited"}, "mounted": None}, "does not run"),
        ("mount", UNKNOWN, {"container": None, "container_problem": "No engine."}, "No engine."),
        ("outside", WARN, {"lost": {"lost": LOST}}, "2 files (3M) outside of /workspace, such as /tmp/x"),
        ("outside", UNKNOWN, {"lost": None, "lost_problem": "No engine."}, "No engine."),
        ("outside", UNKNOWN, {"lost": {"lost": {**LOST, "files": 0, "complete": False}}}, "not all"),
        ("outside", OK, {"container": None}, "no container"),
        ("dockerfile", BAD, {"dockerfile": None}, "no Dockerfile"),
        (
            "dockerfile",
            BAD,
            {"dockerfile": None, "dockerfile_problem": "is a symbolic link"},
            "symbolic link",
        ),
        ("dockerfile", BAD, {"dockerfile": "RUN true\n"}, "no FROM"),
        ("dockerfile", BAD, {"dockerfile": "FROM a b c d\n"}, "line 1"),
        ("dockerfile", BAD, {"dockerfile": "FROM lab/2002/theirs\n"}, "lab/2002/theirs"),
        ("base image", BAD, {"dockerfile": "FROM lab/none\n"}, "lab/none is not on this server"),
        ("base image", WARN, {"dockerfile": "FROM python:3.12\n"}, "python:3.12"),
        ("base image", OK, {"dockerfile": "FROM lab/2001/other\n"}, "lab/2001/other"),
        ("base image", OK, {"dockerfile": "FROM lab/python:latest AS a\nFROM a\n"}, "lab/python"),
        ("base image", UNKNOWN, {"dockerfile": None}, "does not say"),
        ("packages", WARN, {"dockerfile": "FROM lab/python\n"}, "1 line"),
        ("packages", OK, {"requirements": "# nothing\n\n"}, "asks for nothing"),
        ("packages", OK, {"requirements": None}, "asks for nothing"),
        ("image", WARN, {"changed": (8200.0, "requirements.txt")}, "requirements.txt changed 2 h after"),
        ("image", UNKNOWN, {"container": {**RUNNING, "created": None}}, "not known"),
        ("container", WARN, {"container": {**RUNNING, "image_newer": True}}, "newer image"),
        ("build", WARN, {"weights": (("data", 200 << 20, 7), ("src", 9, 1))}, "200M in 8 files"),
        ("build", WARN, {"weights": (("data", 9, 20_000),)}, "20000 files"),
        ("build", BAD, {"weights": (("data", 2 << 30, 1),)}, "more than this server takes"),
        ("build", BAD, {"weights": (("data", 9, 99_999),), "weights_complete": False}, "at least"),
        ("build", UNKNOWN, {"weights_problem": "No SDK."}, "No SDK."),
        ("git data", WARN, {"gitignore": "*.pyc\n"}, "does not ignore data/"),
        ("git data", WARN, {"gitignore": "data/\n!data\n"}, "does not ignore data/"),
        ("git data", WARN, {"gitignore": "# data/\ndatabase\n"}, "does not ignore data/"),
        *(
            ("git data", OK, {"gitignore": f"{line}\n"}, "ignores")
            for line in ("data", "/data/*", "data/**", "d*")
        ),
        ("git data", OK, {"git": False, "gitignore": ""}, "no git repository"),
        ("git data", OK, {"data": False, "gitignore": ""}, "no folder data"),
        ("git owner", WARN, {"git_owners": (2001, 0)}, "dubious ownership"),
        ("git owner", OK, {"git": False, "git_owners": (0,)}, "no git repository"),
        ("links", WARN, {"links": (Link("a", "/home/alice/big", True),)}, "a -> /home/alice/big"),
        ("links", WARN, {"links": (Link("a/b", "../../../x", True),)}, "a/b -> ../../../x"),
        ("links", WARN, {"links": (Link("a", "../gone", False),)}, "lead nowhere: a -> ../gone"),
        *(
            ("links", OK, {"links": (Link("a", target, True),)}, "1 link")
            for target in (
                "/workspace/x",
                "/workspace",
                f"{PLACE}/x",
                "/home/alice/workspace/x",
                "/srv/data/shared",
                "/usr/bin/python3",
                "../thesis/x",
            )
        ),
        ("links", WARN, {"links": (Link("a", "/workspace2", False),)}, "lead nowhere"),
        ("links", OK, {"links": (Link("a", "/home/alice/big", True),), "home": "host"}, "1 link"),
        ("owners", WARN, {"foreign": ("x (uid 0)",)}, "x (uid 0)"),
        ("owners", UNKNOWN, {"complete": False}, "not time"),
        ("secrets", WARN, {"exposed": (".env", "a/id_rsa")}, ".env, a/id_rsa"),
        ("kept home", WARN, {"home": "persistent", "packages": ("numpy",)}, "numpy"),
        ("kept home", OK, {"home": "persistent"}, "no packages"),
    ],
)
def test_what_facts_of_a_project_mean(check: str, expected: str, changes: dict[str, Any], word: str) -> None:
    finding = verdict(check, replace(WELL, **changes))
    assert finding.verdict == expected and word in finding.evidence
    assert bool(finding.fix) == (expected in (WARN, BAD))


def test_a_fix_names_the_folders_that_weigh() -> None:
    weights = (("src", 4096, 3), ("data", 900 << 20, 2), ("notes", 1, 20_000))
    assert verdict("build", replace(WELL, weights=weights)).fix.endswith(".dockerignore: data, notes")


# ---- gathering -------------------------------------------------------------------------------------------


@pytest.fixture
def alice(lab: Policy) -> User:
    return replace(lab.user("alice"), uid=os.getuid())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a workspace with a project of many troubles."""
    monkeypatch.setattr(Policy, "workspace", lambda policy, user: str(tmp_path / "work"))
    thesis = tmp_path / "work/thesis"
    for folder in ("data", "src", ".git"):
        (thesis / folder).mkdir(parents=True)
    (thesis / "Dockerfile").write_text("FROM lab/python\n")
    os.utime(thesis / "Dockerfile", (5, 5))
    (thesis / "requirements.txt").write_text("numpy\n")
    os.utime(thesis / "requirements.txt", (7, 7))
    (thesis / "data/big").write_bytes(b"x" * 5000)
    (thesis / ".dockerignore").write_text("src\n")
    (thesis / "src/id_rsa").write_text("k")
    (thesis / "src/id_rsa").chmod(0o644)
    (thesis / ".env").write_text("k")
    (thesis / ".env").chmod(0o600)
    (thesis / ".env.example").write_text("k")
    (thesis / "src/there").symlink_to("../data/big")
    (thesis / "src/gone").symlink_to("../none")
    (thesis / "src/inside").symlink_to("/workspace/thesis/data")
    (thesis / "src/theirs").write_text("x")
    if os.geteuid() == 0:
        os.chown(thesis / "src/theirs", 4711, 4711)
    (tmp_path / "work/datasets").mkdir()
    (tmp_path / "work/.hidden").mkdir()
    return thesis


def test_facts_are_gathered_from_the_files(place: Path, lab: Policy, alice: User) -> None:
    facts = symptoms.project_of(lab, alice, "thesis", container=None)
    assert facts.dockerfile == "FROM lab/python\n" and facts.requirements == "numpy\n"
    assert facts.changed == (7.0, "requirements.txt")
    assert {name: count for name, _size, count in facts.weights}["data"] == 1
    assert "src" not in [name for name, _size, _count in facts.weights]
    assert {(one.path, one.reaches) for one in facts.links} == {
        ("src/there", True),
        ("src/gone", False),
        ("src/inside", True),
    }
    assert facts.foreign == (("src/theirs (uid 4711)",) if os.geteuid() == 0 else ())
    assert facts.exposed == ("src/id_rsa",)
    assert facts.git and facts.git_owners == (alice.uid, alice.uid) and facts.data and facts.complete
    assert symptoms.project_names(str(place.parent)) == ["thesis"]


def test_files_of_a_wrong_kind_break_nothing(place: Path, lab: Policy, alice: User) -> None:
    for name in ("Dockerfile", ".gitignore", "requirements.txt"):
        (place / name).unlink(missing_ok=True)
    (place / "Dockerfile").symlink_to("/etc/hostname")
    os.mkfifo(place / ".gitignore")
    (place / "requirements.txt").mkdir()
    facts = symptoms.project_of(lab, alice, "thesis", container=None)
    assert facts.dockerfile is None and "symbolic link" in facts.dockerfile_problem
    assert facts.gitignore == "" and facts.requirements is None
    assert symptoms.project_of(lab, alice, "datasets", container=None).dockerfile is None


def test_time_is_bounded(place: Path, lab: Policy, alice: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symptoms, "_SECONDS", -1.0)
    assert not symptoms.project_of(lab, alice, "thesis", container=None).complete


def test_packages_of_a_kept_home_are_found(
    place: Path, lab: Policy, alice: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Policy, "home_source", lambda policy, user, project, mode: str(tmp_path / "kept"))
    site = tmp_path / "kept/.local/lib/python3.12/site-packages"
    for name in ("numpy-2.1.3.dist-info", "numpy", "zarr-1.dist-info"):
        (site / name).mkdir(parents=True)
    declared = Project(
        "alice", "thesis", "ml", "lab/python", (), "started", None, None, None, None, (), "persistent"
    )
    facts = symptoms.project_of(replace(lab, projects=(declared,)), alice, "thesis", container=None)
    assert facts.packages == ("numpy", "zarr") and facts.home == "persistent"


def test_the_account_is_looked_at(
    place: Path, lab: Policy, alice: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(policy: object, user: object) -> None:
        raise HostError("Quotas are off.")

    monkeypatch.setattr(quota, "usage", refuse)
    home = tmp_path / "home"
    home.mkdir()
    (place.parent / ".archive").mkdir()
    (place.parent / ".archive/.thesis-20260101-000000.part").write_text("")
    account = symptoms.account_of(lab, alice, str(home))
    assert (account.link, account.usage, account.usage_problem) == ("", None, "Quotas are off.")
    assert account.halves == (".thesis-20260101-000000.part",)
    (home / "workspace").symlink_to("/elsewhere")
    assert symptoms.account_of(lab, alice, str(home)).link == "/elsewhere"
    (home / "workspace").unlink()
    (home / "workspace").mkdir()
    assert symptoms.account_of(lab, alice, str(home)).link is None


def test_the_mount_is_seen_through_the_processes(tmp_path: Path) -> None:
    workspace, proc = tmp_path / "work", tmp_path / "proc"
    workspace.mkdir()
    (proc / "self/ns").mkdir(parents=True)
    (proc / "self/ns/mnt").symlink_to("mnt:[1]")

    def process(number: int, namespace: str, host: str) -> Path:
        root = proc / str(number) / "root"
        (root / "etc").mkdir(parents=True)
        (proc / str(number) / "ns").mkdir()
        (proc / str(number) / "ns/mnt").symlink_to(namespace)
        (root / "etc/hostname").write_text(host + "\n")
        return root

    def seen(name: str) -> bool | None:
        return symptoms.mounted(name, os.getuid(), str(workspace), str(proc))

    process(1, "mnt:[1]", "thesis")
    assert seen("thesis") is None
    root = process(2, "mnt:[2]", "thesis")
    assert seen("thesis") is False
    (root / "workspace").symlink_to(workspace)
    assert seen("thesis") is False
    (root / "workspace").unlink()
    workspace.rename(root / "workspace")
    workspace.symlink_to(root / "workspace")
    assert seen("thesis") is True and seen("other") is None


# ---- the command -----------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what the broker answers, by verb; an exception is raised."""
    answers: dict[str, Any] = {"container-list": {"containers": [RUNNING]}, "container-lost": {"lost": LOST}}

    def ask(verb: str, *_words: str) -> Any:
        if isinstance(answers[verb], Exception):
            raise answers[verb]
        return answers[verb]

    monkeypatch.setattr(cli_doctor, "ask", ask)
    return answers


def test_the_doctor_tells_evidence_and_fix(
    run: Run, place: Path, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota, "usage", lambda policy, user: usage(240 << 20))
    monkeypatch.setattr(Policy, "workspace", lambda policy, user: str(place.parent))
    code, out, err = run("project", "doctor", "thesis")
    assert code == 1 and err == ""
    assert "space: 96 % of 250M used" in out and "fix: make room" in out
    assert "2 files (3M) outside of /workspace" in out
    assert max(len(line) for line in out.splitlines()) <= 80
    facts = json.loads(run("project-doctor", "--json")[1])
    assert facts["healthy"] is False and {one["project"] for one in facts["checks"]} == {"", "thesis"}
    assert run("project", "doctor", "none")[0] == 4
    assert run("project", "doctor", "Bad_Name")[0] == 2


def test_without_an_engine_the_rest_is_told(
    run: Run, place: Path, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Policy, "workspace", lambda policy, user: str(place.parent))
    asked["container-list"] = EngineError("No engine.")
    code, out, _err = run("project", "doctor", "thesis")
    assert "No engine." in out and "unknown" in out and code == 1  # the link is missing in these tests
    asked["container-list"] = {"containers": [RUNNING]}
    asked["container-lost"] = EngineError("No engine.")
    assert "No engine." in run("project", "doctor", "thesis")[1]


def test_a_doctor_is_quick(place: Path, lab: Policy, alice: User) -> None:
    for number in range(500):
        (place / f"src/{number}.py").write_text("")
    began = time.monotonic()
    symptoms.project_of(lab, alice, "thesis", container=None)
    assert time.monotonic() - began < 3
    assert calls.age({"created": time.time()}) == "0 s"
