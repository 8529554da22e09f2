"""Whatever lab users throw at a server, nothing but their own changes (C2, E2, H7; docs/security.md).

Bob and dave log in by ssh and make calls that Hypothesis thought up: words for every command and for the
broker itself, environments, descriptors, limits, signals, keys of a terminal, planted files, messages to
every socket. Before and after, root takes a picture of the whole machine. It takes an emulated machine a
quarter of an hour, so it runs where ``LAB_TEST_HOSTILE_ROUNDS`` says how many calls each user makes. How they
are made, and what is compared, is in the folder ``hostile``.
"""

from __future__ import annotations

import collections
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import BOB, DAVE, MACHINES, ROOT, Server
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(ROOT / ".ansible" / "collections"))
from ansible_collections.lab.server.plugins.module_utils._core import broker, interface

pytestmark = pytest.mark.skipif(
    not os.environ.get("LAB_TEST_HOSTILE_ROUNDS"),
    reason="takes a quarter of an hour; make test-all runs it, as LAB_TEST_HOSTILE_ROUNDS=12 does",
)

ROUNDS = int(os.environ.get("LAB_TEST_HOSTILE_ROUNDS") or 12)
SCRIPTS = Path(__file__).parent / "hostile"
PLACE = "/run/lab-test-hostile"
SECRET = "the secret of carol"
# What nobody may be shown: our own faults, and what is others'.
TELLING = [
    "Traceback (most recent call last)",
    "Something went wrong that should not",
    "root:*:",
    "root:!",
    SECRET,
]
OWN = ("hostile", "hostile-too")
ENDLESS = 12.0  # seconds after which what may wait for ever is hung up

# ---- words -----------------------------------------------------------------------------------------------

PROGRAMS = {one.page: one for one in interface.programs() if not one.commands}
# These wait for somebody, or for what was begun.
WAITING = ("attach", "container-exec", "container-run", "container-logs", "project-launch", "--wait")
ODD = st.one_of(
    st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=30),
    st.binary(min_size=1, max_size=30).map(
        lambda data: data.replace(b"\0", b"\1").decode("utf-8", "surrogateescape")
    ),
    st.sampled_from([["A", 70_000], ["../", 2_000], ["-", 300], ["é", 255], ["A", 140_000]]),
    st.sampled_from(
        [
            *(
                "--",
                "-",
                "-h",
                "--help",
                "--json",
                "--dry-run",
                "--yes",
                "--all",
                "--user=carol",
                "-v/:/host",
            ),
            *("--privileged", "-rf", "$(id)", "`id`", ";id", "|id", "&", "*", "~root", "{}", "%s%n", "a\nb"),
            *(
                "\x1b[2J",
                "../../../etc",
                "/etc/shadow",
                "/home/alice",
                "/srv/data",
                ".",
                "..",
                "/",
                "con:fig",
            ),
            *("0", "-1", "1e309", "99999999999999999999", "NaN", "0x10", "½", "\u202e", "\ufeff", "-u#0"),
        ]
    ),
)
_NAMES = st.sampled_from(
    [
        *[OWN[0]] * 12,
        *(OWN[1], "my-thesis", "vision", "my-thesis._.2001", "vision._.2003", "../alice/my-thesis"),
        *("lab/2003/vision", "lab-2001.slice", "", ".", "HOSTILE", "hostile\n", "hostile/../../carol"),
    ]
)
NAMES = st.one_of(*[_NAMES] * 5, ODD)
PATHS = st.sampled_from(
    [
        *(
            "/etc/shadow",
            "/etc/hostile",
            "/home/alice",
            "/home/.workspaces/carol/secret",
            "/srv/data",
            "/proc/1/mem",
        ),
        *(
            "/var/lib/lab-server/lifecycle.json",
            "/run/docker.sock",
            "/dev/full",
            "/dev/zero",
            "-",
            "",
            "/tmp/x.tar.gz",
        ),
        *("hostile", "../hostile.tar.gz", "/home/.workspaces/bob/../carol/x", "/usr/local/sbin/lab-broker"),
    ]
)
VALUES = st.one_of(
    st.sampled_from(
        ["lab/python", "lab/2001/my-thesis", "1", "0.5", "64m", "900g", "ml", "all", "1g.10gb", "id"]
    ),
    st.sampled_from(
        ["touch /srv/data/hostile", "id; cat /srv/data/vision/* /workspace/../etc/shadow", "sleep 2"]
    ),
    PATHS,
    ODD,
)
PACKAGES = st.sampled_from(
    ["six", "six==0", "./x", "git+file:///etc", "--target=/etc", "-r/etc/shadow", "a @ file:///"]
)
COMMAND = st.sampled_from(
    [["id"], ["sh", "-c", "touch /srv/data/hostile /etc/hostile"], ["--user=0", "id"], ["/nonexistent"], []]
)


@st.composite
def _typed(draw: st.DrawFn) -> list[Any]:
    """Draw a command line of one of our commands, mostly as its parser wants it."""
    program = PROGRAMS[draw(st.sampled_from(sorted(PROGRAMS)))]
    words: list[Any] = [program.page] if draw(st.booleans()) else program.page.split("-")
    words[0] = f"/usr/local/bin/{words[0]}"
    options = [option for option in program.options if "--help" not in option.spellings]
    for option in draw(st.lists(st.sampled_from(options), max_size=3)) if options else ():
        words += [draw(st.sampled_from(option.spellings)), *([draw(VALUES)] if option.value else [])]
    for argument in program.arguments:
        if argument.name in ("NAME", "NEW"):
            words.append(draw(NAMES))
        elif argument.name == "COMMAND":
            words += ["--", *draw(COMMAND)]
        else:
            words.append(draw(PACKAGES if argument.name == "PACKAGE" else st.one_of(PATHS, ODD)))
    return draw(_spoilt(words))


@st.composite
def _spoilt(draw: st.DrawFn, words: list[Any]) -> list[Any]:
    """Draw the words with, now and then, one too many or one too few."""
    how = draw(st.sampled_from(["as it is"] * 8 + ["more", "less"]))
    place = draw(st.integers(1, len(words)))
    if how == "more":
        return [*words[:place], draw(ODD), *words[place:]]
    return words[:place] if how == "less" else words


@st.composite
def _asked(draw: st.DrawFn) -> list[Any]:
    """Draw a call of the broker without our commands, by what sudo can be asked for."""
    sudo = st.sampled_from(
        [
            *[[]] * 8,
            *(
                ["-E"],
                ["-u", "#0"],
                ["-u", "carol"],
                ["-g", "docker"],
                ["-C", "100"],
                ["-D", "/root"],
                ["-s"],
            ),
            *(
                ["LD_PRELOAD=/x.so"],
                ["SUDO_UID=2003"],
                ["PYTHONPATH=/home"],
                ["-H"],
                ["-b"],
                ["-i"],
                ["-k"],
                ["-l"],
            ),
        ]
    )
    verb = st.one_of(st.sampled_from([*sorted(broker.VERBS), *sorted(broker.HANDED)]), ODD)
    further = st.lists(
        st.one_of(
            st.sampled_from(
                ["cpus=0.5", "memory=64m", "all=yes", "to=1", "lines=-1", "command=id", "rebuild=yes"]
            ),
            ODD,
        ),
        max_size=3,
    )
    words = [
        "/usr/bin/sudo",
        "-n",
        *draw(sudo),
        "/usr/local/sbin/lab-broker",
        draw(verb),
        draw(NAMES),
        *draw(further),
    ]
    return draw(_spoilt(words))


# ---- all else --------------------------------------------------------------------------------------------

ENVIRONMENT = {
    "LD_PRELOAD": ["EVIL/evil.so", "/nonexistent.so"],
    "LD_LIBRARY_PATH": ["EVIL", ":"],
    "LD_AUDIT": ["EVIL/evil.so"],
    "PYTHONPATH": ["EVIL", "/home/.workspaces/alice"],
    "PYTHONHOME": ["EVIL"],
    "PYTHONSTARTUP": ["EVIL/sitecustomize.py", "/etc/shadow"],
    "PYTHONINSPECT": ["1"],
    "PYTHONWARNINGS": ["error"],
    "PYTHONUSERBASE": ["EVIL"],
    "HOME": ["/home/alice", "/", "EVIL", "", "/nonexistent"],
    "USER": ["root", "carol"],
    "LOGNAME": ["root"],
    "SUDO_UID": ["0", "2003"],
    "SUDO_USER": ["carol"],
    "SUDO_ASKPASS": ["EVIL/docker"],
    "LAB_POLICY": ["EVIL/policy.json"],
    "LAB_USER": ["carol"],
    "LAB_SERVER_ROOT": ["EVIL"],
    "DOCKER_HOST": ["tcp://127.0.0.1:1", "unix:///home/bob/hostile.sock"],
    "DOCKER_CONFIG": ["EVIL"],
    "DOCKER_CONTEXT": ["evil"],
    "DOCKER_CLI_PLUGIN_EXTRA_DIRS": ["EVIL/cli-plugins"],
    "PATH": ["EVIL", "", "/nonexistent"],
    "BASH_ENV": ["EVIL/docker"],
    "ENV": ["EVIL/docker"],
    "IFS": ["/"],
    "LANG": ["xx_XX.UTF-8", "tr_TR", "C", "\udcff"],
    "LC_ALL": ["POSIX", "../../../home/bob"],
    "LANGUAGE": ["/etc/shadow"],
    "TERM": ["../../x\x1b[2J", "", "dumb", "x" * 5000],
    "TERMINFO": ["EVIL"],
    "COLUMNS": ["-1", "0", "99999999999", "x"],
    "TMPDIR": ["/home/.workspaces/carol", "/nonexistent", "EVIL"],
    "TZ": ["/etc/shadow", ":EVIL/docker", "\x01"],
    "PAGER": ["EVIL/docker"],
    "EDITOR": ["EVIL/docker"],
    "http_proxy": ["http://127.0.0.1:1"],
    "SSL_CERT_FILE": ["EVIL/evil.so"],
    "XDG_RUNTIME_DIR": ["/run/user/2003"],
    "SYSTEMD_PAGER": ["EVIL/docker"],
    "NOTIFY_SOCKET": ["/run/systemd/notify"],
    "MALLOC_PERTURB_": ["255"],
}
PLACES = [
    *(
        "project/Dockerfile",
        "project/.dockerignore",
        "project/requirements.txt",
        "project/word",
        "project/results",
    ),
    *(
        "project/a\nb",
        "project/-rf",
        "project/..\x1b[2J",
        "project/src",
        "project/models",
        f"project/{'x' * 255}",
    ),
    *("workspace/hostile-too", "workspace/hostile.tar.gz", "workspace/.lab", "workspace/-rf"),
    *("home/workspace", "home/.docker", "home/.config", "home/.cache", "home/.local", "home/.python_history"),
]
KINDS = [
    *(
        "link to shadow",
        "link to sudoers",
        "link to /",
        "link to another's home",
        "link to another's workspace",
    ),
    *("link to data", "link to the state", "link to itself", "link to nothing", "link to the engine"),
    *(
        "link to a process",
        "hard link to passwd",
        "hard link to sudo",
        "fifo",
        "socket",
        "device",
        "sparse",
        "folder",
    ),
    *(
        "deep",
        "many",
        "forbidden",
        "set ids",
        "empty",
        "no text",
        "broken",
        "another base",
        "labels",
        "copies all",
    ),
    *("many lines", "packages", "settings"),
]
STREAMS = [
    *[("null", "pipe", "pipe")] * 5,
    *[("terminal", "terminal", "terminal")] * 3,
    *(
        ("closed", "closed", "closed"),
        ("closed", "pipe", "pipe"),
        ("null", "closed", "pipe"),
        ("null", "pipe", "closed"),
    ),
    *(
        ("null", "full", "full"),
        ("zero", "full", "pipe"),
        ("pipe", "nobody", "pipe"),
        ("pipe", "pipe", "nobody"),
    ),
    *(("folder", "pipe", "pipe"), ("terminal", "pipe", "pipe"), ("pipe", "terminal", "closed")),
]
SIGNALS = [
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGKILL,
    signal.SIGQUIT,
    signal.SIGSTOP,
    signal.SIGPIPE,
]
MOMENTS = st.floats(0, 3).map(lambda seconds: round(seconds, 3))
ACTS = st.one_of(
    st.builds(
        lambda after, number: {"after": after, "signal": int(number)}, MOMENTS, st.sampled_from(SIGNALS)
    ),
    st.builds(
        lambda after, keys: {"after": after, "keys": keys},
        MOMENTS,
        st.sampled_from(
            ["\x03", "\x1c", "\x1a", "\x04", "\x10\x11", "y\n", "exit\n", "\x1b[A\x00\xff", "\x13"]
        ),
    ),
)


def _environments() -> st.SearchStrategy[dict[str, str]]:
    """Return a strategy of environments that would lead somebody astray who believed them."""
    names = st.lists(st.sampled_from(sorted(ENVIRONMENT)), unique=True, max_size=6)
    return names.flatmap(
        lambda chosen: st.fixed_dictionaries({name: st.sampled_from(ENVIRONMENT[name]) for name in chosen})
    )


@st.composite
def _calls(draw: st.DrawFn) -> dict[str, Any]:
    """Draw one call, as hostile/caller.py takes it."""
    words = draw(st.one_of(_typed(), _typed(), _asked()))
    acts = sorted(
        draw(st.one_of(st.just([]), st.lists(ACTS, min_size=1, max_size=3))), key=lambda act: act["after"]
    )
    told = " ".join(word for word in words if isinstance(word, str)).replace(" ", "-")
    waiting = any(one in told for one in WAITING)
    # Ctrl-Z and Ctrl-S, like SIGSTOP, leave it standing until it is hung up.
    standing = any(act.get("signal") == signal.SIGSTOP or act.get("keys") in ("\x1a", "\x13") for act in acts)
    return {
        "words": words,
        "environment": draw(_environments()),
        "streams": ("terminal",) * 3
        if any("keys" in act for act in acts)
        else draw(st.sampled_from(STREAMS)),
        "extra": draw(st.sampled_from([0, 0, 1, 7, 200])),
        "limits": draw(st.lists(st.sampled_from(["files", "size", "cpu", "stack"]), unique=True, max_size=2)),
        "umask": draw(st.sampled_from([0, 0o077, 0o777])),
        "nice": draw(st.sampled_from([0, 19])),
        "ignored": draw(st.lists(st.sampled_from([int(signal.SIGCHLD), int(signal.SIGHUP)]), max_size=1)),
        "folder": draw(st.sampled_from(["home", "project", "root", "gone"])),
        "away": draw(st.sampled_from([False] * 7 + [True])),
        "planted": draw(st.dictionaries(st.sampled_from(PLACES), st.sampled_from(KINDS), max_size=4)),
        "acts": acts,
        "patience": acts[-1]["after"] + 2 if standing else ENDLESS if waiting else 0,
    }


# What comes first, so that there is a container to throw calls at.
LAUNCH: dict[str, Any] = {
    "words": ["/usr/local/bin/project", "launch", OWN[0], "--detach"],
    "environment": {},
    "streams": ("null", "pipe", "pipe"),
    "extra": 0,
    "limits": [],
    "umask": 0o022,
    "nice": 0,
    "ignored": [],
    "folder": "home",
    "away": False,
    "planted": {},
    "acts": [],
    "patience": 0,
}

MESSAGES = st.one_of(
    st.sampled_from(
        [
            b"POST /containers/create?name=hostile HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 53\r\n\r\n"
            b'{"Image":"lab/debian","HostConfig":{"Binds":["/:/h"]}}',
            b"GET http://169.254.169.254/ HTTP/1.0\r\n\r\n",
            b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n",
        ]
    ),
    st.binary(min_size=1, max_size=300),
)


def drawn(strategy: st.SearchStrategy[Any], number: int) -> list[Any]:
    """Return so many examples of a strategy, the same ones each time."""
    found: list[Any] = []

    @settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def keep(example: Any) -> None:
        found.append(example)

    keep()
    return found


def chosen(number: int) -> list[dict[str, Any]]:
    """Return so many calls, of as many commands and verbs as there can be, the same ones each time.

    Hypothesis likes to vary what it drew last.
    """
    several = drawn(_calls(), max(400, 3 * number))
    random.Random(number).shuffle(several)
    seen: collections.Counter[str] = collections.Counter()
    turns = []
    for position, call in enumerate(several):
        command = _command(call["words"])
        turns.append((seen[command], position))
        seen[command] += 1
    return [several[position] for _turn, position in sorted(turns)[:number]]


def _command(words: Sequence[Any]) -> str:
    """Return the command or verb that a call is for; one name for all that is none."""
    told = [word.rpartition("/")[2] for word in words if isinstance(word, str)]
    known = {*PROGRAMS, *broker.VERBS, *broker.HANDED}
    return next((one for one in ("-".join(told[:2]), *told) if one in known), "none")


# ---- pictures --------------------------------------------------------------------------------------------


class Pictures:
    """Takes pictures of the machine, and tells the difference."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.latest = ""
        self._number = 0

    def _script(self, *words: str) -> str:
        command = " ".join(
            shlex.quote(word) for word in ("/usr/bin/python3", "-I", f"{PLACE}/snapshot.py", *words)
        )
        return self.server.root(command).out

    def take(self, *roots: str) -> str:
        """Take a picture of what is below the roots, and of the rest of the server; return its name."""
        started = time.monotonic()
        self._number += 1
        # A block counts in a quota when it is given its place, half a minute after it was written or later.
        self.server.root("sync")
        name = f"{PLACE}/{self._number}.json"
        counted: dict[str, int] = json.loads(self._script("take", name, *roots))
        # An empty list would be equal to any other.
        assert [kind for kind, number in counted.items() if not number and kind != "records"] == [], counted
        print(f"a picture of {counted} in {time.monotonic() - started:.0f} s")
        return name

    def differences(self, before: str, after: str, uid: int, name: str) -> list[str]:
        """Return what two pictures differ in that is not the own of a user."""
        found: list[str] = json.loads(self._script("compare", before, after, str(uid), name))
        return found


@pytest.fixture(scope="module")
def pictures(server: Server) -> Iterator[Pictures]:
    """Put the script there, and stop all timers, so that nothing but calls is at work."""
    text = (SCRIPTS / "snapshot.py").read_text()
    server.root(
        f"install -d -m 700 {PLACE} && cat > {PLACE}/snapshot.py <<'END-OF-SCRIPT'\n{text}END-OF-SCRIPT"
    )
    timers = server.root(
        "systemctl list-units --type=timer --state=active --plain --no-legend | cut -d ' ' -f 1"
    ).out
    names = " ".join(timers.split())
    server.user("carol", f"umask 077; echo {SECRET} > ~/workspace/secret")
    server.root(f"systemctl stop {names}")
    try:
        yield Pictures(server)
    finally:
        server.root(f"rm -rf {PLACE}; systemctl start {names}")
        server.user("carol", "rm -f ~/workspace/secret")


def test_a_picture_shows_what_is_changed(pictures: Pictures, server: Server) -> None:
    """Without this the other tests could not fail."""
    canary, home = "/srv/data/datasets/canary", "/home/.workspaces/carol/canary"
    roots = ("/srv/data", "/home/.workspaces", "/etc/lab-server")
    server.user("carol", "project launch vision --detach")
    server.root(f"echo tweet > {canary}; echo song > {home}; touch -d '2020-01-01' {canary} {home}")
    before = pictures.take(*roots)
    # Of the same length, and of the same age as before.
    server.root(
        f"echo croak > {canary}; chown {BOB} {home}; touch -d '2020-01-01' {canary} {home}; "
        f"touch /etc/lab-server/new /home/.workspaces/bob/canary; install -o {BOB} /dev/null {home}.bob; "
        "systemd-run -q --unit=lab-test-canary sleep 1d; iptables -A INPUT -s 192.0.2.9; "
        "docker rename vision._.2003 changed; docker tag lab/python lab/2003/canary"
    )
    try:
        told = pictures.differences(before, pictures.take(*roots), BOB, "bob")
    finally:
        server.root(
            "systemctl stop lab-test-canary; iptables -D INPUT -s 192.0.2.9; "
            "docker rename changed vision._.2003; docker rmi lab/2003/canary; "
            f"rm {canary} {home} {home}.bob /etc/lab-server/new /home/.workspaces/bob/canary"
        )
    for wanted in (
        *(
            f"file {canary}: ",
            f"file {home}: ",
            f"file {home}.bob: ",
            "file /etc/lab-server/new: None",
            "containers ",
        ),
        *("images ", "process ['0', '0', '0', '0'] ", "units lab-test-canary.service", "firewall -A INPUT"),
    ):
        assert any(line.startswith(wanted) for line in told), (wanted, told)
    assert not any("/home/.workspaces/bob" in line for line in told)
    # All is put back, and nothing else is told than what root did.
    again = pictures.differences(before, pictures.take(*roots), BOB, "bob")
    # The project quota of carol's workspace counted what root had put there.
    gone = [*(f"file {path}: " for path in (canary, home)), "quotas #2003 "]
    folders = ("/srv/data/datasets", "/home/.workspaces/carol", "/etc/lab-server", "/home/.workspaces/bob")
    rest = [
        line for line in again if not line.startswith((*gone, *(f"file {folder}: " for folder in folders)))
    ]
    assert [line for line in rest if "LastTagTime" not in line] == []


def _as(name: str, batch: dict[str, Any]) -> dict[str, Any]:
    """Log in by ssh as a user, make the calls of a batch, and return what came of them."""
    config = MACHINES / os.environ["LAB_VM_NAME"] / "ssh_config"
    program = (SCRIPTS / "caller.py").read_text() + f"\nmain(json.loads({json.dumps(batch)!r}))\n"
    # A connection of its own, so that the session ends with it.
    command = ["ssh", "-F", str(config), "-o", "ControlPath=none", "-l", name, "server", "python3 -"]
    done = subprocess.run(
        command, input=program, stdout=subprocess.PIPE, text=True, timeout=7200, check=False
    )
    assert done.returncode == 0, done
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _wrong(call: dict[str, Any], outcome: dict[str, Any]) -> list[str]:
    """Return what is wrong with the end of a call."""
    if "not_started" in outcome:
        # Longer than the kernel takes: execve(2).
        return [] if "Argument list too long" in outcome["not_started"] else [outcome["not_started"]]
    found = [f"it shows {word!r}" for word in outcome["told"]]
    if outcome["late"]:
        found.append("it does not end")
    if outcome["at_work"]:
        found.append(f"still at work: {outcome['at_work']}")
    of_container = call["patience"] > 0
    if not outcome["disturbed"] and not of_container and outcome["code"] not in range(5):
        found.append(f"exit code {outcome['code']}")
    return found


@pytest.mark.parametrize(("name", "uid"), [("bob", BOB), ("dave", DAVE)])
def test_nothing_but_the_callers_own_changes(pictures: Pictures, server: Server, name: str, uid: int) -> None:
    calls = [LAUNCH, *chosen(2 * ROUNDS)[0 if name == "bob" else 1 :: 2]]
    messages = [message.hex() for message in drawn(MESSAGES, 6)]
    before = pictures.latest or pictures.take()
    started = time.monotonic()
    answer = _as(name, {"calls": calls, "messages": messages, "telling": TELLING})
    seconds = time.monotonic() - started
    try:
        for project in OWN:
            server.user(
                name, f"container retire {project} --yes; image remove {project} --all --yes", check=False
            )
        pictures.latest = pictures.take()
        told = pictures.differences(before, pictures.latest, uid, name)
    finally:
        server.root(
            "".join(
                f"docker ps -aq --filter label=lab.server.owner={uid} "
                f"--filter label=lab.server.project={project} | xargs -r docker rm -f; "
                for project in OWN
            )
        )
    print(f"{name}: {len(calls)} calls in {seconds:.0f} s", *(one.get("code") for one in answer["calls"]))
    assert told == []
    wrong = [(_wrong(call, one), call, one) for call, one in zip(calls, answer["calls"]) if _wrong(call, one)]
    assert wrong == []
    assert answer["calls"][0]["code"] == 0, answer["calls"][0]
    assert not [address for address in answer["answers"] if "docker" in address or "containerd" in address]
    tree = f"/home/{name} /home/.workspaces/{name}"
    assert server.root(f"find {tree} -mindepth 1 ! -uid {uid}").out == ""
