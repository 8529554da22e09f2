"""What is read out of Docker's words."""

from __future__ import annotations

import io
import tarfile
from types import SimpleNamespace

import docker.errors
import pytest
from ansible_collections.lab.server.plugins.module_utils._core import engine as engines
from ansible_collections.lab.server.plugins.module_utils._core.engine import (
    Engine,
    _BuildReader,
    one_line,
    split_reference,
)
from ansible_collections.lab.server.plugins.module_utils._core.errors import EngineError
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("lab/python", ("lab/python", "latest")),
        ("lab/python:3", ("lab/python", "3")),
        ("host:5000/x", ("host:5000/x", "latest")),
        ("host:5000/x:1", ("host:5000/x", "1")),
        ("x@sha256:00", ("x", "sha256:00")),
    ],
)
def test_references(reference, parts):
    assert split_reference(reference) == parts


@given(st.text())
def test_one_printable_line(text):
    assert one_line(text).isprintable()


def test_one_line_is_what_a_terminal_would_show():
    assert one_line("10%\r50%\r100%\n") == "100%"
    assert one_line("\x1b[31mred\n") == "\\x1b[31mred"


@pytest.mark.parametrize(("size", "read"), [(1000, True), (1001, False)])
def test_a_file_that_is_larger_than_was_asked_for_is_none(size, read, monkeypatch):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as opened:
        member = tarfile.TarInfo("passwd")
        member.size = size
        opened.addfile(member, io.BytesIO(bytes(size)))
    client = SimpleNamespace(get_archive=lambda _container, _path: ([archive.getvalue()], {}))
    monkeypatch.setattr(Engine, "_client", client)
    assert (Engine(None, "").read_file("c", "/etc/passwd", 1000) == bytes(size)) == read


def test_build_output():
    seen: list[str] = []
    reader = _BuildReader(seen.append)
    for line in (
        "Step 1/3 : FROM x",
        " ---> 0123456789ab",
        "Step 2/3 : RUN pip install x",
        " ---> Using cache",
        " ---> 111111111111",
        "Step 3/3 : RUN pip install y",
        " ---> Running in 222222222222",
        "ERROR: no such package y",
        "",
        "Removing intermediate container 222222222222",
    ):
        reader.line(line)
    assert (reader.step, reader.last, reader.newest) == (3, "ERROR: no such package y", "")
    assert len(seen) == 9
    reader.line(" ---> 333333333333")
    assert reader.newest == "333333333333"


def test_what_a_command_said_of_its_failure_tells_more_than_its_code():
    ended = f"The command '/bin/sh -c {'much ' * 500}' returned a non-zero code: 1\n"
    reader = _BuildReader(lambda _line: None)
    for line in ("Step 1/3 : FROM x", "Step 2/3 : RUN a", "a said this", "Step 3/3 : RUN b", ended):
        reader.line(line)
    # What an earlier step said has nothing to do with it.
    assert reader.last.startswith("The command '/bin/sh -c much")
    for line in (
        "Step 3/3 : RUN b",
        " ---> Running in 222222222222",
        "\x1b[91mERROR: no such package",
        "\x1b[0mRemoving intermediate container 222222222222",
        ended,
    ):
        reader.line(line)
    assert reader.last == "ERROR: no such package"


def test_a_command_of_several_lines_that_failed_is_not_taken_for_what_it_said():
    reader = _BuildReader(lambda _line: None)
    ended = ("The command '/bin/sh -c echo one", "false", "' returned a non-zero code: 7")
    for line in ("Step 1/2 : RUN a", "ERROR: no such package", *ended):
        reader.line(line)
    assert reader.last == "ERROR: no such package"
    for line in ("Step 2/2 : RUN b", *ended):
        reader.line(line)
    assert reader.last == "The command returned a non-zero code: 7"
    # Without the beginning it is only what a command printed.
    for line in ("Step 2/2 : RUN b", "it's' returned a non-zero code: 7"):
        reader.line(line)
    assert reader.last == "it's' returned a non-zero code: 7"


def test_no_engine():
    with pytest.raises(EngineError, match=r"does not answer.*systemctl status docker"):
        Engine.connect("unix:///nonexistent/docker.sock")
    assert not Engine.is_installed("unix:///nonexistent/docker.sock")


class Client:
    """What the Docker SDK is to ``Engine``: one that describes itself so, and starts nothing."""

    def __init__(self, **info: object) -> None:
        self._info = info

    def info(self) -> dict[str, object]:
        return {"CgroupDriver": "systemd", "NCPU": 4, **self._info}

    def start(self, _container: str) -> None:
        raise docker.errors.APIError("500 Server Error", explanation=self._info["explanation"])


@pytest.mark.parametrize(
    ("info", "cdi"),
    [
        ({"ServerVersion": "20.10.24"}, False),
        # Off, as it is by default before Docker 28.
        ({"ServerVersion": "26.1.5", "CDISpecDirs": None}, False),
        ({"ServerVersion": "26.1.5", "CDISpecDirs": []}, False),
        ({"ServerVersion": "26.1.5", "CDISpecDirs": ["/etc/cdi", "/var/run/cdi"]}, True),
    ],
)
def test_whether_an_engine_gives_devices_by_name_is_what_it_says_itself(info, cdi):
    assert Engine(Client(**info), "unix:///x").facts.cdi is cdi


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ('could not select device driver "nvidia" with capabilities: [[gpu]]', "features.cdi in daemon.json"),
        ("CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=x", "lab-server-cdi.service"),
        ("no space left on device", "journalctl -u docker"),
    ],
)
def test_a_start_without_its_gpus_says_what_admins_are_to_do(said, word):
    with pytest.raises(EngineError, match=said[:20]) as error:
        Engine(Client(explanation=said), "unix:///x").start("one")
    assert word in error.value.hint


def test_a_fetch_tells_how_much_there_is(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(engines.time, "monotonic", lambda: now[0])
    seen: list[str] = []
    reader = engines._PullReader("lab/big", seen.append)

    def happens(status, layer="", **detail):
        reader.event({"status": status, "id": layer, "progressDetail": detail, "progress": "[=> ]"})

    happens("Pulling from lab/big", "latest")
    now[0] = 10
    happens("Downloading", "aa", current=1 << 20, total=3 << 30)
    # Not more than once a second, however often the engine says it.
    happens("Downloading", "bb", current=1 << 20, total=1 << 30)
    now[0] = 11
    happens("Downloading", "aa", current=1 << 30, total=3 << 30)
    happens("Download complete", "bb")
    now[0] = 12
    happens("Downloading", "aa", current=2 << 30, total=3 << 30)
    happens("Extracting", "aa", current=1, total=2)
    assert seen == [
        "latest: Pulling from lab/big",
        "Fetching lab/big: 1M of 3G",
        "Fetching lab/big: 1G of 4G",
        "bb: Download complete",
        "Fetching lab/big: 3G of 4G",
    ]


def test_each_line_of_a_build_goes_to_its_log_as_it_came():
    logged: list[str] = []
    reader = _BuildReader(lambda _line: None, logged.append)
    for line in ("Step 1/1 : RUN x\n", "\x1b[91m  a\rb\n", "\n"):
        reader.line(line)
    assert logged == ["Step 1/1 : RUN x\n", "\x1b[91m  a\rb\n", "\n"]
