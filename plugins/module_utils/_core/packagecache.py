# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How the build of an image finds the server's cache of packages, which the role package_cache sets up.

pip and uv are told by their environment, apt by the address of the hosts that it asks. Nothing of it counts
in the fingerprint of an image: what a package is does not depend on the way that it came.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from .policy import PackageCache

#: What the cache answers itself, with 204, for as long as it works.
PROBE = "/lab-server-package-cache"
_SECONDS = 2.0
_HTTP_PORT = 80
_PROXIES = frozenset({"http_proxy", "all_proxy"})


def url(cache: PackageCache) -> str:
    """Return the address of the cache, without a path."""
    return f"http://{cache.host}" if cache.port == _HTTP_PORT else f"http://{cache.host}:{cache.port}"


def environment(cache: PackageCache, taken: Collection[str]) -> dict[str, str]:
    """Return the variables by which pip and uv find the cache.

    There are none for a program of which one is in ``taken``, the names that the build sets itself, and none
    at all where it sends what goes by plain HTTP to a proxy, which does not know this server.
    Sources: https://pip.pypa.io/en/stable/topics/configuration/#environment-variables,
    https://docs.astral.sh/uv/reference/environment/.
    """
    index = url(cache) + urlsplit(cache.index).path
    programs = (
        # pip takes packages by plain HTTP from a host that it was told to trust.
        {"PIP_INDEX_URL": index, "PIP_TRUSTED_HOST": cache.host},
        # The older name is that of releases before 0.4.23.
        {"UV_DEFAULT_INDEX": index, "UV_INDEX_URL": index},
    )
    found: dict[str, str] = {}
    if any(name.lower() in _PROXIES for name in taken):
        return found
    for variables in programs:
        if not any(name in taken for name in variables):
            found.update(variables)
    return found


def hosts(cache: PackageCache) -> dict[str, str]:
    """Return the hosts of apt's repositories that are the cache in a build, and its address for each."""
    return dict.fromkeys(cache.apt, cache.host)


def answers(cache: PackageCache) -> bool:
    """Say whether the cache works."""
    import http.client  # it takes long to load, and only a build asks

    connection = http.client.HTTPConnection(cache.host, cache.port, timeout=_SECONDS)
    try:
        connection.request("GET", PROBE)
        return connection.getresponse().status == http.client.NO_CONTENT
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
