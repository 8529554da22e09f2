# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The configuration of Docker Engine: merged into what is there, checked, and only then put in place."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any

from . import hostfiles, loaded, units
from .errors import HostError, InvalidInput
from .items import ItemResult
from .loaded import Reads
from .names import printable

PATH = "/etc/docker/daemon.json"
UNIT = "docker.service"
# The daemon writes it at its start (dockerd --pidfile).
PID_FILE = "/run/docker.pid"

# The keys that dockerd knows: https://docs.docker.com/reference/cli/dockerd/#daemon-configuration-file
# It refuses to start with any other.
KNOWN_KEYS = frozenset(
    {
        *("allow-direct-routing", "allow-nondistributable-artifacts", "api-cors-header"),
        *("authorization-plugins", "bip", "bip6", "bridge", "bridge-accept-fwmark", "builder"),
        *("cgroup-parent", "cluster-advertise", "cluster-store", "cluster-store-opts", "containerd"),
        *("containerd-namespace", "containerd-plugins-namespace", "cpu-rt-period", "cpu-rt-runtime"),
        *("data-root", "debug", "default-address-pools", "default-cgroupns-mode", "default-gateway"),
        *("default-gateway-v6", "default-ipc-mode", "default-network-opts", "default-runtime"),
        *("default-shm-size", "default-ulimits", "dns", "dns-opts", "dns-search", "exec-opts"),
        *("exec-root", "experimental", "features", "firewall-backend", "fixed-cidr", "fixed-cidr-v6"),
        *("group", "host-gateway-ip", "host-gateway-ips", "hosts", "http-proxy", "https-proxy"),
        *("no-proxy", "icc", "init", "init-path", "insecure-registries", "ip", "ip-forward"),
        *("ip-forward-no-drop", "ip-masq", "ip6tables", "iptables", "ipv6", "labels", "live-restore"),
        *("log-driver", "log-format", "log-level", "log-opts", "max-concurrent-downloads"),
        *("max-concurrent-uploads", "max-download-attempts", "metrics-addr", "mtu"),
        *("network-control-plane-mtu", "network-diagnostic-port", "no-new-privileges"),
        *("node-generic-resources", "oom-score-adjust", "pidfile", "proxies", "raw-logs"),
        *("registry-mirrors", "rootless", "runtimes", "seccomp-profile", "selinux-enabled"),
        *("shutdown-timeout", "storage-driver", "storage-opts", "swarm-default-advertise-addr", "tls"),
        *("tlscacert", "tlscert", "tlskey", "tlsverify", "userland-proxy", "userland-proxy-path"),
        *("userns-remap",),
    }
)


def parse(text: str | None, path: str = PATH) -> dict[str, Any]:
    """Return the settings in a daemon.json; an absent or empty file has none. Raises HostError."""
    if text is None or not text.strip():
        return {}
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise HostError(f"{path} is not JSON: {error}.", "Repair it, or move it away.") from error
    if not isinstance(settings, dict):
        raise HostError(f"{path} holds no JSON object.", "Repair it, or move it away.")
    return settings


def merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``old`` with the settings of ``new``: mappings key by key, lists whole, null removes a key."""
    merged = dict(old)
    for key, value in new.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            there = merged.get(key)
            merged[key] = merge(there if isinstance(there, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


def render(settings: Mapping[str, Any]) -> str:
    """Return the settings as they are written, always the same for the same settings."""
    return json.dumps(settings, indent=2, sort_keys=True) + "\n"


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise InvalidInput if dockerd would refuse to start with the settings, or must not have them here."""
    unknown = sorted(set(settings) - KNOWN_KEYS)
    if unknown:
        raise InvalidInput(
            f"{PATH}: dockerd does not know {printable(', '.join(unknown))} and would not start.",
            "Correct docker_daemon_settings, or the file itself.",
        )
    if "hosts" in settings:
        raise InvalidInput(
            f"{PATH}: 'hosts' would open Docker to others, and contradicts the -H of its unit.", "Remove it."
        )


def validate(text: str) -> None:
    """Let the installed dockerd judge a configuration, which engines before 23.0 cannot.

    Raises InvalidInput with what dockerd says.
    """
    if not any(os.path.exists(path) for path in ("/usr/bin/dockerd", "/usr/sbin/dockerd")):
        return
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix="lab-server-daemon-") as stream:
        stream.write(text)
        stream.flush()
        arguments = ["dockerd", "--validate", "--config-file", stream.name]
        done = hostfiles.run(arguments, timeout=60, accept=range(256))
    if done.returncode != 0 and "unknown flag" not in done.stderr:
        lines = (done.stderr.strip() or "no reason given").splitlines()
        raise InvalidInput(f"dockerd refuses the settings: {printable(lines[-1])[:300]}", "Correct them.")


def stale(path: str = PATH, pid_file: str = PID_FILE) -> bool:
    """Return whether the running dockerd started before the file was last written."""
    try:
        return os.stat(pid_file).st_mtime < os.stat(path).st_mtime
    except OSError:
        return False


def outdated(path: str = PATH) -> bool:
    """Return whether the running dockerd has other settings than the file, as far as that is known.

    A file that was written anew with what it held before makes no difference. Raises HostError.
    """
    if not stale(path, PID_FILE):
        return False
    reads = Reads(UNIT, (path,))
    state = units.states([UNIT])[UNIT] if units.runs_systemd() else {}
    return not loaded.is_current(reads, state, loaded.digest(reads.files, {}))


def trust(bundle: str, *, renewed: bool = False, path: str = PATH) -> ItemResult:
    """Return as an item whether dockerd is to be restarted, as it runs with older certificates than these.

    It reads them once (Go's crypto/x509, SystemCertPool). ``renewed``: they would be written now, were this
    no check. The containers are to outlive it: without live-restore it is not restarted for this, and one
    that runs with older settings is restarted for those. Changes nothing. Raises HostError.
    """
    item = ItemResult(bundle)
    late = os.path.exists(PID_FILE) and (renewed or stale(bundle, PID_FILE))
    if not late or outdated(path):
        return item
    if parse(hostfiles.read_text(path), path).get("live-restore") is True:
        item.changed, item.actions = True, ["needs a restart"]
        item.reason = "dockerd started before the certificates were renewed"
    else:
        item.facts["notes"] = [
            "dockerd trusts new certificates from its next start on; a restart now would end the containers "
            "(no live-restore). Restart it when none runs: systemctl restart docker."
        ]
    return item


def reconcile(settings: Mapping[str, Any], *, check: bool, path: str = PATH) -> list[ItemResult]:
    """Merge ``settings`` into the file, validated before it is replaced; return one item.

    Raises LabError; the file stays as it was.
    """
    old = hostfiles.read_text(path)
    before = parse(old, path)
    after = merge(before, settings)
    check_settings(after)
    item = ItemResult(path)
    if after == before:
        return [item]
    text = render(after)
    validate(text)
    item.changed, item.actions = True, ["write" if old is None else "change"]
    item.reason = "there is no such file" if old is None else "the settings differ"
    item.diff = {"before": render(before) if before else "", "after": text}
    if not check:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        hostfiles.write_text(path, text)
    return [item]
