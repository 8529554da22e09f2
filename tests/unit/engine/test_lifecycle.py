# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How long containers may run: the notice stands for its whole time, and no clock ends anything."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import lifecycle
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError, Refused
from ansible_collections.lab.server.plugins.module_utils._core.lifecycle import (
    DOWN,
    IDLE,
    NOTHING,
    NOTICE,
    RETIRE,
    RUN,
    STOP,
    Counted,
    Look,
    Record,
    count,
    decide,
    parse,
)
from ansible_collections.lab.server.plugins.module_utils._core.liferules import HOUR, LifeRules
from ansible_collections.lab.server.plugins.module_utils._core.policy import Limits
from hypothesis import given
from hypothesis import strategies as st

NONE = Limits(1, 1.0, 1 << 30, 100, 1 << 20, 0)
RULES = LifeRules(notice_hours=2, retire_hours=48, extend_hours=10, extend_times=2)
BUSY = 10**9 * HOUR


def _record_with(**numbers: float) -> str:
    return Record("b", 1.0, (("a._.1", Counted("1", **numbers)),)).render()  # type: ignore[arg-type]  # fields of several types


def at(hours: float, limits: Limits, now: Counted, *, live: bool = True, cpu: int = 0):
    """Look at a container after so many hours more; return the decision, and what is counted then."""
    look = Look("a._.1", "1", live, now.cpu + cpu if live else 0)
    return decide(count(now, look, hours * HOUR), limits, RULES, live=live)


def test_one_that_runs_is_told_and_then_stopped() -> None:
    limits = replace(NONE, run_hours=10)
    decision, now = at(5, limits, Counted("1"))
    assert (decision.do, decision.about, decision.left) == (NOTHING, RUN, 5 * HOUR)
    decision, now = at(3.5, limits, now)
    # What is left is the whole time of the notice, though the limit is nearer.
    assert (decision.do, decision.left) == (NOTICE, 2 * HOUR)
    decision, now = at(1.75, limits, now)
    assert (decision.do, decision.left) == (NOTICE, HOUR / 4)
    decision, now = at(1, limits, now)
    assert (decision.do, decision.left) == (STOP, 0.0)


def test_a_late_look_gives_the_whole_notice_all_the_same() -> None:
    decision, now = at(5, replace(NONE, run_hours=10), Counted("1"))
    decision, now = at(1000, replace(NONE, run_hours=10), now)
    assert (decision.do, decision.left) == (NOTICE, 2 * HOUR)
    assert at(2, replace(NONE, run_hours=10), now)[0].do == STOP


def test_one_that_does_nothing_is_told_until_it_does_something() -> None:
    limits = replace(NONE, idle_hours=4)
    decision, now = at(3, limits, Counted("1"))
    assert (decision.do, decision.about) == (NOTICE, IDLE)
    decision, now = at(0.5, limits, now, cpu=BUSY)
    assert (decision.do, decision.left, now.noticed) == (NOTHING, 4 * HOUR, None)
    for _look in range(5):
        decision, now = at(1, limits, now)
    assert decision.do == STOP
    # Of a long time nobody looked it is not known that nothing was done.
    assert at(7, limits, Counted("1"))[0].do == NOTHING


def test_somebody_who_types_is_not_idle_and_a_terminal_left_open_is() -> None:
    limits = replace(NONE, idle_hours=4)

    def look(now: Counted, typed: int):
        return decide(count(now, Look("a._.1", "1", True, typed=typed), 3 * HOUR), limits, RULES, live=True)

    _decision, now = look(Counted("1"), 7)
    assert (now.idle, now.typed) == (0, 7)
    _decision, now = look(now, 7)
    assert now.idle == 3 * HOUR and now.about == IDLE
    # Whatever the clock says: it is only another number.
    decision, now = look(now, 5)
    assert (decision.do, now.idle, now.noticed) == (NOTHING, 0, None)
    assert look(now, 0)[1].idle == 3 * HOUR


def test_why_it_ends_is_told_in_words() -> None:
    limits = replace(NONE, run_hours=1, idle_hours=4)
    assert lifecycle.words(RUN, limits, RULES) == "it ran for 1 hour, which is the limit"
    assert lifecycle.words(IDLE, limits, RULES) == "it did nothing for 4 hours, which is the limit"
    assert lifecycle.words(DOWN, limits, RULES) == "it was stopped for 48 hours, which is the limit"
    assert lifecycle.words("", limits, RULES) == ""


def test_a_record_of_before_there_were_terminals_in_it_still_counts() -> None:
    text = Record("b", 1.0, (("a._.1", Counted("1", ran=5.0)),)).render().replace(', "typed": 0', "")
    assert "typed" not in text and dict(parse(text, "x").counted)["a._.1"].ran == 5.0


def test_one_that_is_down_is_told_and_retired_and_a_start_begins_anew() -> None:
    decision, now = at(47, NONE, Counted("1", ran=9 * HOUR), live=False)
    assert (decision.do, decision.about, now.ran) == (NOTICE, DOWN, 0)
    assert at(2, NONE, now, live=False)[0].do == RETIRE
    decision, now = at(1, NONE, now)
    assert (decision.do, now.down, now.noticed) == (NOTHING, 0, None)
    assert decide(replace(now, down=1e9), NONE, LifeRules(), live=False)[0].do == NOTHING


def test_a_stop_is_put_off_so_often_and_so_far() -> None:
    limits = replace(NONE, run_hours=10)
    _decision, now = at(9, limits, Counted("1"))
    assert now.noticed == 0
    now = lifecycle.extend(now, limits, RULES, 5)
    assert decide(now, limits, RULES, live=True)[0].left == 6 * HOUR and now.noticed is None
    with pytest.raises(Refused, match="11 hours are more"):
        lifecycle.extend(now, limits, RULES, 11)
    now = lifecycle.extend(now, limits, RULES)
    assert now.granted == 15 * HOUR
    with pytest.raises(Refused, match="2 times already"):
        lifecycle.extend(now, limits, RULES)
    with pytest.raises(Refused, match="not stopped for its time"):
        lifecycle.extend(Counted("1"), NONE, RULES)


steps = st.lists(
    st.tuples(
        st.floats(0, 100),
        st.booleans(),
        st.integers(0, BUSY),
        st.sampled_from(["run", "boot", "jump", "extend"]),
    ),
    max_size=30,
)


@given(steps, st.integers(0, 30), st.integers(0, 30))
def test_nothing_ends_without_its_whole_notice_whatever_happens(
    taken: list[tuple[float, bool, int, str]], run_hours: int, idle_hours: int
) -> None:
    limits = replace(NONE, run_hours=run_hours, idle_hours=idle_hours)
    record, boot, up, told = Record("b0", 0.0), 0, 0.0, 0.0
    noticed: str | None = None
    for hours, live, cpu, what in taken:
        if what == "boot":
            boot, up = boot + 1, 0.0
        passed = hours * HOUR
        up += passed
        known = record.passed(f"b{boot}", up)
        assert known <= passed + 1e-6
        counted = lifecycle.after(record, [Look("a._.1", "1", live, cpu)], f"b{boot}", up)
        decision, after = decide(counted["a._.1"], limits, RULES, live=live)
        told = told + known if noticed is not None and after.about == noticed else 0.0
        if decision.do in (STOP, RETIRE):
            assert told >= RULES.notice_hours * HOUR - 1e-3
            assert decision.about == DOWN if not live else limits.run_hours or limits.idle_hours
        noticed = after.about if decision.do in (NOTICE, STOP, RETIRE) else None
        if what == "extend":
            try:
                after = lifecycle.extend(after, limits, RULES)
                noticed = None
            except Refused:
                pass
        record = Record(f"b{boot}", up, (("a._.1", after),))
        assert parse(record.render(), "x") == record


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "{}", '{"boot": "b", "up": 1, "counted": {"a": {}}}', "null"),
        *(_record_with(ran=number) for number in (float("inf"), float("nan"), -1.0)),
        *(_record_with(noticed=number) for number in (float("inf"), float("nan"), -1.0)),
    ],
)
def test_a_damaged_record_decides_nothing_and_says_how_to_repair(text: str) -> None:
    with pytest.raises(HostError, match="no container is stopped") as damaged:
        parse(text, "/x")
    assert "rm /x" in damaged.value.hint
    assert parse(None, "/x") == Record()


def test_another_container_of_the_name_is_counted_anew_and_a_boot_counts_nothing() -> None:
    old = Record("b", 100.0, (("a._.1", Counted("1", ran=5.0)), ("gone._.1", Counted("2"))))
    look = Look("a._.1", "1", True)
    assert lifecycle.after(old, [look], "b", 130.0)["a._.1"].ran == 35.0
    assert lifecycle.after(old, [look], "c", 130.0)["a._.1"].ran == 5.0
    assert lifecycle.after(old, [replace(look, container="3")], "b", 130.0) == {"a._.1": Counted("3")}
