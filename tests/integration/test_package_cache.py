"""The cache of packages: what is there when the servers of packages are not, and what nobody can put into it.

The index, the repository of apt and the name server are simulated; nginx, pip, apt and Docker are real.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import images
from ansible_collections.lab.server.plugins.module_utils._core.policy import PackageCache, Policy, User
from simulated import (
    ADDRESS,
    APT,
    CACHE,
    FILES,
    INDEX,
    JSON,
    NETWORK,
    OTHER,
    ROOT,
    Answer,
    Cache,
    World,
    wheel,
)

PAGE = "/simple/labone/"
UV = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")


@pytest.fixture(scope="module")
def _world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if os.geteuid() != 0:
        pytest.skip("ports of the system are needed, so root is")
    made = World(tmp_path_factory.mktemp("world"))
    yield made
    made.stop()


@pytest.fixture
def world(_world: World) -> World:
    """Return servers that answer, with two wheels of which one needs the other."""
    _world.stop()
    _world.start()
    _world.answers, _world.seen = {}, []
    _world.add_wheel("labone", "labtwo")
    _world.add_wheel("labtwo")
    return _world


@pytest.fixture
def cache(world: World) -> Iterator[Cache]:
    made = Cache(CACHE, NETWORK, world.certificate)
    yield made
    made.close()


def test_links_lead_to_the_cache(cache: Cache) -> None:
    file = wheel("labone", "labtwo")[0]
    for accept, kind in (("text/html", "text/html"), (f"{JSON}, text/html; q=0.1", JSON)):
        for kept in ("MISS", "HIT"):
            page = cache.get(PAGE, Accept=accept)
            assert (page.status, page.kept, page.headers["Content-Type"]) == (200, kept, kind)
            assert FILES.encode() not in page.body
        link = (
            page.body.split(f"http://{CACHE}/_files/0/".encode(), 1)[1].split(b"-1.0")[0]
            + b"-1.0-py3-none-any.whl"
        )
        got = cache.get("/_files/0/" + link.decode())
        assert got.body == wheel("labone", "labtwo")[1], file


@pytest.mark.parametrize(
    "how",
    ["refused", "broken", *(pytest.param(how, marks=pytest.mark.thorough) for how in ("no name", "silent"))],
)
def test_what_was_fetched_is_there_whatever_way_the_index_fails(cache: Cache, world: World, how: str) -> None:
    path = next(path for host, path, _accept in world.answers if host == FILES and "labone" in path)
    file = path.replace("/packages/", "/_files/0/")
    page = cache.get(PAGE)
    assert cache.get(file).kept == "MISS"
    if how == "refused":
        world.stop_servers()
    if how == "no name":
        world.stop_names()
    world.trouble = how
    # The page and the address of the index are old then.
    time.sleep(2.2)
    began = time.monotonic()
    again = cache.get(PAGE)
    assert (again.status, again.kept, again.body) == (200, "STALE", page.body), cache.log
    # pip would have given up.
    assert time.monotonic() - began < 15
    assert cache.get(file).kept == "HIT"
    assert how in ("no name", "silent") or cache.get("/simple/other/").status in (502, 503)
    # It comes back by itself.
    world.stop()
    world.start()
    assert cache.get(PAGE).kept in ("EXPIRED", "REVALIDATED")
    assert cache.get("/simple/other/").status == 404


def test_half_a_file_is_not_kept(cache: Cache, world: World) -> None:
    path = next(path for host, path, _accept in world.answers if host == FILES and "labone" in path)
    file = path.replace("/packages/", "/_files/0/")
    world.trouble = "cut off"
    with pytest.raises(http.client.IncompleteRead):
        cache.get(file)
    world.trouble = ""
    assert (cache.get(file).kept, cache.get(file).kept) == ("MISS", "HIT")
    assert cache.get(file).body == world.answers[FILES, path, ""].body


@pytest.mark.thorough
def test_it_starts_while_no_name_is_known(cache: Cache, world: World) -> None:
    page = cache.get(PAGE)
    cache.stop()
    world.stop()
    cache.start()
    time.sleep(2.2)
    again = cache.get(PAGE)
    assert (again.kept, again.body) == ("STALE", page.body)
    world.start()
    assert cache.get("/simple/labtwo/").status == 200


def test_an_index_that_another_plays_is_not_believed(world: World, tmp_path: Path) -> None:
    trusted = tmp_path / "other"
    trusted.mkdir()
    made = Cache(CACHE, NETWORK, World.certify(trusted / "world.pem"))
    try:
        assert made.get(PAGE).status == 502
        assert world.seen == []
    finally:
        made.close()


HOSTILE = [
    f"http://{OTHER}/secret",
    f"http://{OTHER}{PAGE}",
    "/_files/0/../../secret",
    "/_files/0/a/../../../secret",
    "/_files/0/%2e%2e/secret",
    "/_files/0/%2E%2E%2Fsecret",
    "/_files/0/..%2fsecret",
    "/_files/0/..%5csecret",
    "/_files/0/.%2e/secret",
    "/_files/0/%252e%252e/secret",
    "/_files/0//secret",
    f"/_files/0//{OTHER}/secret",
    f"/_files/0/@{OTHER}/secret",
    f"/_files/0/https://{OTHER}/secret",
    "/_files/0/a%0d%0aHost:%20other",
    "/_files/0/a%00b",
    "/_files/1/a",
    "/_files/00/a",
    "/simple/../secret",
    "/simple/%2e%2e/secret",
    "/simple/labone/../../secret",
    "/simple/labone/%2e%2e/%2e%2e/secret",
    "/simple//secret/",
    f"/simple/http://{OTHER}/",
    "/simple/./secret/",
    "/simple/a/b/",
    "/secret",
    "/",
    "//",
    "/packages/secret",
]


@pytest.mark.parametrize("host", ["", OTHER, APT, f"{INDEX}:80", pytest.param(ADDRESS, id="address"), "a b"])
def test_nobody_makes_it_fetch_what_was_not_declared(cache: Cache, world: World, host: str) -> None:
    for path in HOSTILE:
        cache.get(path, **({"Host": host} if host else {}))
    hosts = {(seen.host, seen.path.split("/")[1]) for seen in world.seen}
    allowed = {(INDEX, "simple"), (FILES, "packages")}
    if host == APT:
        # In the place of a repository, every path of it and no other host is asked for.
        assert {name for name, _path in hosts} <= {APT, INDEX, FILES}
    else:
        assert hosts <= allowed
    for seen in world.seen:
        assert ".." not in seen.path and "%2e" not in seen.path.lower(), seen.path
        assert seen.host == APT or seen.path.split("/")[1] in ("simple", "packages"), seen.path


def test_nothing_that_a_client_says_reaches_the_index(cache: Cache, world: World) -> None:
    said = {
        "Cookie": "a=b",
        "Authorization": "Basic eA==",
        "X_Forwarded_Host": OTHER,
        "X_Original_URL": "/secret",
        "Range": "bytes=0-3",
        "If_None_Match": '"x"',
        "Accept_Encoding": "gzip, br",
        "Accept_Language": "xx",
        "User_Agent": "me",
        "Cache_Control": "no-store",
        "Pragma": "no-cache",
    }
    whole = cache.get(PAGE).body
    cache.get("/simple/labtwo/?x=/secret&%0d%0a", **said)
    assert [seen.path for seen in world.seen] == [PAGE, "/simple/labtwo/"]
    first, second = (seen.headers for seen in world.seen)
    assert first == second
    assert sorted(first) == ["Accept", "Connection", "Host", "User-Agent"]
    # Nor does what is kept depend on who asked first.
    assert cache.get("/simple/labtwo/").kept == "HIT"
    assert cache.get(PAGE, **{**said, "Range": "bytes=0-3"}).body in (whole, whole[:4])
    assert cache.get(PAGE).body == whole


def test_what_the_index_says_of_keeping_counts_for_nothing(cache: Cache, world: World) -> None:
    said = {
        "Set-Cookie": "a=b",
        "Cache-Control": "private, no-store",
        "Vary": "*",
        "X-Accel-Redirect": "/lab-server-package-cache",
        "X-Accel-Expires": "0",
    }
    world.put(INDEX, PAGE, Answer(b"<html></html>", "text/html", said))
    first, second = cache.get(PAGE), cache.get(PAGE)
    assert (first.body, first.kept, second.kept) == (b"<html></html>", "MISS", "HIT")
    assert "Set-Cookie" not in first.headers
    # Of what is not the page itself nothing is kept.
    for status in (404, 403, 302):
        world.put(
            INDEX, "/simple/new/", Answer(b"", status=status, headers={"Location": f"https://{INDEX}{PAGE}"})
        )
        answer = cache.get("/simple/new/")
        assert answer.status == status
        assert answer.headers.get("Location") == PAGE
    world.add_wheel("new")
    assert cache.get("/simple/new/").status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "CONNECT", "PURGE", "OPTIONS", "TRACE"])
def test_it_only_takes_questions(cache: Cache, world: World, method: str) -> None:
    for host in (INDEX, APT):
        assert cache.get(PAGE, method, Host=host).status in (400, 405)
    assert world.seen == []


def test_who_is_not_on_the_bridge_gets_nothing(cache: Cache, world: World) -> None:
    for host in (INDEX, APT):
        assert cache.get(PAGE, source="127.0.0.1", Host=host).status == 403
    assert world.seen == []


def test_lists_of_apt_are_always_asked_for_and_there_when_nobody_answers(cache: Cache, world: World) -> None:
    lists, named = "/debian/./Release", f"/debian/dists/x/main/by-hash/SHA256/{'0' * 64}"
    for path in (lists, named, "/debian/pool/a_1.0%2bb1~2_all.deb"):
        world.put(APT, path, Answer(b"one"))
        assert cache.get(path, Host=APT).kept == "MISS"
    time.sleep(2.2)
    world.put(APT, lists, Answer(b"two"))
    assert cache.get(lists, Host=APT).body == b"two"
    assert cache.get(named, Host=APT).kept == "HIT"
    assert cache.get("/debian/./InRelease", Host=APT).status == 404
    world.stop_servers()
    time.sleep(2.2)
    for path, status in (
        (lists, 200),
        ("/debian/pool/a_1.0%2bb1~2_all.deb", 200),
        ("/debian/./InRelease", 404),
    ):
        answer = cache.get(path, Host=APT)
        assert (answer.status, answer.kept) == (status, "STALE")


def test_tls_passes_to_the_hosts_of_apt_alone(cache: Cache, world: World) -> None:
    def ask(name: str, source: str = cache.address) -> int:
        context = ssl.create_default_context()
        # What is of interest is who answers; the simulated server has no certificate of this name.
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        plain = socket.create_connection((cache.address, 443), 10, (source, 0))
        with plain, context.wrap_socket(plain, server_hostname=name or None) as connection:
            connection.sendall(f"GET /key HTTP/1.0\r\nHost: {APT}\r\n\r\n".encode())
            return int(connection.recv(64).split()[1])

    world.put(APT, "/key", Answer(b"key"))
    assert ask(APT) == 200
    seen = len(world.seen)
    for name, source in (
        (OTHER, cache.address),
        (INDEX, cache.address),
        ("", cache.address),
        (APT, "127.0.0.1"),
    ):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask(name, source)
    assert len(world.seen) == seen


def test_files_of_the_indexs_own_server_are_linked_without_its_name(world: World) -> None:
    page = f'<a href="../../pool/a-1.0.whl">a</a><a href="https://{INDEX}/pool/b-1.0+cu1.whl">b</a>'
    world.put(INDEX, "/simple/a/", Answer(page.encode(), "text/html"))
    for path in ("/pool/a-1.0.whl", "/pool/b-1.0%2Bcu1.whl"):
        world.put(INDEX, path, Answer(path.encode()))
    made = Cache(CACHE, NETWORK, world.certificate, package_cache_files=[f"https://{INDEX}/"])
    try:
        assert f'"http://{CACHE}/pool/b-1.0+cu1.whl"'.encode() in made.get("/simple/a/").body
        for path in ("/pool/a-1.0.whl", "/pool/b-1.0%2Bcu1.whl"):
            assert made.get(path).body == path.encode()
            assert made.get(path).kept == "HIT"
    finally:
        made.close()


@pytest.mark.thorough
def test_it_keeps_no_more_than_it_may(world: World) -> None:
    made = Cache(CACHE, NETWORK, world.certificate, package_cache_size="3m")
    try:
        for number in range(8):
            world.put(FILES, f"/packages/{number}.whl", Answer(os.urandom(1 << 20)))
            assert made.get(f"/_files/0/{number}.whl").status == 200
        end = time.monotonic() + 30
        while made.held > 3.5 * (1 << 20):
            assert time.monotonic() < end, made.held
            time.sleep(0.5)
        # What was used last is still there.
        assert made.get("/_files/0/7.whl").kept == "HIT"
        assert made.get("/_files/0/0.whl").kept == "MISS"
    finally:
        made.close()


# Builds


@pytest.fixture(scope="module")
def python_image(docker) -> str:
    """Load the image with Python that the example has, made of Debian's packages."""
    made = subprocess.run(
        [sys.executable, str(ROOT / "tools/base_image.py"), "path", "python"], capture_output=True, check=True
    )
    docker("load", "-i", made.stdout.decode().strip())
    return "lab/python"


@pytest.fixture
def bridge(docker) -> tuple[str, str]:
    """Return the address of the engine's bridge, with and without its prefix."""
    told = docker(
        "network", "inspect", "bridge", "-f", "{{range .IPAM.Config}}{{.Gateway}} {{.Subnet}}{{end}}"
    ).split()
    return told[0], f"{told[0]}/{told[1].split('/')[1]}"


@pytest.fixture
def served(world: World, bridge: tuple[str, str]) -> Iterator[Cache]:
    made = Cache(bridge[0], bridge[1], world.certificate)
    yield made
    made.close()


@pytest.fixture
def roomy(policy: Policy) -> Policy:
    """Return the policy with room for pip, and no cache."""
    users = tuple(replace(user, limits=replace(user.limits, memory=768 << 20)) for user in policy.users)
    return replace(policy, users=users)


@pytest.fixture
def cached(roomy: Policy, bridge: tuple[str, str]) -> Policy:
    """Return the policy that declares the cache."""
    return replace(
        roomy,
        package_cache=PackageCache(
            index=f"https://{INDEX}/simple/",
            files=(f"https://{FILES}/packages/",),
            apt=(APT,),
            size=100 << 20,
            address=bridge[1],
            port=80,
        ),
    )


PIP = (
    "RUN python3 -m pip install --no-cache-dir --disable-pip-version-check --retries 0 -r /requirements.txt\n"
)


def build(engine, policy: Policy, user: User) -> str:
    """Build the project thesis; return what the build said."""
    lines: list[str] = []
    assert images.build(engine, policy, policy.user(user.name), "thesis", progress=lines.append).changed
    return "\n".join(lines)


def test_the_second_build_of_the_same_requirements_needs_no_index(
    engine, cached, alice, thesis, python_image, served, world, docker
):
    thesis.write("requirements.txt", "labone==1.0\n")
    head = f"FROM {python_image}\nCOPY requirements.txt /\n"
    thesis.write("Dockerfile", head + PIP)
    said = build(engine, cached, alice)
    assert f"http://{served.address}/simple/" in said
    assert {seen.host for seen in world.seen} == {INDEX, FILES}
    world.stop()
    time.sleep(2.2)
    # Another line before it: Docker's own cache of layers has nothing for it.
    thesis.write("Dockerfile", f"{head}RUN true\n{PIP}")
    seen = len(world.seen)
    said = build(engine, cached, alice)
    assert "Successfully installed labone-1.0 labtwo-1.0" in said
    assert len(world.seen) == seen
    # Nothing of it is in the image.
    image = docker("run", "--rm", "lab/2001/thesis", "sh", "-c", "env; cat /etc/hosts; pip config list")
    assert served.address not in image and APT not in image and "PIP_" not in image


def test_a_cache_that_is_down_is_nobodys_trouble(engine, cached, roomy, alice, thesis, tiny, served):
    thesis.write("Dockerfile", f"FROM {tiny}\nRUN env && cat /etc/hosts\n")
    promise = images.build(engine, roomy, roomy.user("alice"), "thesis", check=True)
    said = build(engine, cached, alice)
    assert f"PIP_INDEX_URL=http://{served.address}/simple/" in said
    assert f"UV_DEFAULT_INDEX=http://{served.address}/simple/" in said
    assert APT in said
    # Whether there is one makes no other image.
    assert not images.build(engine, roomy, roomy.user("alice"), "thesis").changed
    assert images.project_images(engine)[2001, "thesis"].reference == promise.diff["after"]["image"]
    served.stop()
    thesis.write("Dockerfile", f"FROM {tiny}\nRUN cat /etc/hosts && env\n")
    said = build(engine, cached, alice)
    line = f"The package cache does not answer at http://{served.address}: this build goes without."
    assert said.splitlines()[0] == line
    assert f"={served.address}" not in said and "INDEX_URL" not in said and APT not in said


def test_what_a_dockerfile_says_of_its_index_stays(engine, cached, alice, thesis, tiny, served):
    thesis.write("Dockerfile", f"FROM {tiny}\nENV PIP_INDEX_URL=https://{OTHER}/\nRUN env\n")
    said = build(engine, cached, alice)
    assert f"PIP_INDEX_URL=https://{OTHER}/" in said and "PIP_TRUSTED_HOST" not in said
    assert f"UV_INDEX_URL=http://{served.address}/simple/" in said
    # Nor does an image that it starts from lose what it sets.
    thesis.write("Dockerfile", "FROM lab/2001/other\nRUN env\n")
    engine.tag("lab/2001/thesis", "lab/2001/other")
    said = build(engine, cached, alice)
    assert f"PIP_INDEX_URL=https://{OTHER}/" in said and "PIP_TRUSTED_HOST" not in said


def test_an_error_is_told_with_the_line_of_the_user(engine, cached, alice, thesis, tiny, served):
    thesis.write("Dockerfile", f"FROM {tiny} AS one\nRUN true\n\nFROM one\nRUN true\nRUN false\n")
    with pytest.raises(images.EngineError, match=r"line 6 of its Dockerfile \(RUN false\)"):
        build(engine, cached, alice)


def test_wheels_of_the_project_need_no_index(engine, roomy, alice, thesis, python_image):
    for name, requires in (("labone", "labtwo"), ("labtwo", "")):
        file, content = wheel(name, requires)
        thesis.write(f"wheels/{file}", "")
        (thesis.path / "wheels" / file).write_bytes(content)
    thesis.write(
        "Dockerfile",
        f"FROM {python_image}\nCOPY wheels /wheels\n"
        "RUN python3 -m pip install --no-cache-dir --no-index --find-links=/wheels labone\n",
    )
    assert "Successfully installed labone-1.0 labtwo-1.0" in build(engine, roomy, alice)


@pytest.fixture
def repository(world: World, tmp_path: Path) -> World:
    """Serve a simulated repository of apt with one package."""
    tree = tmp_path / "package"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: labfile\nVersion: 1.0+b1\nArchitecture: all\nMaintainer: Test <test@example.org>\n"
        "Description: one file\n"
    )
    (tree / "opt").mkdir()
    (tree / "opt/labfile").write_text("here\n")
    file = tmp_path / "labfile.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-b", str(tree), str(file)], check=True, capture_output=True
    )
    content = file.read_bytes()
    listed = (tree / "DEBIAN/control").read_text() + (
        f"Filename: ./pool/labfile_1.0+b1_all.deb\nSize: {len(content)}\n"
        f"SHA256: {hashlib.sha256(content).hexdigest()}\n"
    )
    digest = hashlib.sha256(listed.encode()).hexdigest()
    release = (
        f"Origin: test\nDate: Mon, 01 Jan 2024 00:00:00 UTC\nSHA256:\n {digest} {len(listed)} Packages\n"
    )
    for path, data in (
        ("/debian/./Packages", listed.encode()),
        ("/debian/Packages", listed.encode()),
        ("/debian/./Release", release.encode()),
        ("/debian/Release", release.encode()),
    ):
        world.put(APT, path, Answer(data, headers={"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}))
    for name in ("labfile_1.0+b1_all.deb", "labfile_1.0%2bb1_all.deb"):
        world.put(APT, f"/debian/pool/{name}", Answer(content))
        world.put(APT, f"/debian/./pool/{name}", Answer(content))
    return world


def test_apt_needs_no_repository_the_second_time(
    engine, cached, alice, thesis, python_image, served, repository
):
    thesis.write("sources.list", f"deb [trusted=yes] http://{APT}/debian ./\n")
    head = f"FROM {python_image}\nCOPY sources.list /\n"
    only = "-o Dir::Etc::SourceList=/sources.list -o Dir::Etc::SourceParts=/none -o Acquire::Retries=0"
    apt = f"RUN apt-get {only} update && apt-get {only} install -y labfile && cat /opt/labfile\n"
    thesis.write("Dockerfile", head + apt)
    assert "here" in build(engine, cached, alice)
    assert {seen.host for seen in repository.seen} == {APT}
    repository.stop()
    time.sleep(2.2)
    thesis.write("Dockerfile", f"{head}RUN true\n{apt}")
    assert "here" in build(engine, cached, alice)


@pytest.mark.thorough
@pytest.mark.skipif(UV is None, reason="uv, of requirements-dev.txt, is not installed")
def test_uv_needs_no_index_the_second_time(engine, cached, alice, thesis, python_image, served, world):
    shutil.copy(UV, thesis.path / "uv")
    (thesis.path / "uv").chmod(0o755)
    os.chown(thesis.path / "uv", alice.uid, alice.gid)
    head = f"FROM {python_image}\nCOPY uv /usr/bin/uv\n"
    uv = "RUN uv pip install --system --no-cache labone && python3 -c 'import labone, labtwo'\n"
    thesis.write("Dockerfile", head + uv)
    build(engine, cached, alice)
    assert {seen.host for seen in world.seen} == {INDEX, FILES}
    world.stop()
    time.sleep(2.2)
    thesis.write("Dockerfile", f"{head}RUN true\n{uv}")
    build(engine, cached, alice)
