# lab.server: "make" alone tells what there is.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# The Python of the system: those of version managers may lack parts, and shims confuse the sanity tests.
PYTHON ?= /usr/bin/python3
INVENTORY ?= inventories/example
SCENARIO ?= default
LAB_VM_NAME ?= example
DISTRO ?=
LAB_USER ?=
CMD ?=
ARGS ?=

SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
BIN := $(CURDIR)/.venv/bin
TOOL := $(BIN)/python tools
EXAMPLE := $(filter inventories/example inventories/example/ inventories/example/hosts.yml,$(INVENTORY))

export PATH := $(BIN):$(PATH)
export ANSIBLE_HOME := $(CURDIR)/.ansible
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export LAB_VM_NAME
export CMD

PACKAGES_PYTHON := python3 python3-venv openssh-client
PACKAGES_MACHINE := qemu-system-x86 qemu-utils mmdebstrap debian-archive-keyring e2fsprogs rsync
PACKAGES_SHELLS := bash dash zsh busybox-static gcc groff-base libc6-dev mandoc man-db
# From Debian 13 on the client is a package of its own.
PACKAGES_ENGINE := docker.io apparmor busybox-static iproute2 iptables libnginx-mod-stream nginx openssl \
	libnss-extrausers python3-docker rclone restic rsync sudo util-linux \
	$(shell . /etc/os-release; [ "$$ID$$VERSION_ID" = debian12 ] || echo docker-cli)

# $(call install,PACKAGES): installs those that are missing, and asks for root only then.
install = @missing="$$(for name in $(1); do \
	dpkg-query -W -f '$${Status}' "$$name" 2>/dev/null | grep -q 'ok installed' || echo "$$name"; done)"; \
	if [ -n "$$missing" ]; then echo "Installing:" $$missing; $(SUDO) apt-get update -q; \
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; fi

.PHONY: help
help: ## this list
	@echo "make TARGET [VARIABLE=value]"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1\t\2/p' Makefile | expand -t 16

.PHONY: provision
provision: .venv/.ready $(if $(EXAMPLE),machine) ## provision a server [INVENTORY=path] [DISTRO=debian-12|debian-13] [ARGS=...]
	@ansible-playbook lab.server.site -i '$(INVENTORY)' $(ARGS)
	@$(if $(EXAMPLE),$(TOOL)/welcome.py,echo "The servers of $(INVENTORY) are provisioned.")

.PHONY: machine
machine: .venv/.ready packages-machine ## make and boot the virtual machine of the example, without provisioning it
	@$(TOOL)/base_image.py build python debian
	@$(TOOL)/vm.py up '$(LAB_VM_NAME)' $(if $(DISTRO),--distro '$(DISTRO)')

.PHONY: ssh
ssh: .venv/.ready ## log in to the virtual machine [LAB_USER=name] [CMD='command']
	@exec $(TOOL)/vm.py ssh '$(LAB_VM_NAME)' $(if $(LAB_USER),--user '$(LAB_USER)') $${CMD:+-- "$$CMD"}

.PHONY: destroy
destroy: .venv/.ready ## remove the virtual machine
	@$(TOOL)/vm.py destroy '$(LAB_VM_NAME)'

.PHONY: test
test: .venv/.ready packages-shells packages-machine packages-engine ## lint, and the tests that tell most, on one release [DISTRO=]
	@$(TOOL)/check.py test $(if $(DISTRO),--distro '$(DISTRO)')

.PHONY: test-all
test-all: .venv/.ready packages-shells packages-machine packages-engine ## lint, and all tests, on every release
	@$(TOOL)/check.py test-all

.PHONY: lint
lint: .venv/.ready ## read the code: ruff, mypy, ansible-lint, ansible-test sanity
	@$(TOOL)/check.py lint

.PHONY: unit
unit: .venv/.ready packages-shells ## unit tests
	@$(TOOL)/check.py unit

.PHONY: integration
integration: .venv/.ready packages-machine packages-engine ## tests against Docker Engines of their own, old and new
	@$(TOOL)/check.py integration

.PHONY: molecule
molecule: .venv/.ready packages-machine ## a scenario on a virtual machine [SCENARIO=default] [DISTRO=]
	@$(TOOL)/check.py molecule --scenario '$(SCENARIO)' $(if $(DISTRO),--distro '$(DISTRO)')

.PHONY: bench
bench: .venv/.ready packages-shells packages-machine packages-engine ## measure library, commands, then the playbook [DISTRO=] [ARGS=...]
	@status=0; $(SUDO) $(TOOL)/bench_engine.py $(ARGS) || status=1; \
	.venv/bin/python tests/benchmarks/leases.py || status=1; \
	.venv/bin/python tests/benchmarks/gpus.py || status=1; \
	.venv/bin/python tests/benchmarks/copies.py || status=1; \
	$(SUDO) $(TOOL)/bench_commands.py || status=1; \
	$(TOOL)/bench.py $(if $(DISTRO),--distro '$(DISTRO)') || status=1; exit $$status

.PHONY: packages packages-python packages-shells packages-machine packages-engine
packages: packages-python packages-shells packages-machine packages-engine ## install the packages of the system that all this needs
packages-python:
	$(call install,$(PACKAGES_PYTHON))
packages-shells:
	$(call install,$(PACKAGES_SHELLS))
packages-machine:
	$(call install,$(PACKAGES_MACHINE))
packages-engine:
	@# The tests run an nginx of their own; the service of the package would take port 80 of all addresses.
	@dpkg-query -W nginx >/dev/null 2>&1 || [ ! -d /run/systemd/system ] \
	|| $(SUDO) ln -s /dev/null /etc/systemd/system/nginx.service
	$(call install,$(PACKAGES_ENGINE))

# The development environment, and the checkout in the place where Ansible looks for an installed collection.
.venv/.ready: requirements-dev.txt | packages-python
	@mkdir -p .ansible/collections/ansible_collections/lab
	@# A copy that was installed there gives way to the checkout.
	@[ -L .ansible/collections/ansible_collections/lab/server ] \
	|| rm -rf .ansible/collections/ansible_collections/lab/server
	@ln -sfn ../../../.. .ansible/collections/ansible_collections/lab/server
	@echo "Installing the Python packages of requirements-dev.txt into .venv ..."
	@'$(PYTHON)' -m venv .venv
	@'$(BIN)/python' -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
