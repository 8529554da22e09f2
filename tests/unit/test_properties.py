"""What holds for every name, size, spec and state: the decisions, and what the library does to a model.

The model of Docker (docker_model) takes the place of the engine alone: the planning, the healing, the locks
and the marks in the state directory are the library's own.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import string
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils import _core
from ansible_collections.lab.server.plugins.module_utils._core import (
    containers,
    events,
    locks,
    names,
    retired,
)
from ansible_collections.lab.server.plugins.module_utils._core import plan as plans
from ansible_collections.lab.server.plugins.module_utils._core import policy as policies
from ansible_collections.lab.server.plugins.module_utils._core import spec as specs
from ansible_collections.lab.server.plugins.module_utils._core import state as states
from ansible_collections.lab.server.plugins.module_utils._core.containers import Wanted
from ansible_collections.lab.server.plugins.module_utils._core.errors import InvalidInput, LabError, Refused
from ansible_collections.lab.server.plugins.module_utils._core.items import ItemResult
from ansible_collections.lab.server.plugins.module_utils._core.plan import Plan, actual_of, plan
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy
from ansible_collections.lab.server.plugins.module_utils._core.sizes import format_size, parse_size
from ansible_collections.lab.server.plugins.module_utils._core.spec import (
    ContainerSpec,
    EngineFacts,
    ImageFacts,
    Wishes,
)
from docker_model import LIVE, Model, PowerLoss, Row
from hypothesis import given, settings
from hypothesis import strategies as st

LIMITS = {"containers": 3, "cpus": 2, "memory": "1g", "pids": 512, "shm": "64m", "gpus": 0}
QUOTA = {"soft": 0, "hard": 0, "inodes_soft": 0, "inodes_hard": 0}
UID = 2001
NAME = f"thesis._.{UID}"
CURRENT, OLD = "sha256:" + "c" * 64, "sha256:" + "0" * 64
SUFFIXES = ("", ".next", ".previous")

project_names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", fullmatch=True)
uids = st.integers(1000, 59999)
texts = st.text(string.printable, max_size=12) | st.text(max_size=6)
# What the policy takes as a value: no line break and no other control character.
lines = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=12)
variables = st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True), texts, max_size=4)
wishes = st.builds(
    Wishes,
    cpus=st.none() | st.floats(0.01, 2),
    memory=st.none() | st.integers(6 << 20, 1 << 30),
    pids=st.none() | st.integers(1, 512),
    shm=st.none() | st.integers(0, 6 << 20),
    environment=variables.map(lambda given: tuple(given.items())),
)


def inventory(groups: list[str]) -> dict:
    """Return variables with the user alice in ``groups``, in that order, each with a share."""
    return {
        "lab_groups": [
            {"name": name, "gid": 3101 + number, "limits": LIMITS, "quota": QUOTA}
            for number, name in enumerate(["students", "audio", "vision"])
        ],
        "lab_users": [{"name": "alice", "uid": UID, "group": "students", "groups": groups}],
        "lab_shares": [{"name": name, "access": "group", "group": name} for name in sorted(groups)],
        "lab_environment": {"LAB": "test"},
    }


def policy_for(*groups: str) -> Policy:
    made, _keys = policies.from_inventory(inventory(list(groups)))
    return made


POLICY = policy_for("audio", "vision")
ALICE = POLICY.user("alice")


# Names and sizes


@given(project_names, uids)
def test_names_are_read_back(project, uid):
    assert names.project_name(project) == project
    assert names.parse_container_name(names.container_name(project, uid)) == (project, uid)
    assert names.image_repository(uid, project) == f"lab/{uid}/{project}"
    assert names.image_reference(names.image_repository(uid, project) + ":latest")


@given(
    project_names, uids, st.sampled_from([".next", ".previous", ".retired-1764000000"]) | st.text(min_size=1)
)
def test_what_follows_a_name_makes_it_no_containers_name(project, uid, suffix):
    name = names.container_name(project, uid) + suffix
    try:
        parsed = names.parse_container_name(name)
    except InvalidInput:
        return
    # A digit alone makes another name of it, which is read back to itself.
    assert names.container_name(*parsed) == name


@given(st.text())
def test_a_name_is_taken_as_it_is_or_not_at_all(text):
    said = ""
    try:
        assert names.project_name(text) == text
    except InvalidInput as error:
        said = str(error)
    assert said.isprintable()


@given(st.integers(0, 1 << 50), st.sampled_from(["", "k", "m", "g", "K", "MiB", "gb", " b"]))
def test_sizes_are_exact(number, unit):
    factor = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}[unit.strip().lower()[:1]]
    if number * factor < 1 << 62:
        assert parse_size(f"{number}{unit}") == number * factor
        assert parse_size(parse_size(f"{number}{unit}")) == number * factor


# Just below the next unit is where rounding goes wrong.
near_units = st.builds(
    lambda unit, part: (1 << 10 * unit) - 1 - (part << 10 * (unit - 1)) // 1000,
    st.integers(1, 5),
    st.integers(0, 100),
)


@given(st.integers(0, 1 << 61) | near_units)
def test_a_shown_size_shows_as_itself(number):
    """What a diff shows can be written into an inventory, and is shown the same way then."""
    shown = format_size(number)
    assert format_size(parse_size(shown)) == shown


@given(st.text() | st.integers() | st.floats() | st.none() | st.lists(st.integers()))
def test_sizes_are_total(value):
    said = ""
    try:
        assert 0 <= parse_size(value) < 1 << 62
    except InvalidInput as error:
        said = str(error)
    assert said.isprintable()


# Specs


@given(wishes)
def test_a_spec_is_read_back(asked):
    spec = specs.decide(POLICY, ALICE, "thesis", asked)
    again = specs.parse(spec.canonical())
    assert again == spec
    assert (again.canonical(), again.digest()) == (spec.canonical(), spec.digest())


@given(wishes, st.randoms())
def test_the_canonical_form_does_not_follow_the_order_of_the_inventory(asked, chance: random.Random):
    shuffled = list(asked.environment)
    chance.shuffle(shuffled)
    mixed = inventory(["vision", "audio"])
    for key in ("lab_groups", "lab_shares"):
        chance.shuffle(mixed[key])
    # The gids stay with their names.
    other, _keys = policies.from_inventory(mixed)
    one = specs.decide(POLICY, ALICE, "thesis", asked)
    two = specs.decide(other, other.user("alice"), "thesis", replace(asked, environment=tuple(shuffled)))
    assert two.digest() == one.digest()


@given(wishes)
def test_the_canonical_form_survives_json(asked):
    """A label that went through another tool's JSON is either the same text or refused."""
    text = specs.decide(POLICY, ALICE, "thesis", asked).canonical()
    assert json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")) == text
    assert text.isascii()


@given(wishes, wishes)
def test_equal_specs_have_equal_digests_and_no_others(asked, other):
    one, two = (specs.decide(POLICY, ALICE, "thesis", each) for each in (asked, other))
    assert (one == two) == (one.digest() == two.digest())


def test_every_field_of_a_spec_counts():
    spec = specs.decide(POLICY, ALICE, "thesis")
    for field in fields(ContainerSpec):
        value = getattr(spec, field.name)
        if not field.compare:
            # What was asked for is told beside what there is.
            assert replace(spec, **{field.name: 7}).digest() == spec.digest()
            continue
        other = (*value, "x") if isinstance(value, tuple) else value + type(value)("1")
        assert replace(spec, **{field.name: other}).digest() != spec.digest(), field.name


@given(st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True), lines, max_size=4))
def test_policies_are_read_back(environment):
    made, _keys = policies.from_inventory({**inventory(["audio"]), "lab_environment": environment})
    assert policies.parse(json.loads(json.dumps(policies.dump(made)))) == made


# Plans


def as_listed(config: dict, name: str, image: str = CURRENT, state: str = "running") -> dict:
    """Return a container made of a request as Docker lists it."""
    return {"Id": "i", "Names": [f"/{name}"], "State": state, "ImageID": image, "Labels": config["Labels"]}


@given(wishes, st.sampled_from(LIVE), st.integers(1, 64), st.sampled_from(["systemd", "cgroupfs"]))
def test_a_plan_for_what_was_asked_is_empty(asked, state, cpus, driver):
    """Also when another host or engine made it, and for an image whose own settings changed."""
    spec = specs.decide(POLICY, ALICE, "thesis", asked)
    config = specs.create_config(spec, ImageFacts(CURRENT, path="/opt/bin"), EngineFacts(driver, cpus))
    actual = actual_of(as_listed(config, spec.name, state=state))
    assert actual.spec == spec
    assert plan(plans.STARTED, spec, CURRENT, actual) == Plan()
    assert plan(plans.STARTED, spec, None, actual) == Plan()


@given(wishes, wishes)
def test_a_plan_for_another_spec_says_what_differs(asked, other):
    one, two = (specs.decide(POLICY, ALICE, "thesis", each) for each in (asked, other))
    config = specs.create_config(one, ImageFacts(CURRENT), EngineFacts("systemd", 8))
    planned = plan(plans.STARTED, two, CURRENT, actual_of(as_listed(config, one.name)))
    assert bool(planned.actions) == (one != two)
    assert bool(planned.reason) == bool(planned.actions)
    # A change that is smaller than what is shown (bytes of a gigabyte) looks alike, but is told of.
    assert planned.before.keys() == planned.after.keys()


# What the library does to a model of Docker


@pytest.fixture(scope="module", autouse=True)
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let the library use a folder of the test's own for locks, marks and workspaces."""
    folder: Path = tmp_path_factory.mktemp("server")
    (folder / "workspaces/alice").mkdir(parents=True)
    for share in ("audio", "vision"):
        (folder / "data" / share).mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies, "WORKSPACES_ROOT", str(folder / "workspaces"))
        for module in (states, _core):
            patch.setattr(module, "STATE_DIRECTORY", str(folder / "state"))
        for module in (locks, _core):
            patch.setattr(module, "RUN_DIRECTORY", str(folder / "run"))
        yield


@pytest.fixture(scope="module")
def server(_server, tmp_path_factory) -> Policy:
    data = Path(policies.WORKSPACES_ROOT).parent / "data"
    made, _keys = policies.from_inventory({**inventory(["audio", "vision"]), "lab_data_root": str(data)})
    return made


def picture(project: str, image: str, *tags: str) -> dict:
    repository = names.image_repository(UID, project)
    labels = {
        specs.LABEL_OWNER: str(UID),
        specs.LABEL_PROJECT: project,
        "lab.server.fingerprint": image[-64:],
        "lab.server.kind": "project",
    }
    return {"Id": image, "RepoTags": [f"{repository}:{tag}" for tag in tags], "Labels": labels, "Created": 1}


def model_of(*projects: str) -> Model:
    """Return an engine with an older and a current image of each project, and no container."""
    for name in states.stopped_names():
        states.clear_stopped(name)
    model = Model()
    for project in projects or ("thesis",):
        model.pictures += [
            picture(project, OLD, OLD[-12:]),
            picture(project, CURRENT, "latest", CURRENT[-12:]),
        ]
    return model


def reached(model: Model, policy: Policy, wanted: Wanted) -> None:
    """Assert that the model is as wanted, with nothing beside it, and that nothing is left to do."""
    model.again()
    for check in (True, False):
        again = containers.reconcile(model, policy, [wanted], check=check)[0]
        assert not again.failed, again.message
        assert not again.changed, again
    main = model.named(NAME)
    for suffix in SUFFIXES[1:]:
        assert model.named(NAME + suffix) is None
    if wanted.state == plans.STARTED:
        assert main is not None
        assert main.live
        assert main.image == CURRENT
        decided = specs.decide(policy, policy.user("alice"), "thesis", wanted.wishes)
        assert main.labels == specs.labels(decided)
    elif wanted.state == plans.STOPPED:
        assert main is None or (not main.live and states.is_stopped(NAME))
    else:
        assert main is None


def told(result: ItemResult) -> dict:
    """Return what a result says, but the time until which a retire can be undone, which moves on."""
    return {**result.as_dict(), "undo_until": bool(result.facts.get("undo_until"))}


docker_states = st.sampled_from(["created", *LIVE, "removing", "exited", "dead"])
rows = st.none() | st.tuples(docker_states, st.booleans(), st.booleans())
anything = st.tuples(rows, rows, rows, st.booleans())
wanted_containers = st.builds(
    Wanted,
    user=st.just("alice"),
    project=st.just("thesis"),
    state=st.sampled_from([plans.STARTED, plans.STOPPED, plans.RETIRED, plans.ABSENT]),
    pids=st.sampled_from([None, 32]),
)


def put_there(model: Model, policy: Policy, given_rows, stopped: bool) -> None:
    """Put containers under the plain name and those of a replacement, as the strategy ``rows`` gave them."""
    if stopped:
        states.mark_stopped(NAME)
    for suffix, row in zip(SUFFIXES, given_rows):
        if row is not None:
            state, newer, other = row
            spec = specs.decide(policy, policy.user("alice"), "thesis", Wishes(pids=32 if other else None))
            worked = state not in ("created", "removing", "dead")
            model.add(NAME + suffix, state, CURRENT if newer else OLD, specs.labels(spec), worked=worked)


@settings(deadline=None)
@given(anything, wanted_containers)
def test_one_run_leads_there_from_anywhere(server, there, wanted):
    """From any container, running or broken, beside any leftover of a replacement."""
    *given_rows, stopped = there
    model = model_of()
    put_there(model, server, given_rows, stopped)
    before = [replace(row) for row in model.rows.values()]
    promise = containers.reconcile(model, server, [wanted], check=True)[0]
    assert list(model.rows.values()) == before
    deed = containers.reconcile(model, server, [wanted], check=False)[0]
    assert not deed.failed, deed.message
    assert deed.changed == promise.changed
    # What a broken-off replacement is healed to, check mode cannot know.
    if containers.HEAL not in deed.actions:
        assert told(deed) == told(promise)
    reached(model, server, wanted)


@settings(deadline=None)
@given(docker_states, st.booleans(), st.booleans())
def test_a_container_that_runs_may_wait_for_its_newer_image(server, state, newer, other):
    """Only that it is newer waits, and only while the container runs."""
    model = model_of()
    put_there(model, server, [(state, newer, other), None, None], False)
    before = replace(next(iter(model.rows.values())))
    wanted = Wanted("alice", "thesis", on_new_image=policies.WAIT)
    promise = containers.reconcile(model, server, [wanted], check=True)[0]
    deed = containers.reconcile(model, server, [wanted], check=False)[0]
    assert not deed.failed, deed.message
    assert deed.as_dict() == promise.as_dict()
    after = model.named(NAME)
    if state in LIVE and not other:
        assert not deed.changed
        assert after == before
    else:
        reached(model, server, wanted)
    # Nobody can make it wait for a policy that was made tighter, and by default nothing waits.
    containers.reconcile(model, server, [replace(wanted, on_new_image=policies.REPLACE)], check=False)
    reached(model, server, replace(wanted, on_new_image=policies.REPLACE))


def held(model: Model) -> list[Row]:
    """Return the containers that count: those with the name of a project's container."""
    found = []
    for row in model.rows.values():
        with contextlib.suppress(InvalidInput):
            names.parse_container_name(row.name)
            found.append(row)
    return found


@settings(deadline=None)
@given(st.lists(st.tuples(wanted_containers, st.integers(0, 40)), min_size=1, max_size=4))
def test_power_loss_at_any_calls_loses_no_work_and_is_healed(server, steps):
    """Several runs, each broken off after some calls as by a power loss; the next that is not leads there."""
    model = model_of()
    for wanted, calls in steps:
        model.again(power_until=calls)
        with contextlib.suppress(PowerLoss):
            containers.reconcile(model, server, [wanted], check=False)
        # A retired one is kept.
        assert model.lost == [] or wanted.state == plans.ABSENT
        model.lost = []
    wanted = steps[-1][0]
    model.again()
    assert not containers.reconcile(model, server, [wanted], check=False)[0].failed
    reached(model, server, wanted)


def test_power_loss_while_it_is_replaced_loses_no_work(server):
    """At every call, and at every call of the run after that as well."""
    wanted = Wanted("alice", "thesis", pids=32)
    for first, second in ((one, two) for one in range(24) for two in (*range(6), None)):
        model = model_of()
        containers.reconcile(model, server, [Wanted("alice", "thesis")], check=False)
        for calls in (first, second):
            model.again(power_until=calls)
            with contextlib.suppress(PowerLoss):
                containers.reconcile(model, server, [wanted], check=False)
        model.again()
        assert not containers.reconcile(model, server, [wanted], check=False)[0].failed
        assert model.lost == [], (first, second)
        reached(model, server, wanted)


def test_a_new_container_that_ran_is_not_given_up_for_the_one_before(server):
    """The process was killed before it retired the old one; the new one ran on, with work, until a reboot."""
    model = model_of()
    labels = specs.labels(specs.decide(server, server.user("alice"), "thesis"))
    model.add(NAME + ".previous", "exited", OLD, labels)
    new = model.add(NAME, "exited", CURRENT, labels)
    result = containers.reconcile(model, server, [Wanted("alice", "thesis")], check=False)[0]
    assert not result.failed
    assert model.lost == []
    assert model.named(NAME) is new
    assert [one.container for one in retired.kept(model)] == [NAME]
    last = events.read(UID, "thesis")[-2]
    assert (last.what, last.by) == (events.REPLACED, events.IT)
    assert "kept" in last.reason


class StillMaking(Model):
    """An engine that still makes a container for a caller who was killed: its name is taken, then listed."""

    def __init__(self, suffix: str, state: str) -> None:
        super().__init__()
        self.name, self.state, self.refusals = NAME + suffix, state, 2

    def create(self, name: str, config: dict) -> str:
        if name == self.name and self.refusals:
            self.refusals -= 1
            if not self.refusals:
                labels = config.get("Labels", {})
                self.add(name, self.state, CURRENT, labels, worked=self.state in LIVE)
            raise Refused(f'Conflict. The container name "/{name}" is already in use.')
        return super().create(name, config)


@pytest.mark.parametrize("suffix", ["", ".next", ".look"])
@pytest.mark.parametrize(("state", "failed"), [("created", False), ("running", True)])
def test_what_is_still_made_for_a_killed_caller_gives_way(server, suffix, state, failed):
    """But not what runs: that was not made by a call that was broken off."""
    # The image is to be looked into again.
    shutil.rmtree(Path(states.STATE_DIRECTORY, "looks"), ignore_errors=True)
    model = StillMaking(suffix, state)
    model.pictures = model_of().pictures
    if suffix == ".next":
        labels = specs.labels(specs.decide(server, server.user("alice"), "thesis", Wishes(pids=32)))
        model.add(NAME, "running", CURRENT, labels)
    result = containers.reconcile(model, server, [Wanted("alice", "thesis")], check=False)[0]
    assert result.failed == failed, result.message
    assert (model.refusals, model.lost) == (0, [])
    if not failed:
        reached(model, server, Wanted("alice", "thesis"))


@pytest.mark.parametrize("first", [plans.RETIRED, plans.RESTORED])
def test_power_loss_while_it_is_retired_and_restored(server, first):
    """At every call. The very container comes back, with what is in it."""
    for calls in range(40):
        model = model_of()
        containers.reconcile(model, server, [Wanted("alice", "thesis")], check=False)
        made = model.named(NAME)
        for state in (plans.RETIRED, plans.RESTORED):
            wanted = Wanted("alice", "thesis", state=state)
            model.again(power_until=calls if state == first else None)
            with contextlib.suppress(PowerLoss):
                containers.reconcile(model, server, [wanted], check=False)
            model.again()
            result = containers.reconcile(model, server, [wanted], check=False)[0]
            assert not result.failed, result.message
            assert not containers.reconcile(model, server, [wanted], check=True)[0].changed
            assert list(model.rows.values()) == [made]
            assert (made.name == NAME, made.live) == (state == plans.RESTORED,) * 2


@pytest.mark.parametrize("fault", ["refuses_at", "silent_at"])
def test_a_call_that_fails_leaves_the_old_or_the_new_one_running(server, fault):
    """Each call once, refused by Docker or with its answer lost, while a container is replaced."""
    wanted = Wanted("alice", "thesis", pids=32)
    for number in range(1, 40):
        model = model_of()
        containers.reconcile(model, server, [Wanted("alice", "thesis")], check=False)
        failed = call_fails(model, server, wanted, {fault: number})
        main = model.named(NAME)
        assert main is not None, model.calls
        assert main.live, model.calls
        done_at_last(model, server, wanted, failed=failed)


@pytest.mark.parametrize("fault", ["refuses_at", "silent_at"])
def test_a_call_that_fails_while_a_container_is_made_leaves_nothing_half_made(server, fault):
    wanted = Wanted("alice", "thesis", pids=32)
    for number in range(1, 40):
        model = model_of()
        failed = call_fails(model, server, wanted, {fault: number})
        done_at_last(model, server, wanted, failed=failed)


def call_fails(model: Model, policy: Policy, wanted: Wanted, fault: dict[str, int]) -> bool:
    """Carry a wish out under a fault; say whether that failed, as it may only when the fault happened."""
    model.again(**fault)
    failed = True
    with contextlib.suppress(LabError):
        failed = containers.reconcile(model, policy, [wanted], check=False)[0].failed
    assert not failed or max(fault.values()) <= len(model.calls)
    return failed


def done_at_last(model: Model, policy: Policy, wanted: Wanted, *, failed: bool) -> None:
    """Do again what failed, without the fault, and assert that it leads there."""
    model.again()
    if failed:
        again = containers.reconcile(model, policy, [wanted], check=False)[0]
        assert not again.failed, again.message
    reached(model, policy, wanted)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([plans.STARTED, plans.STOPPED, plans.RETIRED]), st.sampled_from([None, 32, 513])
        ),
        min_size=1,
        max_size=6,
    ),
    st.lists(st.sampled_from([None, "running", "exited", "created"]), min_size=6, max_size=6),
)
def test_a_list_fails_only_where_it_must(server, asked, there):
    """Many projects of one user at once: no more containers than the limit, and no failure hides another."""
    projects = [f"p{number}" for number in range(6)]
    model = model_of(*projects)
    user = server.user("alice")
    for project, state in zip(projects, there[:3]):
        if state is not None:
            labels = specs.labels(specs.decide(server, user, project))
            model.add(names.container_name(project, UID), state, CURRENT, labels)
    wanted = [
        Wanted("alice", project, state=state, pids=pids) for project, (state, pids) in zip(projects, asked)
    ]
    promise = containers.reconcile(model, server, wanted, check=True)
    deed = containers.reconcile(model, server, wanted, check=False)
    assert [told(one) for one in deed] == [told(one) for one in promise]
    assert len(held(model)) <= user.limits.containers
    for one, result in zip(wanted, deed):
        assert result.failed or one.pids != 513
        row = model.named(names.container_name(one.project, UID))
        if not result.failed:
            assert (row is not None and row.live) == (one.state == plans.STARTED)
    again = containers.reconcile(model, server, wanted, check=True)
    assert not any(result.changed for result in again if not result.failed)
