# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Make a repository of apt with stand-ins for NVIDIA's packages: ``repository.py DIRECTORY``.

Nothing in it is of NVIDIA. The stand-in of ``nvidia-ctk`` says so, and writes a specification (CDI)
of the GPUs that the simulation of NVML serves; a container gets a variable, and a device file without one.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "1.18.0-1"
NVIDIA_CTK = """#!/bin/sh
# A stand-in of lab.server's tests, not NVIDIA's tool.
set -eu
if [ "${1:-}" = --version ]; then
    echo "NVIDIA Container Toolkit CLI version @VERSION@"
    echo "simulated: a stand-in of lab.server's tests"
    exit 0
fi
[ "${1:-} ${2:-}" = "cdi generate" ] || { echo "the stand-in knows no: $*" >&2; exit 2; }
output=
for each; do case $each in --output=*) output=${each#*=};; esac; done
state=${LAB_SIMULATED_NVML:-/etc/lab-simulated-nvml.conf}
mkdir -p "$(dirname "$output")"
{
    echo 'cdiVersion: "0.5.0"'
    echo 'kind: nvidia.com/gpu'
    echo 'devices:'
    sed -n 's/^\\(gpu\\|mig\\) .*uuid=\\([^ ]*\\).*/\\2/p' "$state" |
    while read -r uuid; do
        printf '  - name: %s\\n    containerEdits:\\n      env: ["LAB_SIMULATED_GPU=%s"]\\n' "$uuid" "$uuid"
        echo '      deviceNodes:'
        printf '        - {path: /dev/simulated-%s, hostPath: /dev/null, permissions: rw}\\n' "$uuid"
    done
} > "$output.next"
mv "$output.next" "$output"
"""
CONFIG = """#accept-nvidia-visible-devices-envvar-when-unprivileged = true

[nvidia-container-cli]
load-kmods = true
"""
RUNTIME = "#!/bin/sh\necho 'simulated: a stand-in of the tests of lab.server runs nothing' >&2\nexit 1\n"


def make(directory: Path, version: str = VERSION) -> Path:
    """Make the repository in ``directory`` and return it; dpkg-deb must be there (package dpkg)."""
    directory.mkdir(parents=True, exist_ok=True)
    files = {
        "usr/bin/nvidia-ctk": NVIDIA_CTK.replace("@VERSION@", version.partition("-")[0]),
        "usr/bin/nvidia-container-runtime": RUNTIME,
        "etc/nvidia-container-runtime/config.toml": CONFIG,
    }
    package = _package(directory, "nvidia-container-toolkit", version, files)
    control = subprocess.run(
        ["dpkg-deb", "-f", str(package)], check=True, capture_output=True, text=True
    ).stdout
    content = package.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    entry = f"{control}Filename: ./{package.name}\nSize: {len(content)}\nSHA256: {digest}\n"
    (directory / "Packages").write_text(entry)
    return directory


def _package(directory: Path, name: str, version: str, files: dict[str, str]) -> Path:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / name
        for path, text in files.items():
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            file.chmod(0o755 if "/bin/" in path else 0o644)
        control = root / "DEBIAN" / "control"
        control.parent.mkdir()
        control.write_text(
            f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: tests of lab.server\n"
            "Description: a stand-in of the tests of lab.server, nothing of NVIDIA's\n"
        )
        root.chmod(0o755)
        built = directory / f"{name}_{version}_all.deb"
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-b", str(root), str(built)], check=True, capture_output=True
        )
    return built


if __name__ == "__main__":
    print(make(Path(sys.argv[1])))
