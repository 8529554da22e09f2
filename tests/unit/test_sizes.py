"""Sizes are bytes, written in binary units."""

from __future__ import annotations

import pytest
from ansible_collections.lab.server.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.lab.server.plugins.module_utils._core.sizes import format_size, parse_size
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(0, (1 << 62) - 1))
def test_bytes_are_read_as_they_are(number: int) -> None:
    assert parse_size(number) == number == parse_size(str(number))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1k", 1024),
        ("10G", 10 << 30),
        ("512MiB", 512 << 20),
        ("1.5g", 3 << 29),
        ("2 tb", 2 << 40),
        ("0", 0),
        ("7b", 7),
    ],
)
def test_units_are_binary(text: str, number: int) -> None:
    assert parse_size(text) == number


@pytest.mark.parametrize(
    "value",
    [
        "",
        "lots",
        "-1",
        -1,
        "1e9",
        "1,5g",
        "g",
        "10gg",
        None,
        True,
        1.5,
        "1_000",
        "٣g",
        1 << 62,
        "9999999p",
        [],
    ],
)
def test_what_has_no_meaning_is_rejected_and_named(value: object) -> None:
    with pytest.raises(InvalidInput, match=r"lab_groups\[0\]\.quota\.hard: .* is not a size"):
        parse_size(value, "lab_groups[0].quota.hard")


@given(st.integers(0, 1 << 55))
def test_what_is_shown_is_short_and_close(number: int) -> None:
    shown = format_size(number)
    assert len(shown) <= 7
    assert abs(parse_size(shown) - number) <= max(number * 0.06, 0)


@pytest.mark.parametrize(
    ("number", "shown"), [(0, "0"), (1023, "1023"), (1024, "1K"), (3 << 29, "1.5G"), (1 << 50, "1P")]
)
def test_a_size_is_shown_for_people(number: int, shown: str) -> None:
    assert format_size(number) == shown
