# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The command ``container why``: what happened to a container and when, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import names
from .calls import Call, Command, ask, on_job, told
from .sizes import format_size
from .terminal import duration, moment

_BY = {
    "user": "you",
    "it": "IT's run",
    "boot": "the start of the server",
    "clean-up": "the server's clean-up",
    "limit": "the server",
    "itself": "itself",
}
_DID = {
    "made": "made and started by {by}",
    "replaced": "made anew by {by}",
    "started": "started by {by}",
    "not-started": "could not be started by {by}",
    "stopped": "stopped by {by}",
    "retired": "retired by {by}",
    "restored": "brought back by {by}",
    "removed": "removed by {by}",
    "gone": "a retired one was removed for good by {by}",
    "job-begun": "a job was begun by {by}",
    "job-ended": "its job ended",
    "extended": "its stop was put off by {by}",
}
# Of these the last one says why the container is as it is.
_STATES = ("made", "replaced", "started", "not-started", "stopped", "retired", "restored", "removed")
# Exit codes above 128 are signals (sh(1)); these two are the usual ones.
_ENDS = {137: "it was killed", 143: "it was told to end"}
_SHOWN = 20
_WHEN = 18  # columns of an event's time
_PACKAGES = 20


def _container_why(call: Call) -> int:
    call.user()
    data = ask("container-why", call.options.name)
    if call.json:
        call.answer(data)
        return 0
    for line in verdict(data, everything=call.options.all):
        call.out.line(names.printable(line))
    lines = history(_events(data), everything=call.options.all)
    if lines:
        call.out.line()
    for line in lines:
        when, said = line[:_WHEN], line[_WHEN:]
        call.out.sentence(names.printable(said), names.printable(when))
    return 0


def _events(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = data.get("events")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _said(event: Mapping[str, Any]) -> str:
    by = _BY.get(str(event.get("by")), "somebody")
    text = _DID.get(str(event.get("what")), str(event.get("what"))).format(by=by)
    return f"{text}: {event['reason']}" if event.get("reason") else text


def history(events: Sequence[Mapping[str, Any]], *, everything: bool = False) -> list[str]:
    """Return a line for each event in the order in which they happened, the last ones of them."""
    lines = []
    for event in events if everything else events[-_SHOWN:]:
        jump = event.get("clock_changed")
        if isinstance(jump, int) and jump:
            way = "forward" if jump > 0 else "back"
            lines.append(f"{'':{_WHEN}}(the server's clock was put {way} by {duration(abs(jump))})")
        lines.append(f"{moment(event.get('time')):<{_WHEN}}{_said(event)}")
    left_out = 0 if everything else max(0, len(events) - _SHOWN)
    return ([f"{left_out} earlier ones: --all"] if left_out else []) + lines


def verdict(data: Mapping[str, Any], *, everything: bool = False) -> list[str]:
    """Return what is so now, why, and what to do, a sentence a line; with ``everything`` all packages."""
    name = str(data.get("project"))
    last = next((one for one in reversed(_events(data)) if one.get("what") in _STATES), None)
    state = data.get("state")
    if data.get("container") is None or not isinstance(state, dict):
        return _gone(name, data, last, everything)
    job = data.get("job")
    about_job = [f"{on_job(job).capitalize()}: container logs {name}"] if job else []
    if state.get("running"):
        lines = [f"The container of {name} runs since {moment(state.get('started'))}."]
        return lines + _memory(state) + about_job + _before(name, data, everything)
    lines = [f"The container of {name} does not run.", *_why_down(data, state, last)]
    if data.get("stay_down"):
        lines.append("It stays down when the server is started, because it was stopped on purpose.")
    return [*lines, *about_job, *_before(name, data, everything), f"Start it again: container start {name}"]


def _before(name: str, data: Mapping[str, Any], everything: bool) -> list[str]:
    """Return what is to be known of the one that was there before."""
    lines = []
    whole = ("made", "replaced", "retired", "restored", "removed")
    last = next((one for one in reversed(_events(data)) if one.get("what") in whole), None)
    if last is not None and last.get("what") == "replaced":
        lines.append(f"On {moment(last.get('time'))} it was {_said(last)}.")
    until = data.get("undo_until")
    if isinstance(until, int):
        lines.append(
            f"Until {moment(until)} you can have an older one back: container retire {name}, then "
            f"container undo {name}; where this one has work in it, too, that is --back 2."
        )
    return lines + _holds(data, everything)


def _holds(data: Mapping[str, Any], everything: bool) -> list[str]:
    """Return which packages would come back with the container that was retired."""
    held = data.get("holds")
    packages = told(held, "packages") if isinstance(held, dict) else []
    if not packages:
        return []
    shown = packages if everything else packages[:_PACKAGES]
    more = len(packages) - len(shown)
    rest = f" and {more} more (--all)" if more else ""
    return [f"The old one has packages that its image lacks: {', '.join(shown)}{rest}."]


def _memory(state: Mapping[str, Any]) -> list[str]:
    if not state.get("out_of_memory"):
        return []
    limit = state.get("memory_limit")
    of = f" of {format_size(limit)}" if isinstance(limit, int) else ""
    return [f"A process in it was ended because it needed more memory than its limit{of}."]


def _why_down(data: Mapping[str, Any], state: Mapping[str, Any], last: Mapping[str, Any] | None) -> list[str]:
    if last is not None and last.get("what") in ("stopped", "not-started"):
        return [f"On {moment(last.get('time'))} it was {_said(last)}.".replace("was could", "could")]
    if data.get("rebooted"):
        return ["It went down with the server, which was started anew since."]
    code = state.get("exit_code")
    meaning = f" ({_ENDS[code]})" if code in _ENDS else ""
    lines = [f"It ended by itself, {moment(state.get('finished'))}, with exit code {code}{meaning}."]
    if state.get("error"):
        lines.append(f"Docker says: {state['error']}.")
    return lines + _memory(state)


def _gone(name: str, data: Mapping[str, Any], last: Mapping[str, Any] | None, everything: bool) -> list[str]:
    lines = [f"There is no container of {name}."]
    if last is not None:
        lines.append(f"The last one was {_said(last)}, {moment(last.get('time'))}.")
    until = data.get("undo_until")
    if isinstance(until, int):
        lines.append(f"Until {moment(until)} you can have it back: container undo {name}")
    return [*lines, *_holds(data, everything), f"Start a new one: project launch {name}"]


def _arguments(parser: Any) -> None:
    parser.add_argument("--all", action="store_true", help="all that is still known, not the last part alone")


COMMANDS: tuple[Command, ...] = (
    Command(
        ("container", "why"),
        "tell what happened to a container, and when",
        "Tell why the project's container runs or does not: when it was made, started, stopped, retired, and "
        "by whom, whether it ended by itself or for want of memory, until when one that was retired can be "
        "brought back, and which packages it has that its image lacks.",
        "container why my-thesis",
        _container_why,
        arguments=_arguments,
    ),
)
