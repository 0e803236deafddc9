# `make demo` and `make test` need nothing but Python >= 3.11 and make: each makes the virtual environment first.
# Paths are relative to this file's folder, so a clone may lie in a path with spaces.

# The Python that makes the virtual environment:  make demo PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Written last and holding the folder it was made in: absent or of another folder, the installation goes again.
STAMP := $(VENV)/.installed

# One process computes at a time, so it may have every core it is allowed; more than 8 do not help here.
CORES := $(shell { nproc || getconf _NPROCESSORS_ONLN; \
  awk '$$1 != "max" { print int(($$1 + $$2 - 1) / $$2) }' /sys/fs/cgroup/cpu.max; echo 8; } 2>/dev/null | sort -n | head -n 1)
OMP_NUM_THREADS ?= $(CORES)
export OMP_NUM_THREADS
# For tests: no progress bar (an output that never repeats itself), and the kernel `python3` of the
# virtual environment with no start-up file or kernel of the user's own.
CHECKED := env -u JUPYTER_PATH TQDM_DISABLE=1 JUPYTER_PREFER_ENV_PATH=1 IPYTHONDIR="$(CURDIR)/$(VENV)/ipython"

# The tests are small: a process for each core, with one thread each. A file of tests stays in one process, for what its tests share.
WORKERS := -n $(CORES) --dist loadscope
SHARED := OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint lab browser site clean moved

help: ## say what the targets do
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  All but help and clean set up $(VENV) by themselves, from nothing (a few minutes and a few GB, once)."
	@echo "  make demo PYTHON=python3.12 picks the Python."

demo: $(STAMP) ## the demonstration: samples with and without tuned times, in minutes on a CPU
	@$(BIN)/tt demo

test: lint ## style, types, tests, then every notebook run and compared with its stored outputs
	@$(CHECKED) $(SHARED) $(BIN)/python -m pytest $(WORKERS) tests
	@$(CHECKED) $(SHARED) $(BIN)/python -m pytest $(WORKERS) -p tests.nbval_kernels --nbval --nbval-sanitize-with tests/nbval_sanitize.cfg --nbval-cell-timeout=600 notebooks/

lint: $(STAMP) ## ruff, mypy, and the layers that imports keep to
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check -q .
	@$(BIN)/python -m mypy
	@$(BIN)/lint-imports > /dev/null || $(BIN)/lint-imports

lab: $(STAMP) ## JupyterLab, open on the map of the notebooks, which are trusted: their sliders move
	@$(BIN)/python -m nbformat.sign notebooks/*.ipynb notebooks/exercises/*.ipynb > /dev/null
	@$(BIN)/python -m jupyterlab notebooks/00_start_here.ipynb

browser: $(VENV)/.browser ## a notebook in JupyterLab in headless Chromium: a slider moves, and its figure changes
	@$(BIN)/python tests/browser/explorer.py $(NOTEBOOK)

site: $(VENV)/.site ## the notebooks as a web site, from their stored outputs, in build/site
	@$(BIN)/python -m sphinx -W --keep-going -q -E -c notebooks/site . build/site
	@$(BIN)/python notebooks/site/check_links.py build/site
	@$(BIN)/python tests/browser/page.py build/site

clean: ## remove the virtual environment and the caches; data/ and runs/ stay
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
	@find tt_lib tests notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune 2>/dev/null | while IFS= read -r found; do rm -rf "$$found"; done

$(STAMP): pyproject.toml $(if $(shell [ "$$(cat $(STAMP) 2>/dev/null)" = "$(CURDIR)" ] || echo moved),moved)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: Python 3.11 or newer is needed, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -n 1)." >&2; \
	  echo "       Install one and name it:  make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@rm -f $(STAMP)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  echo "making the virtual environment $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "installing tt_lib and what it needs into $(VENV) (the first time: a few minutes and a few GB) ..."
	@$(BIN)/python -m pip install -qq --no-input --disable-pip-version-check 'pip>=23'
	@$(BIN)/python -m pip install -qq --no-input --disable-pip-version-check -e '.[test]'
	@printf '%s\n' "$(CURDIR)" > $(STAMP)

# An extra of its own, installed when its target first needs it.
$(VENV)/.browser $(VENV)/.site: $(VENV)/.%: $(STAMP)
	@$(BIN)/python -m pip install -qq --no-input --disable-pip-version-check -e '.[$*]'
	@touch $@
