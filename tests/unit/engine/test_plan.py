"""The plan: empty for what is as wanted, and always leading there."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import plan as plans
from ansible_collections.lab.server.plugins.module_utils._core import spec as specs
from ansible_collections.lab.server.plugins.module_utils._core.errors import InvalidInput, NotFound, Refused
from ansible_collections.lab.server.plugins.module_utils._core.plan import Actual, Plan, actual_of, plan
from ansible_collections.lab.server.plugins.module_utils._core.spec import ContainerSpec
from hypothesis import given
from hypothesis import strategies as st

SPEC = ContainerSpec(
    project="thesis",
    user="alice",
    uid=2001,
    gid=2001,
    groups=(),
    workspace="/w",
    data_root="/srv/data",
    shares=(),
    cpus=1.0,
    memory=1 << 30,
    pids=64,
    shm=1 << 20,
    environment=(),
)
OTHER = replace(SPEC, pids=65)
RUNNING = Actual("i", SPEC.name, "running", "image", True, SPEC.digest(), SPEC)

docker_states = st.sampled_from(["created", "running", "paused", "restarting", "removing", "exited", "dead"])
actuals = st.none() | st.builds(
    lambda state, image, spec: Actual("i", SPEC.name, state, image, True, spec.digest(), spec),
    docker_states,
    st.sampled_from(["image", "old"]),
    st.sampled_from([SPEC, OTHER]),
)


def applied(planned: Plan, actual: Actual | None) -> Actual | None:
    """Carry a plan out on a model of Docker."""
    for action in planned.actions:
        if action in (plans.REMOVE, plans.RETIRE):
            actual = None
        elif action == plans.RESTORE:
            assert actual is None
            actual = replace(RUNNING, state="exited")
        elif action == plans.CREATE:
            assert actual is None
            actual = replace(RUNNING, state="created")
        elif action == plans.START:
            assert actual is not None
            actual = replace(actual, state="running")
        else:
            assert actual is not None
            actual = replace(actual, state="exited")
    return actual


@given(actuals, st.sampled_from([state for state in plans.STATES if state != plans.RESTORED]))
def test_leads_there_from_anywhere(actual, state):
    reached = applied(plan(state, SPEC, "image", actual), actual)
    assert plan(state, SPEC, "image", reached) == Plan()
    if state == "started":
        assert reached is not None
        assert reached.live
        assert reached.digest == SPEC.digest()
    elif state == "stopped":
        assert reached is None or not reached.live
    else:
        assert reached is None


KEPT = replace(RUNNING, id="kept", name=SPEC.name + ".retired-1", state="exited")


def test_retired_is_kept_and_absent_is_not():
    assert plan("retired", SPEC, "image", RUNNING).actions == ("retire",)
    assert plan("absent", SPEC, "image", RUNNING).actions == ("remove",)
    assert plan("retired", SPEC, "image", RUNNING).after == {"state": "retired"}
    # Nothing can be in one that never ran.
    assert plan("retired", SPEC, "image", replace(RUNNING, state="created")).actions == ("remove",)


def test_restored_brings_the_kept_one_back():
    planned = plan("restored", SPEC, "image", None, kept=KEPT)
    assert planned.actions == ("restore", "start")
    reached = applied(planned, None)
    # Once it is back there may be an older one; what was restored is as wanted all the same.
    assert plan("restored", SPEC, "image", reached, kept=None) == Plan()
    assert plan("restored", SPEC, "image", reached, kept=KEPT, restored=True) == Plan()
    stopped = replace(RUNNING, state="exited")
    assert plan("restored", SPEC, "image", stopped, kept=None, restored=True).actions == ("start",)


def test_restored_takes_nobodys_place():
    with pytest.raises(Refused, match="container retire thesis"):
        plan("restored", SPEC, "image", RUNNING, kept=KEPT)
    with pytest.raises(NotFound, match="no retired container"):
        plan("restored", SPEC, "image", None)


def test_as_wanted_is_empty():
    assert plan("started", SPEC, "image", RUNNING) == Plan()
    assert plan("started", SPEC, None, RUNNING) == Plan()


def test_says_what_differs():
    planned = plan("started", OTHER, "newer", RUNNING)
    assert planned.actions == ("remove", "create", "start")
    assert planned.reason == "the policy changed (pids) and the image is newer"
    assert planned.before == {"state": "started", "pids": 64, "image": "image"}
    assert planned.after == {"state": "started", "pids": 65, "image": "newer"}


@pytest.mark.parametrize("state", plans.STATES)
def test_foreign_is_refused(state):
    with pytest.raises(Refused):
        plan(state, SPEC, "image", replace(RUNNING, ours=False))


def test_unknown_state():
    with pytest.raises(InvalidInput):
        plan("present", SPEC, "image", None)


def listed(name: str = SPEC.name, **labels: str) -> dict:
    return {
        "Id": "i",
        "Names": [f"/{name}"],
        "State": "running",
        "ImageID": "image",
        "Created": 1,
        "Labels": {**specs.labels(SPEC), **{key.replace("_", "."): value for key, value in labels.items()}},
    }


def test_listing_says_whose_it_is():
    assert actual_of(listed()) == replace(RUNNING, created=1)
    assert actual_of(listed(SPEC.name + ".next"), SPEC.name).ours
    for foreign in (
        listed("thesis._.2002"),
        listed("other._.2001"),
        listed("anything"),
        listed(lab_server_owner="2002"),
        listed(lab_server_project="other"),
        listed(lab_server_spec=OTHER.canonical()),
        listed(lab_server_digest=""),
        {**listed(), "Labels": None},
    ):
        assert not actual_of(foreign).ours


def test_a_spec_of_another_version_is_ours_and_differs():
    import hashlib

    text = '{"format":0}'
    digest = hashlib.sha256(text.encode()).hexdigest()
    actual = actual_of(listed(lab_server_spec=text, lab_server_digest=digest))
    assert actual.ours
    assert actual.spec is None
    assert plan("started", SPEC, "image", actual).reason == "the policy changed (version)"
