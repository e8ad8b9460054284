# Needs only Python 3.10 to 3.12 (with venv) and a C compiler: the first target sets up .venv by itself.
#   make demo    train, distil, export and run on synthetic video
#   make test    ruff, mypy, pytest
# Settings: PYTHON (interpreter), VENV (folder), TORCH_INDEX_URL (such as https://download.pytorch.org/whl/cpu),
# PYTEST_ARGS and DEMO_ARGS.

VENV ?= .venv
IN_RANGE := import sys, ensurepip, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
# The first that truly starts (version managers leave shims that do not) and is in range.
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	$$p -c "$(IN_RANGE)" >/dev/null 2>&1 && { echo $$p; break; }; done)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint format install clean distclean

demo: $(STAMP)
	@$(BIN)/edge-sdk demo $(DEMO_ARGS)

# What measures time runs first and alone, the rest with a process a core, up to four; tests of one file share what they
# set up. With PYTEST_ARGS it is one plain run of what they name.
test: lint
ifdef PYTEST_ARGS
	@$(BIN)/python -m pytest $(PYTEST_ARGS)
else
	@$(BIN)/python -m pytest -m "edge_bench or alone"
	@$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist loadfile -m "not edge_bench and not alone"
endif

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

install: $(STAMP)

# torch goes first and pinned, so that nothing later draws in another build of it.
$(STAMP): setup.py pyproject.toml requirements/torch.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.10 to 3.12 with venv found;" \
		"install one (Debian: apt install python3-venv) or give PYTHON=/path/to/python" >&2; exit 2; }
	@$(PYTHON) -c "$(IN_RANGE)" || { echo "make: $(PYTHON) is not Python 3.10 to 3.12 with venv" >&2; exit 2; }
	@echo "setting up $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) -r requirements/torch.txt
	@$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find edge_sdk tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
