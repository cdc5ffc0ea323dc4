# Everything there is to do here, one word each. `make` alone explains them.
# Needed: git, make and a Python 3.11 or newer; all else is installed into .venv, in this folder.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help setup demo test check docs bench campaign format lock clean

BIN := .venv/bin
# What to hand on to the program behind a word: make test ARGS="-k retry"
ARGS ?=
BROKER ?=

help: ## show this list
	@echo "OnCue: make WORD"
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## (.*)/  \1|\2/' | awk -F'|' '{ printf "%-11s %s\n", $$1, $$2 }'
	@echo "Arguments go in ARGS, as in: make test ARGS=\"-k retry\""

setup: ## make or update .venv with everything the other words need
	@python=$$(sh scripts/find-python) && "$$python" scripts/environments.py

demo: setup ## run the main job: measure the source files of Python's own library
	@$(BIN)/python examples/demo/demo.py $(ARGS)

test: ## run the tests on every Python 3.11+ of this machine
	@python=$$(sh scripts/find-python) && "$$python" scripts/test_all.py $(ARGS)

check: setup ## formatter, linter, types, layers, docs, and what the docs promise
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	$(BIN)/python -m pytest -q tests/repository

docs: setup ## build the documentation into docs/_build/html, warnings are errors
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

bench: setup ## compare with Huey and persist-queue (minutes; alone on the machine, please)
	@$(BIN)/python -m bench $(ARGS)

campaign: setup ## kill workers at random moments and count the messages (BROKER=redis: on a real server, killed as well)
	@$(BIN)/python -m tests.campaign $(if $(BROKER),--broker $(BROKER)) $(ARGS)

format: setup ## format the code and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: setup ## write requirements/*.lock anew with the newest allowed versions
	@scripts/lock

clean: ## remove what the other words made
	rm -rf .venv .venvs .servers docs/_build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist build .oncue
