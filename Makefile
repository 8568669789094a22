# The two commands that matter are `make up` and `make test`; `make help` lists the rest.
# Nothing is needed beyond Python 3.10 or newer, git and make: .venv is made here.

VENV := .venv
PYTHON ?=
ARGS ?=

PINS := $(wildcard constraints/*.txt)
PROJECTS := pyproject.toml $(wildcard plugins/*/pyproject.toml)
INSTALLED := $(VENV)/.installed
TOX := $(VENV)/.tox-installed
DEV := $(VENV)/.dev-installed
RUN_TOX = $(VENV)/bin/python -m tox run --quiet --skip-missing-interpreters false -e

.PHONY: help up test bench lint types docs dev constraints clean
.DEFAULT_GOAL := help
.NOTPARALLEL:

# A stamp counts only beside an interpreter that is still there (it may have been upgraded away).
ifeq ($(shell test -x $(VENV)/bin/python && echo present),)
.PHONY: $(INSTALLED) $(TOX) $(DEV)
endif

help: ## list these commands
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 21

up: $(INSTALLED) ## set up and run the store until Ctrl-C; make up ARGS="--nodes 1 --storage lmdb"
	@exec $(VENV)/bin/raftkv up $(ARGS)

test: $(TOX) ## set up and run every test with every Python here; make test ARGS="lint py311-core" runs some
	@exec $(VENV)/bin/python -m tools.test_matrix $(ARGS)

bench: $(INSTALLED) ## puts and reads a second beside etcd, on this machine
	@exec $(VENV)/bin/python benchmarks/versus_etcd.py $(ARGS)

lint: $(TOX) ## ruff
	@exec $(RUN_TOX) lint

types: $(TOX) ## mypy --strict
	@exec $(RUN_TOX) types

docs: $(TOX) ## check links and examples of the documentation
	@exec $(RUN_TOX) docs

dev: $(INSTALLED) $(DEV) ## install pytest, ruff, mypy and the rest into .venv, for work on the project

constraints: $(TOX) ## choose new versions of everything that is installed, one file per Python
	@exec $(VENV)/bin/python -m tools.constraints

clean: ## remove what make made; data directories stay
	rm -rf $(VENV) .tox .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist site
	find . -name __pycache__ -prune -exec rm -rf {} +
	find . -name '*.egg-info' -prune -exec rm -rf {} +

$(INSTALLED): requirements.txt $(PROJECTS) $(PINS) tools/venv.sh
	@PYTHON="$(PYTHON)" tools/venv.sh $(VENV) -r requirements.txt
	@touch $@

$(TOX): pyproject.toml $(PINS) tools/venv.sh
	@PYTHON="$(PYTHON)" tools/venv.sh $(VENV) --group tox
	@touch $@

$(DEV): $(PROJECTS) $(PINS) tools/venv.sh
	@PYTHON="$(PYTHON)" tools/venv.sh $(VENV) --group dev
	@touch $@
