# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The plain requests to Docker Engine, over its socket: one question, one answer, JSON both ways.

What a launch or a listing needs is asked here, since importing the Docker SDK for Python takes longer than
all of its calls. What streams is left to the SDK, which is imported when the first such thing is asked for
(``engine``). The methods bear the names and take the arguments that they have there.

HTTP/1.1 (RFC 9112), as far as the engine speaks it: an answer has a length, comes in chunks, or is empty.
A path without a version has that of the engine itself (https://docs.docker.com/engine/api/, "Versioning").
"""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, BinaryIO
from urllib.parse import quote, urlencode

_LINE_LIMIT = 1 << 16
_EMPTY = (204, 304)
_UNIX = "unix://"


class ApiError(Exception):
    """The engine refused what was asked: the status of its answer, and its words."""

    def __init__(self, status: int, explanation: str) -> None:
        super().__init__(explanation)
        self.status = status
        self.explanation = explanation


class DockerApi:
    """Docker Engine at a Unix socket. Every method raises ApiError, or OSError when it does not answer.

    Threads may share it: each request has a connection to itself, which is kept for the next one.
    """

    def __init__(self, url: str, timeout: float) -> None:
        """Connect to the engine at ``url`` (``unix://...``); ``timeout`` is in seconds. Raises OSError."""
        self._path = url[len(_UNIX) :]
        self._timeout = timeout
        self._idle = [self._connected()]

    @staticmethod
    def speaks(url: str) -> bool:
        """Say whether this is an address that it can be at."""
        return url.startswith(_UNIX)

    def _connected(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(self._timeout)
            connection.connect(self._path)
        except BaseException:
            connection.close()
            raise
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
        target = f"{path}?{urlencode(given)}" if given else path
        head = f"{method} {target} HTTP/1.1\r\nHost: docker\r\nContent-Length: {len(content)}\r\n"
        if content:
            head += f"Content-Type: {kind}\r\n"
        connection = self._taken()
        try:
            connection.settimeout(self._timeout + seconds)
            connection.sendall(f"{head}\r\n".encode("ascii") + content)
            with connection.makefile("rb") as stream:
                status, said, again = _answer(stream)
        except BaseException:
            connection.close()
            raise
        if again:
            self._idle.append(connection)
        else:
            connection.close()
        if status >= 400:
            raise ApiError(status, _explanation(said))
        return json.loads(said) if said.strip() else None

    def _taken(self) -> socket.socket:
        """Return a connection that nobody uses: an idle one that the engine has not closed, or a new one."""
        with suppress(IndexError):
            while True:
                connection = self._idle.pop()
                # Nothing is due on it: what can be read is its end (poll(2)).
                ended = select.poll()
                ended.register(connection, select.POLLIN)
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


def _answer(stream: BinaryIO) -> tuple[int, bytes, bool]:
    """Return the status and the content of an answer, and whether the connection can be used again.

    Raises OSError for what is no whole answer.
    """
    try:
        version, status = _line(stream).split(" ", 2)[:2]
        headers: dict[str, str] = {}
        while line := _line(stream):
            name, _colon, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        number = int(status)
        again = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
        if number in _EMPTY:
            return number, b"", again
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return number, _chunks(stream), again
        if "content-length" in headers:
            return number, _exactly(stream, int(headers["content-length"])), again
        return number, stream.read(), False
    except ValueError as error:
        raise OSError(f"its answer is none of HTTP: {error}") from error


def _line(stream: BinaryIO) -> str:
    line = stream.readline(_LINE_LIMIT)
    if not line.endswith(b"\n"):
        raise OSError("the connection was closed in the middle of an answer")
    return line.decode("latin-1").rstrip("\r\n")


def _exactly(stream: BinaryIO, length: int) -> bytes:
    content = stream.read(length)
    if len(content) < length:
        raise OSError("the connection was closed in the middle of an answer")
    return content


def _chunks(stream: BinaryIO) -> bytes:
    parts = []
    while length := int(_line(stream).partition(";")[0], 16):
        parts.append(_exactly(stream, length))
        _line(stream)
    while _line(stream):
        pass  # trailers
    return b"".join(parts)
