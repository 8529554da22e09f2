"""Jobs, commands in containers, and what is told of them, on a real engine."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    broker,
    containers,
    events,
    images,
    jobs,
    report,
    verbs_container,
)
from ansible_collections.lab.server.plugins.module_utils._core import engine as engines
from ansible_collections.lab.server.plugins.module_utils._core.errors import (
    InvalidInput,
    LabError,
    NotFound,
    Refused,
)
from ansible_collections.lab.server.plugins.module_utils._core.spec import OwnWishes
from ansible_collections.lab.server.plugins.module_utils._core.verbs import Request


@pytest.fixture
def launched(engine, policy, alice, thesis):
    return containers.launch(engine, policy, alice, "thesis")


@pytest.fixture
def asked(engine, policy, monkeypatch):
    """Return a function that asks a verb of the broker as a user."""
    monkeypatch.setattr(engines.Engine, "connect", lambda *_where: engine)
    monkeypatch.setattr(engine, "close", lambda: None)

    def ask(verb, user, project="", **options):
        return broker.VERBS[verb].run(Request(policy, user, project, lambda _text: None, options))

    return ask


def ended(engine, policy, user, project):
    """Wait for the end of the job, and return it."""
    for _try in range(100):
        job = jobs.look(engine, policy, user, project)
        if job is not None and job.ended:
            return job
        time.sleep(0.1)
    raise AssertionError("the job does not end")


def test_a_job_runs_as_the_user_and_its_end_is_known(launched, engine, policy, alice, thesis):
    shown = containers.batch(engine, policy, alice, "thesis", "id -u; pwd; echo $HOME; exit 3")
    job = ended(engine, policy, alice, "thesis")
    log = thesis.path / shown["log"]
    assert log.read_text().split("\n") == [
        "2001",
        "/workspace/thesis",
        "/home/alice",
        "",
        "--- exit code 3 ---",
        "",
    ]
    assert (log.stat().st_uid, log.stat().st_gid) == (2001, 2001)
    assert (job.exit_code, shown["running"]) == (3, True)


def test_a_job_outlives_who_started_it_and_ends_with_its_container(
    launched, engine, policy, alice, bob, thesis, asked
):
    (thesis.path / "results/logs").mkdir(parents=True)
    for path in (thesis.path / "results", thesis.path / "results/logs"):
        os.chown(path, 2001, 2001)
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            connected = engines.Engine.connect(os.environ["LAB_TEST_DOCKER_HOST"])
            containers.batch(connected, policy, alice, "thesis", "while true; do echo on; sleep 0.1; done")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    job = jobs.look(engine, policy, alice, "thesis")
    assert job.log.startswith("results/logs/") and not job.ended and job.pid and job.ticks
    before = (thesis.path / job.log).stat().st_size
    time.sleep(0.5)
    assert (thesis.path / job.log).stat().st_size > before
    with pytest.raises(Refused, match="runs already"):
        containers.batch(engine, policy, alice, "thesis", "true")
    listed = asked("container-list", alice)["containers"]
    assert listed[0]["job"]["running"]
    assert asked("container-list", bob)["containers"] == []
    # Docker forgets it when it is started anew; the kernel does not.
    forgot = jobs.replace(job, execution="0" * 64)
    jobs._write(2001, "thesis", forgot)
    assert not jobs.look(engine, policy, alice, "thesis").ended
    containers.stop(engine, alice, "thesis")
    over = jobs.look(engine, policy, alice, "thesis")
    assert over.ended and over.exit_code in (None, 137)
    assert asked("container-logs", alice, "thesis")["job"]["running"] is False


def test_a_job_needs_a_container_of_ones_own_that_runs(launched, engine, policy, alice, bob, asked):
    for user, project in ((bob, "thesis"), (alice, "other")):
        with pytest.raises(NotFound):
            containers.batch(engine, policy, user, project, "true")
    said = []
    for verb in ("container-logs", "container-stats", "container-start", "project-status"):
        for project in ("thesis", "nothing"):
            with pytest.raises(NotFound) as error:
                asked(verb, bob, project)
            said.append(str(error.value).replace("nothing", "thesis"))
    assert said[::2] == said[1::2]
    containers.stop(engine, alice, "thesis")
    with pytest.raises(NotFound):
        containers.batch(engine, policy, alice, "thesis", "true")


def test_a_command_has_its_words_input_and_exit_code(launched, url, alice):
    def run(*command: str, text: str = "") -> tuple[int, str]:
        arguments = containers.shell_arguments(alice, "thesis", command=command, tty=False)
        arguments[1:1] = ["-H", url]
        done = subprocess.run(arguments, input=text, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    assert run("sh", "-c", "cat; id -u; exit 7", text="in\n") == (7, "in\n2001\n")
    # What looks like an option of Docker's is a word of the command.
    code, out = run("--user=0", "id")
    assert code in (126, 127) and "uid=0" not in out
    assert run("echo", "--privileged", "a  b", "$HOME")[1] == "--privileged a  b $HOME\n"


def test_start_brings_a_stopped_container_back(launched, engine, policy, alice, bob):
    assert not containers.start(engine, policy, alice, "thesis").changed
    containers.stop(engine, alice, "thesis")
    promised = containers.start(engine, policy, alice, "thesis", check=True)
    assert promised.changed and not containers.listing(engine, policy, alice)[0].running
    assert containers.start(engine, policy, alice, "thesis").changed
    assert containers.listing(engine, policy, alice)[0].id == launched.facts["id"]
    for user, project in ((bob, "thesis"), (alice, "other")):
        with pytest.raises(NotFound):
            containers.start(engine, policy, user, project)


def test_what_is_used_is_within_the_limits(launched, engine, alice, asked, inside):
    inside(alice, "thesis", "(while true; do :; done) & sleep 0.1")
    (one,) = asked("container-stats", alice, "thesis")["containers"]
    assert 0.2 < one["cpus"] <= 1.5 and one["cpus_limit"] == 1
    assert 0 < one["memory"] < one["memory_limit"] == 64 << 20
    assert 2 <= one["pids"] <= one["pids_limit"] == 64
    containers.stop(engine, alice, "thesis")
    (one,) = asked("container-stats-all", alice)["containers"]
    assert one["cpus"] is None and one["status"] == "exited"


def give_to(folder, user):
    """Give a copied folder to a user."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user.uid, user.gid)


def test_a_preview_is_what_is_done_then(engine, policy, alice, thesis, asked, inside):
    """Each verb that only tells is asked twice before the deed: it changes nothing, and tells the same."""

    def there():
        made = [(one["Id"], one["Names"], one["State"]) for one in engine.containers()]
        return made, [(one["Id"], one["RepoTags"]) for one in engine.images()]

    def without_time(facts):
        # Days counted from the deed, which comes after the promise.
        return {key: value for key, value in facts.items() if key != "undo_until"}

    def promised_and_done(verb, check):
        before = there()
        promised = [asked(check, alice, "thesis") for _twice in range(2)]
        assert without_time(promised[0]) == without_time(promised[1]) and there() == before
        done = asked(verb, alice, "thesis")
        assert without_time({key: done.get(key) for key in promised[0]}) == without_time(promised[0])
        assert 0 <= (done.get("undo_until") or 0) - (promised[0].get("undo_until") or 0) < 60
        return done

    launch = ("project-launch", "project-launch-check")
    first = promised_and_done(*launch)
    assert first["status"] == "created" and first["build"] == "there is none" and first["changed"]
    assert promised_and_done(*launch)["status"] == "running"
    stop = ("container-stop", "container-stop-check")
    assert promised_and_done(*stop)["changed"] and not promised_and_done(*stop)["changed"]
    assert promised_and_done("container-start", "container-start-check")["changed"]
    assert not promised_and_done("container-start", "container-start-check")["changed"]
    assert promised_and_done(*stop)["changed"]
    assert promised_and_done(*launch)["status"] == "started"
    inside(alice, "thesis", "echo > /tmp/mine")
    retire = ("container-retire", "container-retire-check")
    assert promised_and_done(*retire)["lost"]["files"] and not promised_and_done(*retire)["changed"]
    assert promised_and_done("container-undo", "container-undo-check")["changed"]
    thesis.write("word", "two\n")
    assert promised_and_done("image-update", "image-update-check")["changed"]
    assert not promised_and_done("image-update", "image-update-check")["changed"]
    with pytest.raises(NotFound):
        asked("container-undo-check", alice, "none")


def test_a_preview_refuses_what_the_deed_refuses(engine, policy, alice, bob, thesis, asked, inside, root):
    """A container that cannot be started again: the preview says so as the deed does, and holds nothing."""

    def refused(verb, user):
        said = []
        for one in (f"{verb}-check", verb):
            before = [(one["Id"], one["Names"], one["State"]) for one in engine.containers()]
            with pytest.raises(LabError) as error:
                asked(one, user, "thesis")
            assert [(one["Id"], one["Names"], one["State"]) for one in engine.containers()] == before
            said.append((type(error.value), str(error.value)))
        assert said[0] == said[1]
        return said[0][1]

    def does(verb, user):
        promised = asked(f"{verb}-check", user, "thesis")
        done = asked(verb, user, "thesis")
        assert {key: done.get(key) for key in promised} == promised
        return promised["changed"]

    # A share of the user's is gone; that of others is nothing to them.
    shutil.copytree(thesis.path, Path(policy.workspace(bob)) / "thesis")
    give_to(Path(policy.workspace(bob)) / "thesis", bob)
    for user in (alice, bob):
        containers.launch(engine, policy, user, "thesis")
        inside(user, "thesis", "echo > /tmp/mine")
        containers.stop(engine, user, "thesis")
    (root / "srv/vision").rename(root / "srv/away")
    assert "srv/vision is not there" in refused("container-start", bob)
    assert "srv/vision is not there" in refused("project-launch", bob)
    assert does("container-start", alice)
    containers.retire(engine, policy, bob, "thesis")
    containers.retire(engine, policy, alice, "thesis")
    assert "srv/vision is not there" in refused("container-undo", bob)
    assert does("container-undo", alice)
    (root / "srv/away").rename(root / "srv/vision")
    # Nobody has more containers than the limit, whichever way they come.
    for number in range(bob.limits.containers):
        shutil.copytree(thesis.path, Path(policy.workspace(bob)) / f"more{number}")
        give_to(Path(policy.workspace(bob)) / f"more{number}", bob)
        containers.launch(engine, policy, bob, f"more{number}")
    assert "bob holds 3 of 3 containers" in refused("container-undo", bob)
    containers.retire(engine, policy, bob, "more0")
    assert does("container-undo", bob) and not does("container-undo", bob)


def test_what_was_brought_back_is_not_started_with_a_share_that_was_taken(
    engine, policy, bob, thesis, asked, inside
):
    shutil.copytree(thesis.path, Path(policy.workspace(bob)) / "thesis")
    give_to(Path(policy.workspace(bob)) / "thesis", bob)
    containers.launch(engine, policy, bob, "thesis")
    inside(bob, "thesis", "echo > /tmp/mine")
    containers.retire(engine, policy, bob, "thesis")
    containers.undo(engine, policy, bob, "thesis")
    containers.stop(engine, bob, "thesis")
    without = replace(policy, shares=tuple(one for one in policy.shares if one.name != "vision"))
    for check in (True, False):
        with pytest.raises(Refused, match="vision, which you may no longer use"):
            containers.undo(engine, without, bob, "thesis", check=check)
    assert not containers.listing(engine, policy, bob)[0].running
    assert containers.undo(engine, policy, bob, "thesis").actions == ["start"]


def test_status_tells_what_changed(launched, engine, policy, alice, thesis, asked):
    told = asked("project-status", alice, "thesis")
    assert told["container"]["status"] == "running" and told["kept"] == ["/workspace"]
    assert told["image"]["matches_files"] is True and told["drift"] == {} and told["images"] == 1
    thesis.write("word", "two\n")
    assert asked("project-status", alice, "thesis")["image"]["matches_files"] is False
    images.build(engine, policy, alice, "thesis")
    told = asked("project-status", alice, "thesis")
    assert told["container"]["image_newer"] and told["image"]["matches_files"] and told["images"] == 2
    assert verbs_container.VERBS["project-status"].takes_name


def happened(user, project):
    """Return what was written down of a container: what, and by whom."""
    return [(event.what, event.by) for event in events.read(user.uid, project)]


def test_what_is_done_to_a_container_is_written_down(launched, engine, policy, alice, bob, inside, asked):
    with pytest.raises(NotFound):
        asked("container-why", bob, "thesis")
    told = asked("container-why", alice, "thesis")
    assert told["state"]["running"] and told["state"]["memory_limit"] == 64 << 20
    containers.stop(engine, alice, "thesis")
    containers.launch(engine, policy, alice, "thesis")
    packages = "~/.local/lib/python3/site-packages/numpy-1.26.0.dist-info"
    inside(alice, "thesis", f"echo > /tmp/mine; mkdir -p {packages}; echo > {packages}/METADATA")
    assert told["holds"] is None
    containers.retire(engine, policy, alice, "thesis")
    told = asked("container-why", alice, "thesis")
    assert told["undo_until"] and told["holds"]["packages"] == ["numpy 1.26.0"]
    containers.undo(engine, policy, alice, "thesis")
    wanted = containers.Wanted("alice", "thesis", memory=32 << 20)
    assert containers.reconcile(engine, policy, [wanted], check=True)[0].changed
    assert containers.reconcile(engine, policy, [wanted], check=False)[0].changed
    engine.stop(containers.listing(engine, policy, alice)[0].id, 0)
    containers.start_existing(engine, policy, containers.listing(engine, policy, alice)[0])
    containers.reconcile(engine, policy, [replace(wanted, state="absent")], check=False)
    assert happened(alice, "thesis") == [
        ("made", "user"),
        ("stopped", "user"),
        ("started", "user"),
        ("retired", "user"),
        ("restored", "user"),
        ("replaced", "it"),
        ("started", "boot"),
        ("removed", "it"),
    ]
    assert "memory" in events.read(2001, "thesis")[5].reason
    assert asked("container-why", alice, "thesis")["container"] is None


def test_why_a_container_could_not_be_started_by_the_boot(launched, engine, policy, bob, tiny, project_of):
    project_of(bob, "net").write("Dockerfile", f"FROM {tiny}\n")
    containers.launch(engine, policy, bob, "net")
    closed = replace(policy, shares=tuple(share for share in policy.shares if share.name != "vision"))
    assert containers.withdraw(engine, closed, check=True) and len(happened(bob, "net")) == 1
    assert containers.withdraw(engine, closed, check=False)
    info = next(one for one in containers.listing(engine, policy, bob))
    for _try in range(2):
        with pytest.raises(Refused):
            containers.start_existing(engine, closed, info)
    assert happened(bob, "net") == [("made", "user"), ("stopped", "it"), ("not-started", "boot")]
    assert all("vision" in event.reason for event in events.read(2002, "net")[1:])


def test_the_end_of_a_container_by_itself_is_known_from_docker(launched, engine, alice, asked, docker):
    docker("kill", "--signal=KILL", launched.facts["id"])
    told = asked("container-why", alice, "thesis")
    assert (told["state"]["running"], told["state"]["exit_code"]) == (False, 137)
    assert abs(told["state"]["finished"] - time.time()) < 60
    assert [event["what"] for event in told["events"]] == ["made"]


def test_a_process_that_needs_too_much_memory_is_seen_while_its_container_runs(
    launched, engine, alice, asked, docker
):
    assert not asked("container-why", alice, "thesis")["state"]["out_of_memory"]
    command = ["sh", "-c", "x=aaaaaaaa; while true; do x=$x$x; done"]
    arguments = containers.shell_arguments(alice, "thesis", command=command, tty=False)
    with pytest.raises(AssertionError):
        docker(*arguments[1:])
    told = asked("container-why", alice, "thesis")["state"]
    assert (told["running"], told["out_of_memory"]) == (True, True)


def test_a_disk_that_is_full_stops_no_deed(launched, engine, policy, alice, root):
    folder = root / "state/events"
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    folder.rmdir()
    folder.write_text("in the way")
    assert containers.stop(engine, alice, "thesis").changed
    assert containers.launch(engine, policy, alice, "thesis").facts["status"] == "started"
    assert happened(alice, "thesis") == []


SMALL = OwnWishes(cpus=0.5, memory=32 << 20)


def test_what_a_user_asks_for_is_kept_by_every_door(engine, policy, alice, thesis, url):
    done = containers.launch(engine, policy, alice, "thesis", own=SMALL)
    assert done.facts["limits"] == {"cpus": 0.5, "memory": 32 << 20} and done.facts["notes"] == []
    host = engine.inspect(done.facts["id"])["HostConfig"]
    assert (host["NanoCpus"], host["Memory"]) == (500_000_000, 32 << 20)
    # A launch that asks for nothing, the boot, IT's run, and what is told of drift.
    assert containers.launch(engine, policy, alice, "thesis").facts["notes"] == []
    engine.stop(done.facts["id"], 0)
    assert containers.start_existing(engine, policy, containers.listing(engine, policy, alice)[0]).changed
    wanted = containers.Wanted("alice", "thesis")
    assert not containers.reconcile(engine, policy, [wanted], check=False)[0].changed
    (told,) = report.server(policy, url)["containers"]
    assert (told["drift"], told["spec"]["wished_memory"]) == (False, 32 << 20)
    # A newer image makes another container of it, which is as small.
    thesis.write("word", "two\n")
    images.build(engine, policy, alice, "thesis")
    assert containers.reconcile(engine, policy, [wanted], check=False)[0].changed
    now = containers.observe(engine).containers["thesis._.2001"]
    assert now.id != done.facts["id"] and OwnWishes.of(now.spec) == SMALL and now.spec.memory == 32 << 20
    # What IT declares wins.
    wanted = replace(wanted, memory=48 << 20)
    assert containers.reconcile(engine, policy, [wanted], check=False)[0].changed
    spec = containers.observe(engine).containers["thesis._.2001"].spec
    assert (spec.memory, spec.cpus) == (48 << 20, 0.5)


def test_a_container_that_is_there_keeps_its_limits_and_says_so(launched, engine, policy, alice):
    done = containers.launch(engine, policy, alice, "thesis", own=SMALL)
    assert not done.changed and done.facts["id"] == launched.facts["id"]
    (note,) = done.facts["notes"]
    assert "1 cpus, not 0.5 and 64M of memory, not 32M" in note
    assert note.endswith("container retire thesis, then project launch thesis --cpus 0.5 --memory 32M.")


def test_more_than_the_limit_is_refused_and_a_lowered_limit_refuses_nothing(engine, policy, alice, thesis):
    with pytest.raises(Refused, match="more than the limit of 64M"):
        containers.launch(engine, policy, alice, "thesis", own=OwnWishes(memory=65 << 20))
    with pytest.raises(InvalidInput, match="less than Docker accepts"):
        containers.launch(engine, policy, alice, "thesis", own=OwnWishes(memory=1 << 20))
    assert containers.listing(engine, policy, alice) == []
    containers.launch(engine, policy, alice, "thesis", own=OwnWishes(memory=48 << 20))
    lower = replace(alice, limits=replace(alice.limits, memory=32 << 20))
    lowered = replace(policy, users=tuple(lower if one.uid == 2001 else one for one in policy.users))
    (note,) = containers.launch(engine, lowered, lower, "thesis").facts["notes"]
    assert "policy changed" in note
    containers.stop(engine, lower, "thesis")
    assert containers.start(engine, lowered, lower, "thesis").changed
    # Where the limit is what it was, so is all.
    assert containers.launch(engine, policy, alice, "thesis").facts["notes"] == []


def test_a_launch_can_build_anew(launched, engine, policy, alice):
    again = containers.launch(engine, policy, alice, "thesis", rebuild=True)
    assert again.facts["id"] == launched.facts["id"] and again.facts["status"] == "running"
    # The same files make the same fingerprint; the container stays on what it was made of.
    assert [note for note in again.facts["notes"] if "newer than this container" in note]
