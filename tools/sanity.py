# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Run ``ansible-test sanity`` on a plain checkout, with the Python that this script runs under.

ansible-test fetches pip's bootstrap script from a site of its own; where only a package index can be reached,
as behind many firewalls, a stand-in that installs the same version of pip from a wheel does the same.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONTENT = ROOT / ".ansible/collections/ansible_collections/lab/server"
CACHE = Path.home() / ".ansible/test/cache"

STAND_IN = '''"""Stands in for get-pip.py: installs pip from the wheel beside it."""
import runpy
import sys

WHEEL = {wheel!r}
sys.path.insert(0, WHEEL)
sys.argv = ["pip", "install", "--quiet", "--no-index", "--disable-pip-version-check", WHEEL]
runpy.run_module("pip", run_name="__main__", alter_sys=True)
'''


def prepare_pip() -> None:
    """Put a stand-in for each version of pip that ansible-test asks for in its cache."""
    package = find_spec("ansible_test")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("sanity.py: ansible-test is missing; run it by the Python of .venv.")
    source = Path(package.submodule_search_locations[0]) / "_internal/python_requirements.py"
    for version in sorted(set(re.findall(r"pip='([0-9.]+)'", source.read_text()))):
        script = CACHE / f"get_pip_{version.replace('.', '_')}.py"
        if script.exists():
            continue
        CACHE.mkdir(parents=True, exist_ok=True)
        download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(CACHE)]
        subprocess.run([*download, f"pip=={version}"], check=True, stdout=sys.stderr)
        script.write_text(STAND_IN.format(wheel=str(CACHE / f"pip-{version}-py3-none-any.whl")))


def main() -> int:
    """Run the sanity tests with further arguments of the command line; return the exit status."""
    prepare_pip()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    environment = {
        **os.environ,
        "ANSIBLE_TEST_CONTENT_ROOT": str(CONTENT),
        "PIP_QUIET": "1",
        # Shims of version managers answer for interpreters that are not there: real programs only.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"]),
    }
    program = str(Path(sys.executable).with_name("ansible-test"))
    command = [program, "sanity", "--local", "--color", "no", "--python", version, *sys.argv[1:]]
    return subprocess.run(command, cwd=CONTENT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
