# The two commands a newcomer needs are `make up` and `make test`. Everything lives in .venv; nothing is installed
# outside it except, by `make test` as root on Debian, the stock clients that the interop tests drive.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
# How many tests run at once, a debugger needs 0.
WORKERS ?= logical

# Stock programs that the tests drive, by Debian package.
TEST_PACKAGES := openssh-client openssh-server rsync putty-tools dropbear-bin fail2ban procps \
    iproute2 git curl chromium fonts-dejavu-core

.PHONY: up test check types format bench soak docs clean

up: $(VENV)/.base
	@exec $(BIN)/alknet up $(ARGS)

# What is compiled is kept, also where the environment says otherwise: pytest rewrites every test module, and what the
# tests start imports alknet again and again. That is a minute of processor time in each run.
test soak: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/.test
	@sh tests/_lib/stock-programs.sh $(TEST_PACKAGES)
	@sh tests/_lib/npm-programs.sh
	$(BIN)/python -m pytest -m "not soak" -n $(WORKERS) --dist worksteal $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(MAKE) --no-print-directory types

types: $(VENV)/.dev
	@sh tests/_lib/link-tree.sh
	cd build/src && MYPYPATH=. ../../$(BIN)/mypy --config-file ../../pyproject.toml -p alknet

format: $(VENV)/.dev
	$(BIN)/ruff check --fix --exit-zero .
	$(BIN)/ruff format .

bench: $(VENV)/.bench
	@sh tests/_lib/stock-programs.sh openssh-client openssh-server nats-server
	$(BIN)/python bench/ssh.py $(ARGS)
	$(BIN)/python bench/quic.py $(ARGS)
	$(BIN)/python bench/call.py $(ARGS)
	$(BIN)/python bench/mesh.py $(ARGS)
	$(BIN)/python bench/gateway.py $(ARGS)

soak: $(VENV)/.test
	@sh tests/_lib/stock-programs.sh $(TEST_PACKAGES)
	@sh tests/_lib/npm-programs.sh
	$(BIN)/python -m pytest -m soak $(ARGS)

docs: $(VENV)/.test
	$(BIN)/python docs/generate.py
	$(BIN)/python -m pytest tests/test_docs.py $(ARGS)

clean:
	rm -rf build dist .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Python itself is the one thing that cannot be installed here, so say plainly what is missing.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "alknet needs Python 3.11 or later; PYTHON=... names another one" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "no venv could be made: on Debian, apt install python3-venv" >&2; exit 1; }

$(VENV)/.base: $(VENV)/bin/python pyproject.toml
	@echo "installing alknet into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@ $(VENV)/.base

$(VENV)/.bench: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,bench]'
	@touch $@ $(VENV)/.test $(VENV)/.base

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,dev]'
	@touch $@ $(VENV)/.test $(VENV)/.base
