"""What one build fetched is there for all, also when the index cannot be reached (B4)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conftest import Server

pytestmark = pytest.mark.thorough

REQUIREMENT = "colorama==0.4.6"
# Nobody but the cache itself asks the index; its user is nginx's.
UNREACHABLE = "OUTPUT -m owner --uid-owner www-data -p tcp --dport 443 -j REJECT"


def written(server: Server, user: str, first: str) -> None:
    """Lay out a project of the user's that needs the package, and that no layer of another one serves."""
    server.user(user, "rm -rf ~/workspace/cached && project init cached --base lab/python")
    server.user(
        user,
        f"cd ~/workspace/cached && echo {REQUIREMENT} > requirements.txt && "
        f"printf 'FROM lab/python\\nRUN echo {first}\\nCOPY requirements.txt /r.txt\\n"
        "RUN pip install --no-cache-dir -r /r.txt\\n' > Dockerfile",
    )


@pytest.fixture
def unreachable(server: Server) -> Iterator[None]:
    """The index does not answer while a test runs, once a first build has fetched the package."""
    written(server, "bob", "first")
    server.user("bob", "image-update cached")
    server.root(f"iptables -w -I {UNREACHABLE}")
    yield
    server.root(f"iptables -w -D {UNREACHABLE}")


def test_the_second_build_needs_no_index(server: Server, unreachable: None) -> None:
    written(server, "dave", "second")
    server.user("dave", "image-update cached")
    said = server.root("docker run --rm --network none lab/2004/cached pip freeze").out
    assert REQUIREMENT in said
    # The image knows nothing of the cache.
    assert "PIP_INDEX_URL" not in server.root("docker image inspect lab/2004/cached").out
    # What nobody fetched is not there, and the message says which line failed.
    server.user("dave", "echo iniconfig==1.1.1 >> ~/workspace/cached/requirements.txt")
    failed = server.user("dave", "image-update cached", check=False)
    assert failed.rc != 0 and "pip install" in failed.text and "Traceback" not in failed.text


def test_the_cache_is_for_builds_alone(server: Server) -> None:
    ask = "import urllib.request; urllib.request.urlopen('http://10.213.0.1/simple/', timeout=4)"
    assert server.user("alice", f'python3 -c "{ask}"', check=False).rc != 0
    assert "10.213.0.1:80" in server.root("ss -Hltn sport = :80").out
    assert "0.0.0.0" not in server.root("ss -Hltn sport = :80").out.split()[3]
    assert server.root("systemctl is-enabled nginx", check=False).out in ("masked", "disabled", "")
