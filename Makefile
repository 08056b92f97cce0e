# `make help` lists the targets. PYTHON chooses the interpreter, VENV the environment's folder.
PYTHON ?= python3
VENV ?= .venv
PROFILE ?=
SERVICE_HOST ?= 127.0.0.1
PREFECT_PORT ?= 4200
MLFLOW_PORT ?= 5000
SERVE_PORT ?= 5001
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt

# No tool reports usage; the stages, prefect.toml and .dvc/config turn it off where make is not used.
export DO_NOT_TRACK = 1
export MLFLOW_DISABLE_TELEMETRY = true
# Packages are installed without bytecode, so that Python must keep it on import: it halves the start of every process.
unexport PYTHONDONTWRITEBYTECODE
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: help run up test check tests slow several-machines gpu format dependencies mlflow prefect serve clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

run: $(VENV)/installed  ## run the pipeline until everything is up to date; PROFILE=name writes a saved experiment into params.yaml first
	@flowers run $(if $(PROFILE),--profile $(PROFILE))

up: $(VENV)/installed  ## Prefect, MLflow and a worker on this machine, until Ctrl-C (SERVICE_HOST, PREFECT_PORT, MLFLOW_PORT)
	@flowers up --host $(SERVICE_HOST) --prefect-port $(PREFECT_PORT) --mlflow-port $(MLFLOW_PORT)

test: check tests  ## style, types, import rules and tests

check: $(VENV)/installed-dev  ## style, types and import rules
	ruff format --check .
	ruff check .
	mypy
	lint-imports --no-logo
	python -m tools.dvc_dependencies --check

tests: $(VENV)/installed-dev  ## tests only
	pytest --numprocesses 3 --dist loadgroup

slow: $(VENV)/installed-dev  ## tests that take minutes each
	pytest -m slow --numprocesses 2 --dist loadgroup

several-machines: $(VENV)/installed  ## as root: two machines in namespaces of this one, with servers, worker, proxy; ten minutes (INSTALL=1 first)
	@python -m tools.several_machines $(if $(INSTALL),--install)

gpu: $(VENV)/installed-dev  ## on a GPU: test it, train and sample the published setting, measure all speeds; ten minutes
	@if [ -n "$(SOURCE)" ] || [ ! -e build/gpu/images.npz ]; then \
		python -m bench.gpu pack $(if $(SOURCE),--source "$(SOURCE)"); fi
	@python -m bench.gpu

format: $(VENV)/installed-dev  ## format the sources
	ruff format .
	ruff check --fix .

dependencies: $(VENV)/installed-dev  ## write the code that each stage depends on into dvc.yaml
	python -m tools.dvc_dependencies

mlflow: $(VENV)/installed  ## compare runs in the browser, at http://127.0.0.1:5000 (MLFLOW_PORT)
	@python -m tracking.relocation
	mlflow ui --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port $(MLFLOW_PORT)

prefect: $(VENV)/installed  ## look at flow runs in the browser, at http://127.0.0.1:4200 (PREFECT_PORT)
	PREFECT_SERVER_API_PORT=$(PREFECT_PORT) prefect server start

serve: $(VENV)/installed  ## draw images on request over HTTP, at http://127.0.0.1:5001/invocations (SERVE_PORT)
	@flowers serve --port $(SERVE_PORT)

clean:  ## remove the environment; data and results stay
	rm -rf $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "Installing into $(VENV); this takes a few minutes."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one by PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --editable '.[pipeline]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@$(PIP) --editable '.[dev]'
	@touch $@
