# make demo: the whole story on this machine. make test: every test. Both set up .venv first, from the lock file.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
# Options of pip. A lock file names every package there is; what came out since must not be looked at: hence --no-deps.
LOCKED := --quiet --disable-pip-version-check --no-deps --require-hashes
OURS := --quiet --disable-pip-version-check --no-deps --no-build-isolation

# Three tests at a time on two cores, since most of them wait for processes most of the time (tests/conftest.py).
WORKERS ?= 3
PYTEST := $(VENV)/bin/pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

# $(call quietly,WHAT,COMMANDS): commands of a set-up, their output in a file; if one fails, that is said in one line.
quietly = mkdir -p build && { $(2); } >build/$@.log 2>&1 \
	|| { echo "$@: $(1) failed: $$(grep . build/$@.log | tail -n 1) (all of it: build/$@.log)" >&2; exit 1; }
# $(call debian,PACKAGES): install what is not there of Debian's packages, as root.
debian = dpkg -s $(1) >/dev/null 2>&1 || { $(call quietly,apt-get install $(1),apt-get -qq update \
	&& DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install $(1)); }
# $(call environment,FOLDER,LOCK FILES): an environment beside .venv.
environment = $(call quietly,pip install in $(1),{ test -x $(1)/bin/python || $(PYTHON) -m venv $(1); } \
	&& $(1)/bin/pip install $(LOCKED) $(addprefix -r ,$(2)))
# $(call ours,FOLDER): attestgate itself in it, from here.
ours = $(call quietly,pip install of attestgate in $(1),$(1)/bin/pip install $(OURS) -e .)

.PHONY: demo demo-tpm test test-fast test-all pytest coverage test-tpm setup-tpm test-sdn setup-sdn test-nats setup-nats \
	test-firewall setup-firewall test-prometheus setup-prometheus test-keylime setup-keylime test-fuzz setup-fuzz check up setup clean wheels stack \
	engine stack-down test-stack

demo: setup
	$(VENV)/bin/attestgate demo

up: setup
	$(VENV)/bin/attestgate up

# The checks take a minute of one core: they go on beside the tests, and give way to them.
test: setup
	@$(MAKE) --no-print-directory -j2 check pytest

# The story keeps real time, with leases of seconds: it is told by itself, when the others are done.
pytest: setup
	$(PYTEST) --ignore=tests/story
	$(VENV)/bin/pytest tests/story

# The same tests, traced: half as slow again, so not each time.
coverage: setup
	$(PYTEST) --ignore=tests/story --cov --cov-report=
	$(VENV)/bin/pytest tests/story --cov --cov-append --cov-report=term:skip-covered

# What starts no process and is not exhaustive: within a minute.
test-fast: setup
	$(VENV)/bin/pytest -n 2 --dist worksteal -m "not stack and not slow"

# What `make test` skips for want of a tool, a part a tool. With -k the other parts go on if one fails; so does the status.
PARTS := test-tpm test-sdn test-nats test-firewall test-prometheus test-keylime test-fuzz test-stack

test-all:
	@$(MAKE) --no-print-directory -k test $(PARTS)

# Hosts with a TPM: installs Debian's packages (as root), builds tpm2-pytss in an environment of its own; swtpm plays it.
TPM_VENV := build/venv-tpm
TPM_PACKAGES := gcc libtss2-dev libtss2-tcti-swtpm0 pkg-config python3-dev swtpm swtpm-tools

test-tpm: setup-tpm
	$(TPM_VENV)/bin/pytest --no-skips tests/tpm

demo-tpm: setup-tpm
	$(TPM_VENV)/bin/attestgate demo

setup-tpm:
	@$(call debian,$(TPM_PACKAGES))
	@$(call environment,$(TPM_VENV),requirements.lock requirements-tpm.lock)
	@$(call ours,$(TPM_VENV))

# A real SDN controller and switch: installs Debian's Open vSwitch (as root), os-ken in an environment of its own.
SDN_VENV := build/venv-sdn

test-sdn: setup-sdn
	$(SDN_VENV)/bin/pytest --no-skips tests/app/test_northbound.py tests/app/test_sdn.py

setup-sdn:
	@$(call debian,openvswitch-switch)
	@$(call environment,$(SDN_VENV),requirements.lock requirements-sdn.lock)
	@$(call ours,$(SDN_VENV))

# The recipes of docs/observing.md, with the nats CLI: built with Go from its module, which Go's checksum database pins.
NATSCLI := github.com/nats-io/natscli/nats@v0.5.1

test-nats: setup setup-nats
	PATH="$(CURDIR)/build/bin:$$PATH" $(VENV)/bin/pytest --no-skips tests/observing/test_recipes.py

setup-nats:
	@test -x build/bin/nats || { $(call quietly,go install $(NATSCLI),GOBIN=$(CURDIR)/build/bin go install $(NATSCLI)); }

# The kernel's limits in front of nats-server, in a network namespace of the tests: installs nft and ip, and has to be root.
test-firewall: setup setup-firewall
	$(VENV)/bin/pytest --no-skips tests/bus/test_firewall.py tests/adversary/test_firewall.py

setup-firewall:
	@$(call debian,iproute2 nftables)

# The alert rules, with promtool: Debian's package is unpacked, not installed, since that would start a Prometheus.
test-prometheus: setup setup-prometheus
	PATH="$(CURDIR)/build/prometheus/usr/bin:$$PATH" $(VENV)/bin/pytest --no-skips tests/stack/test_alerts.py -k promtool

setup-prometheus:
	@test -x build/prometheus/usr/bin/promtool || { $(call quietly,apt-get download prometheus,cd build \
		&& { apt-get -q download prometheus || { apt-get -qq update && apt-get -q download prometheus; }; } \
		&& dpkg-deb -x prometheus_*.deb prometheus); }

# Every verdict on an entry beside Keylime's.
KEYLIME_VENV := build/venv-keylime

test-keylime: setup setup-keylime
	ATTESTGATE_KEYLIME=$(CURDIR)/$(KEYLIME_VENV)/bin/python $(VENV)/bin/pytest --no-skips tests/ima/test_keylime.py

setup-keylime:
	@$(call environment,$(KEYLIME_VENV),requirements-keylime.lock)

# A short run of the fuzz target of quotes, collateral and IAS reports.
FUZZ_VENV := build/venv-fuzz

test-fuzz: setup-fuzz
	$(FUZZ_VENV)/bin/pytest --no-skips tests/sgx/test_fuzz.py -k atheris

setup-fuzz:
	@$(call environment,$(FUZZ_VENV),requirements.lock requirements-fuzz.lock)
	@$(call ours,$(FUZZ_VENV))

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
	nice $(VENV)/bin/ruff check .
	nice $(VENV)/bin/ruff format --check .
	nice $(VENV)/bin/mypy

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
