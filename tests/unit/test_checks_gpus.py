"""The check of GPUs: what is as leased passes, and each single thing that is not is named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    checks_gpus,
    gpufiles,
    gpuleases,
    gpus,
    verify,
)
from ansible_collections.lab.server.plugins.module_utils._core import spec as specs
from ansible_collections.lab.server.plugins.module_utils._core.errors import NotFound
from ansible_collections.lab.server.plugins.module_utils._core.inspection import Outcome, Server
from ansible_collections.lab.server.plugins.module_utils._core.leases import Given, Lease
from ansible_collections.lab.server.plugins.module_utils._core.plan import Actual
from ansible_collections.lab.server.plugins.module_utils._core.spec import EngineFacts, ImageFacts, OwnWishes
from test_lease_model import policy, uuid

LAB = policy()
Change = Callable[[dict[str, Any]], None]


class Engine:
    """An engine that describes these containers, and knows CDI unless it is said to have it off."""

    def __init__(self, told: dict[str, Any], *, cdi: bool = True) -> None:
        self.told, self.facts = told, EngineFacts("systemd", 8, cdi)

    def inspect(self, container: str) -> dict[str, Any]:
        if container not in self.told:
            raise NotFound("It is gone.")
        return dict(self.told[container])

    def info(self) -> dict[str, Any]:
        return {"ServerVersion": "26.1.5+dfsg1"}


def lease(name: str, *numbers: int, shared: bool = False) -> Lease:
    given = tuple(Given(uuid(number), uuid(number)) for number in numbers)
    return Lease(name, 2001, given, shared, Fraction(len(numbers)))


def made(
    project: str, *numbers: int, cdi: bool = True, shared: bool = False
) -> tuple[Actual, dict[str, Any]]:
    """Return a container of user0 with these GPUs, as listed and as described."""
    spec = specs.decide(LAB, LAB.users[0], project, own=OwnWishes(gpus=str(len(numbers)) if numbers else ""))
    own = lease(spec.name, *numbers, shared=shared) if numbers else None
    config = specs.create_config(spec, ImageFacts("x", "/bin"), EngineFacts("systemd", 8, cdi), own, [4195])
    told = {"Config": config, "HostConfig": config.pop("HostConfig"), "State": {"Running": True}}
    label = config["Labels"][specs.LABEL_GPUS]
    return Actual(project, spec.name, "running", "x", True, spec.digest(), spec, 1, label), told


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Return a function that makes the check of a server with these containers."""
    monkeypatch.setattr(gpufiles, "gids", lambda: (4195,))
    monkeypatch.setattr(gpus, "on_bus", lambda: 0)

    def run(
        *there: tuple[Actual, dict[str, Any]],
        records: dict[str, Lease] | None = None,
        cdi: bool = True,
        gone: bool = False,
        lab: Any = LAB,
        strangers: tuple[dict[str, Any], ...] = (),
    ) -> Outcome:
        monkeypatch.setattr(gpuleases, "recorded", lambda: records or {})
        server = Server(lab)
        told = {} if gone else {actual.id: told for actual, told in there}
        others = {f"other{n}": one for n, one in enumerate(strangers)}
        server.__dict__.update(
            engine=Engine({**told, **others}, cdi=cdi),
            listed=[{"Id": one, "Names": [f"/{one}"], "State": "running"} for one in (*told, *others)],
            containers=[actual for actual, _told in there],
            inspected={actual.name: told for actual, told in there},
        )
        (found,) = verify.chosen(["gpus"])
        return verify._outcome(server, found)

    return run


@pytest.mark.parametrize("cdi", [True, False])
def test_what_we_make_passes(judge: Callable[..., Outcome], cdi: bool) -> None:
    there = [made("a", 0, 1, cdi=cdi), made("b", 2, cdi=cdi), made("c", cdi=cdi)]
    records = {"a._.2001": lease("a._.2001", 1, 0)}
    outcome = judge(*there, records=records)
    assert outcome == Outcome("pass", "3 containers run, 2 of them with 3 GPUs: those of their leases", "")


def test_where_nobody_may_have_gpus_there_is_nothing_to_judge(judge: Callable[..., Outcome]) -> None:
    users = tuple(replace(one, limits=replace(one.limits, gpus=0)) for one in LAB.users)
    none = replace(LAB, users=users)
    assert judge(made("a"), lab=none).verdict == "skip"
    # One that has some all the same is judged.
    assert judge(made("a", 0), lab=none).verdict == "pass"
    assert judge(made("a")).verdict == "pass"


def host(**changes: Any) -> Change:
    return lambda told: told["HostConfig"].update(changes)


def variable(text: str) -> Change:
    return lambda told: told["Config"].update(Env=[*told["Config"]["Env"], f"NVIDIA_VISIBLE_DEVICES={text}"])


def asked(*requests: dict[str, Any]) -> Change:
    return host(DeviceRequests=list(requests))


def cdi(*numbers: int) -> dict[str, Any]:
    return {"Driver": "cdi", "DeviceIDs": [f"nvidia.com/gpu={uuid(number)}" for number in numbers]}


SABOTAGES: list[tuple[Change, str]] = [
    (asked(cdi(0, 1)), f"it has {uuid(1)} without a lease"),
    (asked(cdi(0), {"Driver": "nvidia", "DeviceIDs": [uuid(1)]}), f"it has {uuid(1)} without a lease"),
    (host(DeviceRequests=None, GroupAdd=["4195"]), f"it lacks {uuid(0)} of its lease"),
    (
        asked(cdi(0), {"Driver": "", "Count": -1, "DeviceIDs": None, "Capabilities": [["gpu"]]}),
        "beside its lease: all",
    ),
    (asked(cdi(0), {"Driver": "", "Count": 2, "DeviceIDs": None}), "beside its lease: 2"),
    (asked(cdi(0), {"Driver": "", "Count": 0, "DeviceIDs": ["1"]}), "beside its lease: 1"),
    (
        host(Devices=[{"PathOnHost": "/dev/nvidia1"}, {"PathOnHost": "/dev/fuse"}]),
        "it has /dev/nvidia1 beside its lease",
    ),
    (variable("all"), "asks NVIDIA's runtime for all"),
    (variable(""), "asks NVIDIA's runtime for what it likes"),
    (host(GroupAdd=[]), "it cannot open its GPUs without the group 4195"),
]


@pytest.mark.parametrize(("change", "words"), SABOTAGES)
def test_one_thing_that_is_wrong_is_named_and_nothing_else(
    judge: Callable[..., Outcome], change: Change, words: str
) -> None:
    actual, told = made("a", 0)
    assert judge((actual, told)).verdict == "pass"
    changed = copy.deepcopy(told)
    change(changed)
    outcome = judge((actual, changed))
    assert outcome.verdict == "fail" and outcome.fix
    assert outcome.detail.startswith("a._.2001: ") and words in outcome.detail
    assert "; " not in outcome.detail
    # It was retired while it was looked at.
    assert judge((actual, changed), gone=True).verdict == "pass"


def test_another_kind_of_device_is_two_things(judge: Callable[..., Outcome]) -> None:
    actual, told = made("a", 0)
    told["HostConfig"]["DeviceRequests"] = [cdi(0), {"Driver": "cdi", "DeviceIDs": ["vendor.com/net=all"]}]
    detail = judge((actual, told)).detail
    assert "vendor.com/net=all without a lease" in detail and "beside its lease: vendor.com/net=all" in detail


def test_a_label_that_holds_no_lease_makes_none(judge: Callable[..., Outcome]) -> None:
    actual, told = made("a", 0)
    assert f"it has {uuid(0)} without a lease" in judge((replace(actual, lease="all"), told)).detail


def test_the_record_of_root_counts_and_one_that_is_lost_does_not(judge: Callable[..., Outcome]) -> None:
    there = made("a", 0)
    assert judge(there, records={}).verdict == "pass"
    outcome = judge(there, records={"a._.2001": lease("a._.2001", 3)})
    assert outcome.detail == f"a._.2001: the record of the server gives it {uuid(3)}"


def test_a_gpu_of_two_is_named(judge: Callable[..., Outcome]) -> None:
    outcome = judge(made("a", 0), made("b", 0))
    assert outcome.detail == f"{uuid(0)} is given to a._.2001, and {uuid(0)} to b._.2001"
    assert judge(made("a", 0, shared=True), made("b", 0, shared=True)).verdict == "pass"
    assert judge(made("a", 0, shared=True), made("b", 0)).verdict == "fail"


def test_a_gpu_and_a_part_of_it_are_one(judge: Callable[..., Outcome]) -> None:
    part = Lease("b", 2001, (Given(uuid(17, "MIG"), uuid(0)),))
    other = Lease("c", 2001, (Given(uuid(18, "MIG"), uuid(0)),))
    whole = lease("a", 0)
    assert checks_gpus.twice([("b", part), ("c", other)]) == []
    assert len(checks_gpus.twice([("a", whole), ("b", part)])) == 1
    assert len(checks_gpus.twice([("b", part), ("a", whole)])) == 1


def test_one_that_is_nobodys_is_named(judge: Callable[..., Outcome]) -> None:
    plain, greedy = {"HostConfig": {}}, {"HostConfig": {"DeviceRequests": [{"Driver": "", "Count": -1}]}}
    assert judge(made("a", 0), strangers=(plain,)).verdict == "pass"
    outcome = judge(made("a", 0), strangers=(plain, greedy))
    assert outcome.verdict == "fail" and outcome.detail.startswith("other1 is nobody's project")


def test_an_engine_that_has_cdi_off_is_warned_of(
    judge: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = judge(made("a", 0, cdi=False), cdi=False)
    assert outcome.verdict == "warn" and "features.cdi" in outcome.detail
    # Without GPUs it is nothing to be warned of.
    assert judge(made("a"), cdi=False).verdict == "pass"
    monkeypatch.setattr(gpus, "on_bus", lambda: 2)
    assert judge(made("a"), cdi=False).verdict == "warn"
    # An older one does not know it.
    monkeypatch.setattr(Engine, "info", lambda _engine: {"ServerVersion": "20.10.24+dfsg1"})
    assert judge(made("a", 0, cdi=False), cdi=False).verdict == "pass"
