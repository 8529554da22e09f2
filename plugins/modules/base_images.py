#!/usr/bin/python
# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bring the images that projects start from to what is declared."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: base_images
short_description: Images that projects start from
version_added: 0.1.0
author: lab.server contributors (@lab-server)
description:
  - Loads each image from an archive on the server, or fetches it from a registry.
  - Adds certificate authorities and environment variables to it, so that builds and containers have them.
  - What an image is made of is recorded in its labels; an image that is up to date is left alone. One
    from a registry is fetched again only when its reference or an option changes.
extends_documentation_fragment:
  - lab.server.attributes.docker
  - lab.server.attributes
  - lab.server.projects.docker
options:
  images:
    description: The base images. Each has either an O(images[].image) or an O(images[].archive).
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The name by which Dockerfiles start from it.
        type: str
        required: true
      image:
        description: The reference of the image in a registry.
        type: str
        default: ""
      archive:
        description:
          - The path of an archive made by C(docker save), on the server.
          - With O(archives), where it lies on the controller; on the server it is looked for in that folder.
        type: path
        default: ""
      files:
        description: A folder of the image of which projects get a copy; nothing is done about it here.
        type: str
        default: ""
  archives:
    description:
      - A folder on the server into which archives were copied, each under the name of its image with C(_) for
        C(/), and C(.tar) after it.
      - An archive in it is removed once its image was made.
    type: path
    default: ""
  digests:
    description:
      - The SHA-256 of archives, in hexadecimal, by the name of their image.
      - With it an archive is read, and has to be there, only when the image is to be made.
    type: dict
    default: {}
  ca_certificates:
    description: Paths of files on the server with certificates in PEM form.
    type: list
    elements: path
    default: []
  environment:
    description: Environment variables.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Projects can start from Python
  lab.server.base_images:
    images:
      - name: lab/python
        archive: /var/lib/lab-server/archives/python.tar
    ca_certificates:
      - /usr/local/share/ca-certificates/campus.crt
"""

RETURN = r"""
results:
  description: What was done to each item, or in check mode what would be done.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The base image.
      type: str
      returned: always
    changed:
      description: Whether the item differed.
      type: bool
      returned: always
    actions:
      description: What was done, in order.
      type: list
      elements: str
      returned: always
    reason:
      description: Why it was done; empty if nothing was.
      type: str
      returned: always
    diff:
      description: The keys C(before) and C(after) with what differed.
      type: dict
      returned: always
    failed:
      description: Whether the item failed. The others are carried out all the same.
      type: bool
      returned: when the item failed
    msg:
      description: Why the item failed.
      type: str
      returned: when the item failed
  sample:
    - name: lab/python
      changed: true
      actions: [load, build, tag]
      reason: there is none
      diff: {}
"""

from typing import Any

from ansible_collections.lab.server.plugins.module_utils._ansible import build_module, run_items
from ansible_collections.lab.server.plugins.module_utils._core.baseimages import (
    base_images,
    wanted_base_images,
)
from ansible_collections.lab.server.plugins.module_utils._projects import (
    DOCKER,
    engine_of,
    environment_of,
)

_IMAGE = {
    "name": {"type": "str", "required": True},
    "image": {"type": "str", "default": ""},
    "archive": {"type": "path", "default": ""},
    "files": {"type": "str", "default": ""},
}


def main() -> None:
    """Run the module."""
    module = build_module(
        {
            **DOCKER,
            "images": {"type": "list", "elements": "dict", "required": True, "options": _IMAGE},
            "archives": {"type": "path", "default": ""},
            "digests": {"type": "dict", "default": {}},
            "ca_certificates": {"type": "list", "elements": "path", "default": []},
            "environment": {"type": "dict", "default": {}},
        }
    )
    given: dict[str, Any] = module.params

    def work() -> Any:
        wanted = wanted_base_images(
            given["images"],
            archives=given["archives"],
            digests=given["digests"],
            ca_certificates=given["ca_certificates"],
            environment=environment_of(given["environment"], "base images"),
        )
        return base_images(engine_of(given, check=module.check_mode), wanted, check=module.check_mode)

    run_items(module, work)


if __name__ == "__main__":
    main()
