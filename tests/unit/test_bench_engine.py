"""What the benchmark says of its measurements: a promise that is broken is told, and fails the run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import bench_engine
from bench_engine import Promise, Report


@pytest.mark.parametrize(
    ("measured", "at_least", "kept"),
    [(3.0, False, True), (3.1, False, False), (3.0, True, True), (2.9, True, False)],
)
def test_a_promise_is_kept_up_to_its_bound(measured, at_least, kept):
    promise = Promise("the time", measured, 3, " ms", at_least=at_least)
    assert promise.kept == kept
    bound = "at least" if at_least else "at most"
    assert promise.row() == f"| the time | {measured:g} ms | {bound} 3 ms | {'yes' if kept else '**no**'} |"


def test_the_report_is_two_tables_of_markdown(capsys):
    report = Report()
    report.add("ten of them", bench_engine.seconds(0.0125))
    report.promises.append(Promise("memory", 35.5, 120, " MB"))
    lines = report.markdown().splitlines()
    assert lines[2] == "| ten of them | 12.5 ms |"
    assert lines[-1] == "| memory | 35.5 MB | at most 120 MB | yes |"
    assert {line.count("|") for line in lines[:3]} == {3}
    assert {line.count("|") for line in lines[4:]} == {5}
    assert "ten of them: 12.5 ms" in capsys.readouterr().err


def test_units_are_for_people():
    assert (bench_engine.seconds(0.5), bench_engine.seconds(2)) == ("500.0 ms", "2.00 s")
    assert bench_engine.size(3 << 20) == "3.0 MiB"
    assert bench_engine.numbers("10,50") == [10, 50]
