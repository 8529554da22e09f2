# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The broker: who may call, what may be asked, and that nothing breaks it halfway."""

from __future__ import annotations

import grp
import json
import os
import pwd
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    broker,
    buildlog,
    containers,
    images,
    journal,
    state,
    storage,
    verbs,
    workspaces,
)
from ansible_collections.lab.server.plugins.module_utils._core import engine as engines
from ansible_collections.lab.server.plugins.module_utils._core.errors import (
    EngineError,
    HostError,
    InvalidInput,
    NotFound,
    Refused,
)
from ansible_collections.lab.server.plugins.module_utils._core.items import ItemResult
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy
from ansible_collections.lab.server.plugins.module_utils._core.protocol import EXEC
from ansible_collections.lab.server.plugins.module_utils._core.spec import OwnWishes
from hypothesis import given
from hypothesis import strategies as st

CORE = Path(broker.__file__).parent


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("", []),
        ("exec", ["thesis"]),
        ("project-launch", []),
        ("project-launch", ["thesis", "more"]),
        ("project-launch", ["--privileged"]),
        ("project-launch", ["../alice"]),
        ("project-launch", ["thesis\n"]),
        ("project-launch", ["Thesis"]),
        ("project-launch", ["thesis._.2002"]),
        ("project-launch", ["th\u00e9sis"]),
        ("project-launch", ["a" * 33]),
        ("container-list", ["--all"]),
        ("container-list", [""]),
        ("attach", []),
        ("attach", ["thesis", "/bin/sh"]),
        ("container-exec", ["thesis"]),
        ("container-exec", ["--user=0", "thesis", "id"]),
        ("container-exec", ["thesis._.2002", "id"]),
        ("container-exec", ["thesis", *("x" for _number in range(1001))]),
        ("container-exec", ["thesis", "x" * 65537]),
        ("container-logs", ["thesis", "lines=-1"]),
        ("container-logs", ["thesis", "lines=99999"]),
        ("container-logs", ["thesis", "follow=yes"]),
        ("container-stats", []),
        ("container-stats-all", ["thesis"]),
        ("project-launch", ["thesis", "command="]),
        ("project-launch", ["thesis", "command= \n"]),
        ("project-launch", ["thesis", "command=\x1b[2J"]),
        ("project-launch", ["thesis", "command=\udcff"]),
        ("project-launch", ["thesis", "command=" + "x" * 4097]),
        ("project-launch", ["thesis", "privileged=yes"]),
        ("project-launch", ["thesis", "cpus=-1"]),
        ("project-launch", ["thesis", "cpus=nan"]),
        ("project-launch", ["thesis", "cpus=1e9"]),
        ("project-launch", ["thesis", "cpus=\u0662"]),
        ("project-launch", ["thesis", "memory=all"]),
        ("project-launch", ["thesis", "memory=-1"]),
        ("project-launch", ["thesis", "memory=1g,swap=2g"]),
        ("project-launch", ["thesis", "memory=1g", "memory=2g"]),
        ("project-launch", ["thesis", "rebuild="]),
        ("image-install", ["thesis"]),
        ("image-install", ["--user", "numpy"]),
        ("image-install", ["thesis", "--index-url=http://127.0.0.1/"]),
        ("image-install", ["thesis", "-r/etc/shadow"]),
        ("image-install", ["thesis", "/etc/passwd"]),
        ("image-install", ["thesis", "numpy", "git+https://example.org/x"]),
        ("image-install", ["thesis", "numpy @ file:///etc"]),
        ("image-install", ["thesis", "numpy\n"]),
        ("image-install", ["thesis", "numpy; python_version>'3'"]),
        ("image-install", ["thesis", *(f"package{number}" for number in range(51))]),
        ("image-install-check", ["thesis"]),
        ("image-list", ["thesis"]),
        ("image-history", ["thesis", "to=0"]),
        ("image-show", ["thesis", "to=latest"]),
        ("image-show", ["thesis", "0123456789ab"]),
        ("image-rollback", ["thesis", "to="]),
        ("image-rollback", ["thesis", "to=0123456789AB"]),
        ("image-rollback", ["thesis", "to=0\n"]),
        ("image-rollback", ["thesis", "to=0", "to=1"]),
        ("image-rollback", ["thesis", "to=" + "0" * 65]),
        ("image-remove", ["thesis", "to=0,"]),
        ("image-remove", ["thesis", "to=0,--force"]),
        ("image-remove", ["thesis", "to=" + ",".join("0" * 101)]),
        ("image-remove", ["thesis", "all=no"]),
        ("image-remove", ["thesis", "force=yes"]),
    ],
)
def test_what_is_not_in_the_table_is_refused(verb: str, arguments: list[str]) -> None:
    with pytest.raises(InvalidInput):
        broker.parse(verb, arguments)


@pytest.mark.parametrize("verb", [*broker.VERBS, *broker.HANDED])
def test_a_verb_takes_the_name_of_a_project_and_what_else_it_needs(verb: str) -> None:
    named = verb in broker.HANDED or broker.VERBS[verb].takes_name
    takes_packages = verb in broker.VERBS and broker.VERBS[verb].further is verbs.packages
    further = ["numpy"] if takes_packages or verb == EXEC else []
    words = [*(["thesis"] if named else []), *further]
    options = {"packages": ("numpy",)} if takes_packages else {"command": ("numpy",)} if further else {}
    assert broker.parse(verb, words) == (verb, "thesis" if named else "", options)


@pytest.mark.parametrize(
    ("verb", "words", "options"),
    [
        ("container-logs", ["lines=0"], {"lines": 0}),
        (
            "project-launch",
            ["memory=1.5g", "cpus=0.5", "rebuild=yes"],
            {"cpus": 0.5, "memory": 3 << 29, "rebuild": True},
        ),
        ("project-launch", ["command=python train.py > out\n"], {"command": "python train.py > out\n"}),
        ("image-rollback", ["to=0123456789ab"], {"to": "0123456789ab"}),
        ("image-remove", ["all=yes", "to=0,1"], {"all": True, "to": ("0", "1")}),
        (EXEC, ["--user=0", "-it", "--", "x"], {"command": ("--user=0", "-it", "--", "x")}),
    ],
)
def test_what_else_a_verb_is_asked(verb: str, words: list[str], options: dict[str, Any]) -> None:
    assert broker.parse(verb, ["thesis", *words]) == (verb, "thesis", options)


@given(st.text(), st.lists(st.text(), max_size=3))
def test_no_text_gets_past_the_table(verb: str, arguments: list[str]) -> None:
    try:
        parsed, project, options = broker.parse(verb, arguments)
    except InvalidInput:
        return
    assert parsed in (*broker.VERBS, *broker.HANDED)
    further = options.get("packages", options.get("command", ()))
    assert arguments == [*([project] if project else []), *further]


# ---- who calls -------------------------------------------------------------------------------------------


@pytest.fixture
def accounts(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[str, list[int]]]:
    """Return the accounts of the host, by uid: the name, and the groups it is in."""
    known: dict[int, tuple[str, list[int]]] = {2001: ("alice", [2001, 3000]), 2002: ("bob", [2002, 3000])}

    def getpwuid(uid: int) -> Any:
        return SimpleNamespace(pw_name=known[uid][0], pw_gid=uid)

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    monkeypatch.setattr(grp, "getgrnam", lambda name: SimpleNamespace(gr_gid={"lab": 3000}[name]))
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: dict(known.values())[name])
    return known


def test_a_lab_user_is_known(accounts: object, lab: Policy) -> None:
    assert broker.identify(2001, lab).name == "alice"


def test_root_is_no_lab_user(accounts: dict[int, tuple[str, list[int]]], lab: Policy) -> None:
    accounts[0] = ("root", [0, 3000])
    with pytest.raises(Refused, match="Root"):
        broker.identify(0, lab)


@pytest.mark.parametrize(
    ("uid", "account"),
    [(2001, ("mallory", [3000])), (2001, ("alice", [2001])), (2009, ("eve", [3000])), (2009, None)],
    ids=["another name", "not in the group", "not in the policy", "no account"],
)
def test_an_account_that_does_not_match_is_refused(
    accounts: dict[int, tuple[str, list[int]]], lab: Policy, uid: int, account: tuple[str, list[int]] | None
) -> None:
    if account:
        accounts[uid] = account
    with pytest.raises(Refused):
        broker.identify(uid, lab)


# ---- serving ---------------------------------------------------------------------------------------------


class Server:
    """A server whose Docker is a table: what was asked of it, and what it is to answer."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, str]] = []
        self.asked: list[dict[str, Any]] = []
        self.audit: list[dict[str, Any]] = []
        self.errors: list[Exception] = []
        self.infos: list[Any] = []
        self.mounts: list[str] = []
        self.closed = 0

    def act(self, name: str) -> Callable[..., ItemResult]:
        """Return a deed of the library that notes who asked for what."""

        def deed(*given: Any, **options: Any) -> ItemResult:
            user, project = given[-2:]
            self.calls.append((name, user.name, project))
            self.asked.append({key: value for key, value in options.items() if key != "progress"})
            if "progress" in options:
                options["progress"]("Step 1/2 : RUN \x1b[31mtrue")
            for error in self.errors:
                raise error
            return ItemResult(f"{project}._.{user.uid}", changed=True, facts={"status": "created"})

        return deed

    def close(self) -> None:
        """Take note that the connection was closed."""
        self.closed += 1

    def call(self, uid: int, verb: str, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
        """Serve one call and return (exit code, events)."""
        reader, writer = os.pipe()
        try:
            code = broker.serve(uid, verb, arguments, (0, writer, 2))
        finally:
            os.close(writer)
        with os.fdopen(reader) as stream:
            return code, [json.loads(line) for line in stream]


@pytest.fixture
def server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, accounts: object, lab: Policy
) -> Iterator[Server]:
    """Return a server that knows the accounts and the policy of the tests."""
    made = Server()
    monkeypatch.setattr(broker, "load", lambda: lab)
    monkeypatch.setattr(broker, "RUN_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setattr(storage, "check_mounts", lambda policy: made.mounts)
    monkeypatch.setattr(journal, "record", lambda *priority, **values: made.audit.append(values))
    monkeypatch.setattr(engines.Engine, "connect", lambda: made)
    for name in ("launch", "stop", "retire", "undo"):
        monkeypatch.setattr(containers, name, made.act(name))
    monkeypatch.setattr(images, "build", made.act("build"))
    monkeypatch.setattr(
        containers, "listing", lambda engine, policy, user: [i for i in made.infos if i.uid == user.uid]
    )
    monkeypatch.setattr(workspaces, "projects", lambda policy, user: [{"name": "thesis", "dockerfile": True}])
    return made


def info(project: str, uid: int = 2001, status: str = "running") -> Any:
    """Return a container as the listing gives it."""
    return containers.ContainerInfo(
        name=f"{project}._.{uid}",
        project=project,
        user="alice",
        uid=uid,
        id="0" * 64,
        image=f"lab/{uid}/{project}:0123456789ab",
        status=status,
        created=1_700_000_000,
        image_newer=False,
        digest="d",
    )


def test_a_launch_is_the_callers_and_tells_its_progress(server: Server) -> None:
    code, events = server.call(2001, "project-launch", "thesis")
    assert code == 0
    assert server.calls == [("launch", "alice", "thesis")]
    assert [event["event"] for event in events] == ["progress", "result"]
    assert "\x1b" not in events[0]["text"]
    assert events[1]["data"]["status"] == "created"
    assert server.closed == 1
    assert server.audit == [
        {
            "uid": 2001,
            "user": "alice",
            "verb": "project-launch",
            "project": "thesis",
            "outcome": "done",
            "changed": True,
        }
    ]


@pytest.mark.parametrize(
    ("verb", "name"),
    [
        ("container-stop", "stop"),
        ("container-retire", "retire"),
        ("container-undo", "undo"),
        ("project-launch", "launch"),
    ],
)
def test_the_verb_is_the_deed(server: Server, verb: str, name: str) -> None:
    assert server.call(2002, verb, "x")[0] == 0
    assert server.calls == [(name, "bob", "x")]


def test_a_launch_asks_for_what_it_was_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []

    def batch(_engine: object, _policy: object, user: Any, project: str, command: str) -> dict[str, Any]:
        begun.append((user.name, project, command))
        return {"log": "logs/x.log"}

    monkeypatch.setattr(containers, "batch", batch)
    plain = {"own": OwnWishes(), "rebuild": False, "with_jupyter": False, "check": False, "waits": False}
    words = ["cpus=0.5", "memory=64m", "rebuild=yes", "command=sleep 9"]
    code, events = server.call(2001, "project-launch", "thesis", *words)
    assert code == 0 and events[-1]["data"]["job"] == {"log": "logs/x.log"}
    assert server.asked == [{**plain, "own": OwnWishes(0.5, 64 << 20), "rebuild": True}]
    assert begun == [("alice", "thesis", "sleep 9")]
    assert "sleep" not in json.dumps(server.audit)
    server.call(2001, "project-launch", "thesis")
    assert server.asked[1] == plain and len(begun) == 1
    # What only tells begins no job.
    server.call(2001, "project-launch-check", "thesis", *words)
    assert server.asked[2] == {**server.asked[0], "check": True} and len(begun) == 1


@pytest.mark.parametrize(
    ("verb", "locked", "rebuild", "check"),
    [
        ("image-update", False, False, False),
        ("image-update-locked", True, False, False),
        ("image-rebuild", False, True, False),
        ("image-rebuild-locked", True, True, False),
        ("image-update-check", False, False, True),
        ("image-rebuild-check", False, True, True),
    ],
)
def test_each_way_to_build_is_a_verb(
    server: Server, verb: str, locked: bool, rebuild: bool, check: bool
) -> None:
    assert server.call(2001, verb, "thesis")[0] == 0
    assert server.calls == [("build", "alice", "thesis")]
    assert server.asked == [{"locked": locked, "rebuild": rebuild, "check": check}]
    server.mounts = ["/srv/data is not mounted."]
    assert server.call(2001, verb, "thesis")[0] == 1


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (NotFound("none"), 4, "not-found"),
        (Refused("no"), 3, "refused"),
        (EngineError("Docker is down.", "Tell your admins."), 1, "failed"),
        (ZeroDivisionError("oops"), 1, "failed"),
    ],
)
def test_an_error_is_one_event_one_code_and_one_line(
    server: Server, error: Exception, code: int, kind: str
) -> None:
    server.errors.append(error)
    got, events = server.call(2001, "container-stop", "thesis")
    assert (got, events[-1]["event"], events[-1]["kind"]) == (code, "error", kind)
    assert len(events) == 1
    assert server.audit[0]["outcome"] == kind
    assert "Traceback" not in json.dumps(events)
    if isinstance(error, ZeroDivisionError):
        assert "oops" not in json.dumps(events) and "oops" in server.audit[0]["detail"]


def test_a_wrong_call_touches_nothing_and_is_logged(server: Server) -> None:
    code, _events = server.call(2001, "project-launch", "../bob")
    assert code == 2 and server.calls == []
    assert server.audit[0]["verb"] == "project-launch" and server.audit[0]["user"] == "alice"
    code, _events = server.call(2001, "exec\nuid=0", "x")
    assert code == 2 and server.audit[1]["verb"] == "?"


def test_a_stranger_is_refused(server: Server) -> None:
    for uid in (0, 1, 4711):
        assert server.call(uid, "container-list")[0] == 3
    assert server.calls == [] and server.closed == 0


def test_nothing_starts_while_a_disk_is_missing(server: Server) -> None:
    server.mounts = ["/srv/data is not mounted."]
    code, events = server.call(2001, "project-launch", "thesis")
    assert code == 1 and "/srv/data" in events[-1]["message"] and server.calls == []
    assert server.call(2001, "container-stop", "thesis")[0] == 0


def test_lists_hold_the_callers_own(server: Server) -> None:
    server.infos = [info("thesis"), info("secret", uid=2002), info("gone")]
    _code, events = server.call(2001, "container-list")
    assert [one["project"] for one in events[-1]["data"]["containers"]] == ["thesis", "gone"]
    _code, events = server.call(2001, "project-list")
    listed = {one["name"]: one for one in events[-1]["data"]["projects"]}
    assert set(listed) == {"thesis", "gone"}
    assert listed["gone"]["folder"] is False and listed["thesis"]["container"]["status"] == "running"


def test_projects_are_listed_without_docker(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect() -> None:
        raise EngineError("Docker is down.")

    monkeypatch.setattr(engines.Engine, "connect", connect)
    code, events = server.call(2001, "project-list")
    assert code == 0 and "does not answer" in events[-1]["data"]["note"]
    code, events = server.call(2001, "container-list")
    assert code == 1 and "does not answer" in events[-1]["message"]
    assert "(Docker is down.)" in server.audit[-1]["detail"]


def test_attach_needs_a_terminal_and_ones_own_running_container(
    server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    code, events = server.call(2001, "attach", "thesis")
    assert code == 3 and events == [] and "terminal" in capfd.readouterr().err


def test_attach_becomes_the_engines_shell(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.infos = [info("thesis"), info("down", status="exited"), info("hers", uid=2002)]
    master, terminal = os.openpty()
    became: list[Any] = []

    def become(arguments: list[str], environment: dict[str, str], _descriptors: object) -> None:
        became.append((arguments, environment))
        raise SystemExit(0)

    monkeypatch.setattr(broker, "_become", become)
    descriptors = (terminal, terminal, terminal)
    try:
        assert broker.serve(2001, "attach", ["down"], descriptors) == 4
        assert broker.serve(2001, "attach", ["hers"], descriptors) == 4
        assert broker.serve(2001, "attach", ["none"], descriptors) == 4
        with pytest.raises(SystemExit):
            broker.serve(2001, "attach", ["thesis"], descriptors, "xterm")
    finally:
        os.close(terminal)
    shown = ""
    with suppress(OSError):  # EIO: the other end is closed, and all that was written to it is read (pty(7))
        while chunk := os.read(master, 4096):
            shown += chunk.decode()
    os.close(master)
    hers, none = (line for line in shown.splitlines() if "'hers'" in line or "'none'" in line)
    assert hers.replace("hers", "none") == none
    arguments, environment = became[0]
    assert arguments[:2] == [broker.DOCKER, "exec"]
    assert "thesis._.2001" in arguments and "--user=2001:2001" in arguments
    assert environment["TERM"] == "xterm" and set(environment) == {"PATH", "HOME", "LANG", "LC_ALL", "TERM"}
    assert server.audit[-1]["outcome"] == "asked"


@pytest.mark.parametrize("tty", [True, False])
def test_a_command_goes_after_the_containers_name(
    server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tty: bool
) -> None:
    server.infos = [info("thesis"), info("down", status="exited"), info("hers", uid=2002)]
    master, terminal = os.openpty()
    null = os.open(os.devnull, os.O_RDWR)
    became: list[list[str]] = []

    def become(arguments: list[str], _environment: object, _descriptors: object) -> None:
        became.append(arguments)
        raise SystemExit(0)

    monkeypatch.setattr(broker, "_become", become)
    descriptors = (terminal, terminal, 2) if tty else (terminal, null, 2)
    try:
        for name in ("down", "hers", "none"):
            assert broker.serve(2001, EXEC, [name, "id"], descriptors) == 4
        with pytest.raises(SystemExit):
            broker.serve(2001, EXEC, ["thesis", "--privileged", "-u0", "x y"], descriptors, "xterm")
    finally:
        for descriptor in (master, terminal, null):
            os.close(descriptor)
    hers, none = capfd.readouterr().err.splitlines()[1:]
    assert hers.replace("hers", "none") == none
    before, after = became[0][: became[0].index("thesis._.2001")], became[0][-3:]
    assert after == ["--privileged", "-u0", "x y"] and became[0][-4] == "thesis._.2001"
    assert "--user=2001:2001" in before and "--workdir=/workspace/thesis" in before
    assert ("--tty" in before) == ("TERM=xterm" in before) == tty
    assert "x y" not in json.dumps(server.audit)


def test_the_calls_of_one_user_are_counted(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "_CALLS_AT_ONCE", 2)
    with broker._counted(2001), broker._counted(2001):
        assert server.call(2001, "container-list")[0] == 3
        assert server.call(2002, "container-list")[0] == 0
    assert server.call(2001, "container-list")[0] == 0


# ---- descriptors, signals and the caller's other tricks ---------------------------------------------------


def test_events_outlive_their_reader() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    events = broker.Events(writer)
    previous = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        events.progress("x")
        events.result({})
    finally:
        signal.signal(signal.SIGPIPE, previous)
        os.close(writer)


def test_a_reader_who_sleeps_does_not_hold_up_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "_SLOW_READER", 0.2)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    events = broker.Events(writer)
    started = time.monotonic()
    for _number in range(3000):
        events.progress("x" * 200)
    events.result({"much": "y" * 200_000})
    assert time.monotonic() - started < 5
    os.close(writer)
    with os.fdopen(reader) as stream:
        lines = stream.read().splitlines()
    assert all(json.loads(line)["event"] == "progress" for line in lines[:-1])


PROGRAM = """
import os, signal, sys, time
sys.path.insert(0, {path!r})
from _core import broker
def serve(output):
    events = broker.Events(output)
    for number in range(20):
        events.progress(f"{{number}} sid={{os.getsid(0) == os.getpid()}}")
        time.sleep(0.05)
    open({done!r}, "w").write("done")
    events.result({{"fds": sorted(int(n) for n in os.listdir("/proc/self/fd"))}})
    return 3
sys.exit(broker._relay(serve))
"""


def start_relay(tmp_path: Path, **options: Any) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a broker whose work takes a second and leaves a file at its end."""
    done = tmp_path / "done"
    text = PROGRAM.format(path=str(CORE.parent), done=str(done))
    process = subprocess.Popen([sys.executable, "-I", "-c", text], start_new_session=True, **options)
    return process, done


def wait_for(path: Path) -> bool:
    """Wait until the file is there, for at most 10 seconds."""
    for _try in range(200):
        if path.exists():
            return True
        time.sleep(0.05)
    return False


def test_the_answer_and_the_exit_code_come_through(tmp_path: Path) -> None:
    process, done = start_relay(tmp_path, stdout=subprocess.PIPE)
    output, _none = process.communicate()
    events = [json.loads(line) for line in output.splitlines()]
    assert process.returncode == 3 and done.exists()
    assert events[0]["text"] == "0 sid=True" and events[-1]["event"] == "result"


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGTSTP]
)
def test_a_signal_to_the_callers_group_does_not_stop_the_work(tmp_path: Path, number: int) -> None:
    process, done = start_relay(tmp_path, stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline()
    os.killpg(process.pid, number)
    assert wait_for(done)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_closed_output_does_not_stop_the_work(tmp_path: Path) -> None:
    process, done = start_relay(tmp_path, stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.close()
    assert wait_for(done)
    assert process.wait() in (3, -signal.SIGPIPE)


def test_an_output_that_nobody_reads_does_not_stop_the_work(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    process, done = start_relay(tmp_path, stdout=writer)
    assert wait_for(done)
    process.kill()
    process.wait()
    os.close(reader)
    os.close(writer)


HARDEN = """
import os, resource, signal, sys
sys.path.insert(0, {path!r})
os.umask(0)
os.chdir("/tmp")
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
signal.alarm(1)
os.dup2(os.open("/etc/hostname", os.O_RDONLY), 77)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096))
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
os.close(0)
from _core import broker
identity, term = broker._harden()
import json
report = dict(
    identity=identity, term=term, environment=sorted(os.environ), cwd=os.getcwd(), umask=os.umask(0),
    child=signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL, mask=len(signal.pthread_sigmask(0, [])),
    alarm=signal.alarm(0), fds=[n for n in range(128) if os.path.exists(f"/proc/self/fd/{{n}}")],
    size=resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY,
    core=resource.getrlimit(resource.RLIMIT_CORE)[0],
)
os.write(1, json.dumps(report).encode())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can raise limits again, as the broker does")
def test_nothing_of_the_callers_process_is_left() -> None:
    text = HARDEN.format(path=str(CORE.parent))
    environment = {"SUDO_UID": "2001", "TERM": "xterm", "LANG": "xx", "TZ": "/etc/shadow", "EVIL": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", text], env=environment, capture_output=True, check=False, close_fds=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == {
        "identity": "2001",
        "term": "xterm",
        "environment": ["HOME", "LANG", "LC_ALL", "PATH"],
        "cwd": "/",
        "umask": 0o077,
        "child": True,
        "mask": 0,
        "alarm": 0,
        "fds": [0, 1, 2],
        "size": True,
        "core": 0,
    }


APART = """
import os, sys
sys.path.insert(0, {path!r})
from _core import apart
apart._SYSTEMD = {systemd!r}
apart.slices.CGROUPS = {cgroups!r}
apart.hostfiles.run = lambda words: (print(*words), os.makedirs({cgroups!r} + "/lab.slice/lab-broker.slice"))
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
open("/proc/self/oom_score_adj", "w").write("1000")
try:
    apart.stand()
except apart.HostError as error:
    print("error:", error)
print(os.sched_getscheduler(0), len(os.sched_getaffinity(0)), open("/proc/self/oom_score_adj").read().strip())
"""


def stand_apart(tmp_path: Path, *, systemd: bool) -> list[str]:
    """Let a process that its caller prepared stand apart, below a folder in place of the cgroups."""
    there = tmp_path if systemd else tmp_path / "none"
    text = APART.format(path=str(CORE.parent), systemd=str(there), cgroups=str(tmp_path))
    done = subprocess.run([sys.executable, "-I", "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may be less likely to be killed than before")
def test_what_works_for_a_user_is_out_of_the_users_reach(tmp_path: Path) -> None:
    as_any = f"0 {len(os.sched_getaffinity(0))} 0"
    assert stand_apart(tmp_path, systemd=False) == [as_any]
    procs = tmp_path / "lab.slice/lab-broker.slice/cgroup.procs"
    assert stand_apart(tmp_path, systemd=True) == ["systemctl start lab-broker.slice", as_any]
    assert procs.read_text() == "0"
    assert stand_apart(tmp_path, systemd=True) == [as_any]  # it is started once
    procs.unlink()
    procs.mkdir()
    told = stand_apart(tmp_path, systemd=True)
    assert told[0].startswith("error: The work cannot be set apart") and "Tell your admins." in told[0]


def test_no_call_is_served_within_the_callers_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise HostError("The work cannot be set apart: no.", "Tell your admins.")

    monkeypatch.setattr(broker.apart, "stand", refuse)
    monkeypatch.setattr(broker, "serve", lambda *words: pytest.fail("served"))
    reader, writer = os.pipe()
    assert broker._serve_apart(2001, "container-list", [], writer) == broker.EXIT_CODES["failed"]
    told = json.loads(os.read(reader, 4096))
    assert (told["event"], told["hint"]) == ("error", "Tell your admins.")


@pytest.mark.parametrize("term", ["", "../x", "a b", "x" * 99, "\x1b[31m"])
def test_a_strange_terminal_is_a_dumb_one(monkeypatch: pytest.MonkeyPatch, term: str) -> None:
    assert not broker._TERM.fullmatch(term)


@pytest.mark.parametrize("identity", ["", "-1", "0x10", "2001\n", "\u0662", "99999999999"])
def test_only_sudo_says_who_calls(monkeypatch: pytest.MonkeyPatch, identity: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(broker, "_harden", lambda: (identity, "dumb"))
    monkeypatch.setattr(broker, "Events", lambda descriptor: SimpleNamespace(error=lambda *words: None))
    assert broker.main(["lab-broker", "container-list"]) == 3


def test_lines_that_were_asked_for_are_all_given_however_slowly_they_are_read() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    lines = [f"{number} " + "x" * 1000 for number in range(2000)]
    got: list[bytes] = []

    def read() -> None:
        while data := os.read(reader, 1 << 16):
            got.append(data)
            time.sleep(0.005)

    thread = threading.Thread(target=read)
    thread.start()
    assert broker.Events(writer).lines(lines) and broker.Events(writer).lines([])
    os.close(writer)
    thread.join()
    events = [json.loads(line) for line in b"".join(got).splitlines()]
    assert [line for event in events for line in event["lines"]] == lines and len(events) > 1
    os.close(reader)


def test_who_has_gone_is_noticed_without_a_line() -> None:
    reader, writer = os.pipe()
    events = broker.Events(writer)
    assert events.lines([])
    os.close(reader)
    assert not events.lines([])
    os.close(writer)


def test_a_log_is_ones_own_and_is_followed_to_its_end(
    monkeypatch: pytest.MonkeyPatch, lab: Policy, tmp_path: Path
) -> None:
    monkeypatch.setattr(state, "STATE_DIRECTORY", str(tmp_path))
    said: list[str] = []

    def lines(new: Any) -> bool:
        said.extend(new)
        return True

    def asked(name: str, **options: Any) -> dict[str, Any]:
        request = broker.Request(lab, lab.user(name), "thesis", said.append, options, lines)
        return broker.VERBS["image-log"].run(request)

    begun, go_on = threading.Event(), threading.Event()

    def build() -> None:
        with buildlog.writing(2001, "thesis") as log:
            log.line("one")
            log.line("two")
            begun.set()
            go_on.wait(10)
            log.line("three")

    with pytest.raises(NotFound) as never:
        asked("bob")
    thread = threading.Thread(target=build)
    thread.start()
    assert begun.wait(10)
    with pytest.raises(NotFound) as others:
        asked("bob")
    assert str(others.value) == str(never.value)
    assert asked("alice", lines=1)["outcome"] == "running" and said == ["two"]
    said.clear()
    threading.Timer(0.5, go_on.set).start()
    assert asked("alice", follow=True)["outcome"] == "done"
    assert said == ["one", "two", "three"]
    thread.join()
