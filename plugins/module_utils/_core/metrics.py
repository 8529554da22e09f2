# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What ``overview`` tells, as metrics for the textfile collector of node_exporter. A pure function.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/. Sizes are bytes, times seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Callable

from .names import printable

_PREFIX = "lab_server_"
_Sample = tuple[Mapping[str, str], float]


def text(seen: Mapping[str, Any]) -> str:
    """Return the metrics of a server; what is not known is left out, so that it is not taken for zero."""
    docker = bool(seen["docker"]["answers"])
    lines = _metric("docker_up", "Whether Docker Engine answers.", [({}, docker)])
    lines += _metric(
        "attention", "Things that need a hand, by level; see lab status.", _attention(seen["attention"])
    )
    lines += _metric(
        "unit_failed",
        "Whether a unit of the lab server failed.",
        [({"unit": one["name"]}, one["active"] == "failed") for one in seen["units"]],
    )
    lines += _users(seen["users"])
    known = [one for one in seen["storage"]["capacity"] if one["size"]]
    for name, words, key in (
        ("disk_promised_bytes", "What quotas and sizes promise of a disk.", "promised"),
        ("disk_bytes", "The size of a disk.", "size"),
        ("disk_used_bytes", "What of it is in use.", "used"),
        ("disk_available_bytes", "What users may still fill.", "available"),
    ):
        lines += _metric(name, words, [({"mount": one["mount"]}, one[key]) for one in known])
    lines += _backups(seen["backup"])
    if docker:
        lines += _docker(seen)
    lines += _metric("written_seconds", "When this was written.", [({}, seen["host"]["time"])])
    return "\n".join(lines) + "\n"


def _attention(found: Iterable[Mapping[str, str]]) -> list[_Sample]:
    levels = [one["level"] for one in found]
    return [({"level": level}, levels.count(level)) for level in ("bad", "warn")]


def _users(users: Iterable[Mapping[str, Any]]) -> list[str]:
    known = [user for user in users if user["usage"]]
    kinds: tuple[tuple[str, str, Callable[[Any], int]], ...] = (
        ("user_used_bytes", "What a user uses of the quota.", lambda one: one["usage"]["used"]),
        ("user_limit_bytes", "The hard quota; 0 is none.", lambda one: one["usage"]["quota"]["hard"]),
        ("user_files", "Files and folders of a user.", lambda one: one["usage"]["inodes"]),
        (
            "user_limit_files",
            "The hard limit on them; 0 is none.",
            lambda one: one["usage"]["quota"]["inodes_hard"],
        ),
    )
    lines: list[str] = []
    for name, words, value in kinds:
        lines += _metric(name, words, [({"user": user["name"]}, value(user)) for user in known])
    return lines


def _backups(seen: Mapping[str, Any] | None) -> list[str]:
    """Return the metrics of backups; 0 is never."""
    kinds: tuple[tuple[str, str, Callable[[Any], float]], ...] = (
        ("backup_seconds", "When the last backup of a user was made.", lambda one: float(one["done"])),
        ("backup_failed", "Whether the newest backup of a user failed.", lambda one: bool(one["problem"])),
        ("drill_seconds", "When the last drill restored a user's files.", lambda one: float(one["drilled"])),
        ("drill_failed", "Whether the newest drill failed.", lambda one: bool(one["drill_problem"])),
        ("drill_compared_files", "Files that were the same in it.", lambda one: int(one["compared"])),
    )
    lines: list[str] = []
    for name, words, value in kinds:
        users = seen["users"] if seen else []
        lines += _metric(name, words, [({"user": one["user"]}, value(one)) for one in users])
    return lines


def _docker(seen: Mapping[str, Any]) -> list[str]:
    names = {user["uid"]: user["name"] for user in seen["users"]}
    held: dict[tuple[str, str], int] = {}
    for user in names.values():
        held[user, "running"] = held[user, "stopped"] = 0
    for one in seen["containers"]:
        key = (one["user"] or str(one["uid"]), "running" if one["running"] else "stopped")
        held[key] = held.get(key, 0) + 1
    images: dict[str, int] = dict.fromkeys(names.values(), 0)
    for one in seen["images"]:
        owner = one["user"] or str(one["uid"])
        images[owner] = images.get(owner, 0) + one["size"]
    drifted = sum(1 for one in seen["projects"] if one["drift"])
    return [
        *_metric(
            "containers",
            "Containers of projects.",
            [({"user": user, "state": state}, count) for (user, state), count in held.items()],
        ),
        *_metric("retired_containers", "Retired ones that are kept.", [({}, len(seen["retired"]))]),
        *_metric(
            "images_bytes",
            "Images of projects, with the layers that they share.",
            [({"user": user}, size) for user, size in images.items()],
        ),
        *_metric("projects_drifted", "Declared projects that are not as declared.", [({}, drifted)]),
    ]


def _metric(name: str, words: str, samples: Iterable[_Sample]) -> list[str]:
    """Return the lines of a gauge; none without samples."""
    lines = [f"{_PREFIX}{name}{_labels(labels)} {_number(value)}" for labels, value in samples]
    head = [f"# HELP {_PREFIX}{name} {words}", f"# TYPE {_PREFIX}{name} gauge"]
    return [*head, *lines] if lines else []


def _number(value: float) -> str:
    return repr(float(value)) if isinstance(value, float) else str(int(value))


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    escaped = (
        (key, printable(text).replace("\\", "\\\\").replace('"', '\\"')) for key, text in labels.items()
    )
    return "{" + ",".join(f'{key}="{text}"' for key, text in escaped) + "}"
