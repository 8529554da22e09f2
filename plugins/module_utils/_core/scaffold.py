# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The layout of a new project. What is there already is the user's and is never touched.

To be run as the user (see ``asuser``): it writes into the user's workspace.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

from . import safefs
from .errors import InvalidInput, NotFound
from .names import image_reference, printable, project_name

TYPES = ("ml", "cv", "nlp", "stats", "custom")

_DIRECTORIES = (
    "data",
    "data/raw",
    "data/processed",
    "notebooks",
    "src",
    "models",
    "results",
    "results/logs",
    "results/plots",
    "tests",
)

#: What a type has besides: the folder, and what it is for.
_MORE: Mapping[str, tuple[tuple[str, str], ...]] = {
    "ml": (
        ("configs", "settings of the runs, one file each"),
        ("results/metrics", "numbers of the runs, to compare them"),
    ),
    "cv": (
        ("data/raw/images", "images as they came"),
        ("data/raw/annotations", "labels, boxes and masks"),
        ("data/processed/splits", "which image is for training, validation or test"),
        ("results/samples", "pictures that show what a model does"),
    ),
    "nlp": (
        ("data/raw/corpora", "texts as they came"),
        ("data/processed/tokens", "texts as the model reads them"),
        ("models/tokenizers", "vocabularies, kept with the models that need them"),
    ),
    "stats": (
        ("data/external", "reference data of others, with where it is from"),
        ("results/tables", "tables for the paper"),
        ("reports", "the paper, and notebooks that make it"),
    ),
    "custom": (),
}

_REQUIREMENTS: Mapping[str, tuple[str, ...]] = {
    "ml": ("numpy", "pandas", "scikit-learn", "matplotlib"),
    "cv": ("numpy", "pillow", "opencv-python-headless", "matplotlib"),
    "nlp": ("numpy", "pandas", "nltk", "scikit-learn"),
    "stats": ("numpy", "pandas", "scipy", "statsmodels", "matplotlib"),
    "custom": (),
}

_DOCKERFILE = """\
# The image of this project. After a change of this file or of requirements.txt: image-update {name}
FROM {base}

# Packages first: this layer is made again only when requirements.txt changes.
COPY requirements.txt /opt/project/requirements.txt
RUN pip install --no-cache-dir -r /opt/project/requirements.txt

# Settings of the project, there in every shell.
ARG PROJECT={name}
ENV PROJECT=${{PROJECT}} \\
    PYTHONUNBUFFERED=1

# Caches that outlive the container, in the workspace, where they count for your quota:
# ENV HF_HOME=/workspace/.cache/huggingface \\
#     PIP_CACHE_DIR=/workspace/.cache/pip

# Your own settings of the shell, from the file bashrc beside this one. The home is made with each container;
# a link in it (ln -s /workspace/{name}/bashrc ~/.bashrc) goes with it, this does not:
# COPY bashrc /etc/bash.bashrc
"""

_REQUIREMENTS_HEADER = """\
# The Python packages of this project, one a line. After a change: image-update {name}
"""

_PYPROJECT = """\
[project]
name = "{name}"
version = "0.1.0"
description = ""
readme = "README.md"
requires-python = ">=3.9"
dynamic = ["dependencies"]

[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[tool.setuptools]
packages = ["src"]

[tool.setuptools.dynamic]
dependencies = {{file = ["requirements.txt"]}}
"""

_README = """\
# {name}

| where | what |
|---|---|
| `Dockerfile`, `requirements.txt` | the image of this project; `image-update {name}` builds it |
| `data/raw`, `data/processed` | data as it came, and what was made of it |
| `notebooks`, `src`, `tests` | code |
| `models`, `results/logs`, `results/plots` | what comes out |
{more}
`project launch {name}` starts the container and opens a shell in `/workspace/{name}`. Everything below
`/workspace` is kept. The rest of the container (home, /tmp, packages installed by hand) is gone after
`container retire {name}`, though for some days `container undo {name}` brings it back; what shall stay goes
into `requirements.txt` or the `Dockerfile`.
"""

_GITIGNORE = """\
__pycache__/
*.py[cod]
.ipynb_checkpoints/
.venv/
.env
data/
models/
results/
"""

_DOCKERIGNORE = """\
# What the image does not need. Without these lines every build would read them.
.git
.venv
.env
**/__pycache__
**/.ipynb_checkpoints
data
models
results
"""


def _files(name: str, kind: str, base: str) -> dict[str, str]:
    requirements = _REQUIREMENTS_HEADER.format(name=name) + "".join(
        f"{line}\n" for line in _REQUIREMENTS[kind]
    )
    more = "".join(f"| `{folder}` | {what} |\n" for folder, what in _MORE[kind])
    return {
        "Dockerfile": _DOCKERFILE.format(name=name, base=base),
        "requirements.txt": requirements,
        "pyproject.toml": _PYPROJECT.format(name=name),
        "README.md": _README.format(name=name, more=more),
        ".gitignore": _GITIGNORE,
        ".dockerignore": _DOCKERIGNORE,
        "src/__init__.py": "",
    }


def layout(name: str, *, kind: str, base: str, files: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return (directories, files with their text) of a new project, relative to the project's folder.

    ``files`` replaces and adds to what the kind gives (one of ``TYPES``). Raises InvalidInput.
    """
    project_name(name)
    if kind not in TYPES:
        raise InvalidInput(
            f"{printable(kind)!r} is not a type of project.", f"Use one of: {', '.join(TYPES)}."
        )
    image_reference(base, "base image")
    contents = {**_files(name, kind, base), **files}
    directories = {*_DIRECTORIES, *(folder for folder, _what in _MORE[kind])}
    for path in contents:
        parts = path.split("/")
        if any(part in ("", ".", "..") for part in parts) or not path.isprintable():
            raise InvalidInput(f"{printable(path)!r} is not a plain relative path.", "Write it as a/b.")
        directories.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
    return sorted(directories), contents


def exists(workspace: str, name: str) -> bool:
    """Say whether anything has the name of the project in the workspace."""
    directory = safefs.open_directory(workspace)
    try:
        os.stat(project_name(name), dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    finally:
        os.close(directory)
    return True


def init_project(
    workspace: str,
    name: str,
    *,
    kind: str = "custom",
    base: str = "",
    files: Mapping[str, str] | None = None,
    check: bool = False,
) -> list[str]:
    """Create what is missing of the project's layout; return the created paths relative to the workspace.

    With ``check`` they are only looked for, and what would be created is returned.
    A project that is not there at all is made under another name and renamed when it is whole, so an
    interrupted call leaves no half project. Raises InvalidInput, NotFound, or OSError (quota, disk full).
    """
    directories, contents = layout(name, kind=kind, base=base, files=files or {})
    try:
        root = safefs.open_directory(workspace)
    except NotFound as error:
        raise NotFound(
            "The workspace is not there.", "Ask IT to run the playbook for this server."
        ) from error
    try:
        if _is_there(root, name):
            make = _missing if check else _fill
            return [f"{name}/{path}" for path in make(root, name, directories, contents)]
        if check:
            return _whole(name, directories, contents)
        making = f".{name}.making"
        safefs.make_directory(root, making)
        _fill(root, making, directories, contents)
        # rename(2) replaces only an empty directory, so a project made meanwhile is not lost.
        os.rename(making, name, src_dir_fd=root, dst_dir_fd=root)
        return _whole(name, directories, contents)
    finally:
        os.close(root)


def _whole(name: str, directories: list[str], contents: Mapping[str, str]) -> list[str]:
    return sorted([name, *(f"{name}/{path}" for path in [*directories, *contents])])


def _is_there(root: int, name: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        os.stat(name, dir_fd=root, follow_symlinks=False)
        return True
    return False


def _missing(root: int, name: str, directories: list[str], contents: Mapping[str, str]) -> list[str]:
    """Return what ``_fill`` would create; raise what it would raise."""
    project = safefs.open_beneath(root, name, os.O_RDONLY | os.O_DIRECTORY)
    try:
        wanted = {**dict.fromkeys(directories, True), **dict.fromkeys(contents, False)}
        return sorted(path for path, folder in wanted.items() if not safefs.is_there(project, path, folder))
    finally:
        os.close(project)


def _fill(root: int, name: str, directories: list[str], contents: Mapping[str, str]) -> list[str]:
    """Create what is missing below ``name``; return it, relative to ``name``."""
    project = safefs.open_beneath(root, name, os.O_RDONLY | os.O_DIRECTORY)
    try:
        created = [path for path in directories if safefs.make_directory(project, path)]
        created += [
            path for path in contents if safefs.create_file(project, path, contents[path].encode("utf-8"))
        ]
    finally:
        os.close(project)
    return sorted(created)
