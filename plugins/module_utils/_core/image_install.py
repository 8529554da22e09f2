# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Install Python packages in this container at once, and record them in the project's requirements.txt.

The program ``image-install`` inside of containers: run by the image's own Python (3.8 or later), as the
container's user, alone in its file, so it imports nothing of ours. The server runs the same program in the
container when the command is typed on the host. What pip installs here is gone with the container; what is
recorded goes into the image when it is next built.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

# PEP 508 without URLs, markers and spaces: a name, extras, versions; never an option of pip's.
REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?)"
    r"(?P<extras>\[[A-Za-z0-9._-]{1,40}(?:,[A-Za-z0-9._-]{1,40}){0,9}\])?"
    r"(?P<versions>(?:===|==|~=|!=|<=|>=|<|>)[A-Za-z0-9.*+!_-]{1,40}"
    r"(?:,(?:===|==|~=|!=|<=|>=|<|>)[A-Za-z0-9.*+!_-]{1,40}){0,4})?"
)
WORKSPACE = "/workspace"
MANY = 50
"""Requirements of one call."""
REPORT = "lab-server-report: "
"""Begins the line of ``--report``, which is JSON: {packages: {name: version}, dockerfile: bool}."""
# The name of a package at the start of a line of requirements.txt, and what may follow it.
_NAMED = re.compile(r"\s*([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:[\[=<>~!;@#]|$)")
_RULE = "Write each as a name and, if need be, a version: pandas, 'numpy>=1.26', 'uvicorn[standard]==0.30.1'."
_USAGE = f"""usage: image-install PACKAGE...

Install Python packages in this container now, and record them, with their versions, in the
requirements.txt of the project, so that they are in its image from the next build on.
{_RULE}
"""
_VERSIONS = """\
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


class Problem(Exception):
    """Something to be told in a sentence."""


def check(words: Sequence[str]) -> list[str]:
    """Return the requirements if each is one; raise Problem."""
    if not words:
        raise Problem("Name at least one package.")
    if len(words) > MANY:
        raise Problem(f"{len(words)} packages at once are too many; {MANY} are allowed.")
    for word in words:
        if not REQUIREMENT.fullmatch(word):
            raise Problem(f"{ascii(word)[:100]} is not the requirement of a package. {_RULE}")
    return list(words)


def normalised(name: str) -> str:
    """Return the name of a package as all of its spellings have it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def recorded(text: str, packages: Mapping[str, str]) -> str:
    """Return a requirements.txt in which each of ``packages`` (requirement: version) is pinned.

    A line that names the package already is replaced where it stands, others stay as they are. Raises
    Problem for a file of hashes, to which no line without a hash can be added.
    """
    if re.search(r"^[^#\n]*--hash[= ]", text, re.MULTILINE):
        raise Problem("requirements.txt holds hashes, so a line without one cannot be added to it.")
    pins = {}
    for requirement, version in packages.items():
        name, extras = _parts(requirement)
        pins[normalised(name)] = f"{name}{extras}=={version}"
    lines, written = [], set()
    for line in text.splitlines():
        match = _NAMED.match(line)
        name = normalised(match.group(1)) if match else ""
        if name not in pins:
            lines.append(line)
        elif name not in written:  # a second line of the same package would contradict the first
            lines.append(pins[name])
            written.add(name)
    lines += [pin for name, pin in pins.items() if name not in written]
    return "".join(line + "\n" for line in lines)


def _parts(requirement: str) -> tuple[str, str]:
    """Return the name and the extras ("" for none) of a requirement that was checked."""
    match = REQUIREMENT.fullmatch(requirement)
    return (match.group("name"), match.group("extras") or "") if match else (requirement, "")


def install(words: Sequence[str], dry_run: bool) -> None:
    """Let pip install; raise Problem when it does not."""
    if importlib.util.find_spec("pip") is None:
        raise Problem("The Python of this image has no pip. Add it in the Dockerfile of the project.")
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    command += ["--progress-bar", "off", *(["--dry-run"] if dry_run else []), *words]
    # A distribution marks its own Python as its own to manage; in a container it is the project's (PEP 668).
    environment = dict(os.environ, PIP_BREAK_SYSTEM_PACKAGES="1", PIP_ROOT_USER_ACTION="ignore")
    if subprocess.call(command, env=environment, stderr=subprocess.STDOUT):
        raise Problem("pip could not install it; nothing was recorded.")


def versions(words: Sequence[str]) -> dict[str, str]:
    """Return the installed version of each requirement."""
    asked = {word: _parts(word)[0] for word in words}
    # Another process: this one may have started before the folder was there that holds them now.
    done = subprocess.run(
        [sys.executable, "-c", _VERSIONS, *asked.values()], stdout=subprocess.PIPE, check=False
    )
    try:
        found = json.loads(done.stdout.decode("utf-8"))
    except ValueError:
        found = {}
    missing = [word for word, name in asked.items() if name not in found]
    if missing:
        raise Problem(f"It was installed, but its version cannot be told: {', '.join(missing)}.")
    return {word: str(found[name]) for word, name in asked.items()}


def record(folder: str, packages: Mapping[str, str]) -> None:
    """Pin the packages in the requirements.txt of a project's folder; raise Problem."""
    path = os.path.realpath(os.path.join(folder, "requirements.txt"))
    try:
        text, mode = "", 0o644
        if os.path.exists(path):
            mode = os.stat(path).st_mode & 0o777
            with open(path, encoding="utf-8") as file:
                text = file.read()
        new = f"{path}.{os.getpid()}.new"
        with open(new, "w", encoding="utf-8") as file:
            file.write(recorded(text, packages))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(new, mode)
        os.replace(new, path)
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(f"It is installed, but {path} could not be written: {error}.") from error


def is_built_from(folder: str) -> bool:
    """Say whether the project's Dockerfile mentions requirements.txt, so that the image follows it."""
    try:
        with open(os.path.join(folder, "Dockerfile"), encoding="utf-8", errors="replace") as file:
            return "requirements.txt" in file.read(1 << 20)
    except OSError:
        return False


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def main(arguments: Sequence[str]) -> int:
    """Run the command line (without the program); return the exit code."""
    words = [word for word in arguments if not word.startswith("--")]
    options = set(arguments) - set(words)
    if "--help" in options:
        sys.stdout.write(_USAGE)
        return 0
    if options - {"--dry-run", "--report"}:
        sys.stderr.write(f"image-install: it has no such option.\n{_USAGE}")
        return 2
    # The host name of a project's container is the project.
    folder = os.path.join(WORKSPACE, socket.gethostname())
    try:
        wanted = check(words)
        install(wanted, "--dry-run" in options)
        if "--dry-run" in options:
            return 0
        found = versions(wanted)
        record(folder, found)
    except Problem as problem:
        sys.stderr.write(f"image-install: {problem}\n")
        return 1
    built = is_built_from(folder)
    if "--report" in options:
        _say(REPORT + json.dumps({"packages": found, "dockerfile": built}))
        return 0
    for requirement, version in found.items():
        _say(f"{requirement}: {version} is installed, and recorded in {folder}/requirements.txt")
    _say("The image has it from its next build on; until then a new container does not.")
    if not built:
        _say("Note: the Dockerfile of the project does not mention requirements.txt; let it install it.")
    return 0


if __name__ == "__main__":
    try:
        CODE = main(sys.argv[1:])
    except KeyboardInterrupt:
        CODE = 130
    raise SystemExit(CODE)
