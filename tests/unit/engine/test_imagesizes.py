# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the images of one owner hold together, what is refused above the limit, and what is collected."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import collecting, engine, imagesizes, policy
from ansible_collections.lab.server.plugins.module_utils._core.errors import NotFound, Refused
from ansible_collections.lab.server.plugins.module_utils._core.imagesizes import Held
from ansible_collections.lab.server.plugins.module_utils._core.items import ItemResult
from ansible_collections.lab.server.plugins.module_utils._core.versions import Version

GIB = 1 << 30


def history(*steps: tuple[str, int]) -> list[dict[str, Any]]:
    return [{"Id": name, "Size": size} for name, size in steps]


# Newest first, as Docker tells them.
FIRST = history(("c", 10), ("b", 5), ("base", 100), ("<missing>", 50))
SECOND = history(("d", 7), ("b", 5), ("base", 100), ("<missing>", 50))
PULLED = history(("top", 1), ("image", 20), ("<missing>", 30), ("<missing>", 30))


def test_each_step_counts_once_and_base_images_do_not() -> None:
    assert imagesizes.together([FIRST, SECOND], {"base"}) == 22
    # What no policy names is counted to whoever brought it, its nameless steps one by one.
    assert imagesizes.together([PULLED, PULLED], {"base"}) == 81
    assert imagesizes.together([], {"base"}) == 0


def lab(limit: int = 0) -> policy.Policy:
    limits = {"containers": 1, "cpus": 1, "memory": "1g", "pids": 64, "shm": "64m", "gpus": 0}
    quota = {"soft": 0, "hard": 0, "inodes_soft": 0, "inodes_hard": 0}
    group = {"name": "students", "gid": 3101, "limits": {**limits, "images_size": limit}, "quota": quota}
    users = [{"name": "alice", "uid": 2001, "group": "students"}]
    bases = [{"name": "lab/python", "image": "python"}, {"name": "lab/two:3", "image": "two"}]
    variables = {"lab_groups": [group], "lab_users": users, "lab_base_images": bases}
    return policy.from_inventory(variables)[0]


def picture(
    name: str, tags: list[str], uid: int = 2001, project: str = "thesis", created: int = 1
) -> dict[str, Any]:
    labels = {
        "lab.server.owner": str(uid),
        "lab.server.project": project,
        "lab.server.fingerprint": name * 64,
    }
    return {"Id": name, "RepoTags": tags, "Labels": labels, "Size": 999, "Created": created}


class Model:
    """As much of an engine as is asked: images and their histories."""

    def __init__(self) -> None:
        self.pictures = [
            picture("c", ["lab/2001/thesis:latest", f"lab/2001/thesis:{'c' * 12}"], created=2),
            picture("d", [f"lab/2001/thesis:{'d' * 12}"]),
            picture("e", ["lab/2002/other:latest"], 2002, "other"),
            {"Id": "base", "RepoTags": ["lab/python:latest"], "Labels": None},
            {"Id": "two", "RepoTags": ["lab/two:3"], "Labels": None},
        ]
        self.histories = {
            "c": FIRST,
            "d": SECOND,
            "e": history(("e", 1), ("two", 9)),
            "new": history(("new", 4)),
        }

    def images(self, reference: str = "") -> list[dict[str, Any]]:
        assert reference in ("", "lab/2001/*")
        return self.pictures

    def inspect_image(self, image: str) -> dict[str, Any]:
        return {
            "Id": image,
            "Config": {"Labels": {"lab.server.base.id": "older"} if image == "new2" else None},
        }

    def history(self, image: str) -> list[dict[str, Any]]:
        if image not in self.histories:
            raise NotFound("It is gone.")
        return self.histories[image]


def test_what_a_user_holds_after_a_build() -> None:
    made, model = lab(5 * GIB), Model()
    alice = made.users[0]
    assert imagesizes.held(model, made, alice) == Held(22, 5 * GIB)  # type: ignore[arg-type]  # a model
    assert imagesizes.held(model, made, alice, without={"d"}, also="new").size == 19  # type: ignore[arg-type]  # as above
    assert imagesizes.by_owner(model, made, model.pictures) == {2001: 22, 2002: 1}  # type: ignore[arg-type]  # as above
    del model.histories["d"]
    assert imagesizes.held(model, made, alice).size == 15  # type: ignore[arg-type]  # as above


def test_a_base_image_that_was_renewed_is_still_nobodys() -> None:
    made, model = lab(), Model()
    alice = made.users[0]
    model.pictures[3]["Id"] = "renewed"
    # It counts to the user where nothing tells what it was, as with images of an earlier version.
    assert imagesizes.held(model, made, alice).size == 172  # type: ignore[arg-type]  # a model
    model.pictures[0]["Labels"]["lab.server.base.id"] = "base"
    assert imagesizes.held(model, made, alice).size == 22  # type: ignore[arg-type]  # as above
    assert imagesizes.by_owner(model, made, model.pictures)[2001] == 22  # type: ignore[arg-type]  # as above
    # The one that was built just now is in no listing by name yet.
    model.histories["new2"] = history(("new2", 4), ("older", 500))
    assert imagesizes.held(model, made, alice, also="new2").size == 26  # type: ignore[arg-type]  # as above


def test_only_older_images_that_nothing_uses_can_go() -> None:
    model, alice = Model(), lab().users[0]
    assert [one.id for one in imagesizes.removable(model, alice, ())] == ["d"]  # type: ignore[arg-type]  # a model
    assert imagesizes.removable(model, alice, {"d"}) == []  # type: ignore[arg-type]  # as above


OLD = [Version(str(n), "lab/2001/thesis", f"{n}" * 64, size=n * GIB) for n in (3, 2)]


@pytest.mark.parametrize(
    ("size", "limit", "after", "said"),
    [
        (99, 0, True, ""),
        (5, 6, False, ""),
        (6, 6, True, ""),
        (6, 6, False, "nothing was built"),
        (7, 6, True, r"would hold 7G together, and may hold 6G: the new one was not kept"),
    ],
)
def test_above_the_limit_is_refused_with_what_to_remove(
    size: int, limit: int, after: bool, said: str
) -> None:
    now = Held(size * GIB, limit * GIB)
    if not said:
        imagesizes.check(now, OLD, after=after)
        return
    with pytest.raises(Refused, match=said) as caught:
        imagesizes.check(now, OLD, after=after)
    assert "image remove thesis --to 333333333333 (3G)" in str(caught.value)
    with pytest.raises(Refused, match="No older image can go"):
        imagesizes.check(now, [], after=after)


# Collected


def test_what_has_no_name_goes_after_a_day() -> None:
    listed = [
        {"Id": name, "Created": created} for name, created in (("old", 0), ("new", 90_000), ("used", 0))
    ]
    assert collecting.nameless(listed, frozenset({"used"}), 100_000.0) == ["old"]
    # The clock was put back: nothing is older than it was.
    assert collecting.nameless(listed, frozenset(), -5.0) == []


class Collecting(Model):
    """A model with images without a name, of which ``needed`` cannot be removed."""

    def __init__(self) -> None:
        super().__init__()
        self.left = [{"Id": name, "Created": 1} for name in ("sha256:old", "sha256:needed", "sha256:used")]

    def images(self, reference: str = "") -> list[dict[str, Any]]:
        assert reference == "lab/*/*"
        return self.pictures

    def containers(self) -> list[dict[str, Any]]:
        return [{"ImageID": "sha256:used"}]

    def nameless(self) -> list[dict[str, Any]]:
        return list(self.left)

    def remove_image(self, image: str) -> None:
        if image != "sha256:needed":
            self.left = [one for one in self.left if one["Id"] != image]


def test_what_nobody_uses_goes_and_what_others_stand_on_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def prune(_engine: Any, _policy: Any, user: Any, project: str, *, check: bool, wait: float) -> ItemResult:
        asked.append((user.name, project, check))
        return ItemResult("x", facts={"removed": ["lab/2001/thesis:aaaaaaaaaaaa"]})

    monkeypatch.setattr(collecting.images, "prune", prune)
    model, made = Collecting(), lab()
    told = collecting.collect(model, made, 1e9, check=True)  # type: ignore[arg-type]  # a model
    assert told.gone == ("lab/2001/thesis:aaaaaaaaaaaa", "sha256:old", "sha256:needed")
    assert len(model.left) == 3
    done = collecting.collect(model, made, 1e9, check=False)  # type: ignore[arg-type]  # a model
    assert done.gone == ("lab/2001/thesis:aaaaaaaaaaaa", "sha256:old")
    assert [one["Id"] for one in model.left] == ["sha256:needed", "sha256:used"]
    # uid 2002 is nobody's: what belongs to it is left for IT.
    assert asked == [("alice", "thesis", True), ("alice", "thesis", False)]


# The watchdog of builds


def build(watchdog: engine._Watchdog, program: str = "import time; time.sleep(60)") -> float:
    started = time.monotonic()
    reader = engine._BuildReader(lambda _line: None)
    with open("/dev/null", "rb") as nothing:
        engine._run([sys.executable, "-c", program], {}, nothing, reader, watchdog)
    return time.monotonic() - started


def test_a_build_that_takes_too_long_is_stopped() -> None:
    watchdog = engine._Watchdog(0.2, engine.content)
    assert build(watchdog) < 20
    assert watchdog.reason.startswith("it was stopped, as it took more than")


def test_a_build_that_fills_the_disk_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_WATCH_SECONDS", 0.05)
    seen = iter(["", "", "the disk is full"])
    watchdog = engine._Watchdog(60, lambda: next(seen))
    assert build(watchdog) < 20
    assert watchdog.reason == "the disk is full"


def test_a_build_that_ends_by_itself_is_left_alone() -> None:
    watchdog = engine._Watchdog(60, engine.content)
    build(watchdog, "")
    watchdog.join(10)
    assert watchdog.reason == "" and watchdog not in threading.enumerate()
