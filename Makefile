# Two commands for a fresh machine with Python 3.11+, make and a compiler:
#   make train    environment, shards, a 2-process run on real digits, its report
#   make test     environment, lint, types, the tests
# While writing code, in about a minute on two cores:
#   make quick    lint, types, and the tests of one process: all but those marked `processes`, `long` or `slow`
# And where there is time, or root:
#   make test-fuzz      5,000 damaged or hostile files, ten minutes at most; make test-fuzz SEED=7 draws others
#   make test-gpu       on the GPUs of this machine, over NCCL; says what it skips for want of GPUs
#   make test-slow      the longest runs of many processes
#   make test-launch    a real Slurm on two virtual hosts: preemption, requeues, cut cables; skipped where it cannot be had
#   make test-launch-slow    there: ten preemptions, jobs whose time ends
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SEED ?= 0
# Written last, so that an interrupted installation is done again; newer requirements do it again too.
READY := $(VENV)/ready

.PHONY: train test test-1 test-2 quick quick-1 quick-2 test-fuzz test-gpu test-slow test-launch test-launch-slow lint clean

train: $(READY) data/digits/manifest.json
	$(BIN)/paretrain train configs/digits.yaml --processes 2

# Both in halves side by side, as the tests share nothing; the halves take about equally long.
test: lint
	+$(MAKE) --jobs 2 test-1 test-2

TEST := $(BIN)/python -m pytest -p no:cacheprovider
COMMANDS := tests/e2e

test-1: $(READY)
	$(TEST) $(COMMANDS)

test-2: $(READY)
	$(TEST) $(COMMANDS:%=--ignore %)

quick: lint
	+$(MAKE) --jobs 2 --output-sync quick-1 quick-2

QUICK := $(BIN)/python -m pytest -m 'not slow and not processes and not long' -p no:cacheprovider

quick-1: $(READY)
	$(QUICK) tests/library tests/models tests/runtime tests/data

quick-2: $(READY)
	$(QUICK) --ignore tests/library --ignore tests/models --ignore tests/runtime --ignore tests/data

test-fuzz: $(READY)
	$(BIN)/python -m tests.fuzz --cases 5000 --seconds 600 --seed $(SEED)

test-gpu: $(READY)
	$(BIN)/python -m pytest -p no:cacheprovider -m gpu tests/gpu

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
