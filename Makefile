# `make demo` trains a small model on this machine, `make test` checks everything; both make .venv first.
# Another interpreter: make PYTHON=python3.12 ...

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help venv demo serve stop-serve test lint unit chaos bench bench-hsokv head stop-head clean

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo $$python && break; done)
export PATH := $(BIN):$(PATH)
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## */make \1\t/' | expand -t 18

venv: $(VENV)/installed  ## the environment in .venv, with pinned versions

# torch goes first and alone, so that nothing else can choose its version.
$(VENV)/installed: pyproject.toml constraints.txt
	@[ -n "$(PYTHON)" ] && $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
		echo "error: Python 3.11, 3.12 or 3.13 is needed, found: $$(python3 --version 2>&1);" \
			"install one, or say where it is: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
		echo "error: $(PYTHON) cannot make environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "installing into $(VENV); some minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[dev]"
	@touch $@

demo: venv  ## train a small model for a few minutes and let it write
	@cluster/demo.sh

serve: venv  ## answer OpenAI's clients on this machine until Ctrl-C: make serve ARGS="--model PATH --port 8000"
	@cluster/serve.sh $(ARGS)

stop-serve: venv  ## end what `make serve` runs in another shell
	@cluster/serve.sh stop

test: lint unit  ## everything a change must pass

lint: venv  ## style, types, import contracts
	ruff check .
	ruff format --check .
	pyright
	lint-imports

unit: venv  ## tests/unit, tests/ray and tests/serve
	python -m pytest -q tests/unit --numprocesses logical --maxprocesses 4 --dist loadfile
	python -m pytest -q tests/ray tests/serve

chaos: venv  ## tests that kill processes
	python -m pytest -q -m "chaos or not chaos" tests/chaos
	python -m pytest -q -m chaos tests/ray

bench: venv  ## measure, and write benchmarks/results
	for name in moe_block micro_step data_pipeline training_overhead memory_engines memory_scale memory_shared longcontext longcontext_encoder_decoder serving; do python benchmarks/$$name.py; done
	python benchmarks/readme_table.py

bench-hsokv: venv  ## measure H-SOKV: searches, ablations, tables; needs HSOKV_DATA_DIR
	for name in swarm_offline swarm_live swarm_overhead hsokv_tasks real_words rollouts search_presets; do python benchmarks/$$name.py; done
	python benchmarks/readme_table.py

head: venv  ## start a local Ray head
	@cluster/local.sh start

stop-head:  ## stop the head that `make head` started
	@cluster/local.sh stop

clean: stop-head  ## remove the environment and what tools cache; runs stay
	rm -rf $(VENV) .scratch .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	find hsokv_ray jobs serve tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
