# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tell how to log in to the example's machine and what to try there."""

from __future__ import annotations

import os

TEXT = """
The server is ready.

  make ssh                                    log in as root
  make ssh LAB_USER=alice                     log in as a user: alice and bob are students,
                                              carol and dave researchers
  make ssh LAB_USER=alice CMD='project list'  run one command
  make destroy                                remove the machine

Try as alice:
  project launch my-thesis                    a shell in the container of her project
  container list                              what runs of hers
  workspace usage                             her quota and her largest folders
  image-install my-thesis six                 a package at once, and in every image to come
  project doctor                              what is wrong, and what to do
  man project                                 all of the commands

Without make: {ssh}
"""


def main() -> None:
    """Print the text with the real command of ssh."""
    name = os.environ.get("LAB_VM_NAME") or "example"
    print(TEXT.format(ssh=f"ssh -F .vm/{name}/ssh_config alice@server").rstrip())


if __name__ == "__main__":
    main()
