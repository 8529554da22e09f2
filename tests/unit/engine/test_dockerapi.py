# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The plain requests to the engine: what is sent, and every way in which an answer may come, or not."""

from __future__ import annotations

import io
import json
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs

import docker
import pytest
from ansible_collections.lab.server.plugins.module_utils._core.dockerapi import ApiError, DockerApi
from ansible_collections.lab.server.plugins.module_utils._core.engine import Engine
from ansible_collections.lab.server.plugins.module_utils._core.errors import EngineError, NotFound, Refused

OK = "HTTP/1.1 200 OK\r\n"


PONG = f"{OK}Api-Version: 1.41\r\nContent-Length: 2\r\n\r\nOK".encode()


class Server:
    """A server that gives one answer after the other, and closes a connection behind one that ends in ""."""

    def __init__(self, path: Path) -> None:
        self.url = f"unix://{path}"
        self.asked: list[bytes] = []
        self.connections = 0
        self.answers: list[str | bytes] = []
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listening.accept()[0]
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            while line := stream.readline():
                request, length = line, 0
                while line.strip():
                    line = stream.readline()
                    request += line
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                if request.startswith(b"GET /_ping "):
                    connection.sendall(PONG)
                    continue
                self.asked.append(request + stream.read(length))
                answer = self.answers.pop(0)
                if b"/images/load" in request:
                    time.sleep(2)
                connection.sendall(answer.encode() if isinstance(answer, str) else answer)
                if isinstance(answer, bytes):
                    return

    def close(self) -> None:
        """Take no more connections."""
        self._listening.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "docker.sock")
    yield made
    made.close()


def content(text: str, status: str = "200 OK", more: str = "") -> str:
    """Return an answer with a length."""
    return f"HTTP/1.1 {status}\r\n{more}Content-Length: {len(text)}\r\n\r\n{text}"


@pytest.mark.parametrize(
    "answer",
    [
        content('{"Id": "abc"}'),
        OK + 'Transfer-Encoding: chunked\r\n\r\n5\r\n{"Id"\r\n8;x=y\r\n: "abc"}\r\n0\r\nTrailer: x\r\n\r\n',
        # Without a length it lasts until the end of the connection.
        b'HTTP/1.0 200 OK\r\n\r\n{"Id": "abc"}',
        content('{"Id": "abc"}', more="Connection: close\r\n").encode(),
    ],
)
def test_an_answer_comes_in_any_form(server: Server, answer: str | bytes) -> None:
    api = DockerApi(server.url, 5)
    for _twice in range(2):
        server.answers.append(answer)
        assert api.inspect_container("abc") == {"Id": "abc"}
    # A connection is used again as long as the engine keeps it.
    assert server.connections == (1 if isinstance(answer, str) else 2)
    api.close()


def test_what_is_sent(server: Server) -> None:
    api = DockerApi(server.url, 5)
    server.answers = [content("[]"), content('{"Id": "x"}', "201 Created"), "HTTP/1.1 204 No Content\r\n\r\n"]
    api.containers(all=True, filters={"name": ["^/a b$"], "dangling": True})
    api.create_container_from_config({"Image": "caf\u00e9"}, "thesis._.2001")
    api.put_archive("abc", "/", b"\0tar")
    listing, creation, archive = server.asked
    asked = "filters=%7B%22name%22%3A+%5B%22%5E%2Fa+b%24%22%5D%2C+%22dangling%22%3A+%5B%22true%22%5D%7D"
    assert listing.startswith(
        f"GET /v1.41/containers/json?all=1&{asked} HTTP/1.1\r\nHost: docker\r\n".encode()
    )
    assert creation.startswith(b"POST /v1.41/containers/create?name=thesis._.2001 HTTP/1.1\r\n")
    assert json.loads(creation.partition(b"\r\n\r\n")[2]) == {"Image": "caf\u00e9"}
    assert archive.startswith(b"PUT /v1.41/containers/abc/archive?path=%2F ") and archive.endswith(
        b"\r\n\r\n\0tar"
    )
    assert b"Content-Type: application/x-tar" in archive
    # What would be another request is a part of this one.
    server.answers.append(content("", "404 Not Found"))
    with pytest.raises(ApiError):
        api.inspect_image("a\r\nX: y/b:1@sha256:0 ?c")
    assert server.asked[-1].startswith(
        b"GET /v1.41/images/a%0D%0AX:%20y/b:1@sha256:0%20%3Fc/json HTTP/1.1\r\n"
    )
    api.close()


CALLS: list[tuple[str, tuple[object, ...], dict[str, object], str]] = [
    ("info", (), {}, "{}"),
    ("containers", (), {"all": True, "filters": {"name": ["^/a[.]b$", "^/c$"]}}, "[]"),
    ("containers", (), {"all": True, "size": True, "filters": {"id": ["0123"]}}, "[]"),
    ("containers", (), {"all": True, "filters": None}, "[]"),
    ("inspect_container", ("thesis._.2001",), {}, "{}"),
    (
        "create_container_from_config",
        ({"Image": "x", "Cmd": ["a", "\u00e9"]}, "thesis._.2001"),
        {},
        '{"Id": "x"}',
    ),
    ("start", ("0123",), {}, ""),
    ("stop", ("0123",), {"timeout": 10}, ""),
    ("rename", ("0123", "thesis._.2001.next"), {}, ""),
    ("remove_container", ("0123",), {"v": True, "force": True}, ""),
    ("put_archive", ("0123", "/", b"\0tar"), {}, ""),
    ("exec_inspect", ("0123",), {}, "{}"),
    ("images", (), {"filters": {"reference": "lab/*/*"}}, "[]"),
    ("images", (), {"filters": {"dangling": True}}, "[]"),
    ("images", (), {"filters": None}, "[]"),
    ("inspect_image", ("lab/2001/thesis:latest",), {}, "{}"),
    ("inspect_image", ("sha256:0123",), {}, "{}"),
    ("networks", (), {"names": ["lab-server"]}, "[]"),
]


def asked(request: bytes) -> tuple[str, str, dict[str, list[str]], object]:
    """Return the method, the path with the version, the query, and the content of a request."""
    head, _empty, sent = request.partition(b"\r\n\r\n")
    method, target, _version = head.split(b"\r\n")[0].decode("ascii").split(" ")
    path, _mark, query = target.partition("?")
    found = {key: ["1" if one == "True" else one for one in ones] for key, ones in parse_qs(query).items()}
    for key in set(found) & {"filters"}:
        found[key] = [json.dumps(json.loads(one), sort_keys=True) for one in found[key]]
    posted = json.loads(sent) if sent.startswith(b"{") else sent
    return method, path, found, posted


@pytest.mark.parametrize(("name", "given", "named", "answer"), CALLS)
def test_the_same_is_asked_as_by_the_sdk(
    server: Server, name: str, given: tuple[object, ...], named: dict[str, object], answer: str
) -> None:
    api, sdk = DockerApi(server.url, 5), docker.APIClient(base_url=server.url, version="1.41")
    server.answers = [content(answer)] * 2
    ours, theirs = (getattr(client, name)(*given, **named) for client in (api, sdk))
    assert ours == theirs or name == "put_archive"
    (method, path, query, sent), wanted = map(asked, server.asked)
    assert (method, path, sent) == (wanted[0], wanted[1], wanted[3])
    # Beyond that it asks only for what is so anyway.
    assert query.items() <= wanted[2].items()
    usual = {
        "all": ["0"],
        "limit": ["-1"],
        "link": ["False"],
        "only_ids": ["0"],
        "size": ["0"],
        "trunc_cmd": ["0"],
    }
    assert {key: value for key, value in wanted[2].items() if key not in query}.items() <= usual.items()
    api.close()
    sdk.close()


@pytest.mark.parametrize(
    ("status", "kind"), [("404 Not Found", NotFound), ("409 Conflict", Refused), ("500 Error", EngineError)]
)
def test_a_refusal_is_a_sentence(server: Server, status: str, kind: type[Exception]) -> None:
    engine = Engine.connect(server.url, 5)
    server.answers = [content('{"message": "No such thing: x"}', status), content("proxy says no", status)]
    for said in ("No such thing: x", "proxy says no"):
        with pytest.raises(kind, match=f"^Docker could not describe the container: {said}[.]") as caught:
            engine.inspect("x")
        assert "ry again" in caught.value.hint  # type: ignore[attr-defined]  # it is an error of ours
    # The connection is as good as before.
    server.answers.append(content("{}"))
    assert engine.inspect("x") == {} and server.connections == 1
    engine.close()


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200", b"nonsense\r\n\r\n", content("[1, 2]").encode()[:-2], OK.encode()]
)
def test_an_engine_that_goes_away_is_a_sentence(server: Server, answer: bytes) -> None:
    engine = Engine.connect(server.url, 5)
    server.answers = [answer]
    with pytest.raises(EngineError, match=r"does not answer at .*docker\.sock"):
        engine.containers()
    # Where it is back, it is asked again.
    server.answers = [content("[]")]
    assert engine.containers() == []
    engine.close()


def test_an_engine_that_says_nothing_is_not_waited_for_for_ever(server: Server) -> None:
    engine = Engine.connect(server.url, 1)
    server.answers = ["", content("[]")]
    with pytest.raises(EngineError, match="does not answer"):
        engine.containers()
    engine.close()


def test_an_archive_may_be_unpacked_for_longer_than_a_question_is_answered(server: Server) -> None:
    engine = Engine.connect(server.url, 1)
    server.answers = [
        content('{"ApiVersion": "1.41"}'),  # the SDK asks for it first
        content('{"stream": "Loaded image: lab/python:latest"}'),
        content('{"Id": "sha256:1"}'),
    ]
    assert engine.load(io.BytesIO(b"archive")) == "sha256:1"
    engine.close()


def test_a_connection_that_was_closed_meanwhile_is_made_anew(server: Server) -> None:
    api = DockerApi(server.url, 5)
    server.answers = [content("[]").encode(), content("[]")]
    assert api.containers() == []
    assert select.select([one.sock for one in api._idle], [], [], 5)[0]
    assert api.containers() == [] and server.connections == 2
    api.close()


def test_threads_have_connections_to_themselves(server: Server) -> None:
    api = DockerApi(server.url, 5)
    names = [f"c{number}" for number in range(50)]
    server.answers = [content('{"Id": "abc"}')] * len(names)

    def ask(name: str) -> str:
        return str(api.inspect_container(name)["Id"])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, names)) == ["abc"] * len(names)
    assert len(server.asked) == 50 and 1 <= server.connections <= 8
    api.close()


def test_plain_requests_do_not_need_the_sdk(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("docker", "requests")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "docker", None)  # it cannot be imported
    engine = Engine.connect(server.url, 5)
    server.answers = [content("[]"), content('{"message": "none"}', "404 Not Found")]
    assert engine.containers() == [] and engine.inspect_image("x") is None
    with pytest.raises(EngineError, match="The Docker SDK for Python is missing"):
        engine.said("x", 10)
    engine.close()
