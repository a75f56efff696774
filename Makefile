# The commands of this project. A fresh machine needs Python 3.11+ and make; what more a target can use it says itself.
PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

WARM    := $(BIN)/python -c "from policies.slate import warm; warm()"  # compiles the draw once, so that no start waits for it

SECONDS ?= 0
DATASETS = $(SLATEWISE_DATASETS)

.DEFAULT_GOAL := help
.PHONY: help demo up stack test check bench evidence format clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.service: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing the service into $(VENV) (about a minute, once)"
	$(INSTALL) ".[learning]"
	$(WARM)
	@touch $@

$(VENV)/.tools: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing the service and the tools its tests want into $(VENV) (a few minutes, once)"
	$(INSTALL) ".[learning,agents,confluent,replay,bench,studies,dev]"
	$(WARM)
	@touch $@ $(VENV)/.service

$(VENV)/.stack: $(VENV)/.service
	@command -v java >/dev/null || { echo "make stack needs Java 17 or newer (Debian: apt-get install openjdk-17-jre-headless maven)"; exit 2; }
	@command -v redis-server >/dev/null || { echo "make stack needs redis-server (Debian: apt-get install redis-server)"; exit 2; }
	@touch $@

demo: $(VENV)/.service  ## the whole service embedded, simulated users, live progress; SECONDS=60 bounds it
	$(BIN)/slatewise demo --seconds $(SECONDS)

up: $(VENV)/.service  ## the whole service embedded, until interrupted
	$(BIN)/slatewise up

stack: $(VENV)/.stack  ## Kafka, Redis and Ray on this machine, and the service on them; needs Java 17, Maven, redis-server
	$(BIN)/slatewise stack

test: $(VENV)/.tools  ## everything that can fail, in at most 15 minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m $(if $(PYTEST),pytest $(PYTEST),tests.side_by_side)

check: $(VENV)/.tools  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.tools  ## rewrite the code in the house style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.tools  ## speed beside the machine's floors and beside peers, one run; a table and JSON
	$(BIN)/slatewise bench --out docs/evidence

evidence: $(VENV)/.tools  ## what takes long: benchmarks, chaos, studies, learning on real data (SLATEWISE_DATASETS); dated tables in docs/evidence
	@test -n "$(DATASETS)" || { echo "SLATEWISE_DATASETS must name the folder of the public data sets"; exit 2; }
	$(BIN)/slatewise bench --out docs/evidence
	$(BIN)/slatewise load --soak 30 --overload --out docs/evidence
	$(BIN)/slatewise chaos --out docs/evidence
	$(BIN)/slatewise replay jester --data "$(DATASETS)" --out docs/evidence
	$(BIN)/slatewise replay streams --data "$(DATASETS)" --out docs/evidence
	for study in $$($(BIN)/slatewise study --names); do $(BIN)/slatewise study $$study --data "$(DATASETS)" --out docs/evidence || exit 1; done

clean:  ## the virtual environment and every cache
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
