"""How builds find the package cache: what pip, uv and apt are told, and what leaves it out."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import packagecache
from ansible_collections.lab.server.plugins.module_utils._core.policy import PackageCache


def cache(port: int = 80, address: str = "10.213.0.1/24") -> PackageCache:
    return PackageCache(
        index="https://index.example.org/root/simple/",
        files=("https://files.example.org/",),
        apt=("packages.example.org",),
        size=1 << 30,
        address=address,
        port=port,
    )


def test_pip_uv_and_apt_are_told_the_address_of_the_cache() -> None:
    assert packagecache.environment(cache(), ()) == {
        "PIP_INDEX_URL": "http://10.213.0.1/root/simple/",
        "PIP_TRUSTED_HOST": "10.213.0.1",
        "UV_DEFAULT_INDEX": "http://10.213.0.1/root/simple/",
        "UV_INDEX_URL": "http://10.213.0.1/root/simple/",
    }
    assert packagecache.hosts(cache()) == {"packages.example.org": "10.213.0.1"}
    assert packagecache.url(cache(81)) == "http://10.213.0.1:81"


@pytest.mark.parametrize(
    ("taken", "left"),
    [
        ("PIP_TRUSTED_HOST", ["UV_DEFAULT_INDEX", "UV_INDEX_URL"]),
        ("UV_INDEX_URL", ["PIP_INDEX_URL", "PIP_TRUSTED_HOST"]),
        ("http_proxy", []),
        ("ALL_PROXY", []),
    ],
)
def test_half_of_ours_never_meets_half_of_theirs(taken: str, left: list[str]) -> None:
    assert list(packagecache.environment(cache(), {taken, "HOME"})) == left


@pytest.fixture
def port() -> Iterator[int]:
    """Serve 204 for the probe, and 404 else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(204 if self.path == "/lab-server-package-cache" else 404)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_whether_it_works_is_asked(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert packagecache.answers(cache(port, "127.0.0.1/8"))
    with monkeypatch.context() as changed:
        changed.setattr(packagecache, "PROBE", "/another-server")
        assert not packagecache.answers(cache(port, "127.0.0.1/8"))
    assert not packagecache.answers(cache(1, "127.0.0.1/8"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(packagecache, "_SECONDS", 0.2)
        assert not packagecache.answers(cache(silent.getsockname()[1], "127.0.0.1/8"))
