# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Sizes: ``10g``, ``512MiB`` or a number of bytes, always in binary units (1k = 1024 bytes)."""

from __future__ import annotations

import re

from .errors import InvalidInput

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_SIZE = re.compile(r"([0-9]{1,19})(?:\.([0-9]{1,6}))?\s*([kmgtp]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_MAXIMUM = 1 << 62


def parse_size(value: object, where: str = "size") -> int:
    """Return the number of bytes that ``value`` means: an int, or text such as ``1.5g``.

    Raises InvalidInput for anything else, for a negative size and for one of 4 EiB or more.
    """
    number = -1
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match:
            whole, fraction, unit = match.group(1), match.group(2) or "", match.group(3).lower()
            factor = _UNITS[unit]
            number = int(whole) * factor
            if fraction:
                number += int(fraction) * factor // 10 ** len(fraction)
    if not 0 <= number < _MAXIMUM:
        raise InvalidInput(
            f"{where}: {str(value)[:40]!r} is not a size.",
            "Write bytes, or a number with k, m, g or t, such as '10g'.",
        )
    return number


def format_size(number: int) -> str:
    """Return ``number`` bytes for people, with at most one decimal: ``512M``, ``1.5G``, ``0``."""
    size, units = float(number), iter("KMGTP")
    unit = ""
    # 1023.95K would be shown as 1024K.
    while abs(size) >= 1023.95 and (unit or abs(size) >= 1024) and unit != "P":
        size, unit = size / 1024, next(units)
    return f"{size:.1f}".rstrip("0").rstrip(".") + unit
