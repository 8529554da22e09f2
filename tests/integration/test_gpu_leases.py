"""GPUs given to containers by a real engine: exactly those of the lease, to nobody twice, and none lost.

The GPUs are simulated (tools/engine.py): to the engine each is a device file and a variable of a CDI
specification, and to the library a line of the inventory. What is given, checked and undone is real.
"""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    broker,
    containers,
    ending,
    events,
    gpufiles,
    gpuhandover,
    gpuleases,
    gpurequests,
    gpureserve,
    gpuview,
    images,
    notices,
    state,
    verify,
)
from ansible_collections.lab.server.plugins.module_utils._core import engine as engines
from ansible_collections.lab.server.plugins.module_utils._core import policy as policies
from ansible_collections.lab.server.plugins.module_utils._core import spec as specs
from ansible_collections.lab.server.plugins.module_utils._core.engine import Engine
from ansible_collections.lab.server.plugins.module_utils._core.errors import EngineError, LabError, Refused
from ansible_collections.lab.server.plugins.module_utils._core.gpudevices import Device
from ansible_collections.lab.server.plugins.module_utils._core.gpus import Gpu, Seen
from ansible_collections.lab.server.plugins.module_utils._core.inspection import Server
from ansible_collections.lab.server.plugins.module_utils._core.leases import Busy
from ansible_collections.lab.server.plugins.module_utils._core.spec import OwnWishes
from ansible_collections.lab.server.plugins.module_utils._core.verbs import Request
from conftest import LIMITS, QUOTA
from test_kill import die, in_child

MANY = 50
GPUS = 8
ALL = OwnWishes(gpus=str(GPUS))
# What an image may say to get more than its container is given.
GREEDY = "ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=all\nLABEL lab.server.gpus=all\n"


@pytest.fixture
def policy(root: Path, tiny: str) -> policies.Policy:
    """Return a policy with many users, who may have every GPU."""
    (root / "srv/datasets").mkdir()
    users = ["alice", "bob", *(f"user{number:02}" for number in range(3, MANY + 1))]
    made, _keys = policies.from_inventory(
        {
            "lab_data_root": str(root / "srv"),
            "lab_groups": [
                {"name": "students", "gid": 3101, "limits": {**LIMITS, "gpus": GPUS}, "quota": QUOTA}
            ],
            "lab_users": [
                {"name": name, "uid": 2001 + number, "group": "students"} for number, name in enumerate(users)
            ],
            "lab_base_images": [{"name": tiny, "image": tiny}],
        }
    )
    for user in made.users:
        workspace = root / "home/.workspaces" / user.name
        workspace.mkdir(mode=0o700)
        os.chown(workspace, user.uid, user.gid)
    return made


@pytest.fixture
def devices(engine, monkeypatch) -> list[Device]:
    """Return the simulated GPUs, which the library sees from now on; a test may change the list."""
    folders = engine.info().get("CDISpecDirs")
    if not folders:
        pytest.skip("this engine does not know CDI, and no other way gives simulated GPUs (Docker 25 does)")
    told = json.loads((Path(folders[0]) / "simulated.json").read_text())
    found = [
        Device(one["name"], "GPU (simulated)", 80 << 30, index=str(number))
        for number, one in enumerate(told["devices"])
    ]
    assert len(found) == GPUS
    monkeypatch.setattr(gpuleases, "inventory", lambda _policy: list(found))
    return found


@pytest.fixture
def train(project_of, tiny):
    """Return a function that makes the project "train" of a user."""

    def make(user, further: str = ""):
        project_of(user, "train").write("Dockerfile", f"FROM {tiny}\n{further}")

    return make


@pytest.fixture
def launch(engine, policy):
    """Return a function that launches a user's project "train" with GPUs, and returns them."""

    def run(user, own: OwnWishes) -> list[str]:
        return containers.launch(engine, policy, user, "train", own=own).facts["gpus"]

    return run


@pytest.fixture
def asked(url, policy):
    """Return a function that asks a verb of the broker as a user."""

    def ask(verb, user, project="train", progress=lambda _text: None, **options):
        with pytest.MonkeyPatch.context() as patch:
            connect = Engine.connect
            patch.setattr(engines.Engine, "connect", lambda *_where: connect(url))
            return broker.VERBS[verb].run(Request(policy, user, project, progress, options))

    return ask


def given(engine) -> dict[str, list[str]]:
    """Return what the engine itself has given to each project's container that is there, by its name."""
    found = {}
    for item in engine.containers():
        name = item["Names"][0].lstrip("/")
        if gpuleases.base_of(name):
            found[name] = specs.given_gpus(engine.inspect(item["Id"]))
    return found


def variables(engine, container: str) -> dict[str, str]:
    """Return the environment of a container's first process, as the kernel has it."""
    pid = engine.inspect(container)["State"]["Pid"]
    text = Path(f"/proc/{pid}/environ").read_text()
    return dict(line.split("=", 1) for line in text.split("\0") if line)


def nodes(inside, user) -> list[str]:
    """Return the device files of GPUs in a user's container."""
    return [name for name in inside(user, "train", "ls /dev").split() if name.startswith("simulated")]


def numbers(devices: list[Device], uuids: list[str]) -> list[int]:
    return sorted([one.uuid for one in devices].index(uuid) for uuid in uuids)


# What a container has


def test_a_container_has_its_gpus_and_no_others_whatever_its_image_says(
    engine, policy, alice, inside, train, devices
):
    train(alice, GREEDY)
    facts = containers.launch(engine, policy, alice, "train", own=OwnWishes(gpus="2")).facts
    had = numbers(devices, facts["gpus"])
    assert len(had) == 2
    inspected = engine.inspect(facts["id"])
    requests = [(one["Driver"], one["DeviceIDs"]) for one in inspected["HostConfig"]["DeviceRequests"]]
    assert requests == [("cdi", [f"nvidia.com/gpu={uuid}" for uuid in facts["gpus"]])]
    said = [one for one in inspected["Config"]["Env"] if one.startswith("NVIDIA_VISIBLE_DEVICES=")]
    assert said == ["NVIDIA_VISIBLE_DEVICES=void"]
    seen = variables(engine, facts["id"])
    assert {name: uuid for name, uuid in seen.items() if name.startswith("SIMULATED_GPU_")} == {
        f"SIMULATED_GPU_{number}": devices[number].uuid for number in had
    }
    assert nodes(inside, alice) == [f"simulated-gpu{number}" for number in had]
    # The user can use them.
    assert inside(alice, "train", f"echo x > /dev/simulated-gpu{had[0]}; echo $?").strip() == "0"


def test_a_container_without_gpus_has_none_whatever_its_image_says(
    engine, policy, alice, inside, train, devices
):
    train(alice, GREEDY)
    facts = containers.launch(engine, policy, alice, "train").facts
    assert facts["gpus"] == [] and nodes(inside, alice) == []
    assert not engine.inspect(facts["id"])["HostConfig"]["DeviceRequests"]
    seen = variables(engine, facts["id"])
    assert seen["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert not any(name.startswith("SIMULATED_GPU_") for name in seen)
    assert gpuleases.survey(engine, policy).held == ()


def test_what_the_engine_cannot_give_is_refused_in_a_sentence_and_held_by_nobody(
    engine, policy, alice, train, devices, launch
):
    """NVML knows a GPU that the CDI specification does not: it was not made anew."""
    train(alice)
    devices[:] = [Device("GPU-000000ff-51d0-4000-8000-000000000000", "GPU (simulated)", 80 << 30)]
    with pytest.raises(LabError) as error:
        launch(alice, OwnWishes(gpus="1"))
    assert "GPU-000000ff" in str(error.value) and error.value.hint
    assert given(engine) == {} and gpuleases.survey(engine, policy).held == ()


# Many at once


def test_of_fifty_launches_at_once_no_gpu_is_given_twice_and_none_is_lost(
    engine, url, policy, root, train, devices, launch
):
    """Each is a process of its own, as each call of the broker is; all begin together, their images built."""
    for user in policy.users:
        train(user)
    (root / "answers").mkdir()
    (ready, ready_end), (begin, begin_end) = os.pipe(), os.pipe()
    children = [
        _launcher(url, policy, user, root / "answers", ready_end, (begin, begin_end)) for user in policy.users
    ]
    for _child in children:
        assert os.read(ready, 1)
    os.close(begin_end)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * MANY
    for descriptor in (ready, ready_end, begin):
        os.close(descriptor)
    answers = [json.loads(path.read_text()) for path in (root / "answers").iterdir()]
    assert len(answers) == MANY
    served = [one["gpus"][0] for one in answers if "gpus" in one]
    assert sorted(served) == sorted(one.uuid for one in devices)
    assert sorted(uuid for uuids in given(engine).values() for uuid in uuids) == sorted(served)
    refused = [one for one in answers if "gpus" not in one]
    assert {one["kind"] for one in refused} == {"Busy"}
    assert all("of 8 free" in one["message"] and "--wait" in one["hint"] for one in refused)
    # What was given comes back, and all of it can be had again.
    for item in engine.containers():
        name = item["Names"][0].lstrip("/")
        if gpuleases.base_of(name):
            user = policy.user_by_uid(int(name.rpartition(".")[2]))
            containers.retire(engine, policy, user, "train")
    assert sorted(launch(policy.users[-1], ALL)) == sorted(one.uuid for one in devices)


def _launcher(url, policy, user, answers: Path, ready: int, begin: tuple[int, int]) -> int:
    """Start a process that builds the user's image, waits for the others, and launches; return its pid."""
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        os.close(begin[1])
        engine = Engine.connect(url)
        images.build(engine, policy, user, "train")
        os.write(ready, b"x")
        os.read(begin[0], 1)
        try:
            done = containers.launch(engine, policy, user, "train", own=OwnWishes(gpus="1"))
            answer = {"gpus": done.facts["gpus"]}
        except LabError as error:
            answer = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
        (answers / user.name).write_text(json.dumps(answer))
        os._exit(0)
    finally:
        os._exit(4)  # a forked child that unwinds would run the tests of its parent


def test_a_gpu_is_free_when_its_container_is_retired_and_not_before(
    engine, policy, alice, bob, train, devices, launch
):
    train(alice)
    train(bob)
    had = launch(alice, OwnWishes(gpus="1"))
    assert len(had) == 1
    containers.stop(engine, alice, "train")
    with pytest.raises(Busy, match="7 of 8 free"):
        launch(bob, ALL)
    containers.retire(engine, policy, alice, "train")
    assert sorted(launch(bob, ALL)) == sorted(one.uuid for one in devices)
    with pytest.raises(Busy, match="0 of 8 free"):
        launch(alice, OwnWishes(gpus="1"))


# Processes that die


@pytest.mark.parametrize(("call", "seconds"), [("create", 0), ("create", 0.01), ("put", 0), ("start", 0)])
def test_a_maker_that_is_killed_takes_no_gpu_with_it(
    engine, url, policy, alice, bob, train, devices, launch, call, seconds
):
    """It is killed between its record and the creation, in the middle of that, and before the start."""
    train(alice)
    train(bob)

    def hook(name: str) -> None:
        # The first container that is created is one to look into the image: there is no lease yet.
        if name == call and "train._.2001" in gpuleases._read_leases():
            threading.Timer(seconds, die).start() if seconds else die()

    status = in_child(url, hook, lambda mine: containers.launch(mine, policy, alice, "train", own=ALL))
    assert os.WIFSIGNALED(status)
    assert set(gpuleases._read_leases()) == {"train._.2001"}
    images.build(engine, policy, bob, "train")
    assert sorted(launch(bob, ALL)) == sorted(one.uuid for one in devices)
    with pytest.raises(Busy):
        launch(alice, OwnWishes(gpus="1"))
    containers.retire(engine, policy, bob, "train")
    assert len(launch(alice, ALL)) == GPUS


def test_a_launch_that_fails_gives_its_gpus_back(engine, policy, alice, bob, train, devices, launch):
    train(alice)
    train(bob)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "start", _refuse)
        with pytest.raises(EngineError, match="no start"):
            launch(alice, ALL)
    assert "train._.2001" not in gpuleases._read_leases() and given(engine) == {}
    assert len(launch(bob, ALL)) == GPUS


def _refuse(_container: str) -> None:
    raise EngineError("There is no start today.")


# Started again


def test_a_stopped_container_starts_with_its_own_gpus_and_not_without_them(
    engine, policy, alice, inside, train, devices, launch
):
    train(alice)
    had = launch(alice, OwnWishes(gpus="2"))
    containers.stop(engine, alice, "train")
    well = list(devices)
    mine = numbers(devices, had)[0]
    devices[mine] = replace(well[mine], healthy=False, problem="GPU 0 is lost")
    for starts in (
        lambda: containers.start(engine, policy, alice, "train"),
        lambda: containers.launch(engine, policy, alice, "train"),
    ):
        with pytest.raises(Refused, match="GPU 0 is lost") as error:
            starts()
        assert "container retire" in error.value.hint
        assert not containers.listing(engine, policy, alice)[0].running
    # They are other ones by number after a reboot, and the same by uuid.
    devices[:] = [replace(one, index=str(GPUS - number)) for number, one in enumerate(well)]
    assert containers.start(engine, policy, alice, "train").changed
    assert nodes(inside, alice) == [f"simulated-gpu{number}" for number in numbers(devices, had)]


def test_a_retired_container_comes_back_with_its_gpus_when_they_are_free_again(
    engine, policy, alice, bob, inside, train, devices, launch
):
    train(alice)
    train(bob)
    had = launch(alice, OwnWishes(gpus="1"))
    inside(alice, "train", "touch /tmp/work")
    containers.retire(engine, policy, alice, "train")
    launch(bob, ALL)
    with pytest.raises(Busy, match="given to somebody else"):
        containers.undo(engine, policy, alice, "train")
    assert "train._.2001" not in given(engine)
    containers.retire(engine, policy, bob, "train")
    assert containers.undo(engine, policy, alice, "train").changed
    assert given(engine)["train._.2001"] == had
    assert inside(alice, "train", "ls /tmp/work").strip() == "/tmp/work"
    with pytest.raises(Busy, match="7 of 8 free"):
        launch(bob, ALL)


def test_what_the_engine_gave_counts_where_the_record_is_lost_or_says_otherwise(
    engine, policy, alice, bob, train, devices, launch
):
    train(alice)
    train(bob)
    had = launch(alice, OwnWishes(gpus="2"))
    other = next(one.uuid for one in devices if one.uuid not in had)
    record = json.loads(state.read_record("gpus/leases.json"))
    lease = json.loads(record["train._.2001"]["lease"])
    lease["devices"] = [[other, other]]
    record["train._.2001"]["maker"] = ""  # as that of a process that has ended
    record["train._.2001"]["lease"] = json.dumps(lease, sort_keys=True, separators=(",", ":"))
    for text in (json.dumps(record), "{", "{}"):
        state.write_record("gpus/leases.json", text)
        (held,) = gpuleases.survey(engine, policy).held
        assert sorted(held.lease.uuids) == sorted(had)
    assert not set(launch(bob, OwnWishes(gpus="6"))) & set(had)
    with pytest.raises(Busy, match="0 of 1 free"):
        gpuleases.obtain(
            engine,
            policy,
            bob,
            specs.decide(policy, bob, "other", own=OwnWishes(gpus=had[0])),
            lambda: gpuleases.inventory(policy),
        )


# The commands, as the broker does them


def test_a_dry_run_neither_waits_nor_takes_a_lease(engine, policy, alice, bob, train, devices, launch, asked):
    train(alice)
    train(bob)
    planned = asked("project-launch-check", alice, gpus="2")
    assert planned["actions"] and not gpuleases._read_leases() and given(engine) == {}
    launch(alice, ALL)
    before = gpuleases._read_leases()
    with pytest.raises(Busy, match="0 of 8 free"):
        asked("project-launch-check", bob, gpus="2")
    started = time.monotonic()
    planned = asked("project-launch-check", bob, gpus="2", wait=True)
    assert time.monotonic() - started < 30
    assert any("0 of 8 free" in note and "would wait" in note for note in planned["notes"])
    # What can never be had is refused, waiting or not.
    with pytest.raises(Refused, match="MIG"):
        asked("project-launch-check", bob, gpus="1g.10gb", wait=True)
    assert gpuleases._read_leases() == before and gpuleases._read_queue() == []
    assert list(given(engine)) == ["train._.2001"]


def test_a_preview_of_start_and_undo_looks_at_the_gpus(
    engine, policy, alice, bob, train, devices, launch, asked, inside
):
    def refused(verb, user, match):
        said = []
        for one in (f"{verb}-check", verb):
            before = gpuleases._read_leases()
            with pytest.raises(LabError, match=match) as error:
                asked(one, user)
            assert gpuleases._read_leases() == before
            said.append((type(error.value), str(error.value)))
        assert said[0] == said[1]

    def does(verb, user):
        before = gpuleases._read_leases()
        promised = [asked(f"{verb}-check", user) for _twice in range(2)]
        assert gpuleases._read_leases() == before
        done = asked(verb, user)
        assert promised[0] == promised[1] == {key: done[key] for key in promised[0]} and done["changed"]
        return done["gpus"]

    train(alice)
    train(bob)
    had = launch(alice, OwnWishes(gpus="6"))
    containers.stop(engine, alice, "train")
    assert does("container-start", alice) == had
    containers.stop(engine, alice, "train")
    # One of them is off the bus.
    lost = next(one for one in devices if one.uuid == had[0])
    devices.remove(lost)
    for verb in ("container-start", "project-launch"):
        refused(verb, alice, "is not there any more")
    devices.append(lost)
    assert does("container-start", alice) == had
    # They were given to somebody else meanwhile.
    inside(alice, "train", "echo > /tmp/mine")
    containers.retire(engine, policy, alice, "train")
    launch(bob, ALL)
    refused("container-undo", alice, "given to somebody else")
    containers.retire(engine, policy, bob, "train")
    assert does("container-undo", alice) == had
    assert sorted(given(engine)["train._.2001"]) == sorted(had)


def test_a_preview_counts_on_what_was_abandoned(engine, url, policy, alice, bob, train, devices, asked):
    """What the deed removes first is not in the way of the promise either."""
    train(alice)
    train(bob)
    images.build(engine, policy, alice, "train")

    def hook(name: str) -> None:
        if name == "start":
            die()

    in_child(url, hook, lambda mine: containers.launch(mine, policy, alice, "train", own=ALL))
    assert sum(map(len, given(engine).values())) == GPUS
    assert asked("project-launch-check", bob, gpus="2")["status"] == "created"
    with pytest.raises(Refused, match="MIG"):
        asked("project-launch-check", bob, gpus="1g.10gb")
    assert sum(map(len, given(engine).values())) == GPUS
    assert len(asked("project-launch", bob, gpus="2")["gpus"]) == 2


def test_who_waits_gets_the_gpus_of_the_container_that_is_retired(
    engine, url, policy, alice, bob, train, devices, launch, asked, root
):
    train(alice)
    train(bob)
    launch(alice, ALL)
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            said: list[str] = []
            done = asked("project-launch", bob, progress=said.append, gpus="3", wait=True)
            (root / "answer").write_text(json.dumps([done["gpus"], said]))
        finally:
            os._exit(0)
    end = time.monotonic() + 60
    while not asked("gpu-queue", alice)["waiting"]:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert asked("gpu-queue", bob)["waiting"][0]["project"] == "train"
    # Nobody passes who waits.
    containers.retire(engine, policy, alice, "train")
    with pytest.raises(Busy):
        launch(alice, OwnWishes(gpus="6"))
    os.waitpid(child, 0)
    had, said = json.loads((root / "answer").read_text())
    assert len(had) == 3 and given(engine)["train._.2002"] == sorted(had)
    assert any(text.startswith("waiting for GPUs: place 1 of 1") for text in said)
    assert asked("gpu-queue", bob)["waiting"] == []
    assert len(launch(alice, OwnWishes(gpus="5"))) == 5


def test_gpu_list_tells_who_has_what_without_names(engine, policy, alice, bob, train, devices, launch, asked):
    train(alice)
    had = launch(alice, OwnWishes(gpus="1"))
    for user, use, projects in ((alice, "yours", ["train"]), (bob, "in use", [])):
        told = asked("gpu-list", user, "")
        taken = [one for one in told["devices"] if one["uuid"] in had]
        assert [(one["use"], one["projects"], one["free"]) for one in taken] == [(use, projects, False)]
        assert {one["use"] for one in told["devices"] if one["uuid"] not in had} == {"free"}
        assert "alice" not in json.dumps(told)
    for user in (alice, bob):
        assert asked("gpu-why", user, "", gpus="7")["now"]
        answer = asked("gpu-why", user, "", gpus="8")
        assert not answer["now"] and answer["later"]


# Reserved for a time


@pytest.fixture
def clock(monkeypatch, tmp_path):
    """Return a function that lets hours pass, with the server's look after each ten minutes."""
    now, up = [float(int(time.time()))], [1e6]
    told = SimpleNamespace(
        time=lambda: now[0],
        clock_gettime=lambda _clock: up[0],
        sleep=lambda _seconds: None,
        CLOCK_BOOTTIME=time.CLOCK_BOOTTIME,
    )
    for module in (gpuleases, gpureserve, gpuhandover):
        monkeypatch.setattr(module, "time", told)
    monkeypatch.setattr(ending, "time", SimpleNamespace(**{**vars(told), "monotonic": time.monotonic}))
    for module in (ending, notices):
        monkeypatch.setattr(module, "NOTICES", str(tmp_path / "notices"))

    def go_on(engine, policy, hours):
        found = []
        for _number in range(int(hours * 6)):
            now[0], up[0] = now[0] + 600, up[0] + 600
            found = ending.tick(engine, policy)
            assert not any(one.problem for one in found)
        return found

    go_on.now = now
    return go_on


def test_gpus_are_handed_over_to_who_reserved_them_and_back(
    engine, policy, alice, bob, inside, train, devices, launch, clock
):
    rules = policies.policy_gpus.ReserveRules(gpus=8, notice_hours=1)
    policy = replace(policy, gpu=replace(policy.gpu, reserve=rules))
    for user in (alice, bob):
        train(user)
    had = containers.launch(engine, policy, alice, "train", own=ALL).facts
    inside(alice, "train", "echo work > /tmp/mine")
    wanted = gpurequests.parse("2")
    length, inventory = 3 * 3600.0, partial(gpuleases.inventory, policy)
    with pytest.raises(Refused, match="told 1 h before"):
        gpureserve.reserve(engine, policy, bob, wanted, clock.now[0] + 3600, length, inventory)
    gpureserve.reserve(engine, policy, bob, wanted, clock.now[0] + 3 * 3600, length, inventory)
    # Alice is told, at the earliest when the notice begins, and stopped when the window does.
    clock(engine, policy, 1.5)
    assert notices.notices(alice.uid) == {}
    clock(engine, policy, 1)
    told = notices.notices(alice.uid)["train"]
    assert told["firm"] and "reserved for somebody else" in notices.advice(told, "train")
    assert engine.inspect(had["id"])["State"]["Running"]
    with pytest.raises(Busy):
        containers.launch(engine, policy, bob, "train", own=OwnWishes(gpus="2"))
    (done,) = [one for one in clock(engine, policy, 0.5) if one.name == "train._.2001"]
    assert (done.decision.do, done.decision.about) == ("stop", "reserved")
    assert not engine.inspect(had["id"])["State"]["Running"] and state.is_stopped("train._.2001")
    (event,) = [one for one in events.read(alice.uid, "train") if one.what == "stopped"]
    assert event.by == "limit" and "reserved for somebody else" in event.reason
    # Bob has them, and is told until when; Alice cannot start hers meanwhile.
    facts = containers.launch(engine, policy, bob, "train", own=OwnWishes(gpus="2")).facts
    assert set(facts["gpus"]) <= set(had["gpus"]) and "reserved for you until" in " ".join(facts["notes"])
    with pytest.raises(Busy):
        containers.start(engine, policy, alice, "train")
    clock(engine, policy, 3)
    assert not engine.inspect(facts["id"])["State"]["Running"]
    # Over: what she had is hers again, with all that was in it.
    containers.start(engine, policy, alice, "train")
    assert inside(alice, "train", "cat /tmp/mine").strip() == "work"
    assert specs.given_gpus(engine.inspect(had["id"])) == sorted(had["gpus"])
    with pytest.raises(Busy):
        containers.start(engine, policy, bob, "train")


# What an admin sees, and what is checked


def test_an_admin_is_told_who_has_what_by_name(engine, url, policy, alice, train, devices, launch):
    train(alice)
    (had,) = launch(alice, OwnWishes(gpus="1"))
    seen = Seen(tuple(Gpu(number, one.uuid, one.name, "", 80 << 30) for number, one in enumerate(devices)))
    told = gpuview.look(policy, url, seen)
    held = {one["uuid"]: one["holders"] for one in told["devices"]}
    (holder,) = held.pop(had)
    assert (holder["user"], holder["project"], holder["state"]) == ("alice", "train", "running")
    assert not any(held.values()) and told["docker"]["answers"] and gpuview.attention(told) == ([], [])


@pytest.fixture
def judged(policy, url):
    """Return a function that makes the check of GPUs anew: its verdict, and what it says."""

    def make() -> tuple[str, str]:
        server = Server(policy, url)
        try:
            (found,) = verify.run(server, verify.chosen(["gpus"]))
        finally:
            server.close()
        return found.outcome.verdict, found.outcome.detail

    return make


def test_verify_tells_gpus_that_are_as_leased_from_others(
    engine, policy, alice, bob, train, devices, launch, judged, docker, tiny
):
    train(alice)
    train(bob)
    had = launch(alice, OwnWishes(gpus="2"))
    launch(bob, OwnWishes(gpus="1"))
    assert judged() == ("pass", "2 containers run, 2 of them with 3 GPUs: those of their leases")
    # The record says something else.
    text = state.read_record("gpus/leases.json")
    record = json.loads(text)
    record["train._.2001"]["lease"] = record["train._.2002"]["lease"]
    state.write_record("gpus/leases.json", json.dumps(record))
    verdict, detail = judged()
    assert verdict == "fail" and detail.startswith("train._.2001: the record of the server gives it GPU-")
    state.write_record("gpus/leases.json", text)
    # Somebody with the socket took a GPU that is given already.
    made = docker("run", "-d", "--device", f"nvidia.com/gpu={had[0]}", tiny, "sleep", "600").strip()
    try:
        verdict, detail = judged()
        assert verdict == "fail" and "is nobody's project" in detail
    finally:
        docker("rm", "-f", made)
    # The container was made anew by hand, with the labels of ours and one GPU more.
    there = engine.inspect("train._.2001")
    docker("rm", "-f", "train._.2001")
    other = next(one.uuid for one in devices if one.uuid not in had)
    labels = [f"--label={name}={value}" for name, value in there["Config"]["Labels"].items()]
    given = [f"--device=nvidia.com/gpu={uuid}" for uuid in [*had, other]]
    words = ["--user", "2001:2001", "-e", "NVIDIA_VISIBLE_DEVICES=void", "--name", "train._.2001"]
    docker("run", "-d", *labels, *given, *words, there["Image"], "sleep", "600")
    assert judged() == ("fail", f"train._.2001: it has {other} without a lease")
    docker("rm", "-f", "train._.2001")
    assert judged()[0] == "pass"


def test_only_a_container_with_gpus_gets_the_group_of_their_device_files(
    engine, url, policy, alice, bob, inside, train, devices, launch, judged, root, monkeypatch
):
    """The file stands for a device file that the toolkit's hook binds into a container as it is outside."""
    folder = root / "dev"
    folder.mkdir()
    os.mknod(folder / "nvidia0", 0o020600, os.makedev(1, 3))
    os.chown(folder / "nvidia0", 0, 4195)
    (folder / "nvidia0").chmod(0o660)
    monkeypatch.setattr(gpufiles, "FOLDER", str(folder))
    likewise = root / "srv/likewise"
    likewise.write_text("opened\n")
    os.chown(likewise, 0, 4195)
    likewise.chmod(0o660)
    train(alice)
    train(bob)
    launch(alice, OwnWishes(gpus="1"))
    containers.launch(engine, policy, bob, "train")
    ids = {one.name: inside(one, "train", "id -G").split() for one in (alice, bob)}
    assert "4195" in ids["alice"] and "4195" not in ids["bob"]
    look = f"cat {likewise} || echo closed"
    assert inside(alice, "train", look).strip() == "opened"
    assert inside(bob, "train", look).strip().endswith("closed")
    assert "gpus4195:x:4195:alice" in inside(alice, "train", "cat /etc/group")
    assert judged()[0] == "pass"
    assert [
        verdict.outcome.verdict for verdict in verify.run(Server(policy, url), verify.chosen(["options"]))
    ] == ["pass"]
    # They were another group's when the container was made.
    os.chown(folder / "nvidia0", 0, 4196)
    assert judged() == ("fail", "train._.2001: it cannot open its GPUs without the group 4196")
    # What would open files of other lab users is given to nobody, and takes no GPU.
    os.chown(folder / "nvidia0", 0, alice.gid)
    containers.retire(engine, policy, bob, "train")
    with pytest.raises(LabError, match=f"gid {alice.gid}"):
        launch(bob, OwnWishes(gpus="1"))
    assert list(given(engine)) == ["train._.2001"]
