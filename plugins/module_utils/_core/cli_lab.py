# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The command ``lab``, for the admins of a server: how it stands, who uses it, what was done, what holds.

It runs as root and reads the whole policy; whoever is not root gets one sentence. Nothing of it goes through
the broker, which is for lab users. Most of it only looks; what reserves GPUs and makes backups is in
``cli_lab_reserve`` and ``cli_backup``, and what tells of GPUs in ``cli_lab_gpus``.
"""

from __future__ import annotations

import argparse
import os
import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import POLICY_PATH, VERSION, cli_backup, cli_lab_gpus, names
from .calls import Call, Command
from .errors import Refused
from .policy import Policy, load
from .room import ALARM, WARN
from .sizes import format_size
from .terminal import duration, fit, gauge, moment, table

if TYPE_CHECKING:
    from .audit import Act
    from .verify import Result

_COLOURS = {"pass": "good", "warn": "warn", "fail": "bad", "skip": "faint"}
_ACTS = 50
_INDENT = " " * 21
_LABEL = 11

_MOST = 4  # of those who have most of a disk, as many are named
_LEFT = 6  # of those who left, as many are named at a glance


def _policy() -> Policy:
    """Return the whole policy of the server, for root; raise Refused for everybody else."""
    if os.getuid() != 0:
        raise Refused(
            "This command is for the admins of the server.",
            "Admins call it by sudo, such as: sudo lab status. For your own: project list, workspace usage.",
        )
    return load(POLICY_PATH)


def _wrapped(call: Call, label: str, text: str) -> None:
    first, *more = textwrap.wrap(
        names.printable(text), max(20, call.out.width - _LABEL), break_on_hyphens=False
    ) or [""]
    call.out.line(f"{label:<{_LABEL}}{first}".rstrip())
    for line in more:
        call.out.line(" " * _LABEL + line)


# ---- lab status ------------------------------------------------------------------------------------------


def _status(call: Call) -> int:
    from . import overview

    seen = overview.look(_policy())
    if call.options.html:
        _page(call, seen)
        return 0
    if call.json:
        call.answer(seen)
        return 0
    host = seen["host"]
    head = f"{host['name']}  lab.server {VERSION}  {moment(host['time'])}, up {duration(host['up'])}"
    call.out.line(call.out.style(fit(head, call.out.width), "strong"))
    _attention(call, seen["attention"])
    for disk in seen["disks"]:
        _disk(call, disk)
    for label, text in _facts(seen):
        _wrapped(call, label, text)
    return 0


def _page(call: Call, seen: Mapping[str, Any]) -> None:
    from . import hostfiles
    from .page import page

    if call.options.html == "-":
        call.out.write(page(seen))
        return
    path = os.path.abspath(call.options.html)
    # It tells what everybody uses: for root, until an admin gives the file to others, which is kept.
    hostfiles.write_text(path, page(seen), 0o600)
    if call.json:
        call.answer({"written": path})


def _status_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--html", metavar="PATH", default="", help="write a page for a browser to a file; - to the output"
    )


def _attention(call: Call, found: Sequence[Mapping[str, str]]) -> None:
    if not found:
        call.out.line(call.out.style("nothing needs a hand", "good"))
    for one in found:
        lines = textwrap.wrap(one["text"], max(20, call.out.width - 6), break_on_hyphens=False) or [""]
        call.out.line(call.out.style(f"{one['level']:<6}", one["level"]) + lines[0])
        for line in lines[1:]:
            call.out.line(" " * 6 + line)


def _disk(call: Call, disk: Mapping[str, Any]) -> None:
    space = disk["space"]
    colour = "bad" if space >= ALARM else "warn" if space >= WARN else "good"
    figures = f"{round(space * 100):>3} %  {format_size(disk['used'])} of {format_size(disk['size'])}"
    figures += f", {round(disk['inodes'] * 100)} % of inodes"
    room = max(_LABEL, min(24, call.out.width - len(figures) - 16))
    drawn = call.out.style(gauge(space, 10), colour) + " " if call.out.width >= 70 else ""
    call.out.line(f"{fit(disk['mount'], room):<{room}}{' ' if room > _LABEL else ''}{drawn}{figures}")


def _facts(seen: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (label, text) of the lines below the disks."""
    from . import overview

    docker = seen["docker"]
    running = overview.running(seen["containers"])
    found = [("docker", _docker(seen) if docker["answers"] else f"does not answer: {docker['problem']}")]
    found.append(("users", _users_line(seen)))
    found += [("promised" if number == 0 else "", text) for number, text in enumerate(_promised(seen))]
    found += [("most" if number == 0 else "", text) for number, text in enumerate(_most(seen))]
    found += cli_backup.fact(seen["backup"])
    found += cli_lab_gpus.fact(seen["gpu_leases"])
    for name, projects in sorted(running.items()):
        found.append((fit(name, _LABEL - 1), ", ".join(projects)))
    if seen["units_problem"]:
        found.append(("units", f"not known: {seen['units_problem']}"))
    timers = [one for one in seen["units"] if one["name"].endswith(".timer")]
    if timers:
        shown = [f"{one['name'][len('lab-server-') : -len('.timer')]} {one['active']}" for one in timers]
        found.append(("timers", ", ".join(shown)))
    if seen["left"]:
        # Those whose account is open come first; all of them are told by lab users.
        left = sorted(seen["left"], key=lambda one: (one["closed"], one["name"]))
        shown = [f"{one['name']} ({'closed' if one['closed'] else 'open'})" for one in left[:_LEFT]]
        more = f" and {len(left) - _LEFT} more: lab users" if len(left) > _LEFT else ""
        found.append(("left", ", ".join(shown) + more))
    drifted = [f"{one['user']}/{one['name']}" for one in seen["projects"] if one["drift"]]
    none = "none: all declared projects are as declared" if docker["answers"] else "not known"
    found.append(("drift", ", ".join(drifted) or none))
    return found


def _promised(seen: Mapping[str, Any]) -> list[str]:
    """Return what was promised of each disk whose size is known, a line each."""
    from .capacity import some

    told = []
    for one in seen["storage"]["capacity"]:
        if one["size"]:
            promised, size = format_size(one["promised"]), format_size(one["size"])
            free = f"; no limit for {some(one['unbounded'], 3)}" if one["unbounded"] else ""
            told.append(f"{one['mount']} {promised} of {size} ({one['ratio']:.2g} times){free}")
    return told


def _most(seen: Mapping[str, Any]) -> list[str]:
    """Return who has most of the homes and of Docker's disk, a line each."""
    from . import overview

    found = overview.most(seen)
    words = (("homes", "of /home: {}"), ("docker", "of Docker's disk: {}; images with what they share"))
    shown = {
        what: ", ".join(f"{name} {format_size(size)}" for name, size in found[what][:_MOST])
        for what, _text in words
    }
    return [text.format(shown[what]) for what, text in words if shown[what]]


def _docker(seen: Mapping[str, Any]) -> str:
    there = seen["containers"]
    bases = sum(one["size"] for one in seen["base_images"])
    images = sum(one["size"] for one in seen["images"])
    live = sum(1 for one in there if one["running"])
    return (
        f"answers; {live} of {len(there)} containers run, {len(seen['retired'])} retired; "
        f"{len(seen['images'])} images of projects ({format_size(images)} with what they share), "
        f"{len(seen['base_images'])} base images ({format_size(bases)})"
    )


def _users_line(seen: Mapping[str, Any]) -> str:
    from . import overview

    shares = [overview.share(user) for user in seen["users"]]
    known = [share for share in shares if share is not None]
    text = f"{len(shares)}"
    if len(known) < len(shares):
        problem = seen["users"][0]["usage_problem"] or "their use cannot be told"
        return f"{text}; {problem}"
    high = sum(1 for share in known if WARN <= share < ALARM)
    full = sum(1 for share in known if share >= ALARM)
    return f"{text}; {high} above {round(WARN * 100)} %, {full} above {round(ALARM * 100)} % of the quota"


# ---- lab users -------------------------------------------------------------------------------------------


def _users(call: Call) -> int:
    from . import overview

    seen = overview.people(_policy())
    name = call.options.user
    if name:
        one = overview.person(seen, name)
        if call.json:
            call.answer(dict(one))
            return 0
        _person(call, one)
        return 0
    if call.json:
        call.answer(seen)
        return 0
    rows = [_row(one, answers=seen["docker"]["answers"]) for one in seen["users"]]
    headings = ("USER", "GROUP", "USED", "QUOTA", "%", "RUN", "DOCKER", "LAST LOGIN")
    for number, line in enumerate(table(headings, rows, call.out.width)):
        call.out.line(call.out.style(line, "strong") if number == 0 else line)
    if not rows:
        call.out.line("There are no lab users.")
    for one in seen["left"]:
        how = "closed" if one["closed"] else "still open"
        held = f"; holds {', '.join(one['containers'])}" if one["containers"] else ""
        _wrapped(call, "left", f"{one['name']} ({one['uid']}), account {how}, files in {one['home']}{held}")
    _problems(call, seen)
    return 0


def _problems(call: Call, seen: Mapping[str, Any]) -> None:
    if not seen["docker"]["answers"]:
        _wrapped(call, "docker", f"does not answer: {seen['docker']['problem']}")
    if seen["logins_problem"]:
        _wrapped(call, "logins", f"not known: {seen['logins_problem']}")


def _row(one: Mapping[str, Any], *, answers: bool) -> tuple[str, ...]:
    from . import overview

    usage, share = one["usage"], one["share"]
    limit = one["quota"]["hard"] or one["quota"]["soft"]
    return (
        one["name"],
        one["group"],
        format_size(usage["used"]) if usage else "?",
        format_size(limit) if limit else "none",
        "?" if share is None else str(round(share * 100)),
        f"{len(one['running'])}/{len(one['containers'])}",
        format_size(overview.on_docker(one)) if answers else "?",
        _login(one["last_login"]),
    )


def _login(when: float | None) -> str:
    return moment(when) if when else "not known"


def _person(call: Call, one: Mapping[str, Any]) -> None:
    call.out.line(call.out.style(f"{one['name']} ({one['uid']})", "strong"))
    lines = [("login", _login(one["last_login"]))]
    if "group" in one:
        lines += [("group", ", ".join([one["group"], *one["groups"]])), ("name", one["comment"] or "-")]
        usage = one["usage"]
        if usage:
            limit = one["quota"]["hard"] or one["quota"]["soft"]
            of = f" of {format_size(limit)}" if limit else ", no limit"
            lines.append(("quota", f"{format_size(usage['used'])}{of}, {usage['inodes']} files"))
        else:
            lines.append(("quota", f"not known: {one['usage_problem']}"))
        limits = one["limits"]
        lines.append(
            (
                "limits",
                f"{limits['containers']} containers, {limits['cpus']:g} cores, "
                f"{format_size(limits['memory'])} of memory, {limits['pids']} processes",
            )
        )
        lines.append(("projects", ", ".join(one["projects"]) or "none"))
    else:
        lines.append(
            ("left", f"the account is {'closed' if one['closed'] else 'open'}; files in {one['home']}")
        )
    lines.append(("running", ", ".join(one["running"]) or "none"))
    lines.append(("stopped", ", ".join(sorted(set(one["containers"]) - set(one["running"]))) or "none"))
    lines.append(("retired", ", ".join(one["retired"]) or "none"))
    lines.append(("images", f"{len(one['images'])}, {format_size(one['images_size'])} with what they share"))
    for label, text in lines:
        _wrapped(call, label, text)


def _users_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "user", metavar="USER", nargs="?", default="", help="one user; all of them without it"
    )


# ---- lab metrics -----------------------------------------------------------------------------------------


def _metrics(call: Call) -> int:
    from . import hostfiles, metrics, overview

    text = metrics.text(overview.look(_policy()))
    if call.options.write:
        hostfiles.write_text(os.path.abspath(call.options.write), text)
    else:
        call.out.write(text)
    return 0


def _metrics_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--write", metavar="PATH", default="", help="replace this file, and print nothing")


# ---- lab verify ------------------------------------------------------------------------------------------


def _verify(call: Call) -> int:
    from . import verify
    from .inspection import Server

    policy = _policy()
    checks = verify.chosen(call.options.check, quick=call.options.quick)
    server = Server(policy)
    # Words and XML on one output would be neither.
    told = not call.json and call.options.junit != "-"
    results: list[Result] = []
    try:
        for result in verify.run(server, checks):
            results.append(result)
            if told:
                _tell(call, result)
    finally:
        server.close()
    code = 0 if verify.passed(results) else 1
    if call.options.junit:
        _junit(call, verify.junit(results))
    if call.json:
        shown = [result.shown() for result in results]
        call.answer({"passed": code == 0, "counts": verify.counts(results), "checks": shown})
    elif told:
        total = verify.counts(results)
        words = {"pass": "passed", "warn": "warned", "fail": "failed", "skip": "skipped"}
        call.out.line(", ".join(f"{count} {words[verdict]}" for verdict, count in total.items() if count))
    return code


def _junit(call: Call, text: str) -> None:
    path = call.options.junit
    if path == "-":
        call.out.write(text)
        return
    from . import hostfiles

    # Not by opening it: in a folder that others can write, a link of theirs would be followed.
    hostfiles.write_text(os.path.abspath(path), text)


def _tell(call: Call, result: Result) -> None:
    outcome = result.outcome

    def wrapped(text: str) -> list[str]:
        return textwrap.wrap(
            names.printable(text), max(20, call.out.width - len(_INDENT)), break_on_hyphens=False
        )

    first, *more = wrapped(outcome.detail if outcome.verdict != "fail" else f"not so: {result.promise}") or [
        ""
    ]
    verdict = call.out.style(f"{outcome.verdict:<6}", _COLOURS[outcome.verdict])
    call.out.line(f"{verdict} {result.check:<13} {first}")
    if outcome.verdict == "fail":
        more += wrapped(outcome.detail)
    for line in [*more, *(wrapped(f"fix: {outcome.fix}") if outcome.fix else [])]:
        call.out.line(_INDENT + line)


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="leave out what takes seconds")
    parser.add_argument(
        "--check", metavar="CHECK", action="append", default=[], help="only this check; may be given again"
    )
    parser.add_argument(
        "--junit", metavar="PATH", default="", help="write JUnit XML to a file; - to the output"
    )


# ---- lab events ------------------------------------------------------------------------------------------


def _events(call: Call) -> int:
    from . import audit

    _policy()
    options = call.options
    begin = audit.since(options.since, time.time()) if options.since else None
    # Without a time the last ones are enough, and journald need not read all that it has.
    found = audit.acts(begin, user=options.user, project=options.project, most=options.lines)
    if call.json:
        call.answer({"events": [one.shown() for one in found]})
        return 0
    for one in found:
        call.out.line(fit(_line(one), call.out.width) if call.out.interactive else _line(one))
    if not found:
        call.out.line("Nothing of that kind is in the journal.")
    return 0


def _line(one: Act) -> str:
    words = [
        moment(one.time),
        f"{one.user or '?':<12}",
        f"{one.verb:<18}",
        f"{one.project or '-':<16}",
        one.outcome,
    ]
    detail = one.more.get("detail", "")
    return names.printable(" ".join(words) + (f": {detail}" if detail else ""))


def _lines(value: str) -> int:
    if not value.isdigit() or not 1 <= int(value) <= 100_000:
        raise argparse.ArgumentTypeError("use a number from 1 to 100000")
    return int(value)


def _events_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--since", metavar="TIME", default="", help="from then on: 12h, 3d, today, 2026-11-26"
    )
    parser.add_argument("--user", metavar="USER", default="", help="of this user only")
    parser.add_argument("--project", metavar="NAME", default="", help="of this project only")
    parser.add_argument(
        "--lines", metavar="N", type=_lines, default=_ACTS, help="the last so many, %(default)s unless given"
    )


COMMANDS: tuple[Command, ...] = (
    Command(
        ("lab", "status"),
        "show the server at a glance",
        "For root. Show what needs a hand first, then disks, Docker, users near their quotas, who has most "
        "of the homes and of Docker's disk, who has GPUs, the containers that run, timers, who left, and "
        "which declared projects differ from the inventory. "
        "With --html the same, and each user, container, image and GPU, as a page for browsers and printers.",
        "lab status --html /root/lab.html",
        _status,
        named=False,
        arguments=_status_arguments,
    ),
    Command(
        ("lab", "users"),
        "list the users with what they use and hold",
        "For root. List the lab users with group, quota and use, containers that run of all they have, "
        "what they have of Docker's disk, and their last login, as far back as the journal goes; then who "
        "left. With a name all that there is of one.",
        "lab users alice",
        _users,
        named=False,
        arguments=_users_arguments,
    ),
    Command(
        ("lab", "verify"),
        "check that the server keeps its promises",
        "For root. Check on the live server what it promises: disks, quotas, accounts, sudo, the broker, "
        "limits, the firewall, shared data, Docker, each container and image. Nothing is changed; for the "
        "check of the quota a file is written as a user that does not exist, and removed. It ends with 0 "
        "if no check failed, with 1 if one did; a warning is no failure.",
        "lab verify --junit verify.xml",
        _verify,
        named=False,
        arguments=_verify_arguments,
    ),
    Command(
        ("lab", "metrics"),
        "tell the server's metrics for Prometheus",
        "For root. Print what lab status tells as metrics for the textfile collector of node_exporter. The "
        "role metrics lets a timer write them.",
        "lab metrics --write /var/lib/prometheus/node-exporter/lab.prom",
        _metrics,
        named=False,
        json=False,
        arguments=_metrics_arguments,
    ),
    Command(
        ("lab", "events"),
        "show what was done as root for lab users",
        "For root. Show what the broker, the boot unit and the clean-up did, from the system journal: only "
        "lines that root itself wrote count.",
        "lab events --since 3d --user alice",
        _events,
        named=False,
        arguments=_events_arguments,
    ),
)
