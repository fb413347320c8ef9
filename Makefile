# make demo: the whole story on this machine. make test: every test. Both set up .venv first, from the lock file.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
# Options of pip. A lock file names every package there is; what came out since must not be looked at: hence --no-deps.
LOCKED := --quiet --disable-pip-version-check --no-deps --require-hashes
OURS := --quiet --disable-pip-version-check --no-deps --no-build-isolation

.PHONY: demo demo-tpm setup-tpm test pytest test-tpm test-sdn check up setup clean wheels stack engine stack-down test-stack

demo: setup
	$(VENV)/bin/attestgate demo

up: setup
	$(VENV)/bin/attestgate up

# The checks take a minute of one core: they go on beside the tests.
test: setup
	@$(MAKE) --no-print-directory -j2 check pytest

pytest: setup
	$(VENV)/bin/pytest --cov --cov-report=term:skip-covered

# Hosts with a TPM: installs Debian's packages (as root), builds tpm2-pytss in an environment of its own; swtpm plays it.
TPM_VENV := build/venv-tpm
TPM_PACKAGES := gcc libtss2-dev libtss2-tcti-swtpm0 pkg-config python3-dev swtpm swtpm-tools

test-tpm: setup-tpm
	$(TPM_VENV)/bin/pytest tests/tpm

demo-tpm: setup-tpm
	$(TPM_VENV)/bin/attestgate demo

setup-tpm:
	@dpkg -s $(TPM_PACKAGES) >/dev/null 2>&1 || { apt-get -q update \
		&& DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install $(TPM_PACKAGES); }
	@test -x $(TPM_VENV)/bin/python || $(PYTHON) -m venv $(TPM_VENV)
	@$(TPM_VENV)/bin/pip install $(LOCKED) -r requirements.lock -r requirements-tpm.lock
	@$(TPM_VENV)/bin/pip install $(OURS) -e .

# A real SDN controller and switch: installs Debian's Open vSwitch (as root), os-ken in an environment of its own.
SDN_VENV := build/venv-sdn

test-sdn:
	@dpkg -s openvswitch-switch >/dev/null 2>&1 || { apt-get -q update \
		&& DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install openvswitch-switch; }
	@test -x $(SDN_VENV)/bin/python || $(PYTHON) -m venv $(SDN_VENV)
	@$(SDN_VENV)/bin/pip install $(LOCKED) -r requirements.lock -r requirements-sdn.lock
	@$(SDN_VENV)/bin/pip install $(OURS) -e .
	$(SDN_VENV)/bin/pytest tests/app/test_northbound.py tests/app/test_sdn.py

# The stack in containers: docker compose v2, or docker-compose 1.29. FILES adds overrides: -f compose/compose.cluster.yaml
RUN_FOLDER := build/stack
FILES :=
LOCAL := ATTESTGATE_BASE=attestgate/base:bookworm ATTESTGATE_SWITCH_BASE=attestgate/switch-base:bookworm \
	ATTESTGATE_PROMETHEUS=attestgate/prometheus:bookworm
COMPOSE = $$(docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose) \
	-p attestgate --env-file $(RUN_FOLDER)/env -f compose/compose.yaml $(FILES)

stack: engine setup wheels
	@test -f $(RUN_FOLDER)/env || { rm -rf $(RUN_FOLDER) && $(VENV)/bin/python -m attestgate.compose.images.prepare $(RUN_FOLDER); }
	@docker image inspect attestgate/base:bookworm >/dev/null 2>&1 && export $(LOCAL); \
		$(COMPOSE) build && $(COMPOSE) up -d
	@echo "running: docker ps; attestgate's events: docs/observing.md; to end it: make stack-down"

engine:
	@docker info >/dev/null 2>&1 \
		|| { echo "no Docker engine answers: start Docker; on Debian: apt-get install docker.io docker-compose" >&2; exit 2; }
	@docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null \
		|| { echo "no docker compose: on Debian apt-get install docker-compose" >&2; exit 2; }

stack-down:
	@test ! -f $(RUN_FOLDER)/env || $(COMPOSE) down --volumes --remove-orphans
	rm -rf $(RUN_FOLDER)

# Uses the Docker engine that runs, or starts one of its own in a network namespace; without either it is skipped.
test-stack: setup wheels
	ATTESTGATE_TEST_STACK=1 $(VENV)/bin/pytest tests/stack

wheels: setup
	@rm -rf build/wheels
	@$(VENV)/bin/pip wheel $(LOCKED) -r requirements.lock -r requirements-sdn.lock -w build/wheels
	@$(VENV)/bin/pip wheel $(OURS) . -w build/wheels

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "attestgate needs $(PYTHON) 3.11 or newer; name another one: make PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
		|| { echo "attestgate needs Python's venv module: apt-get install python3-venv" >&2; exit 2; }
	@echo "setting up $(VENV): about a minute the first time"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install $(LOCKED) -r requirements.lock
	@$(VENV)/bin/pip install $(OURS) -e .
	@touch $(STAMP)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
