# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The one place that talks to Docker Engine: raw API JSON in and out, errors as sentences.

Plain requests go over the socket (``dockerapi``); for what streams it uses the Docker SDK for Python (5.0 to
7), imported on first use, and for builds the ``docker`` command, since only that one streams a build and
cancels it when it is killed.
API: https://docs.docker.com/engine/api/v1.41/.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import posixpath
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from typing import Any, BinaryIO, Callable

from . import RUN_DIRECTORY, names
from .dockerapi import ApiError, DockerApi
from .errors import EngineError, HostError, LabError, NotFound, Refused
from .sizes import format_size
from .spec import BRIDGE, NETWORK, EngineFacts

DEFAULT_URL = "unix:///var/run/docker.sock"
# Seconds for which the engine may say nothing of an archive: it unpacks a layer of many GB without a word.
_SILENCE = 3600
DOCKER = "/usr/bin/docker"
_BUILD_SECONDS = 4 * 3600
_WATCH_SECONDS = 2.0
_REMOVAL_SECONDS = 60
_LINE_LIMIT = 16_000
_SHORT_ID = re.compile(r"[0-9a-f]{12}")
# The builder gives what comes from a standard error a colour, which ends at the beginning of the next line.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# How the builder ends when a command failed.
_EXIT = re.compile(r"The command '.*' returned a non-zero code: [0-9]+")
# Of a command of several lines that is said in as many.
_EXIT_BEGINS, _EXIT_ENDS = "The command '", re.compile(r".*' (returned a non-zero code: [0-9]+)")
#: Kinds of a change in a container.
MODIFIED, ADDED, DELETED = range(3)


def ignore(_line: str) -> None:
    """Take a line of progress and do nothing with it."""


def content() -> str:
    """Find nothing for which a build had to end."""
    return ""


_CDI_HINT = (
    "Tell your admins: the GPUs have changed since their CDI specification was made; "
    "systemctl restart lab-server-cdi.service makes it anew."
)
_NO_DRIVER_HINT = (
    "Tell your admins: this Docker has no way to give GPUs; the role nvidia_container_toolkit makes one "
    "(from Docker 25 on features.cdi in daemon.json, before that the toolkit's hook)."
)


@dataclass(frozen=True)
class BuildRequest:
    """A build: the checked context (a tar), what it is called in messages, and what it gets and may use."""

    context: BinaryIO
    title: str
    build_args: Mapping[str, str]
    cgroup_parent: str = ""
    memory: int = 0
    cpus: float = 0.0
    hosts: Mapping[str, str] = field(default_factory=dict)
    """Addresses of hosts, by their names, that hold in the build and nowhere else."""
    scratch: str = "base"
    """Names the folder of the build; no two builds of one name may run at once."""
    fresh: bool = False
    """Whether every step is done again, though it was done before with the same files."""
    seconds: float = _BUILD_SECONDS
    """After how many it is stopped."""
    watch: Callable[[], str] = content
    """Asked again and again while it runs; why it has to end, without a full stop, or ''."""
    log: Callable[[str], None] = ignore
    """Gets each line of the output, as it came."""


class BuildFailed(EngineError):
    """A build that ended without an image. ``step`` counts instructions from 1, 0 when unknown."""

    def __init__(self, message: str, step: int, last: str, left_over: str) -> None:
        super().__init__(message)
        self.step = step
        self.last = last
        self.left_over = left_over


def _spare_setuptools() -> None:
    """Let ``import distutils`` be that of Python's own library, where there is one.

    The Docker SDK 5 imports it, and where setuptools is installed, its hook would then load all of that: more
    than half of the time that importing the SDK takes (setuptools, _distutils_hack).
    """
    remove = getattr(sys.modules.get("_distutils_hack"), "remove_shim", None)
    if sys.version_info < (3, 12) and remove is not None:
        remove()


class Engine:
    """Docker Engine, as far as a lab server needs it. Every method raises EngineError."""

    def __init__(self, api: Any, url: str, timeout: int = 120) -> None:
        #: What answers plain requests, by methods with the names and arguments that the SDK's client has.
        self._api = api
        self._url = url
        self._timeout = timeout

    @classmethod
    def connect(cls, url: str = DEFAULT_URL, timeout: int = 120) -> Engine:
        """Return a connection to the engine at ``url``; raise EngineError when it is not there."""
        engine = cls(None, url, timeout)
        with _sentences("be reached", url):
            engine._api = DockerApi(url, timeout) if DockerApi.speaks(url) else engine._client
        return engine

    @cached_property
    def _client(self) -> Any:
        """The client of the Docker SDK for Python; raise EngineError when that, or the engine, is missing."""
        return self._connected(self._timeout)

    def _connected(self, timeout: int) -> Any:
        """Return a client of the SDK that waits so many seconds for a word of the engine."""
        _spare_setuptools()
        try:
            import docker  # a third-party library; the library must be importable without it
        except ImportError as error:
            raise EngineError(
                "The Docker SDK for Python is missing.", "Install the package python3-docker."
            ) from error
        with _sentences("be reached", self._url):
            return docker.APIClient(base_url=self._url, version="auto", timeout=timeout)

    @staticmethod
    def is_installed(url: str = DEFAULT_URL) -> bool:
        """Say whether there is a Docker Engine at all: its socket, and the library to speak to it."""
        scheme, _separator, path = url.partition("://")
        return find_spec("docker") is not None and (scheme != "unix" or os.path.exists(path))

    def close(self) -> None:
        """Close the connections."""
        for client in {id(one): one for one in (self._api, self.__dict__.get("_client")) if one}.values():
            client.close()

    @cached_property
    def facts(self) -> EngineFacts:
        """The engine's cgroup driver and number of cores."""
        with self._asked("describe itself"):
            info = self._api.info()
        return EngineFacts(
            cgroup_driver=str(info.get("CgroupDriver")),
            cpus=int(info.get("NCPU") or 1),
            # Since Docker 25; empty where CDI is off (GET /info).
            cdi=bool(info.get("CDISpecDirs")),
        )

    def info(self) -> dict[str, Any]:
        """Return what the engine says of itself (GET /info)."""
        with self._asked("describe itself"):
            return dict(self._api.info())

    # Containers

    def containers(self, *only: str) -> list[dict[str, Any]]:
        """Return Docker's listing of all containers, running or not; with names ``only`` those."""
        # The filter is a regular expression on the name with its leading slash.
        patterns = ["^/" + name.replace(".", "[.]") + "$" for name in only]
        with self._asked("list the containers"):
            listed = self._api.containers(all=True, filters={"name": patterns} if only else None)
        return [dict(item) for item in listed]

    def sizes(self, containers: Sequence[str]) -> dict[str, int]:
        """Return the bytes in the writable layers of these containers (ids), by id; those that are there.

        Docker walks each layer to count them (GET /containers/json, ``size``). Raises EngineError where it
        could not.
        """
        found = {}
        if containers:
            with self._asked("measure the container"):
                listed = self._api.containers(all=True, size=True, filters={"id": list(containers)})
            found = {str(item["Id"]): int(item.get("SizeRw") or 0) for item in listed}
        if any(size < 0 for size in found.values()):
            raise EngineError("Docker could not measure the container.", "Try again.")
        return {one: found[one] for one in containers if one in found}

    def changes(self, container: str, limit: int = 8 << 20) -> tuple[list[tuple[str, int]], bool]:
        """Return (path, kind) of what differs from its image, and whether that is all of it.

        Docker compares the layers (GET /containers/{id}/changes); kinds are MODIFIED, ADDED and DELETED. No
        more than ``limit`` bytes of its answer are read. Raises NotFound.
        """
        url = f"{self._client.base_url}/v{self._client.api_version}/containers/{container}/changes"
        said = bytearray()
        with self._asked("compare the container with its image"):
            answer = self._client.get(url, stream=True, timeout=self._client.timeout)
            try:
                if answer.status_code == 404:
                    raise NotFound("The container is gone.")
                answer.raise_for_status()
                for chunk in answer.iter_content(1 << 16):
                    said += chunk
                    if len(said) > limit:
                        break
            finally:
                answer.close()
        return _changes(said.decode("utf-8", "replace")), len(said) <= limit

    def create(self, name: str, config: Mapping[str, Any]) -> str:
        """Create a container, and return its id."""
        with self._asked(f"create the container {name}"):
            return str(self._api.create_container_from_config(dict(config), name)["Id"])

    def start(self, container: str) -> None:
        """Start a container."""
        try:
            with self._asked("start the container"):
                self._api.start(container)
        except EngineError as error:
            # "CDI device injection failed: unresolvable CDI devices ..." (moby, daemon/cdi.go).
            if "unresolvable CDI devices" in error.message:
                raise EngineError(error.message, _CDI_HINT) from error
            # Neither CDI nor the hook: 'could not select device driver ...' (moby, daemon/devices.go).
            if "could not select device driver" in error.message:
                raise EngineError(error.message, _NO_DRIVER_HINT) from error
            raise

    def stop(self, container: str, seconds: int = 10) -> None:
        """Stop a container; after ``seconds`` it is killed. The listings of containers know of it then."""
        with self._asked("stop the container"):
            self._api.stop(container, timeout=seconds)
        # They are of a copy, which is brought up to date some milliseconds after that answer, but before the
        # container can be inspected (moby, daemon/monitor.go, handleContainerExit, which holds its lock).
        with contextlib.suppress(NotFound):
            self.inspect(container)

    def remove(self, container: str) -> None:
        """Remove a container, running or not, with its anonymous volumes; one that is gone is no error.

        A removal that somebody else began, and was killed over, is waited for.
        """
        end = time.monotonic() + _REMOVAL_SECONDS
        while True:
            try:
                with contextlib.suppress(NotFound), self._asked("remove the container"):
                    self._api.remove_container(container, v=True, force=True)
                return
            except Refused as error:
                if "already in progress" not in error.message or time.monotonic() > end:
                    raise
            time.sleep(0.1)

    def rename(self, container: str, name: str) -> None:
        """Give a container another name."""
        with self._asked("rename the container"):
            self._api.rename(container, name)

    def inspect(self, container: str) -> dict[str, Any]:
        """Return Docker's description of a container; raise NotFound."""
        with self._asked("describe the container"):
            return dict(self._api.inspect_container(container))

    def execute(
        self,
        container: str,
        command: Sequence[str],
        *,
        user: str,
        listen: Callable[[str], None] = ignore,
    ) -> int:
        """Run a command in a container that runs, and return its exit code; ``listen`` gets its lines.

        Both its streams are read, printable and each line cut at 16,000 characters. It has no terminal and
        no input. Raises NotFound, and EngineError when the engine goes away meanwhile.
        """
        with self._asked("run a command in the container"):
            made = self._client.exec_create(
                container, list(command), user=user, workdir="/", stdin=False, tty=False
            )["Id"]
            rest = ""
            for chunk in self._client.exec_start(made, stream=True):
                *lines, rest = (rest + chunk.decode("utf-8", "replace")).split("\n")
                rest = rest[-_LINE_LIMIT:]
                for line in lines:
                    listen(names.printable(line.rstrip("\r"))[:_LINE_LIMIT])
            if rest:
                listen(names.printable(rest)[:_LINE_LIMIT])
            code = self._client.exec_inspect(made).get("ExitCode")
        return int(code) if code is not None else 1

    def prepare(self, container: str, command: Sequence[str], *, user: str, folder: str) -> str:
        """Make ready to run a command in a container that runs, without a terminal or input; return its id.

        ``begin`` starts it. Raises NotFound.
        """
        with self._asked("run a command in the container"):
            made = self._client.exec_create(
                container, list(command), user=user, workdir=folder, stdin=False, tty=False
            )
        return str(made["Id"])

    def begin(self, execution: str) -> None:
        """Start a command that ``prepare`` made ready, and do not wait for its end."""
        with self._asked("run a command in the container"):
            self._client.exec_start(execution, detach=True)

    def execution(self, execution: str) -> dict[str, Any] | None:
        """Return {Running, ExitCode, Pid (on the host)} of a command; None where Docker has forgotten it.

        It does so some minutes after the end, and when it is started anew.
        """
        try:
            with self._asked("describe the command"):
                return dict(self._api.exec_inspect(execution))
        except NotFound:
            return None

    def stats(self, container: str) -> dict[str, Any]:
        """Return what a running container uses at this instant, as Docker says it; raise NotFound."""
        url = f"{self._client.base_url}/v{self._client.api_version}/containers/{container}/stats"
        with self._asked("measure the container"):
            answer = self._client.get(
                url, params={"stream": "false", "one-shot": "true"}, timeout=self._client.timeout
            )
            if answer.status_code == 404:
                raise NotFound("The container is gone.")
            answer.raise_for_status()
            return dict(answer.json())

    def said(self, container: str, lines: int) -> list[str]:
        """Return the last lines that a container's own process wrote, printable; at most 1,000."""
        with self._asked("read the output of the container"):
            text = self._client.logs(container, stdout=True, stderr=True, tail=min(lines, 1000))
        shown = bytes(text).decode("utf-8", "replace").splitlines()
        return [names.printable(line)[:_LINE_LIMIT] for line in shown]

    # Files in a container that was never started

    def file_status(self, container: str, path: str) -> dict[str, Any] | None:
        """Return {name, size, mode (Go's FileMode), linkTarget} of a path in it, None where there is none."""
        url = f"{self._client.base_url}/v{self._client.api_version}/containers/{container}/archive"
        with self._asked("look into the container"):
            answer = self._client.head(url, params={"path": path}, timeout=self._client.timeout)
            if answer.status_code == 404:
                return None
            answer.raise_for_status()
            status = json.loads(base64.b64decode(answer.headers["X-Docker-Container-Path-Stat"]))
        return dict(status)

    def read_file(self, container: str, path: str, limit: int) -> bytes | None:
        """Return the content of a regular file in it; None for anything else, or above ``limit`` bytes."""
        collected = io.BytesIO()
        try:
            with self._asked("read from the container"):
                chunks, _status = self._client.get_archive(container, path)
                for chunk in chunks:
                    collected.write(chunk)
                    # The archive adds a header and padding to the file.
                    if collected.tell() > limit + 64 * 1024:
                        return None
        except NotFound:
            return None
        collected.seek(0)
        with tarfile.open(fileobj=collected, mode="r:") as archive:
            member = archive.next()
            if member is None or not member.isreg() or member.size > limit:
                return None
            content = archive.extractfile(member)
            return content.read() if content is not None else None

    def copy_out(self, container: str, path: str, output: BinaryIO, limit: int) -> None:
        """Write the tar of a path in it to ``output``. Raises NotFound, and Refused above ``limit`` bytes."""
        copied = 0
        with self._asked("read from the container"):
            chunks, _status = self._client.get_archive(container, path)
            for chunk in chunks:
                copied += len(chunk)
                if copied > limit:
                    raise Refused(f"{path} in the image holds more than {limit >> 20}M.", "Make it smaller.")
                output.write(chunk)

    def put(self, container: str, archive: bytes) -> None:
        """Unpack a tar archive at the root of the container's file system."""
        with self._asked("write into the container"):
            self._api.put_archive(container, "/", archive)

    # Networks

    def network(self) -> dict[str, Any] | None:
        """Return Docker's description of the network of the containers; None while there is none."""
        with self._asked("list the networks"):
            # The filter matches parts of names.
            listed = self._api.networks(names=[NETWORK])
        return next((dict(one) for one in listed if one.get("Name") == NETWORK), None)

    def ensure_network(self) -> None:
        """Make the bridge network of the containers if it is missing: no traffic between containers."""
        if self.network() is not None:
            return
        # check_duplicate: two launches at once would make two networks of one name. The second is refused.
        with contextlib.suppress(Refused), self._asked("create the network"):
            self._client.create_network(
                NETWORK,
                driver="bridge",
                check_duplicate=True,
                options={
                    "com.docker.network.bridge.enable_icc": "false",
                    # The firewall of the role docker knows the bridge by this name.
                    "com.docker.network.bridge.name": BRIDGE,
                },
                labels={"lab.server.kind": "network"},
            )

    # Images

    def images(self, reference: str = "") -> list[dict[str, Any]]:
        """Return Docker's listing of images, with ``reference`` (``lab/*/*``) of those that match."""
        with self._asked("list the images"):
            listed = self._api.images(filters={"reference": reference} if reference else None)
        return [dict(item) for item in listed]

    def inspect_image(self, reference: str) -> dict[str, Any] | None:
        """Return Docker's description of an image, None if it is not on the server."""
        try:
            with self._asked("describe the image"):
                return dict(self._api.inspect_image(reference))
        except NotFound:
            return None

    def history(self, image: str) -> list[dict[str, Any]]:
        """Return the steps of an image, the newest first, each with Id and Size; raise NotFound."""
        with self._asked("describe the image"):
            return [dict(step) for step in self._client.history(image)]

    def nameless(self) -> list[dict[str, Any]]:
        """Return Docker's listing of images that have no name, and on which no other one stands."""
        with self._asked("list the images"):
            listed = self._api.images(filters={"dangling": True})
        return [dict(item) for item in listed]

    def pull(
        self, reference: str, progress: Callable[[str], None] = ignore, *, anonymous: bool = False
    ) -> None:
        """Fetch an image from its registry; ``anonymous`` does so without root's credentials."""
        repository, tag = split_reference(reference)
        given: dict[str, Any] = {"auth_config": {}} if anonymous else {}
        reader = _PullReader(reference, progress)
        with self._asked(f"fetch the image {reference}"):
            for event in self._client.pull(repository, tag=tag, stream=True, decode=True, **given):
                if "error" in event:
                    raise EngineError(
                        f"{reference} could not be fetched: {one_line(event['error'])}.", _LOOK_AT_REGISTRY
                    )
                reader.event(event)

    def load(self, archive: BinaryIO) -> str:
        """Load an archive of ``docker save``; return the id of the one image in it."""
        loaded: list[str] = []
        with contextlib.closing(self._connected(_SILENCE)) as client, self._asked("load the archive"):
            for event in client.load_image(archive):
                if "error" in event:
                    raise EngineError(f"The archive could not be loaded: {one_line(event['error'])}.")
                for line in str(event.get("stream") or "").splitlines():
                    if line.startswith(("Loaded image ID: ", "Loaded image: ")):
                        loaded.append(line.split(": ", 1)[1].strip())
        if len(loaded) != 1:
            raise EngineError(
                f"The archive holds {len(loaded)} images.", "Save one image with one name in it."
            )
        found = self.inspect_image(loaded[0])
        if found is None:
            raise EngineError("The archive was loaded, but its image is not there.", "Try again.")
        return str(found["Id"])

    def tag(self, image: str, reference: str) -> None:
        """Give an image a further name."""
        repository, tag = split_reference(reference)
        with self._asked(f"name the image {reference}"):
            self._client.tag(image, repository, tag=tag, force=True)

    def remove_image(self, reference: str) -> None:
        """Remove a name of an image, or an image without a name; what is in use stays, silently."""
        with contextlib.suppress(NotFound, Refused), self._asked("remove the image"):
            self._client.remove_image(reference)

    def output_of(self, name: str, config: Mapping[str, Any], *, seconds: float, limit: int) -> bytes | None:
        """Run a container of that name to its end, and return what it wrote to its standard output.

        None when it failed, took more than ``seconds`` or wrote more than ``limit`` bytes. The container is
        removed in any case, and so is one that a call which was broken off left under its name.
        """
        import requests.exceptions  # what the Docker SDK for Python stands on

        self.remove(name)
        made = self.create(name, config)
        try:
            self.start(made)
            try:
                with self._asked("wait for the container"):
                    code = self._client.wait(made, timeout=seconds)["StatusCode"]
            except EngineError as error:
                if isinstance(error.__cause__, requests.exceptions.RequestException):
                    return None
                raise
            with self._asked("read the output of the container"):
                said = bytes(self._client.logs(made, stdout=True, stderr=False))
        finally:
            self.remove(made)
        return said if code == 0 and len(said) <= limit else None

    def build(self, request: BuildRequest, progress: Callable[[str], None] = ignore) -> str:
        """Build an image with the classic builder, and return its id. Raises BuildFailed."""
        with _scratch(request.scratch) as directory:
            id_file = posixpath.join(directory, "id")
            # It dies with us, and dockerd then ends the build (setpriv(1), PR_SET_PDEATHSIG).
            arguments = ["/usr/bin/setpriv", "--pdeathsig", "KILL"]
            arguments += [DOCKER, "build", "--force-rm", "--iidfile", id_file]
            arguments += [f"--build-arg={name}={value}" for name, value in sorted(request.build_args.items())]
            if request.fresh:
                arguments.append("--no-cache")
            arguments += [f"--add-host={name}:{address}" for name, address in sorted(request.hosts.items())]
            if request.cgroup_parent:
                arguments.append(f"--cgroup-parent={request.cgroup_parent}")
            if request.memory:
                arguments += [f"--memory={request.memory}", f"--memory-swap={request.memory}"]
            if request.cpus:
                arguments += ["--cpu-period=100000", f"--cpu-quota={int(request.cpus * 100000)}"]
            arguments.append("-")
            environment = {
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": "/root",
                # A build of a user's has none of root's credentials for registries.
                "DOCKER_CONFIG": directory,
                "DOCKER_HOST": self._url,
                # BuildKit keeps to neither the user's slice nor a limit (docs/architecture.md).
                "DOCKER_BUILDKIT": "0",
            }
            reader = _BuildReader(progress, request.log)
            watchdog = _Watchdog(request.seconds, request.watch)
            code = _run(arguments, environment, request.context, reader, watchdog)
            if watchdog.reason:
                # It comes first: what the builder said then is that it was killed.
                reader.last = watchdog.reason
            with contextlib.suppress(OSError), open(id_file, encoding="ascii") as file:
                built = file.read().strip()
                if code == 0 and built and not watchdog.reason:
                    return built
        said = f"The build of {request.title} failed: {reader.last or f'docker ended with code {code}'}"
        raise BuildFailed(said, reader.step, reader.last, reader.newest)

    @contextlib.contextmanager
    def _asked(self, deed: str) -> Iterator[None]:
        with _sentences(deed, self._url):
            yield


def _changes(text: str) -> list[tuple[str, int]]:
    """Return (path, kind) of each whole item of a JSON list, which may be cut off, or null."""
    reader = json.JSONDecoder()
    found: list[tuple[str, int]] = []
    # Each item is {"Path": text, "Kind": number}; between two of them there is a comma.
    position = text.find("{")
    while position >= 0:
        try:
            item, end = reader.raw_decode(text, position)
        except ValueError:
            break
        found.append((str(item.get("Path", "")), int(item.get("Kind", 0))))
        position = text.find("{", end)
    return found


@contextlib.contextmanager
def _scratch(name: str) -> Iterator[str]:
    """Yield an empty folder. It has a fixed place, so that one left by a killed process does not add up."""
    directory = posixpath.join(RUN_DIRECTORY, "builds", name)
    try:
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory, mode=0o700)
    except OSError as error:
        raise HostError(f"{directory} cannot be made: {error.strerror}.", "Tell IT.") from error
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class _PullReader:
    """Follows the fetching of an image: how much there is to fetch, and each step of its layers.

    The amounts are those of what is known so far; they are told once a second at most.
    """

    def __init__(self, reference: str, progress: Callable[[str], None]) -> None:
        self._reference, self._progress = reference, progress
        self._layers: dict[str, tuple[int, int]] = {}
        self._next = 0.0

    def event(self, event: Mapping[str, Any]) -> None:
        status, layer = str(event.get("status") or ""), str(event.get("id") or "")
        detail = event.get("progressDetail")
        if status == "Downloading" and isinstance(detail, dict):
            # Where the registry does not say how long a layer is, there is no total.
            current, whole = int(detail.get("current") or 0), int(detail.get("total") or 0)
            self._layers[layer] = (current, max(current, whole))
            self._tell_amount()
            return
        if status in ("Download complete", "Pull complete") and layer in self._layers:
            self._layers[layer] = (self._layers[layer][1],) * 2
        if status and not detail:
            self._progress(one_line(f"{layer}: {status}" if layer else status))

    def _tell_amount(self) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + 1
            done, whole = (sum(amounts) for amounts in zip(*self._layers.values()))
            self._progress(f"Fetching {self._reference}: {format_size(done)} of {format_size(whole)}")


class _BuildReader:
    """Follows the output of a build: the step, its last line that says something, the newest layer made."""

    def __init__(self, progress: Callable[[str], None], log: Callable[[str], None] = ignore) -> None:
        self._progress, self._log = progress, log
        self.step = 0
        self.last = ""
        self.newest = ""
        self._cached = False
        self._before: str | None = None

    def line(self, text: str) -> None:
        self._log(text)
        text = _COLOUR.sub("", text)
        shown = one_line(text)
        if not shown:
            return
        words = shown.split()
        if words[0] == "Step" and len(words) > 1 and words[1].split("/")[0].isdigit():
            self.step = int(words[1].split("/")[0])
            self.last, self._cached, self._before = "", False, None
        elif shown == "---> Using cache":
            self._cached = True
        elif words[0] == "--->" and len(words) == 2 and _SHORT_ID.fullmatch(words[1]):
            if self.step > 1 and not self._cached:
                self.newest = words[1]
        elif _EXIT.fullmatch(text.strip()):
            # It comes after what the command said of its failure, which tells more.
            self.last = self.last or shown
        elif self._before is not None and _EXIT_ENDS.fullmatch(text.strip()):
            self.last = self._before or _EXIT_ENDS.sub(r"The command \1", shown)
        elif not shown.startswith(
            ("--->", "Removing intermediate", "Sending build", "DEPRECATED", "Install the buildx")
        ):
            if shown.startswith(_EXIT_BEGINS):
                self._before = self.last
            self.last = shown
        self._progress(shown)


class _Watchdog(threading.Thread):
    """Kills a process that takes too long, or for which ``watch`` finds a reason; ``reason`` says why."""

    def __init__(self, seconds: float, watch: Callable[[], str]) -> None:
        super().__init__(daemon=True)
        self._limit, self._watch = seconds, watch
        self._over = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self.reason = ""

    def guard(self, process: subprocess.Popen[bytes]) -> None:
        """Begin to watch a process."""
        self._process = process
        self.start()

    def end(self) -> None:
        """Watch no more."""
        self._over.set()

    def run(self) -> None:
        """Look every two seconds, until the end."""
        end = time.monotonic() + self._limit
        while not self._over.wait(min(_WATCH_SECONDS, max(0.0, end - time.monotonic()))):
            if time.monotonic() >= end:
                self.reason = f"it was stopped, as it took more than {self._limit / 60:g} minutes"
            else:
                self.reason = self._watch()
            if self.reason and self._process is not None:
                _kill(self._process)
                return


def _run(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    context: BinaryIO,
    reader: _BuildReader,
    watchdog: _Watchdog,
) -> int:
    try:
        process = subprocess.Popen(
            arguments,
            env=dict(environment),
            cwd="/",
            stdin=context,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            close_fds=True,
        )
    except OSError as error:
        raise EngineError(
            f"{arguments[0]} cannot be run: {error.strerror}.", "Install the package docker.io."
        ) from error
    watchdog.guard(process)
    try:
        if process.stdout is not None:
            for raw in iter(lambda: process.stdout.readline(1 << 16) if process.stdout else b"", b""):
                reader.line(raw.decode("utf-8", "replace"))
        return process.wait()
    except BaseException:
        _kill(process)
        process.wait()
        raise
    finally:
        watchdog.end()
        if process.stdout is not None:
            process.stdout.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def one_line(text: str) -> str:
    """Return the last thing that a terminal would show of ``text``, as one printable line."""
    last = [part for part in text.replace("\r", "\n").split("\n") if part.strip()]
    return names.printable(last[-1].strip())[:1000] if last else ""


def split_reference(reference: str) -> tuple[str, str]:
    """Return (repository, tag) of an image reference; the tag is "latest" where there is none."""
    if "@" in reference:
        repository, digest = reference.split("@", 1)
        return repository, digest
    head, _colon, tail = reference.rpartition(":")
    return (head, tail) if head and "/" not in tail else (reference, "latest")


@contextlib.contextmanager
def _sentences(deed: str, url: str) -> Iterator[None]:
    """Turn the errors of the engine, of the Docker SDK and of its transport into ours."""
    try:
        yield
    except LabError:
        raise
    except ApiError as error:
        raise _refusal(deed, error.status, error.explanation) from error
    except Exception as error:
        found = _sentence(error, deed, url)
        if found is None:
            raise
        raise found from error


_LOOK_AT_REGISTRY = "Check its name, and whether the server reaches its registry."
_LOOK_AT_DOCKER = "Try again. If it stays so, your admins look at: journalctl -u docker."
#: What a status of the engine means (its API's documentation), and what to do about it.
_REFUSALS: dict[int, tuple[type[LabError], str]] = {
    404: (NotFound, "It may be gone since it was looked for. Try again."),
    409: (Refused, "Something else works on it or needs it. Try again in a minute."),
}


def _refusal(deed: str, status: int, explanation: str) -> LabError:
    said = one_line(explanation).rstrip(".")
    kind, hint = _REFUSALS.get(status, (EngineError, _LOOK_AT_DOCKER))
    return kind(f"Docker could not {deed}: {said}.", hint)


def _sentence(error: Exception, deed: str, url: str) -> LabError | None:
    """Return an error of the SDK's, of its transport or of the socket as ours; None for any other."""
    broken: tuple[type[Exception], ...] = (OSError,)
    # They are there when something was asked of the SDK.
    if "docker.errors" in sys.modules:
        import docker.errors
        import requests.exceptions

        if isinstance(error, docker.errors.APIError):
            return _refusal(deed, int(error.status_code or 0), str(error.explanation or error))
        broken += (docker.errors.DockerException, requests.exceptions.RequestException)
    if not isinstance(error, broken):
        return None
    return EngineError(
        f"Docker Engine does not answer at {url} ({one_line(str(error))[:200]}).",
        "Look at: systemctl status docker.",
    )
