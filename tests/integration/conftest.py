"""A real Docker Engine, a policy with two users, and workspaces in a temporary folder.

LAB_TEST_DOCKER_HOST names the engine, LAB_TEST_DOCKER_BINARY the command (default /usr/bin/docker). The tests
act as several users, so they need root.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import docker as sdk
import pytest
from ansible_collections.lab.server.plugins.module_utils import _core
from ansible_collections.lab.server.plugins.module_utils._core import (
    brought,
    containers,
    context,
    imagestate,
    locks,
    quota,
    state,
    storage,
)
from ansible_collections.lab.server.plugins.module_utils._core import engine as engines
from ansible_collections.lab.server.plugins.module_utils._core import policy as policies
from ansible_collections.lab.server.plugins.module_utils._core.engine import Engine
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy, User
from private_root import PrivateRoot

TINY, PYTHON = "lab-test/tiny", "lab-test/python"
APPLETS = "sh sleep id cat ls touch grep env mkdir mount echo chmod cp ln rm true false pwd wc df"
LIMITS = {"containers": 3, "cpus": 1, "memory": "64m", "pids": 64, "shm": "1m", "gpus": 0}
QUOTA = {"soft": 0, "hard": 0, "inodes_soft": 0, "inodes_hard": 0}
INSTALLED = engines.DOCKER


def root_file_system(etc: str = "") -> bytes:
    """Return the tar of a small root file system; with ``etc`` its /etc is a link to that."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:

        def add(name: str, content: bytes | None = None, mode: int = 0o755, link: str = "") -> None:
            member = tarfile.TarInfo(name)
            member.mode = mode
            member.type = tarfile.SYMTYPE if link else tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            member.linkname, member.size = link, len(content or b"")
            archive.addfile(member, io.BytesIO(content) if content is not None else None)

        for folder in ("bin", "home", "root", "usr", "proc", "sys", "dev"):
            add(folder)
        add("tmp", mode=0o1777)
        add("bin/busybox", Path("/bin/busybox").read_bytes())
        # A setuid copy, as many images have one.
        add("usr/busybox", Path("/bin/busybox").read_bytes(), mode=0o4755)
        for applet in APPLETS.split():
            add(f"bin/{applet}", link="busybox")
        if etc:
            add("etc", link=etc)
        else:
            add("etc")
            add("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nold:x:2001:2001::/home/old:/bin/sh\n", 0o644)
            add("etc/group", b"root:x:0:\nold:x:2001:\n", 0o644)
    return buffer.getvalue()


def python_file_system() -> bytes:
    """Return the tar of the small root file system with a Python in it, at the path that it has here."""
    import pip

    program = os.path.realpath(sys.executable)
    library = Path(sysconfig.get_paths()["stdlib"])
    buffer = io.BytesIO(root_file_system())
    with tarfile.open(fileobj=buffer, mode="a:") as archive:

        def add(source: str, place: str) -> None:
            archive.add(source, place.lstrip("/"), filter=_wanted_of_python)

        add(program, program)
        add(str(library), str(library))
        # Beside the library itself it is found whatever the distribution's own places are.
        add(os.path.dirname(pip.__file__), str(library / "pip"))
        for needed in _shared_libraries([program, *map(str, (library / "lib-dynload").glob("*.so"))]):
            add(os.path.realpath(needed), needed)
        link = tarfile.TarInfo("bin/python3")
        link.type, link.linkname = tarfile.SYMTYPE, program
        archive.addfile(link)
    return buffer.getvalue()


def _wanted_of_python(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    name = os.path.basename(member.name)
    # What pip does not need; EXTERNALLY-MANAGED would keep it from installing anything.
    left_out = {"test", "tests", "idlelib", "tkinter", "lib2to3", "__pycache__", "site-packages"}
    if name in left_out | {"dist-packages", "EXTERNALLY-MANAGED"} or name.startswith("config-"):
        return None
    member.uid = member.gid = 0
    return member


def _shared_libraries(files: list[str]) -> list[str]:
    said = subprocess.run(["ldd", *files], capture_output=True, text=True, check=False).stdout
    return sorted(set(re.findall(r"(/\S+\.so\S*) \(0x", said)))


def pytest_report_header() -> str:
    """Say which engine and which library the tests run with."""
    address = os.environ.get("LAB_TEST_DOCKER_HOST", "")
    if not address:
        return "Docker Engine: none"
    client = sdk.APIClient(base_url=address, version="auto")
    said = f"Docker Engine {client.version()['Version']}, Docker SDK {sdk.__version__}"
    client.close()
    return said


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    address = os.environ.get("LAB_TEST_DOCKER_HOST", "")
    if not address or os.geteuid() != 0:
        pytest.skip("LAB_TEST_DOCKER_HOST does not name a Docker Engine for tests, or this is not root")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "DOCKER", os.environ.get("LAB_TEST_DOCKER_BINARY") or INSTALLED)
        yield address


@pytest.fixture(scope="session")
def docker(url: str):
    """Return a function that runs the docker command against the engine of the tests."""

    def run(*arguments: str, **options) -> str:
        done = subprocess.run(
            [engines.DOCKER, "-H", url, *arguments], capture_output=True, timeout=120, check=False, **options
        )
        if done.returncode:
            raise AssertionError(f"docker {arguments}: {done.stdout.decode()}{done.stderr.decode()}")
        return done.stdout.decode()

    return run


@pytest.fixture(scope="session")
def tiny(docker) -> str:
    """Make the image that the tests start from, of nothing but busybox."""
    docker("import", "-", TINY, input=root_file_system())
    return TINY


@pytest.fixture(scope="session")
def python(docker) -> str:
    """Make an image with the interpreter of these tests and its pip; the busybox is there as well."""
    docker("import", "-", PYTHON, input=python_file_system())
    return PYTHON


@pytest.fixture
def engine(url: str, docker, tiny: str) -> Iterator[Engine]:
    connected = Engine.connect(url)
    yield connected
    for container in connected.containers():
        name = container["Names"][0].lstrip("/")
        if "._." in name:
            connected.remove(container["Id"])
    for image in connected.images("lab/*/*"):
        for tag in image["RepoTags"] or []:
            connected.remove_image(tag)
    connected.close()


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder that stands for the server's file systems, and let the library use it."""
    folder = Path(tempfile.mkdtemp(prefix="lab-server-test-"))
    folder.chmod(0o755)
    for name in ("home", "home/.workspaces", "srv", "state", "run"):
        (folder / name).mkdir()
    (folder / "home/.workspaces").chmod(0o711)
    monkeypatch.setattr(policies, "WORKSPACES_ROOT", str(folder / "home/.workspaces"))
    for module in (brought, context, imagestate, state, _core):
        monkeypatch.setattr(module, "STATE_DIRECTORY", str(folder / "state"))
    for module in (engines, locks, _core):
        monkeypatch.setattr(module, "RUN_DIRECTORY", str(folder / "run"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def policy(root: Path, tiny: str) -> Policy:
    data = root / "srv"
    for share in ("datasets", "vision", "admin"):
        (data / share).mkdir()
    (data / "datasets/iris.csv").write_text("data\n")
    os.chown(data / "vision", 0, 3102)
    (data / "vision").chmod(0o2770)
    (data / "admin").chmod(0o700)
    made, _keys = policies.from_inventory(
        {
            "lab_data_root": str(data),
            "lab_environment": {"LAB": "test"},
            "lab_groups": [
                {"name": "students", "gid": 3101, "limits": LIMITS, "quota": QUOTA},
                {"name": "researchers", "gid": 3102, "limits": LIMITS, "quota": QUOTA},
            ],
            "lab_users": [
                {"name": "alice", "uid": 2001, "group": "students"},
                {"name": "bob", "uid": 2002, "group": "researchers"},
            ],
            "lab_shares": [
                {"name": "datasets", "access": "read-only"},
                {"name": "vision", "access": "group", "group": "researchers"},
                {"name": "admin", "access": "admin"},
            ],
            "lab_base_images": [{"name": tiny, "image": tiny}],
        }
    )
    for user in made.users:
        workspace = root / "home/.workspaces" / user.name
        workspace.mkdir(mode=0o700)
        os.chown(workspace, user.uid, user.gid)
    return made


@pytest.fixture
def alice(policy: Policy) -> User:
    return policy.user("alice")


@pytest.fixture
def bob(policy: Policy) -> User:
    return policy.user("bob")


class Project:
    """A project's folder, written as its user."""

    def __init__(self, policy: Policy, user: User, name: str) -> None:
        self.path = Path(policy.workspace(user)) / name
        self.user = user
        self.name = name
        self.path.mkdir()
        os.chown(self.path, user.uid, user.gid)

    def write(self, name: str, text: str) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.chown(path, self.user.uid, self.user.gid)


@pytest.fixture
def project_of(policy: Policy):
    """Return a function that makes the folder of a user's project."""
    return lambda user, name: Project(policy, user, name)


@pytest.fixture
def file_system():
    """Return the function that makes a small root file system."""
    return root_file_system


@pytest.fixture
def thesis(policy: Policy, alice: User, tiny: str) -> Project:
    project = Project(policy, alice, "thesis")
    project.write("Dockerfile", f"FROM {tiny}\nCOPY word /word\n")
    project.write("word", "one\n")
    return project


@pytest.fixture
def inside(engine: Engine, docker):
    """Return a function that runs a shell command in a project's container, as its user."""

    def run(user: User, project: str, command: str) -> str:
        arguments = containers.shell_arguments(user, project, command=["/bin/sh", "-c", command], tty=False)
        return docker(*arguments[1:])

    return run


@pytest.fixture
def private_root(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateRoot]:
    """Return a root file system of its own for a module that changes the host."""
    made = PrivateRoot(url)
    try:
        monkeypatch.setattr(quota, "_quotactl", made.kernel.quotactl)
        # The command of another engine would leave the private root.
        monkeypatch.setattr(engines, "DOCKER", INSTALLED)
        yield made
    finally:
        made.close()


@pytest.fixture
def writable_root(private_root: PrivateRoot, monkeypatch: pytest.MonkeyPatch) -> PrivateRoot:
    """Return a private root whose disks can be written: what they have of quotas is played alone."""
    plain = ("mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0")
    monkeypatch.setattr(storage, "_MAKE", {**storage._MAKE, "ext4": plain})
    monkeypatch.setattr(storage, "_QUOTA", {"ext4": (), "xfs": ()})
    monkeypatch.setattr(storage, "_features", lambda _path: frozenset({"quota", "project"}))
    private_root.mount_writable()
    return private_root
