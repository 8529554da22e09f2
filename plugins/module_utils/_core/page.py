# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What ``overview.look`` tells, as one page for a browser or a printer. A pure function.

It needs nothing from elsewhere and runs no script; every text of it is escaped. Nothing is on it that
``lab status --json`` does not tell.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import VERSION, overview
from .capacity import some
from .names import printable
from .room import ALARM, WARN
from .sizes import format_size
from .terminal import duration, moment

# The colours have a contrast of 4.5 to 1 at least on both grounds (WCAG 2.2, 1.4.3), and no meaning hangs
# on a colour alone: it stands in words beside it.
_STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #1b1f24; --faint: #57606a; --line: #d0d7de;
  --good: #1a6b33; --warn: #855000; --bad: #b3151f; --bar: #dde3ea; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181d; --ink: #e6eaef; --faint: #a3adb8;
  --line: #3a424c; --good: #62c67e; --warn: #e3a63a; --bad: #ff8d87; --bar: #2d353f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 72rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.45 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .3rem 0; } .faint { color: var(--faint); }
ul { margin: .5rem 0; padding: 0; list-style: none; } li { padding: .15rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem 1.2rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; font-weight: normal; }
thead th { color: var(--faint); font-size: .875rem; white-space: nowrap; } tbody th { font-weight: 600; }
.number { text-align: right; white-space: nowrap; }
.good { color: var(--good); } .warn { color: var(--warn); } .bad { color: var(--bad); }
.level { display: inline-block; min-width: 3.2rem; font-weight: 700; }
.bar { display: block; width: 6rem; height: .5rem; margin-top: .2rem; background: var(--bar); }
.bar i { display: block; height: 100%; background: currentColor; }
@media print { :root { --ground: #ffffff; --ink: #000000; --faint: #444444; --line: #999999; --good: #14572a;
  --warn: #6b4000; --bad: #8f1018; --bar: #dddddd; } body { padding: 0; max-width: none; font-size: 9pt; }
  .wide { overflow: visible; } tr, li { break-inside: avoid; } h2 { break-after: avoid; }
  .bar, .bar i { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8" />
<meta name="viewport" content="width=device-width, initial-scale=1" />
<meta name="referrer" content="no-referrer" />
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'" />
<title>{title}</title>
<style>{style}</style>
</head>
<body>
"""


class _Html(str):
    """Text that is escaped already."""

    __slots__ = ()


def _escaped(text: object) -> _Html:
    return text if isinstance(text, _Html) else _Html(html.escape(printable(str(text))))


def page(seen: Mapping[str, Any]) -> str:
    """Return the page of a server as HTML; ``seen`` is what ``overview.look`` returned."""
    host = seen["host"]
    title = _escaped(f"{host['name']}: lab server")
    parts = [
        _HEAD.format(title=title, style=_STYLE),
        f"<header>\n<h1>{title}</h1>\n",
        f'<p class="faint">As it was on {_escaped(moment(host["time"]))}, up {duration(host["up"])}; '
        f"lab.server {_escaped(VERSION)}</p>\n</header>\n<main>\n",
        _attention(seen["attention"]),
        _disks(seen),
        _users(seen),
        _containers(seen),
        _images(seen),
        _gpus(seen),
        _drift(seen),
        _rest(seen),
        "</main>\n</body>\n</html>\n",
    ]
    return "".join(parts)


def _section(heading: str, *content: str) -> str:
    name = heading.lower().replace(" ", "-")
    return (
        f'<section aria-labelledby="{name}">\n<h2 id="{name}">{_escaped(heading)}</h2>\n'
        f"{''.join(content)}</section>\n"
    )


def _paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{_escaped(text)}</p>\n' if kind else f"<p>{_escaped(text)}</p>\n"


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> str:
    """Return a table whose first column names its rows; a column that begins with # holds numbers."""
    numbers = [column.startswith("#") for column in columns]
    head = "".join(
        f'<th scope="col"{_numeric(number)}>{_escaped(column.lstrip("#"))}</th>'
        for column, number in zip(columns, numbers)
    )
    body = []
    for row in rows:
        first, *others = (_escaped(cell) for cell in row)
        cells = "".join(f"<td{_numeric(number)}>{cell}</td>" for cell, number in zip(others, numbers[1:]))
        body.append(f'<tr><th scope="row">{first}</th>{cells}</tr>\n')
    if not body:
        return _paragraph(empty, "faint")
    return (
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{"".join(body)}</tbody>\n'
        "</table></div>\n"
    )


def _numeric(number: bool) -> str:
    return ' class="number"' if number else ""


def _coloured(text: str, kind: str) -> _Html:
    return _Html(f'<span class="{kind}">{_escaped(text)}</span>')


def _bar(share: float | None) -> _Html:
    """Return a share (0 to 1) in per cent above a bar, which is for the eye alone."""
    if share is None:
        return _escaped("not known")
    kind = "bad" if share >= ALARM else "warn" if share >= WARN else "good"
    width = round(max(0.0, min(1.0, share)) * 100)
    return _Html(
        f'<span class="{kind}">{int(share * 100)} %<span class="bar" aria-hidden="true">'
        f'<i style="width:{width}%"></i></span></span>'
    )


# ---- the sections ----------------------------------------------------------------------------------------


def _attention(found: Sequence[Mapping[str, str]]) -> str:
    if not found:
        return _section("What needs a hand", _paragraph("Nothing.", "good"))
    items = "".join(
        f'<li><span class="level {_escaped(one["level"])}">{_escaped(one["level"])}</span> '
        f"{_escaped(one['text'])}</li>\n"
        for one in found
    )
    return _section("What needs a hand", f"<ul>\n{items}</ul>\n")


def _disks(seen: Mapping[str, Any]) -> str:
    promises = {one["mount"]: one for one in seen["storage"]["capacity"]}
    rows = []
    for disk in seen["disks"]:
        promised = promises.pop(disk["mount"], None)
        rows.append(
            (
                disk["mount"],
                format_size(disk["size"]),
                format_size(disk["used"]),
                _bar(disk["space"]),
                _bar(disk["inodes"]),
                *_promised(promised),
            )
        )
    # The homes, where they are on a disk that has another name, and what is not mounted.
    for mount, promised in promises.items():
        size = format_size(promised["size"]) if promised["size"] else "not mounted"
        rows.append((mount, size, "", "", "", *_promised(promised)))
    columns = (
        "Disk",
        "#Size",
        "#In use",
        "Full",
        "Inodes",
        "#Promised",
        "#Promised / size",
        "Without a limit",
    )
    allowed = f"Up to {seen['overcommit']:g} times the size of a disk may be promised (lab_overcommit). "
    count = "A disk is as full as df says: what is in use of what users may fill."
    return _section("Disks", _table(columns, rows, "None is known."), _paragraph(allowed + count, "faint"))


def _promised(one: Mapping[str, Any] | None) -> tuple[object, ...]:
    if one is None:
        return ("nothing", "", "")
    ratio: object = f"{one['ratio']:.2f}" if one["size"] else "not known"
    if one["overcommitted"]:
        ratio = _coloured(f"{one['ratio']:.2f}, too much", "warn")
    return (format_size(one["promised"]), ratio, some(one["unbounded"], 3) or "nothing")


def _users(seen: Mapping[str, Any]) -> str:
    columns = (
        *("User", "Group", "#Used", "#Quota", "Full", "#Files", "#Layers"),
        *("#Containers", "#Images", "#Size of images"),
    )
    rows = []
    for user in seen["users"]:
        usage, limit = user["usage"], user["quota"]["hard"] or user["quota"]["soft"]
        held = overview.held(seen, user["uid"])
        rows.append(
            (
                user["name"],
                ", ".join([user["group"], *user["groups"]]),
                format_size(usage["used"]) if usage else "not known",
                format_size(limit) if limit else "none",
                _bar(overview.share(user)),
                str(usage["inodes"]) if usage else "not known",
                format_size(user["layers"]["used"]) if user["layers"] else "not known",
                f"{len(held['running'])} of {len(held['containers'])} run",
                str(len(held["images"])),
                format_size(held["images_size"]),
            )
        )
    problem = next((user["usage_problem"] for user in seen["users"] if user["usage_problem"]), "")
    left = [
        _paragraph(f"{one['name']} left; the account is {'closed' if one['closed'] else 'open'}.", "faint")
        for one in seen["left"]
    ]
    return _section(
        "Users",
        _table(columns, rows, "There are none."),
        _paragraph(problem, "warn") if problem else "",
        *left,
    )


def _containers(seen: Mapping[str, Any]) -> str:
    docker = seen["docker"]
    if not docker["answers"]:
        return _section("Containers", _paragraph(f"Docker does not answer: {docker['problem']}", "bad"))
    rows = [
        (
            f"{one['user'] or one['uid']}/{one['project']}",
            one["status"],
            moment(one["created"]),
            "yes" if one["declared"] else "no",
            "a newer one is there" if one["image_newer"] else "the newest",
        )
        for one in seen["containers"]
    ]
    columns = ("Container", "State", "Made", "Declared", "Image")
    kept = f"{len(seen['retired'])} retired ones are kept."
    return _section("Containers", _table(columns, rows, "There are none."), _paragraph(kept, "faint"))


def _images(seen: Mapping[str, Any]) -> str:
    if not seen["docker"]["answers"]:
        return _section("Images", _paragraph("Not known, as Docker does not answer.", "faint"))
    rows = [
        (
            one["name"],
            "base image",
            format_size(one["size"]) if one["here"] else "not here",
            f"{one['age_days']} d" if one["here"] else "",
            "",
        )
        for one in seen["base_images"]
    ]
    rows += [
        (
            one["name"],
            f"{one['user'] or one['uid']}/{one['project']}",
            format_size(one["size"]),
            f"{one['age_days']} d",
            ", ".join(part for part, so in (("current", one["current"]), ("in use", one["in_use"])) if so),
        )
        for one in seen["images"]
    ]
    note = "Each is counted with the layers that it shares with others."
    return _section(
        "Images",
        _table(("Image", "Of", "#Size", "#Age", "State"), rows, "There are none."),
        _paragraph(note, "faint"),
    )


def _gpus(seen: Mapping[str, Any]) -> str:
    rows = []
    for one in seen["gpus"]:
        memory = (
            f"{format_size(one['used'])} of {format_size(one['memory'])}" if one["memory"] else "not known"
        )
        problem = " ".join(filter(None, (each["problem"] for each in (one, *one["instances"]))))
        people = sorted({process["user"] for process in _processes(one) if process["user"]})
        rows.append(
            (
                f"{one['index']}: {one['name'] or 'not known'}",
                memory,
                "not known" if one["load"] is None else f"{one['load']} %",
                "not known" if one["temperature"] is None else f"{one['temperature']} C",
                ", ".join(instance["profile"] for instance in one["instances"]) or "none",
                ", ".join(people) or "nobody",
                _coloured(problem, "bad") if problem else _coloured("well", "good"),
            )
        )
    columns = ("GPU", "#Memory", "#Busy", "#Heat", "Instances", "Computing", "State")
    problem = _paragraph(seen["gpus_problem"], "faint") if seen["gpus_problem"] else ""
    return _section("GPUs", _table(columns, rows, "None is known."), problem)


def _processes(gpu: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    yield from gpu["processes"]
    for instance in gpu["instances"]:
        yield from instance["processes"]


def _drift(seen: Mapping[str, Any]) -> str:
    rows = [(f"{one['user']}/{one['name']}", one["reason"]) for one in seen["projects"] if one["drift"]]
    none = "All declared projects are as declared." if seen["docker"]["answers"] else "Not known."
    return _section("Drift", _table(("Project", "What differs"), rows, none))


def _rest(seen: Mapping[str, Any]) -> str:
    rows: list[tuple[object, ...]] = [
        (one["name"], _coloured(one["active"], "bad") if one["active"] == "failed" else one["active"])
        for one in seen["units"]
    ]
    backups = seen["backup"]
    words = "Nothing is backed up (lab_backup)."
    if backups is not None:
        made = [one["done"] for one in backups["users"] if one["done"]]
        words = f"{len(made)} of {len(backups['users'])} users have a backup"
        words += f"; the oldest of the last ones is of {moment(min(made))}." if made else "."
    problem = seen["units_problem"]
    return _section(
        "Services and backups",
        _table(("Unit", "State"), rows, f"Not known: {problem}" if problem else "None is known."),
        _paragraph(words),
    )
