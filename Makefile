# Two commands for a fresh machine with Python 3.11+, make and a compiler:
#   make train    environment, shards, a 2-process run on real digits, its report
#   make test     environment, lint, types, the tests
# And where there is time, or root:
#   make test-slow      the longest runs of many processes
#   make test-launch    a real Slurm on two virtual hosts: preemption, requeues, cut cables; skipped where it cannot be had
#   make test-launch-slow    there: ten preemptions, jobs whose time ends
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Written last, so that an interrupted installation is done again; newer requirements do it again too.
READY := $(VENV)/ready

.PHONY: train test test-slow test-launch test-launch-slow lint clean

train: $(READY) data/digits/manifest.json
	$(BIN)/paretrain train configs/digits.yaml --processes 2

test: lint
	$(BIN)/python -m pytest

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

test-launch: $(READY)
	tests/launch/cluster/box.sh $(BIN)/python -m pytest tests/launch/cluster

test-launch-slow: $(READY)
	tests/launch/cluster/box.sh $(BIN)/python -m pytest -m slow tests/launch/cluster

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

data/digits/manifest.json: | $(READY)
	$(BIN)/paretrain data digits --out data/digits

$(READY): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, found $$($(PYTHON) --version): make $(MAKECMDGOALS) PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,dev,wandb]'
	touch $(READY)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
