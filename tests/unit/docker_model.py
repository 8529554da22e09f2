"""A model of Docker Engine in memory: as much of it as the library sees, and faults at any call."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

from ansible_collections.lab.server.plugins.module_utils._core.engine import ADDED, Engine
from ansible_collections.lab.server.plugins.module_utils._core.errors import EngineError, NotFound, Refused
from ansible_collections.lab.server.plugins.module_utils._core.spec import EngineFacts

LIVE = ("running", "paused", "restarting")


class PowerLoss(BaseException):
    """The process that used the engine is gone: nothing that it would do afterwards is done."""


@dataclass
class Row:
    """A container as the model keeps it. ``worked``: it was started once, so work may be in it."""

    id: str
    name: str
    state: str
    image: str
    labels: dict[str, str] = field(default_factory=dict)
    worked: bool = False

    @property
    def live(self) -> bool:
        return self.state in LIVE


def _call(method: Callable[..., Any]) -> Callable[..., Any]:
    """Count a call of the engine, and let the fault happen that is due at it."""

    @functools.wraps(method)
    def counted(self: Model, *arguments: Any, **named: Any) -> Any:
        self.calls.append(method.__name__)
        number = len(self.calls)
        if self.power_until is not None and number > self.power_until:
            raise PowerLoss
        if number == self.refuses_at:
            raise EngineError(f"{method.__name__} was refused.")
        answer = method(self, *arguments, **named)
        if number == self.silent_at:
            raise EngineError(f"No answer to {method.__name__}.")
        return answer

    return counted


class Model(Engine):
    """An engine that holds ``rows`` by id and ``pictures``, its images, as Docker lists them.

    ``lost``: containers that were removed though work may be in them; what is replaced is kept.
    ``power_until``: the calls that happen before the power is lost. ``refuses_at``: the call, counted from 1,
    that fails and does nothing; ``silent_at``: the one that is carried out, but whose answer is lost.
    """

    def __init__(self) -> None:
        super().__init__(None, "model://")
        self.rows: dict[str, Row] = {}
        self.pictures: list[dict[str, Any]] = []
        self.lost: list[Row] = []
        self.calls: list[str] = []
        self.power_until: int | None = None
        self.refuses_at = self.silent_at = 0
        self._made = 0

    facts = EngineFacts("systemd", 8)

    def again(self, *, power_until: int | None = None, refuses_at: int = 0, silent_at: int = 0) -> None:
        """Count calls from the start, with the faults given."""
        self.calls = []
        self.power_until, self.refuses_at, self.silent_at = power_until, refuses_at, silent_at

    def add(self, name: str, state: str, image: str, labels: dict[str, str], *, worked: bool = True) -> Row:
        """Put a container there, by no call of the engine."""
        self._made += 1
        row = Row(f"{self._made:064x}", name, state, image, dict(labels), worked)
        self.rows[row.id] = row
        return row

    def named(self, name: str) -> Row | None:
        """Return the container of that name, None if there is none."""
        return next((row for row in self.rows.values() if row.name == name), None)

    def _row(self, container: str) -> Row:
        if container not in self.rows:
            raise NotFound(f"No such container: {container}.")
        return self.rows[container]

    def _free(self, name: str) -> None:
        if self.named(name) is not None:
            raise Refused(f'Conflict. The container name "/{name}" is already in use.')

    @_call
    def containers(self, *only: str, **_more: Any) -> list[dict[str, Any]]:
        return [
            {
                "Id": row.id,
                "Names": [f"/{row.name}"],
                "State": row.state,
                "ImageID": row.image,
                "Created": 1,
                "Labels": dict(row.labels),
                "SizeRw": 0,
            }
            for row in self.rows.values()
            if not only or row.name in only
        ]

    @_call
    def create(self, name: str, config: Any) -> str:
        self._free(name)
        found = self._picture(config["Image"])
        if found is None:
            raise NotFound(f"No such image: {config['Image']}.")
        return self.add(name, "created", found["Id"], config["Labels"], worked=False).id

    @_call
    def start(self, container: str) -> None:
        row = self._row(container)
        row.state, row.worked = "running", True

    @_call
    def stop(self, container: str, _seconds: int = 10) -> None:
        row = self._row(container)
        if row.live:
            row.state = "exited"

    @_call
    def remove(self, container: str) -> None:
        row = self.rows.pop(container, None)
        if row is not None and row.worked:
            self.lost.append(row)

    @_call
    def rename(self, container: str, name: str) -> None:
        row = self._row(container)
        self._free(name)
        row.name = name

    @_call
    def inspect(self, container: str) -> dict[str, Any]:
        row = self._row(container)
        state = {"Status": row.state, "Running": row.live}
        config = {"Labels": row.labels}
        return {"Id": row.id, "Name": f"/{row.name}", "State": state, "Config": config, "Mounts": []}

    @_call
    def changes(self, container: str, _limit: int = 0) -> tuple[list[tuple[str, int]], bool]:
        return ([("/opt/work", ADDED)] if self._row(container).worked else []), True

    @_call
    def sizes(self, containers: Sequence[str]) -> dict[str, int]:
        return {one: 1 for one in containers if one in self.rows}

    @_call
    def file_status(self, container: str, path: str) -> dict[str, Any] | None:
        self._row(container)
        return {"name": path, "size": 0, "mode": 1 << 31, "linkTarget": ""}

    @_call
    def read_file(self, container: str, _path: str, _limit: int) -> bytes | None:
        self._row(container)
        return None

    @_call
    def put(self, container: str, _archive: bytes) -> None:
        self._row(container)

    @_call
    def ensure_network(self) -> None:
        pass

    @_call
    def images(self, reference: str = "") -> list[dict[str, Any]]:
        return [
            dict(picture)
            for picture in self.pictures
            if not reference
            or any(fnmatch.fnmatch(tag.rpartition(":")[0], reference) for tag in picture["RepoTags"])
        ]

    def _picture(self, reference: str) -> dict[str, Any] | None:
        return next((p for p in self.pictures if reference in (p["Id"], *p["RepoTags"])), None)

    @_call
    def inspect_image(self, reference: str) -> dict[str, Any] | None:
        found = self._picture(reference)
        return None if found is None else {"Id": found["Id"], "Config": {"Labels": found["Labels"]}}
