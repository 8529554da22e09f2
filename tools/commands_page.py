# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Write docs/commands.md, the commands, from their parsers; a test compares the two."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / ".ansible" / "collections"))
from ansible_collections.lab.server.plugins.module_utils._core import cli
from ansible_collections.lab.server.plugins.module_utils._core.calls import Command

PAGE = Path(__file__).resolve().parent.parent / "docs" / "commands.md"

_HEAD = """\
# The commands of lab users

What you type when you are logged in to a lab server. Each command explains itself with `--help`. With a
hyphen between its words it is the same command: `project-launch my-thesis` is `project launch my-thesis`.

- `NAME` is the name of a project: the folder `~/workspace/NAME`, and the container that is made for it.
- `--json` answers with one JSON object, `--dry-run` says what would be done, `--yes` does not ask.
- A command ends with 0 when it is done, 1 when it failed or you answered no, 2 for a wrong command line, or
  where it asks and there is no terminal to answer on (`--yes` answers then), 3 when the rules of the
  server do not allow it, 4 when there is no such thing, and 130 when you stopped watching with Ctrl-C; what
  was begun goes on. `container exec` ends with the exit code of the command that it ran.
- Losing the connection does not stop what was begun. A job of `project launch NAME --command ...` goes on
  when you log out, and its output is kept in a file of the project.
- Files come from your own computer and go back by `scp`, `sftp` and `rsync`, such as
  `rsync -a data/ alice@server:workspace/my-thesis/data/`. Where your server has object storage, what is
  large goes by `workspace push` and `workspace pull`.
- Do not put passwords or keys into commands: whoever else is on the server may see what runs.
- `lab` is for the admins of the server: `sudo lab status`. It only looks. `lab verify` ends with 1 when a
  check failed. `lab share` is for everybody, and publishes for data managers: [datasets](shares.md).
"""


def usage(command: Command) -> str:
    """Return how a command is called, with its options: ``project launch NAME [--detach] ...``."""
    words, options = [" ".join(command.words)], []
    # argparse has no public list of what a parser takes.
    for action in cli.build_parser("-".join(command.words))._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        value = str(action.metavar or "|".join(action.choices or ()))
        if not action.option_strings:
            words.append({"+": f"{value}...", "?": f"[{value}]"}.get(str(action.nargs), value))
        else:
            options.append(f"[{' '.join(filter(None, [action.option_strings[-1], value]))}]")
    return " ".join([*words, *options, *([command.trailing] if command.trailing else [])])


def page() -> str:
    """Return the text of the page."""
    parts = [_HEAD]
    for group, about in cli.GROUPS.items():
        parts.append(f"\n## {group}\n\n{about}\n")
        for command in cli.COMMANDS:
            if " ".join(command.words[:-1]) == group:
                parts.append(f"\n- `{usage(command)}`: {command.summary}\n\n      {command.example}\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
