# Each target does all set-up itself; `make search` and `make test` are the two to know.
SHELL := /bin/bash
BIN := .venv/bin
PRESET := tune_spaces/presets/digits.yaml
# Two files of tests at a time, as many wait for processes they have started; the longest come early.
TWO := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help install search test test-fast test-slow chaos soak bench lint types audit clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

install: ## system packages, .venv and pinned packages, where missing
	@bash cluster/install.sh

search: install ## the demo: a Pareto front on real handwritten digits, about ten minutes
	@$(BIN)/tokenpool prepare digits runs/data/digits
	@$(BIN)/tokenpool search $(PRESET)

test: install ## the tests
	@$(BIN)/python -m pytest $(TWO) -m "not slow and not gpu and not chaos" --durations 15

test-fast: install ## tests without processes and Ray, in two minutes
	@$(BIN)/python -m pytest $(TWO) -q -m "not slow and not gpu and not chaos and not heavy"

test-slow: install ## the tests that take minutes each
	@$(BIN)/python -m pytest -m "slow and not gpu" --timeout 3600

chaos: install ## all faults that tests inject, and a table of what came of them; three hours
	@TOKENPOOL_OUTAGE_SECONDS=600 $(BIN)/python -m pytest -m "chaos or fault" --timeout 7200 tests

soak: install ## a search of 200 trials in which something breaks every half minute; hours
	@$(BIN)/python tests/chaos/soak.py runs/soak --out runs/soak.json

# Speed of pooling, of the loader and of training, and what searches find for their compute, each
# against its peers in one run; hours on two cores that do nothing else. What it writes is
# beside the results that are kept in benchmarks/results.
bench: install ## pooling, loader, training and search against their peers
	@mkdir -p runs/bench
	@$(BIN)/tokenpool bench pooling --out runs/bench/pooling.jsonl
	@$(BIN)/tokenpool bench loader --out runs/bench/loader.json
	@$(BIN)/tokenpool bench train --out runs/bench/train.json
	@$(BIN)/tokenpool bench search --out runs/bench

lint: install ## formatting and style
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

types: install ## static types
	@$(BIN)/mypy

audit: install ## published advisories on what is installed, by pip-audit
	@$(BIN)/python .ci/audit.py

clean: ## removes what the demo made, not .venv
	rm -rf runs
