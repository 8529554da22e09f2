"""What builds say, on the real builder: kept, bounded, harmless, and watched by who was not there."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import broker, buildlog, images, state
from ansible_collections.lab.server.plugins.module_utils._core import engine as engines
from ansible_collections.lab.server.plugins.module_utils._core.engine import Engine
from ansible_collections.lab.server.plugins.module_utils._core.errors import EngineError, NotFound
from ansible_collections.lab.server.plugins.module_utils._core.verbs import Request

SLOW = "RUN echo begun; i=0; while [ $i -lt 30 ]; do i=$((i+1)); echo tick $i; sleep 0.1; done; echo over"


@pytest.fixture
def asked(engine, url, policy, monkeypatch):
    """Return a function that asks a verb of the broker as a user, over a connection of its own."""
    connect = Engine.connect
    monkeypatch.setattr(engines.Engine, "connect", lambda *_where: connect(url))

    def ask(verb, user, project="thesis", progress=lambda _text: None, **options):
        lines = []

        def take(new):
            lines.extend(new)
            return True

        done = broker.VERBS[verb].run(Request(policy, user, project, progress, options, take))
        return done, lines

    return ask


class Caller(threading.Thread):
    """Somebody who asks a verb meanwhile: what was shown, the answer or the error."""

    def __init__(self, asked, verb, user, **options):
        super().__init__()
        self.shown, self.lines, self.answer, self.error = [], [], None, None
        self._ask = lambda: asked(verb, user, progress=self.shown.append, **options)
        self.start()

    def run(self):
        try:
            self.answer, self.lines = self._ask()
        except Exception as error:  # noqa: BLE001  # it is looked at by the test
            self.error = error


def until(true, seconds=30.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def log_of(asked, user):
    return asked("image-log", user)[1]


def test_all_of_a_failure_can_be_read_afterwards(asked, alice, bob, thesis, tiny):
    thesis.write(
        "Dockerfile", f"FROM {tiny}\nRUN echo first reason; echo second reason; echo last >&2; false\n"
    )
    with pytest.raises(EngineError) as failed:
        asked("image-update", alice)
    assert "last" in failed.value.message and "image log thesis" in failed.value.hint
    done, lines = asked("image-log", alice)
    assert done["outcome"] == "failed" and done["message"] == failed.value.message
    assert {"first reason", "second reason", "last"} <= set(lines)
    # Docker's own command says something before its first step.
    assert any(line.startswith("Step 1/") for line in lines)
    assert asked("image-log", alice, lines=2)[1] == lines[-2:]
    with pytest.raises(NotFound) as others:
        asked("image-log", bob)
    with pytest.raises(NotFound) as none:
        asked("image-log", alice, project="nothing")
    assert str(others.value).replace("thesis", "nothing") == str(none.value)


def test_two_at_once_see_one_build(asked, alice, thesis, tiny):
    thesis.write("Dockerfile", f"FROM {tiny}\n{SLOW}\n")
    first = Caller(asked, "image-update", alice)
    until(lambda: "tick 5" in first.shown)
    began = time.monotonic()
    second = Caller(asked, "image-update", alice)
    follower = Caller(asked, "image-log", alice, follow=True)
    until(lambda: second.shown)
    assert time.monotonic() - began < 3 and first.is_alive()
    assert second.shown[0].startswith("A build of thesis is at work since")
    told = asked("project-status", alice)[0]
    assert told["build"]["outcome"] == "running"
    assert asked("project-list", alice)[0]["projects"][0]["building"] is True
    with pytest.raises(NotFound, match=r"is being built.*image log thesis --follow"):
        asked("image-show", alice)
    for caller in (first, second, follower):
        caller.join()
        assert caller.error is None
    assert first.answer["changed"] and not second.answer["changed"]
    assert {"begun", "tick 1", "tick 30", "over"} <= set(second.shown)
    assert follower.answer["outcome"] == "done" and follower.lines == log_of(asked, alice)
    assert asked("image-show", alice)[0]["build"]["outcome"] == "done"


def test_a_failure_that_was_watched_is_not_made_a_second_time(asked, alice, thesis, tiny):
    thesis.write("Dockerfile", f"FROM {tiny}\n{SLOW}\nRUN echo no such thing; false\n")
    first = Caller(asked, "image-update", alice)
    until(lambda: "tick 5" in first.shown)
    second = Caller(asked, "image-update", alice)
    first.join()
    build = buildlog.last(alice.uid, "thesis")
    second.join()
    assert str(first.error) == str(second.error) and "no such thing" in str(second.error)
    assert buildlog.last(alice.uid, "thesis") == build
    # Who comes later has it built again.
    with pytest.raises(EngineError):
        asked("image-update", alice)
    assert buildlog.last(alice.uid, "thesis").id != build.id


def test_another_project_of_the_user_is_waited_for_with_a_word(asked, alice, thesis, tiny, project_of):
    thesis.write("Dockerfile", f"FROM {tiny}\n{SLOW}\n")
    project_of(alice, "paper").write("Dockerfile", f"FROM {tiny}\nRUN echo paper\n")
    first = Caller(asked, "image-update", alice)
    until(lambda: "tick 5" in first.shown)
    other = Caller(asked, "image-update", alice, project="paper")
    for caller in (first, other):
        caller.join()
        assert caller.error is None
    assert other.shown[0] == "Your build of thesis is at work; this waits for its end."
    assert "paper" in other.shown and "tick 30" not in other.shown


def test_a_killed_caller_is_outlived_and_a_killed_builder_is_told(asked, url, policy, alice, thesis, tiny):
    """The caller alone: the work is a process of its own, as the broker has it. Then the work as well."""
    for killed, outcome in (("caller", "done"), ("builder", "broken off")):
        thesis.write("Dockerfile", f"FROM {tiny}\nRUN echo {killed}\n{SLOW}\n")
        reader, writer = os.pipe()
        caller = os.fork()
        if caller == 0:
            os.dup2(writer, 1)

            def work(output):
                os.write(output, f"{os.getpid()}\n".encode())
                images.build(
                    Engine.connect(url), policy, alice, "thesis", progress=broker.Events(output).progress
                )
                return 0

            os._exit(broker._relay(work))
        os.close(writer)
        with os.fdopen(reader) as stream:
            builder = int(stream.readline())
            until(lambda: any('"tick 5"' in line for line in iter(stream.readline, "")))
            os.kill(caller, signal.SIGKILL)
            os.waitpid(caller, 0)
        follower = Caller(asked, "image-log", alice, follow=True)
        if killed == "builder":
            time.sleep(0.5)
            os.kill(builder, signal.SIGKILL)
        follower.join()
        assert follower.answer["outcome"] == outcome
        assert ("over" in follower.lines) == (killed == "caller")
    # What was broken off is built by the next one.
    assert asked("image-update", alice)[0]["changed"]


@pytest.mark.thorough
def test_a_log_of_100_megabytes_with_escapes_is_bounded_and_harmless(asked, alice, thesis, tiny, root):
    loud = r"printf '\033[2J\033]0;title\007\033[31mred\033[0m\n'; yes 0123456789abcdefghijklmnopqrstuvwxyz"
    thesis.write("Dockerfile", f"FROM {tiny}\nRUN echo begins; {loud} | head -c 100000000; echo; echo ends\n")
    began = time.monotonic()
    asked("image-update", alice)
    print(f"100 MB: {time.monotonic() - began:.1f} s")
    folder = Path(state.STATE_DIRECTORY) / "build-logs" / str(alice.uid) / "thesis"
    assert sum(path.stat().st_size for path in folder.iterdir()) < (2 << 20) + 4096
    lines = log_of(asked, alice)
    assert "begins" in lines and "ends" in lines
    assert sum(line.startswith("[... ") for line in lines) == 1
    assert all(line.isprintable() for line in lines) and any(line.endswith("red") for line in lines)


def test_an_image_that_is_there_costs_no_log_and_what_is_forgotten_has_none(asked, alice, thesis, root):
    asked("image-update", alice)
    before = buildlog.last(alice.uid, "thesis")
    asked("image-update", alice)
    assert buildlog.last(alice.uid, "thesis") == before
    asked("image-remove", alice, all=True)
    assert buildlog.last(alice.uid, "thesis") is None
