# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Free space is looked at before something is begun, and while a build runs, so that no disk gets full."""

from __future__ import annotations

import os

from .capacity import Space
from .diskrules import DiskRules
from .errors import Refused
from .policy import Policy
from .sizes import format_size


def look(path: str) -> Space:
    """Return the space of the file system that holds a path; nothing where that is not there."""
    try:
        numbers = os.statvfs(path)
    except OSError:
        return Space()
    unit = numbers.f_frsize
    used = numbers.f_blocks - numbers.f_bfree
    return Space(unit * numbers.f_blocks, unit * used, unit * numbers.f_bavail)


def refusal(rules: DiskRules, space: Space) -> str:
    """Return why nothing is begun on a disk that is as full as this, without a full stop, or ''."""
    if space.percent < rules.refuse:
        return ""
    return (
        f"Docker's disk is {space.percent} % full ({format_size(space.available)} left), and from "
        f"{rules.refuse} % on nothing new is begun"
    )


def warning(rules: DiskRules, space: Space) -> str:
    """Return a sentence for a disk that fills, or ''."""
    if not rules.warn <= space.percent < rules.refuse:
        return ""
    return (
        f"Docker's disk is {space.percent} % full; from {rules.refuse} % on no build or launch is begun. "
        f"Older images can go: image remove NAME. Ask {rules.ask} for more."
    )


def advice(rules: DiskRules) -> str:
    """Return what to do about a disk that is full."""
    room = f"Ask {rules.ask} to make room: lab status tells them who has most."
    return f"Older images can go: image remove NAME. {room}"


def check(policy: Policy) -> list[str]:
    """Raise Refused where Docker's disk is too full to begin something; return what is to be told if not."""
    rules, space = policy.disks, look(policy.docker_root)
    why = refusal(rules, space)
    if why:
        raise Refused(f"{why}.", advice(rules))
    told = warning(rules, space)
    return [told] if told else []


def watch(policy: Policy) -> str:
    """Return why a build that runs has to end, without a full stop, or ''."""
    rules, space = policy.disks, look(policy.docker_root)
    if space.percent < rules.refuse:
        return ""
    return f"it was stopped, as Docker's disk was {space.percent} % full. {advice(rules)}"
