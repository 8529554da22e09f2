# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The acceptance suite of a live server: each promise that can be checked without harm, looked at once.

In words for people, and as JUnit XML for what collects tests.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from xml.etree import ElementTree

from . import VERSION, checks_docker, checks_gpus, checks_host
from .errors import InvalidInput, LabError
from .inspection import FAIL, SKIP, VERDICTS, WARN, Check, Outcome, Server
from .names import printable

CHECKS: tuple[Check, ...] = (*checks_host.CHECKS, *checks_docker.CHECKS, *checks_gpus.CHECKS)


@dataclass(frozen=True)
class Result:
    """What came of one check: its name, the promise, the outcome, and how long it took (seconds)."""

    check: str
    promise: str
    outcome: Outcome
    seconds: float

    def shown(self) -> dict[str, Any]:
        """Return it as plain data."""
        told = asdict(self.outcome)
        return {"check": self.check, "promise": self.promise, **told, "seconds": round(self.seconds, 3)}


def chosen(only: Sequence[str] = (), *, quick: bool = False) -> list[Check]:
    """Return the checks to be made; raise InvalidInput for a name that none of them has."""
    known = {check.name: check for check in CHECKS}
    for name in only:
        if name not in known:
            raise InvalidInput(f"There is no check {printable(name)[:40]!r}.", f"Checks: {', '.join(known)}.")
    return [check for check in CHECKS if (check.name in only if only else not (quick and check.slow))]


def run(server: Server, checks: Sequence[Check]) -> Iterator[Result]:
    """Make the checks, one after the other, and yield each result as it comes.

    One that cannot be made has failed: what nobody could look at is not known to be so.
    """
    for check in checks:
        begun = time.monotonic()
        yield Result(check.name, check.promise, _outcome(server, check), time.monotonic() - begun)


def _outcome(server: Server, check: Check) -> Outcome:
    try:
        if check.docker and server.docker_problem:
            return Outcome(SKIP, "Docker does not answer")
        return check.run(server)
    except LabError as error:
        return Outcome(FAIL, f"it could not be looked at: {error.message}", error.hint)
    except OSError as error:
        return Outcome(FAIL, f"it could not be looked at: {error.filename or check.name}: {error.strerror}")
    except Exception as error:  # noqa: BLE001  # one that breaks must not hide what the others found
        said = printable(f"{type(error).__name__}: {error}")
        return Outcome(FAIL, f"it could not be looked at: {said}")


def passed(results: Sequence[Result]) -> bool:
    """Say whether no check failed."""
    return not any(result.outcome.verdict == FAIL for result in results)


def counts(results: Sequence[Result]) -> dict[str, int]:
    """Return how many checks have each verdict."""
    return {verdict: sum(one.outcome.verdict == verdict for one in results) for verdict in VERDICTS}


def junit(results: Sequence[Result], host: str = "", now: float | None = None) -> str:
    """Return the results as JUnit XML. A warning is a test that passed, with what it said as its output."""
    name = host or os.uname().nodename
    total = counts(results)
    when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() if now is None else now))
    suite = ElementTree.Element(
        "testsuite",
        {
            "name": f"lab verify {name}",
            "hostname": name,
            "timestamp": when,
            "tests": str(len(results)),
            "failures": str(total[FAIL]),
            "errors": "0",
            "skipped": str(total[SKIP]),
            "time": f"{sum(result.seconds for result in results):.3f}",
        },
    )
    properties = ElementTree.SubElement(suite, "properties")
    ElementTree.SubElement(properties, "property", {"name": "lab.server", "value": VERSION})
    for result in results:
        suite.append(_case(result, name))
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    text: str = ElementTree.tostring(suites, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _case(result: Result, host: str) -> ElementTree.Element:
    case = ElementTree.Element(
        "testcase",
        {"classname": f"{host}.verify", "name": result.check, "time": f"{result.seconds:.3f}"},
    )
    outcome = result.outcome
    said = printable(f"{outcome.detail}. {outcome.fix}" if outcome.fix else outcome.detail)
    if outcome.verdict == FAIL:
        failure = ElementTree.SubElement(case, "failure", {"message": printable(outcome.detail)})
        failure.text = f"{result.promise}: {said}"
    elif outcome.verdict == SKIP:
        ElementTree.SubElement(case, "skipped", {"message": printable(outcome.detail)})
    else:
        warning = "warning: " if outcome.verdict == WARN else ""
        ElementTree.SubElement(case, "system-out").text = f"{warning}{result.promise}: {said}"
    return case
