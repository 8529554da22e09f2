"""Simulated servers of the internet, and the cache that is really there: nginx with the role's own settings.

``World`` is one process that plays an index of Python packages, a repository of apt and the name server that
knows them; it can be made to fail in the ways in which the true ones do. ``Cache`` is nginx, started as the
unit of the role starts it: without root, with the one right to listen on a port of the system.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import http.server
import io
import json
import os
import pwd
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ROLE = ROOT / "roles" / "package_cache"
# On loopback, of this run alone: two may be at work on one computer.
_PREFIX = f"127.{88 + os.getpid() // 256 % 64}.{os.getpid() % 256}"
#: Where the simulated servers are, where the cache is, and who may ask it.
ADDRESS, CACHE, NETWORK = f"{_PREFIX}.77", f"{_PREFIX}.1", f"{_PREFIX}.0/24"
DNS_PORT = 5388
INDEX, FILES, APT, OTHER = (f"{name}.example.org" for name in ("index", "files", "packages", "other"))
JSON = "application/vnd.pypi.simple.v1+json"


def wheel(name: str, requires: str = "", payload: bytes = b"") -> tuple[str, bytes]:
    """Return the file name and the content of a wheel of version 1.0 (PEP 427), made without any tool."""
    info = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    metadata += f"Requires-Dist: {requires}\n" if requires else ""
    files = {
        f"{name}.py": b"VALUE = 1\n",
        f"{name}.bin": payload,
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},"
        f"{len(data)}\n"
        for path, data in files.items()
    )
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, data in files.items():
            archive.writestr(zipfile.ZipInfo(path, (2024, 1, 1, 0, 0, 0)), data)
    return f"{name}-1.0-py3-none-any.whl", buffer.getvalue()


@dataclass
class Seen:
    """A request that reached a simulated server."""

    host: str
    path: str
    headers: dict[str, str]


@dataclass
class Answer:
    """What a simulated server has at a path."""

    body: bytes
    kind: str = "application/octet-stream"
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200


class World:
    """The simulated index, files and repository, by TLS at port 443 and plainly at 80, and their names."""

    def __init__(self, folder: Path) -> None:
        self.answers: dict[tuple[str, str, str], Answer] = {}
        self.seen: list[Seen] = []
        self.trouble = ""
        self.certificate = self.certify(folder / "world.pem")
        self._servers: list[http.server.ThreadingHTTPServer] = []
        self._names: socket.socket | None = None
        self.start()

    def put(self, host: str, path: str, answer: Answer, accept: str = "") -> None:
        """Serve an answer; with ``accept`` only to who accepts that type."""
        self.answers[host, path, accept] = answer

    def add_wheel(self, name: str, requires: str = "", payload: bytes = b"") -> None:
        """Serve a wheel from the host of the files, and its pages from the index."""
        file, content = wheel(name, requires, payload)
        digest = hashlib.sha256(content).hexdigest()
        url = f"https://{FILES}/packages/{digest[:2]}/{file}"
        self.put(FILES, f"/packages/{digest[:2]}/{file}", Answer(content))
        page = f'<!DOCTYPE html><html><body><a href="{url}#sha256={digest}">{file}</a></body></html>'
        self.put(INDEX, f"/simple/{name}/", Answer(page.encode(), "text/html"))
        listed = {"filename": file, "url": url, "hashes": {"sha256": digest}}
        told = {"meta": {"api-version": "1.0"}, "name": name, "files": [listed]}
        self.put(INDEX, f"/simple/{name}/", Answer(json.dumps(told).encode(), JSON), JSON)

    def start(self) -> None:
        """Answer again."""
        self.trouble = ""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, f"{self.certificate}.key")
        for port in (80, 443):
            server = http.server.ThreadingHTTPServer((ADDRESS, port), _handler(self))
            server.daemon_threads = True
            if port == 443:
                server.socket = context.wrap_socket(server.socket, server_side=True)
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            self._servers.append(server)
        self.start_names()

    def start_names(self) -> None:
        self._names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._names.bind((ADDRESS, DNS_PORT))
        threading.Thread(target=_answer_names, args=(self._names,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections, and know no names."""
        self.stop_servers()
        self.stop_names()

    def stop_servers(self) -> None:
        """Refuse connections."""
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self._servers = []

    def stop_names(self) -> None:
        """Do not answer who asks for an address."""
        if self._names is not None:
            # It wakes the thread that reads from it.
            with_nothing = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            names, self._names = self._names, None
            with_nothing.sendto(b"", (ADDRESS, DNS_PORT))
            with_nothing.close()
            time.sleep(0.1)
            names.close()

    @staticmethod
    def certify(path: Path) -> Path:
        """Make a certificate of the index and of the host of the files, with its key beside it."""
        names = ",".join(f"DNS:{name}" for name in (INDEX, FILES))
        command = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ]
        command += ["-keyout", f"{path}.key", "-out", str(path), "-subj", "/CN=simulated", "-days", "2"]
        subprocess.run([*command, "-addext", f"subjectAltName={names}"], check=True, capture_output=True)
        return path


def _handler(world: World) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_GET(self) -> None:
            host = self.headers.get("Host", "")
            world.seen.append(Seen(host, self.path, dict(self.headers)))
            if world.trouble == "silent":
                time.sleep(30)
                self.close_connection = True
                return
            if world.trouble == "cut off":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
                self.close_connection = True
                return
            answer = self._answer(host)
            if world.trouble == "broken":
                answer = Answer(b"", status=503)
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.kind)
            self.send_header("Content-Length", str(len(answer.body)))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        def _answer(self, host: str) -> Answer:
            for (at, path, accept), answer in sorted(world.answers.items(), reverse=True):
                if (at, path) == (host, self.path) and accept in self.headers.get("Accept", ""):
                    return answer
            return Answer(b"", status=404)

        def log_message(self, *_arguments: object) -> None:
            pass

    return Handler


def _answer_names(sock: socket.socket) -> None:
    """Answer each question for an A record with the one address, for a second (RFC 1035, section 4)."""
    while True:
        try:
            question, sender = sock.recvfrom(512)
        except OSError:
            return
        if not question:
            return
        end = question.index(b"\0", 12) + 5
        (kind,) = struct.unpack("!H", question[end - 4 : end - 2])
        known = b"\7example\3org\0" in question and kind == 1
        head = question[:2] + struct.pack("!HHHHH", 0x8180, 1, int(known), 0, 0) + question[12:end]
        answer = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 1, 4) + socket.inet_aton(ADDRESS)
        sock.sendto(head + answer if known else head, sender)


@cache
def _rendered(variables: str) -> str:
    """Return the settings of nginx as the role writes them, by Ansible itself."""
    with tempfile.TemporaryDirectory() as folder:
        given, target = Path(folder) / "variables.json", Path(folder) / "nginx.conf"
        given.write_text(variables)
        command = [str(Path(sys.executable).parent / "ansible"), "localhost", "-i", "localhost,"]
        command += ["-c", "local", "-e", f"ansible_python_interpreter={sys.executable}"]
        for file in (ROLE / "vars/main.yml", ROLE / "vars/Debian.yml", given):
            command += ["-e", f"@{file}"]
        source = ROLE / "templates/nginx.conf.j2"
        command += ["-m", "ansible.builtin.template", "-a", f"src={source} dest={target}"]
        environment = {**os.environ, "ANSIBLE_HOME": str(ROOT / ".ansible")}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return target.read_text()


class Cache:
    """nginx with the settings that the role writes."""

    def __init__(self, address: str, network: str, trusted: Path, **changes: Any) -> None:
        self.address = address
        # A short path of its own that the user of the service can pass.
        self.folder = Path(tempfile.mkdtemp(prefix="lab-server-test-cache-"))
        self.folder.chmod(0o755)
        self.run = self.folder / "run"
        (self.run / "cache").mkdir(parents=True)
        owner = pwd.getpwnam("www-data")
        for path in (self.run, self.run / "cache"):
            path.chmod(0o700)
            os.chown(path, owner.pw_uid, owner.pw_gid)
        shutil.copy(trusted, self.folder / "trusted.pem")
        variables = {
            "package_cache_index": f"https://{INDEX}/simple/",
            "package_cache_files": [f"https://{FILES}/packages/"],
            "package_cache_apt": [APT],
            "package_cache_size": "100m",
            "package_cache_address": address,
            "package_cache_clients": [network],
            "package_cache_port": 80,
            "package_cache_resolvers": [f"{ADDRESS}:{DNS_PORT}"],
            # A page is old at once, so that each test asks for it again.
            "__package_cache_index_valid": "1s",
            "__package_cache_min_free": "1m",
            **changes,
        }
        self._process: subprocess.Popen[bytes] | None = None
        settings = _rendered(json.dumps(variables, sort_keys=True))
        settings = settings.replace("/run/lab-server-package-cache", str(self.run))
        settings = settings.replace("/etc/ssl/certs/ca-certificates.crt", str(self.folder / "trusted.pem"))
        (self.folder / "nginx.conf").write_text(settings)
        self.start()

    def start(self) -> None:
        """Start nginx, and wait until it answers."""
        command = ["setpriv", "--reuid=www-data", "--regid=www-data", "--clear-groups", "--no-new-privs"]
        command += [f"--{kind}-caps=-all,+net_bind_service" for kind in ("inh", "ambient", "bounding")]
        command = [part.replace("--bounding-caps", "--bounding-set") for part in command]
        command += ["nginx", "-c", str(self.folder / "nginx.conf"), "-g", "daemon off;"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + 20
        while True:
            try:
                assert self.get("/lab-server-package-cache").status == 204
                return
            except OSError:
                assert self._process.poll() is None and time.monotonic() < end, self.log
                time.sleep(0.1)

    @property
    def log(self) -> str:
        """What nginx complained of."""
        return (self.folder / "log").read_text(errors="replace")

    @property
    def held(self) -> int:
        """Bytes that are kept."""
        return sum(path.stat().st_size for path in (self.run / "cache").rglob("*") if path.is_file())

    def get(self, path: str, method: str = "GET", source: str = "", **headers: str) -> Reply:
        """Ask for a path, which is sent as it is; return the answer."""
        connection = http.client.HTTPConnection(
            self.address, 80, timeout=30, source_address=(source or self.address, 0)
        )
        try:
            connection.putrequest(method, path, skip_host="Host" in headers)
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            connection.endheaders()
            answer = connection.getresponse()
            return Reply(answer.status, answer.read(), dict(answer.getheaders()))
        finally:
            connection.close()

    def stop(self) -> None:
        """End nginx; what it kept stays."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)


@dataclass
class Reply:
    """An answer of the cache."""

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def kept(self) -> str:
        """What nginx says of it: HIT, MISS, STALE, ...; empty for an answer of the cache's own."""
        return self.headers.get("X-Lab-Cache", "")
