# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One measurement in a process of its own: ``measure.py VERB``, told what by JSON on stdin, answers in JSON.

tools/bench_engine.py calls it, in a mount namespace where the folders of a server are there and empty. Times
are seconds of the wall clock, sizes are bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import resource
import runpy
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

STARTED = time.perf_counter()
NAME = "^/[a-z0-9-]+[.]_[.][0-9]+$"
_ID = re.compile(r"[0-9a-f]{64}")


@contextlib.contextmanager
def timed(answer: dict[str, Any], key: str) -> Iterator[None]:
    """Put the seconds of the block into the answer."""
    started = time.perf_counter()
    yield
    answer[key] = time.perf_counter() - started


def peak() -> int:
    """Return the most memory that this process had resident (getrusage(2) tells kilobytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def client(url: str) -> Any:
    import docker  # imported here, as the library does: its import is a part of what is measured

    return docker.APIClient(base_url=url, version="auto", timeout=600)


def library(given: dict[str, Any]) -> tuple[Any, Any, list[Any]]:
    """Return the library's engine, policy and list of wishes."""
    from ansible_collections.lab.server.plugins.module_utils._core import policy
    from ansible_collections.lab.server.plugins.module_utils._core.containers import Wanted
    from ansible_collections.lab.server.plugins.module_utils._core.engine import Engine

    wanted = [Wanted(user, project) for user, project in given["projects"]]
    return Engine.connect(given["url"], timeout=600), policy.parse(given["policy"]), wanted


def reconcile(given: dict[str, Any]) -> dict[str, Any]:
    """Reconcile the list by the library: what the module does, without Ansible."""
    answer: dict[str, Any] = {}
    engine, policy, wanted = library(given)
    from ansible_collections.lab.server.plugins.module_utils._core import containers

    with timed(answer, "calls"):
        results = containers.reconcile(engine, policy, wanted, check=False)
    answer["changed"] = sum(result.changed for result in results)
    answer["failed"] = [result.message for result in results if result.failed]
    return answer


def listings(given: dict[str, Any]) -> dict[str, Any]:
    """Make the two calls that say what there is, and nothing of their answers."""
    answer: dict[str, Any] = {}
    engine = client(given["url"])
    with timed(answer, "calls"):
        engine.containers(all=True)
        engine.images(filters={"reference": "lab/*/*"})
    return answer


def inspections(given: dict[str, Any]) -> dict[str, Any]:
    """List the containers, and ask for each: the facts that a comparison of every field needs."""
    answer: dict[str, Any] = {}
    engine = client(given["url"])
    with timed(answer, "calls"):
        for item in engine.containers(all=True, filters={"name": [NAME]}):
            engine.inspect_container(item["Id"])
    return answer


def module(given: dict[str, Any]) -> dict[str, Any]:
    """Run the module as Ansible does on the server, for its memory."""
    from ansible.module_utils import basic

    arguments = {"ANSIBLE_MODULE_ARGS": given["arguments"]}
    basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE = json.dumps(arguments).encode(), "legacy"
    answer: dict[str, Any] = {}
    # What it prints is not the answer.
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        try:
            runpy.run_module(
                "ansible_collections.lab.server.plugins.modules.project_containers", run_name="__main__"
            )
        except SystemExit as end:
            answer["status"] = end.code or 0
    return answer


# Making containers


def remove_all(engine: Any, at_once: int = 4) -> None:
    """Remove the containers of projects."""
    listed = [item["Id"] for item in engine.containers(all=True, filters={"name": [NAME]})]
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda container: engine.remove_container(container, v=True, force=True), listed))


class Recorder:
    """Keeps the requests that go through a client of Docker, thread by thread, with ids that came back."""

    def __init__(self, engine: Any) -> None:
        self.threads: dict[int, list[tuple[Any, dict[str, Any], str]]] = {}
        send = engine.send

        def recorded(request: Any, **options: Any) -> Any:
            response = send(request, **options)
            made = response.json()["Id"] if "/containers/create" in request.url else ""
            self.threads.setdefault(threading.get_ident(), []).append((request.copy(), options, made))
            return response

        engine.send = recorded


def replay(engine: Any, calls: list[tuple[Any, dict[str, Any], str]]) -> None:
    """Make the same calls again, with the new ids in the place of those of then."""
    new: dict[str, str] = {}
    for request, options, made in calls:
        again = request.copy()
        again.url = _ID.sub(lambda match: new.get(match.group(), match.group()), again.url)
        response = engine.send(again, **options)
        if response.status_code >= 400 and response.status_code != 404:
            raise SystemExit(f"{again.method} {again.url}: {response.status_code} {response.text[:300]}")
        content = response.content
        if made:
            new[made] = json.loads(content)["Id"]


def least(engine: Any, calls: list[tuple[Any, dict[str, Any], str]]) -> list[tuple[Any, dict[str, Any], str]]:
    """Return only those calls that make, fill and start a container."""
    return [
        call
        for call in calls
        if call[2]
        or (call[0].method == "PUT" and "/archive" in call[0].url)
        or call[0].url.endswith("/start")
    ]


def create(given: dict[str, Any]) -> dict[str, Any]:
    """Make and start containers: by the library, by the same calls again, and by the least calls.

    The first time is not counted: it makes the network, and warms what can be warmed.
    """
    from ansible_collections.lab.server.plugins.module_utils._core import containers

    engine, policy, wanted = library(given)
    bare = client(given["url"])
    answer: dict[str, Any] = {"failed": []}

    def by_the_library() -> None:
        results = containers.reconcile(engine, policy, wanted, check=False)
        answer["failed"] += [result.message for result in results if result.failed or not result.changed]

    by_the_library()
    remove_all(bare)
    # Recorded as requests of the SDK's, which are made again: what it does not ask over the socket itself.
    engine._api = engine._client
    recorder = Recorder(engine._client)
    by_the_library()
    remove_all(bare)
    # What the main thread asked before and after is made first; the rest as many at once as it was.
    main = recorder.threads.pop(threading.get_ident())
    workers = list(recorder.threads.values())
    answer["requests"] = sum(len(calls) for calls in (main, *workers))
    answer["threads"] = len(workers)
    engine.close()
    for turn in range(given["turns"]):
        engine = library(given)[0]
        with timed(answer, f"library {turn}"):
            by_the_library()
        engine.close()
        remove_all(bare)
        for name, parts in (("same", workers), ("least", [least(bare, calls) for calls in workers])):
            engine = client(given["url"])
            with timed(answer, f"{name} {turn}"):
                if name == "same":
                    replay(engine, main)
                with ThreadPoolExecutor(len(parts)) as pool:
                    list(pool.map(lambda calls: replay(engine, calls), parts))  # noqa: B023 - used at once
            engine.close()
            running = len(bare.containers(filters={"name": [NAME]}))
            if running != len(wanted):
                raise SystemExit(f"{name}: {running} of {len(wanted)} containers run.")
            remove_all(bare)
    return answer


# An image that did not change


def image(given: dict[str, Any]) -> dict[str, Any]:
    """Build a project's image, or see that there is nothing to build."""
    from ansible_collections.lab.server.plugins.module_utils._core import images

    answer: dict[str, Any] = {}
    engine, policy, _wanted = library(given)
    with timed(answer, "calls"):
        result = images.build(engine, policy, policy.user(given["user"]), given["project"])
    answer["changed"] = result.changed
    # getrusage(2): blocks of 512 bytes that had to come from the disk, in the user's child as well.
    used = [resource.getrusage(who).ru_inblock for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    answer["read"] = sum(used) * 512
    return answer


def hashing(given: dict[str, Any]) -> dict[str, Any]:
    """Read every file of the context and hash it: what cannot be avoided where nothing is remembered."""
    answer: dict[str, Any] = {"files": 0}
    with timed(answer, "calls"):
        for folder, _folders, files in os.walk(given["folder"]):
            for name in files:
                digest = hashlib.sha256()
                with open(os.path.join(folder, name), "rb") as file:
                    while chunk := file.read(1 << 20):
                        digest.update(chunk)
                answer["files"] += 1
    return answer


def main() -> None:
    verbs = (reconcile, listings, inspections, module, create, image, hashing)
    verb = {function.__name__: function for function in verbs}[sys.argv[1]]
    answer = verb(json.load(sys.stdin))
    answer["memory"] = peak()
    answer["process"] = time.perf_counter() - STARTED
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
