# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The command ``project doctor``: what is wrong, how that is known, and what to do."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import names
from .calls import Call, Command, ask
from .errors import LabError

if TYPE_CHECKING:
    from .doctor import Result

# By verdict (doctor.VERDICTS).
_COLOURS = {"ok": "good", "warn": "warn", "bad": "bad", "unknown": "faint"}
_INDENT = " " * 21  # of what follows a verdict (7) and the name of a check (12)


def _project_doctor(call: Call) -> int:
    # Imported here, so that no other command waits for it to be.
    from . import doctor, symptoms

    user, wanted = call.user(), call.options.project
    policy = call.policy()
    if wanted:
        names.project_name(wanted, "NAME")
    account = symptoms.account_of(policy, user)
    containers, problem = _containers()
    projects = []
    for name in [wanted] if wanted else symptoms.project_names(account.workspace):
        container = containers.get(name)
        lost, lost_problem = _lost(name) if container else (None, "")
        projects.append(
            symptoms.project_of(
                policy,
                user,
                name,
                container=container,
                container_problem=problem,
                lost=lost,
                lost_problem=lost_problem,
            )
        )
    return _told(call, doctor.examine(account, projects))


def _containers() -> tuple[dict[str, Mapping[str, Any]], str]:
    """Return (the containers by project, why they cannot be told)."""
    try:
        listed = ask("container-list").get("containers", [])
    except LabError as error:
        return {}, error.message
    return {str(one.get("project")): one for one in listed}, ""


def _lost(name: str) -> tuple[Mapping[str, Any] | None, str]:
    try:
        return ask("container-lost", name), ""
    except LabError as error:
        return None, error.message


def _told(call: Call, results: list[Result]) -> int:
    code = 1 if any(result.finding.verdict == "bad" for result in results) else 0
    if call.json:
        call.answer(
            {
                "healthy": code == 0,
                "checks": [
                    {
                        "project": result.project,
                        "check": result.check,
                        "verdict": result.finding.verdict,
                        "evidence": result.finding.evidence,
                        "fix": result.finding.fix,
                    }
                    for result in results
                ],
            }
        )
        return code
    about = None
    for result in results:
        if result.project != about:
            about = result.project
            call.out.line(call.out.style(about or "your account", "strong"))
        _tell(call, result)
    counts = {verdict: sum(1 for one in results if one.finding.verdict == verdict) for verdict in _COLOURS}
    call.out.line(", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count))
    return code


def _tell(call: Call, result: Result) -> None:
    import textwrap

    finding = result.finding

    def wrapped(text: str) -> list[str]:
        room = max(20, call.out.width - len(_INDENT))
        return textwrap.wrap(names.printable(text), room, break_on_hyphens=False)

    first, *more = wrapped(finding.evidence) or [""]
    verdict = call.out.style(f"{finding.verdict:<7}", _COLOURS[finding.verdict])
    call.out.line(f"  {verdict} {result.check:<11}{first}")
    for line in [*more, *(wrapped(f"fix: {finding.fix}") if finding.fix else [])]:
        call.out.line(_INDENT + line)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "project", metavar="NAME", nargs="?", default="", help="a project; all of them without it"
    )


COMMANDS: tuple[Command, ...] = (
    Command(
        ("project", "doctor"),
        "find what is wrong, and say what to do",
        "Look at your workspace and projects for what goes wrong most: links, quota, files that are lost "
        "with a container, the Dockerfile, images that are too old, git, secrets. Nothing is changed. "
        "It ends with 1 if something is bad, else with 0.",
        "project doctor my-thesis",
        _project_doctor,
        named=False,
        arguments=_arguments,
    ),
)
