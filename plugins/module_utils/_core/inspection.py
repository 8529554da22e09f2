# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What ``lab verify`` is made of: the server, asked for each fact at most once, and what a check says.

A check asks the kernel, systemd and Docker for what is so now, and compares it with the policy. It changes
nothing, or puts back what it made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from . import accounts, mounts, names
from .accounts import Desired, Wanted
from .engine import DEFAULT_URL, Engine
from .errors import EngineError
from .mounts import Mount
from .plan import Actual, actual_of
from .policy import Policy

PASS, WARN, FAIL, SKIP = VERDICTS = ("pass", "warn", "fail", "skip")
_SHOWN = 5  # problems of one check that are told; of the others the number
PLAYBOOK = "Run the playbook lab.server.site."


@dataclass(frozen=True)
class Outcome:
    """What a check says: a verdict, what it saw, and what to do (empty where nothing is)."""

    verdict: str
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Check:
    """A promise that can be checked: its name, the promise in words, and how it is looked at.

    ``slow``: it takes seconds, and is left out of a quick run. ``docker``: without Docker it says nothing.
    """

    name: str
    promise: str
    run: Callable[[Server], Outcome]
    slow: bool = False
    docker: bool = False


def judged(problems: Sequence[str], good: str, fix: str = PLAYBOOK) -> Outcome:
    """Return FAIL with these problems, or PASS with what was seen where there are none."""
    if not problems:
        return Outcome(PASS, good)
    shown = [names.printable(problem) for problem in problems[:_SHOWN]]
    more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    return Outcome(FAIL, "; ".join([*shown, *more]), fix)


class Server:
    """A live server: its policy, and facts that are asked for when the first check needs them."""

    def __init__(self, policy: Policy, url: str = DEFAULT_URL) -> None:
        self.policy = policy
        self._url = url

    @cached_property
    def mounts(self) -> tuple[Mount, ...]:
        """What is mounted; raises HostError."""
        return mounts.read()

    @cached_property
    def accounts(self) -> accounts.Actual:
        """The accounts of the host; raises HostError."""
        return accounts.read_actual(desired(self.policy, {}))

    @cached_property
    def engine(self) -> Engine:
        """A connection to Docker Engine; raises EngineError."""
        return Engine.connect(self._url)

    @cached_property
    def docker_problem(self) -> str:
        """Why Docker does not answer, in a sentence; "" where it does."""
        try:
            self.engine.facts  # noqa: B018  # it is the question that counts
        except EngineError as error:
            return error.message
        return ""

    @cached_property
    def listed(self) -> list[dict[str, Any]]:
        """Docker's listing of all containers; raises EngineError."""
        return self.engine.containers()

    @cached_property
    def containers(self) -> list[Actual]:
        """The containers of projects, whose labels are ours, by name; raises EngineError."""
        found = [actual_of(item) for item in self.listed]
        return sorted((one for one in found if one.ours), key=lambda one: one.name)

    @cached_property
    def inspected(self) -> dict[str, dict[str, Any]]:
        """Docker's description of each of ``containers``, by name; raises EngineError."""
        return {one.name: self.engine.inspect(one.id) for one in self.containers}

    def close(self) -> None:
        """Close what was opened."""
        if "engine" in self.__dict__:
            self.engine.close()


def desired(policy: Policy, keys: dict[str, str]) -> Desired:
    """Return the accounts that the policy wants; it holds no ssh keys, so ``keys`` are those to be taken."""
    return Desired(
        lab_gid=policy.lab_gid,
        groups=tuple((group.name, group.gid) for group in policy.groups),
        users=tuple(Wanted(user, tuple(keys.get(user.name, "").splitlines())) for user in policy.users),
    )
