"""Retired containers: their names, what counts as lost, and what the clean-up makes of the clock."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import retired, state
from ansible_collections.lab.server.plugins.module_utils._core import spec as specs
from ansible_collections.lab.server.plugins.module_utils._core.engine import (
    ADDED,
    DELETED,
    MODIFIED,
    _changes,
)
from ansible_collections.lab.server.plugins.module_utils._core.errors import (
    EngineError,
    InvalidInput,
    Refused,
)
from ansible_collections.lab.server.plugins.module_utils._core.plan import Actual
from ansible_collections.lab.server.plugins.module_utils._core.policy import from_inventory
from ansible_collections.lab.server.plugins.module_utils._core.spec import ContainerSpec
from hypothesis import given
from hypothesis import strategies as st

DAY = 86400.0
SPEC = ContainerSpec(
    project="thesis",
    user="alice",
    uid=2001,
    gid=2001,
    groups=(),
    workspace="/w",
    data_root="/srv/data",
    shares=("/srv/data/vision",),
    cpus=1.0,
    memory=1 << 30,
    pids=64,
    shm=1 << 20,
    environment=(),
)
ACTUAL = Actual("i", SPEC.name, "exited", "image", True, SPEC.digest(), SPEC)


def listed(name: str, **more: Any) -> dict[str, Any]:
    """Return a container as Docker lists it, with the labels of ``SPEC``."""
    return {"Id": name, "Names": [f"/{name}"], "State": "exited", "Labels": specs.labels(SPEC), **more}


@pytest.mark.parametrize(
    "name",
    [
        "thesis._.2001",
        "thesis._.2001.retired-",
        "thesis._.2001.retired-1 ",
        "thesis._.2001.retired-1.retired-2",
        "thesis.retired-1",
        ".retired-1",
        "thesis._.2001.retired-1234567890123",
    ],
)
def test_what_is_no_name_of_a_retired_one(name: str) -> None:
    with pytest.raises(InvalidInput):
        retired.parse_name(name)


def test_the_newest_is_first_and_foreign_ones_are_none() -> None:
    found = retired.among(
        [
            listed("thesis._.2001.retired-10"),
            listed("thesis._.2001.retired-30"),
            listed("thesis._.2001.retired-9"),
            # The labels say another user's, or nothing at all.
            listed("thesis._.2002.retired-40"),
            listed("thesis._.2001.retired-50", Labels={}),
            listed("thesis._.2001.retired-60", Labels={**specs.labels(SPEC), specs.LABEL_PROJECT: "x"}),
            listed("thesis._.2001"),
        ]
    )
    assert [one.retired for one in found] == [30, 10, 9]
    assert {(one.container, one.uid, one.project) for one in found} == {("thesis._.2001", 2001, "thesis")}
    assert retired.among([listed("thesis._.2001.retired-1")], uid=2002) == []
    assert retired.among([listed("thesis._.2001.retired-1")], container="other._.2001") == []


class Names:
    """As much of an engine as naming needs."""

    def __init__(self, *names: str) -> None:
        self.names = {name: name for name in names}

    def containers(self) -> list[dict[str, Any]]:
        return [{**listed(name), "Id": key} for key, name in self.names.items()]

    def rename(self, container: str, name: str) -> None:
        if name in self.names.values():
            raise Refused("The name is taken.")
        self.names[container] = name

    def newest_first(self) -> list[str]:
        return [one.actual.id for one in retired.among(self.containers(), container=SPEC.name)]


def test_of_those_of_one_second_the_newest_is_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retired.time, "time", lambda: 1000.7)
    engine: Any = Names(f"{SPEC.name}.retired-990", "other._.2001.retired-1030")
    for number in range(5):
        retired._put_aside(engine, replace(ACTUAL, id=f"new-{number}"))
        if number >= 2:
            # The bounds free a name that is earlier than those of the newest.
            del engine.names[f"new-{number - 2}"]
    assert engine.newest_first()[:2] == ["new-4", "new-3"]


def test_a_name_of_a_clock_that_was_ahead_moves_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retired.time, "time", lambda: 1000.7)
    engine: Any = Names(f"{SPEC.name}.retired-99999999")
    assert retired._put_aside(engine, ACTUAL) == 1000
    # One that is in the way is stepped over.
    engine = Names(*(f"{SPEC.name}.retired-{seconds}" for seconds in (1000, 1060)))
    assert retired._put_aside(engine, ACTUAL) == 1001


class Docker:
    """As much of an engine as the measuring needs."""

    def __init__(
        self, changes: list[tuple[str, int]], complete: bool = True, size: int = 42, volumes: Any = ()
    ) -> None:
        self._volumes = volumes
        self._changes, self._complete = changes, complete
        self._size = size

    def changes(self, _container: str) -> tuple[list[tuple[str, int]], bool]:
        return self._changes, self._complete

    def inspect(self, _container: str) -> dict[str, Any]:
        volumes = [{"Type": "volume", "Destination": path} for path in self._volumes]
        return {"Mounts": [{"Type": "bind", "Destination": "/workspace"}, *volumes]}

    def sizes(self, containers: list[str]) -> dict[str, int]:
        return dict.fromkeys(containers, self._size)


# What a container shows in which nobody did anything (seen with Docker 20.10).
OURS = [
    ("/etc", MODIFIED),
    ("/etc/passwd", MODIFIED),
    ("/etc/group", MODIFIED),
    ("/home", MODIFIED),
    ("/home/.workspaces", ADDED),
    ("/home/.workspaces/alice", ADDED),
    ("/home/alice", ADDED),
    ("/home/alice/.bashrc", ADDED),
    ("/home/alice/.local", ADDED),
    ("/home/alice/.local/bin", ADDED),
    ("/home/alice/.local/bin/image-install", ADDED),
    ("/home/alice/.local/bin/workspace", ADDED),
    ("/home/alice/.profile", ADDED),
    ("/home/alice/workspace", ADDED),
    ("/run", ADDED),
    ("/sbin", ADDED),
    ("/sbin/docker-init", ADDED),
    ("/srv", ADDED),
    ("/srv/data", ADDED),
    ("/srv/data/vision", ADDED),
    ("/workspace", ADDED),
]


def measure(changes: list[tuple[str, int]], **more: Any) -> dict[str, Any]:
    return retired.loss(Docker(OURS + changes, **more), ACTUAL)  # type: ignore[arg-type]  # a stand-in


def test_what_is_ours_is_not_lost() -> None:
    assert measure([]) == {
        "packages": [],
        "files": 0,
        "bytes": 42,
        "paths": [],
        "complete": True,
        "volumes": [],
    }
    # The mount point of a VOLUME is none of the user's files either.
    assert measure([("/cache", ADDED)], volumes=["/cache"])["files"] == 0


def test_packages_and_files_are_told() -> None:
    site = "/opt/venv/lib/python3.11/site-packages"
    lost = measure(
        [
            ("/tmp", MODIFIED),
            ("/tmp/x\x1b[2J\n", ADDED),
            ("/usr/bin/gone", DELETED),
            (site, MODIFIED),
            (f"{site}/numpy", ADDED),
            (f"{site}/numpy/a.py", ADDED),
            (f"{site}/numpy-1.26.0.dist-info", ADDED),
            (f"{site}/numpy-1.26.0.dist-info/METADATA", ADDED),
            (f"{site}/Old-1.0.dist-info", MODIFIED),
            (f"{site}/Old-1.0.dist-info/RECORD", MODIFIED),
            (f"{site}/a b-1.dist-info", ADDED),
        ]
    )
    assert lost["packages"] == ["numpy 1.26.0"]
    assert lost["files"] == 5
    # What was written by hand first, and nothing that a terminal would obey.
    assert lost["paths"][0] == "/tmp/x\\x1b[2J\\n"


def test_a_volume_is_not_kept_since_nobody_knows_its_size() -> None:
    lab = from_inventory({"lab_groups": []})[0]
    for volumes, kept in (([], True), (["/cache"], False)):
        engine: Any = Docker([*OURS, ("/tmp/x", ADDED)], volumes=volumes)
        facts = retired.promised(engine, lab, ACTUAL)
        assert (facts["undo_until"] is not None) == kept
        assert ("/cache" in facts["not_kept"]) != kept
        # Nor where Docker cannot count the rest.
        engine.changes = engine.sizes = fail
        assert ("/cache" in retired.promised(engine, lab, ACTUAL)["not_kept"]) != kept


def fail(*_given: object) -> Any:
    """Stand for a call that Docker does not answer in time."""
    raise EngineError("No answer.")


@given(st.lists(st.tuples(st.text(), st.sampled_from([MODIFIED, ADDED, DELETED]))))
def test_any_names_can_be_told(changes: list[tuple[str, int]]) -> None:
    lost = measure(changes)
    assert all(path.isprintable() for path in lost["paths"])
    assert len(lost["paths"]) <= 20


@pytest.mark.parametrize(
    ("changes", "more", "untouched"),
    [
        ([], {}, True),
        ([("/home/alice/.bash_history", ADDED)], {}, False),
        ([("/tmp/x", ADDED)], {}, False),
        ([], {"complete": False}, False),
        # A line more in a file that was ours.
        ([], {"size": 59}, False),
    ],
)
def test_only_what_nobody_touched_is_given_up(
    changes: Any, more: Any, untouched: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "STATE_DIRECTORY", str(tmp_path))
    engine: Any = Docker(OURS + changes, **more)
    assert not retired._untouched(ACTUAL, retired.loss(engine, ACTUAL))
    state.mark_furnished(ACTUAL.name, ACTUAL.id, 42)
    assert retired._untouched(ACTUAL, retired.loss(engine, ACTUAL)) == untouched
    assert not retired._untouched(replace(ACTUAL, id="another"), retired.loss(engine, ACTUAL))


@given(st.lists(st.tuples(st.text(), st.integers(0, 2))), st.integers(0, 400))
def test_an_answer_that_is_cut_gives_its_whole_items(items: list[tuple[str, int]], cut: int) -> None:
    import json

    text = json.dumps([{"Path": path, "Kind": kind} for path, kind in items])
    assert _changes(text) == items
    found = _changes(text[:cut])
    assert found == items[: len(found)]
    assert _changes("null") == []


# ---- the clock -------------------------------------------------------------------------------------------


def ages(times: list[float], present: str = "a") -> float:
    """Return how old the clean-ups at these times take the container to be, in seconds."""
    record: dict[str, Any] = {"last": 0.0, "clock": 0.0, "seen": {}}
    for now in times:
        record = retired._aged(record, [present], now)
    return float(record["clock"] - record["seen"][present])


def test_days_that_pass_count() -> None:
    assert ages([1e9 + number * DAY for number in range(8)]) == 7 * DAY


def test_a_clock_that_jumps_makes_nothing_old() -> None:
    assert ages([1e9, 1e9 + 365 * DAY, 1e9, 1e9 + 1]) <= 2 * DAY + 1
    assert ages([1e9, 5.0, 1e9]) <= 2 * DAY


def test_a_check_tells_what_has_no_room_any_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Docker:
        """Three kept containers of 4, 4 and 4 GiB, of which the oldest has had its time."""

        there: ClassVar[list[str]] = [f"{SPEC.name}.retired-{second}" for second in (10, 20, 30)]

        def containers(self) -> list[dict[str, Any]]:
            return [listed(name) for name in self.there]

        def sizes(self, ids: list[str]) -> dict[str, int]:
            return dict.fromkeys(ids, 4 << 30)

        def remove(self, identifier: str) -> None:
            self.there.remove(identifier)

    monkeypatch.setattr(state, "STATE_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(retired.locks, "RUN_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setattr(retired.events, "record", lambda *_words: None)
    engine: Any = Docker()
    names = list(engine.there)
    policy, _keys = from_inventory({"lab_retire_size": "5g", "lab_groups": [], "lab_users": []})
    monkeypatch.setattr(
        retired, "_aged", lambda *_all: {"clock": 8 * DAY, "seen": {names[0]: 0.0}, "wall": 0.0}
    )
    would = [one.actual.name for one in retired.clean_up(engine, policy, 0.0, check=True)]
    assert engine.there == names
    did = [one.actual.name for one in retired.clean_up(engine, policy, 0.0)]
    assert would == did == [names[0], names[1]] and engine.there == [names[2]]


def test_who_is_retired_again_is_kept_as_long_as_was_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Docker:
        """One container, which keeps its id under each name, also when it is brought back."""

        name = ""

        def containers(self) -> list[dict[str, Any]]:
            return [listed(self.name, Id="i")] if self.name else []

        def sizes(self, ids: list[str]) -> dict[str, int]:
            return dict.fromkeys(ids, 1)

        def remove(self, _identifier: str) -> None:
            self.name = ""

    monkeypatch.setattr(state, "STATE_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(retired.locks, "RUN_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setattr(retired.events, "record", lambda *_words: None)
    docker = Docker()
    engine: Any = docker
    policy, _keys = from_inventory({"lab_retire_keep": 7, "lab_groups": [], "lab_users": []})
    begin = 1_700_000_000
    # What an older version wrote knows the container by its id.
    state.write_record("retired.json", f'{{"last": {begin}, "clock": {9 * DAY}, "seen": {{"i": 0.0}}}}')
    docker.name = f"{SPEC.name}.retired-{begin}"
    for days in range(6):
        assert retired.clean_up(engine, policy, begin + days * DAY) == []
    # Undone and retired again on the sixth day; no clean-up ran between.
    again = begin + int(5.5 * DAY)
    docker.name = f"{SPEC.name}.retired-{again}"
    days = 6
    while docker.name:
        retired.clean_up(engine, policy, begin + days * DAY)
        days += 1
    assert retired.until(policy, again) <= begin + (days - 1) * DAY <= retired.until(policy, again) + 2 * DAY


def test_who_is_gone_is_forgotten() -> None:
    record = retired._aged({"last": 1.0, "clock": 5.0, "seen": {"a": 1.0, "b": 2.0}}, ["b"], 2.0)
    assert record["seen"] == {"b": 2.0}


@given(st.lists(st.floats(0, 4e9), max_size=20))
def test_age_is_never_more_than_two_days_a_clean_up(times: list[float]) -> None:
    if times:
        assert 0 <= ages(times) <= 2 * DAY * (len(times) - 1)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"last": 1, "clock": 2, "seen": []}'])
def test_a_damaged_record_makes_all_young_and_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(state, "STATE_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(retired.journal, "record", lambda *_words, **values: said.append(values))
    assert retired._read()["seen"] == {} and not said
    state.write_record(retired._RECORD, text)
    assert retired._read() == {"last": 0.0, "clock": 0.0, "seen": {}}
    assert [one["outcome"] for one in said] == ["damaged"] and "retired.json" in said[0]["detail"]
