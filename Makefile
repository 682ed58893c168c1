# Every task of the project. `make` alone lists them.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export PYTHONSAFEPATH := 1

PROJECTS := proto stn_engine server client
INSTALLED := $(VENV)/.installed

# Installs again only when a dependency list changed.
$(INSTALLED): .ci/constraints.txt .ci/requirements.txt $(PROJECTS:%=%/pyproject.toml)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt --requirement .ci/requirements.txt
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt --no-build-isolation \
		--editable proto --editable stn_engine --editable server --editable client[demo]
	@touch $@

PROTOC := $(VENV)/protoc/.installed

$(PROTOC): .ci/requirements-protoc.txt | $(INSTALLED)
	$(PYTHON) -m venv $(VENV)/protoc
	$(VENV)/protoc/bin/pip install --quiet --requirement $<
	@touch $@

RIVALS := $(VENV)/.rivals-installed

$(RIVALS): .ci/requirements-bench.txt $(INSTALLED)
	$(BIN)/pip install --quiet --no-deps --requirement $<
	@touch $@

.PHONY: demo test check format proto docs bench bench-engine clean help

demo: $(INSTALLED)  ## warp a photo, differentiate it, align two photos, all through a real server
	$(BIN)/python client/examples/first_light.py --output build/demo

test: $(INSTALLED) $(PROTOC)  ## the whole test suite
	$(BIN)/pytest

check: $(INSTALLED)  ## lint, format, types, import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy proto/src stn_engine/src server/src client/src client/examples
	$(BIN)/lint-imports --no-logo

format: $(INSTALLED)  ## format and fix what can be fixed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

proto: $(PROTOC)  ## regenerate the committed protobuf code
	$(VENV)/protoc/bin/python .ci/generate_proto.py

docs: $(INSTALLED)  ## regenerate the tables in the READMEs and the pictures of the conventions
	$(BIN)/python .ci/generate_docs.py
	$(BIN)/python .ci/draw_conventions.py

bench: $(INSTALLED)  ## the service against raw-bytes gRPC echo, side by side
	PYTHONPATH=tests $(BIN)/python -m bench.bench_service --output tests/bench/results/service.json

bench-engine: $(RIVALS)  ## the engine against torch, OpenCV and Kornia, side by side
	PYTHONPATH=tests $(BIN)/python -m bench.bench_engine \
		--output tests/bench/results/engine_cpu.json

clean:  ## remove the virtual environment and everything built
	rm -rf $(VENV) build

help:
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16
