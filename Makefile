# make demo: the whole story on this machine. make test: every test. Both set up .venv first, from the lock file.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed

.PHONY: demo test check up setup clean

demo: setup
	$(VENV)/bin/attestgate demo

up: setup
	$(VENV)/bin/attestgate up

test: setup check
	$(VENV)/bin/pytest --cov --cov-report=term:skip-covered

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
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
