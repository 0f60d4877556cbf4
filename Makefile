# Hephaestus: everything from Python, pip and make. `make help` lists the targets.
PYTHON ?= python3
BIN := .venv/bin
# Tests of times, of memory and of clients that reach their limits only when they are fast: whoever runs beside them is measured too.
MEASURING := tests/clients $(addprefix tests/e2e/,test_outage.py test_rolling.py test_soak.py test_streams.py)
PIP_FLAGS := --quiet --no-compile --disable-pip-version-check --no-deps --require-hashes

.DEFAULT_GOAL := help
# The lock is installed uncompiled, and tests start hundreds of processes: what the first compiles, the others find compiled.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: docs help run test check bench lock format clean browser clients

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z.]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/.run: requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the locked dependencies (hashes checked) ..."
	@$(BIN)/python -m pip install $(PIP_FLAGS) -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.venv/.dev: requirements-dev.lock .venv/.run
	@echo "installing the locked test dependencies (hashes checked) ..."
	@$(BIN)/python -m pip install $(PIP_FLAGS) -r requirements-dev.lock
	@touch $@

run: .venv/.run  ## control plane, proxy, simulated provider and a fleet of agents on this machine
	@$(BIN)/hephaestus demo

test: .venv/.dev browser clients  ## the whole test suite: most of it in two processes, then what measures with the machine to itself
	@failed=0; \
	$(BIN)/python -m pytest $(addprefix --ignore=,$(MEASURING)) --numprocesses 2 --dist loadfile --no-loadscope-reorder || failed=1; \
	$(BIN)/python -m pytest $(MEASURING) || failed=1; \
	exit $$failed

check: .venv/.dev  ## format, lint, types, import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

bench: .venv/.dev  ## benchmarks, results under benchmarks/results/
	@$(BIN)/python -m benchmarks

browser: .venv/.dev
	@$(BIN)/python -m tests.browser

clients: .venv/.dev
	@$(BIN)/python -m tests.clients.install

docs: .venv/.dev  ## write docs/reference/ from the code
	@$(BIN)/python docs/generate.py

format: .venv/.dev  ## rewrite the sources in the house format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix-only --quiet .

lock: .venv/.dev  ## renew the lock files from pyproject.toml
	@$(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header pyproject.toml --extra build -o requirements.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header pyproject.toml --extra build --extra dev -c requirements.lock -o requirements-dev.lock

clean:  ## remove the environment and the data of the demo
	rm -rf .venv data .pytest_cache .mypy_cache .ruff_cache
