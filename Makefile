# Two commands do everything on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
# Each target creates .venv on first use and renews it when pyproject.toml or constraints.txt change.
PYTHON ?= python3
PYTEST_ARGS ?= -n 2

VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt

.PHONY: demo test lint bench bench-compare docs clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

demo: $(VENV)/.core
	$(BIN)/limbeck demo

test: $(VENV)/.test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.core
	$(BIN)/python -m benchmarks.cpu

bench-compare: $(VENV)/.core
	$(BIN)/python -m benchmarks.cpu --compare

docs: $(VENV)/.docs
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist site
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found; install Python 3.11 or newer (Debian: apt-get install python3 python3-venv)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "limbeck needs Python 3.11 or newer, got $$($(PYTHON) --version 2>&1); name a newer one: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no venv module; install it (Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.core: $(SOURCES) | $(VENV)/.created
	$(call install,.)

$(VENV)/.test $(VENV)/.lint $(VENV)/.docs: $(VENV)/.%: $(SOURCES) | $(VENV)/.created
	$(call install,.[$*])

define install
@echo "installing limbeck into $(VENV); the first time takes a few minutes"
$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '$(1)'
@touch $@
endef
