# `make demo` and `make test` do everything on a fresh machine: they make .venv, install the pinned versions and run.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
# Two processes, a file of tests each at a time, in the order of names: the one with the fewest tests takes longest.
TEST_FLAGS ?= -n 2 --dist loadfile --no-loadscope-reorder
PIP_FLAGS := --quiet --disable-pip-version-check

.PHONY: demo test test-long test-quick lint types bench clean

demo: $(VENV)/.installed
	$(BIN)/python -m jvi demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest $(TEST_FLAGS) -m "not long"

test-long: $(VENV)/.installed
	$(BIN)/python -m pytest $(TEST_FLAGS) -m long

test-quick: $(VENV)/.installed
	$(BIN)/python -m pytest $(TEST_FLAGS) -m "quick and not long"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/pyright

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.step_time

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "jvi needs Python 3.11 or newer; none was found (say make PYTHON=...)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[bench]'
	touch $@

clean:
	rm -rf $(VENV) .venv-3.12 demo
