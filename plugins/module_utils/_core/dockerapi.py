# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The plain requests to Docker Engine, over its socket: one question, one answer, JSON both ways.

What a launch or a listing needs is asked here, since importing the Docker SDK for Python takes longer than
all of its calls. What streams is left to the SDK, which is imported when the first such thing is asked for
(``engine``). The methods bear the names and take the arguments that they have there.

HTTP is Python's own (http.client), which knows nothing of sockets that have a path; no more is added. The
version of the API is the engine's own, which its answer to a ping tells, as for the SDK
(https://docs.docker.com/reference/api/engine/, "Versioning").
"""

from __future__ import annotations

import http.client
import json
import select
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote, urlencode

_UNIX = "unix://"


class ApiError(Exception):
    """The engine refused what was asked: the status of its answer, and its words."""

    def __init__(self, status: int, explanation: str) -> None:
        super().__init__(explanation)
        self.status = status
        self.explanation = explanation


class _Connection(http.client.HTTPConnection):
    """A connection to a Unix socket."""

    sock: socket.socket

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("docker", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect; raise OSError."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.settimeout(self.timeout)
            made.connect(self._path)
        except BaseException:
            made.close()
            raise
        self.sock = made


class DockerApi:
    """Docker Engine at a Unix socket. Every method raises ApiError, or OSError when it does not answer.

    Threads may share it: each request has a connection to itself, which is kept for the next one.
    """

    def __init__(self, url: str, timeout: float) -> None:
        """Connect to the engine at ``url`` (``unix://...``); ``timeout`` is in seconds."""
        self._path = url[len(_UNIX) :]
        self._timeout = timeout
        self._idle: list[_Connection] = []
        answer, said = self._request("GET", "/_ping", b"", "", timeout)
        if answer.status >= 400:
            raise ApiError(answer.status, _explanation(said))
        version = answer.getheader("Api-Version", "")
        self._prefix = f"/v{version}" if version else ""

    @staticmethod
    def speaks(url: str) -> bool:
        """Say whether this is an address that it can be at."""
        return url.startswith(_UNIX)

    def _connected(self) -> _Connection:
        connection = _Connection(self._path, self._timeout)
        connection.connect()
        return connection

    def close(self) -> None:
        """Close the connections."""
        while self._idle:
            self._idle.pop().close()

    def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        content: bytes = b"",
        kind: str = "application/json",
        seconds: float = 0.0,
    ) -> Any:
        """Ask, and return the answer as JSON has it; None where it is empty. ``seconds``: that it takes."""
        given = {key: value for key, value in (query or {}).items() if value is not None}
        target = f"{self._prefix}{path}" + (f"?{urlencode(given)}" if given else "")
        answer, said = self._request(method, target, content, kind, self._timeout + seconds)
        if answer.status >= 400:
            raise ApiError(answer.status, _explanation(said))
        if not said.strip() and method != "GET":
            return None
        try:
            # One that ends before its content does is read as one without any.
            return json.loads(said)
        except ValueError as error:
            raise OSError(f"its answer is no JSON: {error}") from error

    def _request(
        self, method: str, target: str, content: bytes, kind: str, timeout: float
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """Send a request, and return the answer and its content."""
        connection = self._taken()
        try:
            connection.sock.settimeout(timeout)
            connection.request(method, target, content or None, {"Content-Type": kind} if content else {})
            answer = connection.getresponse()
            said = answer.read()
        except http.client.HTTPException as error:
            connection.close()
            raise OSError(f"its answer is none of HTTP: {error or type(error).__name__}") from error
        except BaseException:
            connection.close()
            raise
        if answer.will_close:
            connection.close()
        else:
            self._idle.append(connection)
        return answer, said

    def _taken(self) -> _Connection:
        """Return a connection that nobody uses: an idle one that the engine has not closed, or a new one."""
        with suppress(IndexError):
            while True:
                connection = self._idle.pop()
                # Nothing is due on it: what can be read is its end (poll(2)).
                ended = select.poll()
                ended.register(connection.sock, select.POLLIN)
                if not ended.poll(0):
                    return connection
                connection.close()
        return self._connected()

    # What is asked

    def info(self) -> dict[str, Any]:
        """Return what the engine says of itself."""
        return dict(self._ask("GET", "/info"))

    def containers(
        self,
        all: bool = False,  # noqa: A002  # as the SDK calls it
        size: bool = False,
        filters: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Return the listing of containers: with ``all`` those too that do not run."""
        query = {"all": int(all), "size": int(size) or None, "filters": _filters(filters)}
        return list(self._ask("GET", "/containers/json", query))

    def inspect_container(self, container: str) -> dict[str, Any]:
        """Return the description of a container."""
        return dict(self._ask("GET", f"/containers/{quote(container)}/json"))

    def create_container_from_config(self, config: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Create a container; the answer has its Id."""
        content = json.dumps(config).encode("ascii")
        return dict(self._ask("POST", "/containers/create", {"name": name}, content))

    def start(self, container: str) -> None:
        """Start a container."""
        self._ask("POST", f"/containers/{quote(container)}/start")

    def stop(self, container: str, timeout: int) -> None:
        """Stop a container; after ``timeout`` seconds it is killed."""
        self._ask("POST", f"/containers/{quote(container)}/stop", {"t": timeout}, seconds=timeout)

    def rename(self, container: str, name: str) -> None:
        """Give a container another name."""
        self._ask("POST", f"/containers/{quote(container)}/rename", {"name": name})

    def remove_container(self, container: str, v: bool = False, force: bool = False) -> None:
        """Remove a container, with ``v`` its anonymous volumes, with ``force`` one that runs."""
        self._ask("DELETE", f"/containers/{quote(container)}", {"v": int(v), "force": int(force)})

    def put_archive(self, container: str, path: str, data: bytes) -> None:
        """Unpack a tar archive in a container."""
        where = f"/containers/{quote(container)}/archive"
        self._ask("PUT", where, {"path": path}, data, "application/x-tar")

    def exec_inspect(self, execution: str) -> dict[str, Any]:
        """Return the description of a command in a container."""
        return dict(self._ask("GET", f"/exec/{quote(execution)}/json"))

    def images(self, filters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Return the listing of images."""
        return list(self._ask("GET", "/images/json", {"filters": _filters(filters)}))

    def inspect_image(self, image: str) -> dict[str, Any]:
        """Return the description of an image."""
        return dict(self._ask("GET", f"/images/{quote(image, safe='/:@')}/json"))

    def networks(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the networks whose names have one of these in them."""
        return list(self._ask("GET", "/networks", {"filters": _filters({"name": list(names)})}))


def _filters(given: Mapping[str, Any] | None) -> str | None:
    """Return filters as the API takes them: to each name a list of words, truth in lower case."""
    if not given:
        return None
    lists = {key: value if isinstance(value, list) else [value] for key, value in given.items()}
    words = {
        key: [str(one).lower() if isinstance(one, bool) else str(one) for one in values]
        for key, values in lists.items()
    }
    return json.dumps(words)


def _explanation(said: bytes) -> str:
    """Return the words of an answer that says no: {"message": ...}, or a text of a proxy's."""
    with suppress(ValueError, TypeError, KeyError):
        return str(json.loads(said)["message"])
    return said.decode("utf-8", "replace")
