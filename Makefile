# Every target makes the virtual environment itself where it is missing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help setup demo serve triton ray test test-fast check format protos bench clean
.DEFAULT_GOAL := help

help:  ## what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[export,dev]'
	touch $@

setup: $(READY)  ## install everything into .venv

demo: $(READY)  ## export the eight models, serve them, rank a query, drive each with load
	$(BIN)/deeprecsys demo

serve: $(READY)  ## export what is missing and serve on 127.0.0.1:8500
	$(BIN)/deeprecsys export
	$(BIN)/deeprecsys serve

triton: $(READY)  ## install a real Triton server into .triton (Linux on x86-64)
	$(BIN)/python -m services.triton_server.install

# Where Triton cannot be installed its tests are skipped, by name and reason.
test: $(READY)  ## the whole test suite
	-$(BIN)/python -m services.triton_server.install
	$(BIN)/python -m pytest

ray: $(READY)  ## install Ray, run a sweep on a real local cluster of several nodes
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]'
	$(BIN)/python -m pytest tests/ray

test-fast: $(READY)  ## the tests without the slow ones, under a minute
	$(BIN)/python -m pytest -m 'not slow'

check: $(READY)  ## lint, format, types, protos, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/python -m pytest -q tests/test_imports.py tests/test_protos.py

format: $(READY)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: $(READY)  ## regenerate the stubs in deeprecsys/v1 from protos/
	$(BIN)/python -m grpc_tools.protoc -I protos --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
	    --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	    --python_out=. --grpc_python_out=. --mypy_out=quiet:. --mypy_grpc_out=quiet:. protos/deeprecsys/v1/*.proto

bench: $(READY)  ## the benchmarks behind the README's figures (long)
	$(BIN)/deeprecsys export
	$(BIN)/python -m benchmarks.serving_cost
	$(BIN)/python -m benchmarks.scheduler_cost
	$(BIN)/python -m benchmarks.metrics_cost
	$(BIN)/python -m benchmarks.order_study
	$(BIN)/python -m benchmarks.pooling_forms
	$(BIN)/deeprecsys profile --output benchmarks/results/characterisation
	$(BIN)/python -m benchmarks.operator_shares
	$(BIN)/python -m benchmarks.live
	$(BIN)/python -m services.triton_server.install
	$(BIN)/python -m benchmarks.offload
	$(BIN)/python -m benchmarks.fidelity
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.policies
	$(BIN)/python -m benchmarks.ablation
	$(BIN)/python -m benchmarks.throughput_bound
	$(BIN)/python -m benchmarks.tuner_quality
	$(BIN)/python -m benchmarks.simulator_speed
	$(BIN)/python -m benchmarks.decisions
	$(BIN)/python -m benchmarks.threshold_sweep
	$(BIN)/deeprecsys report --png docs

clean:  ## remove what was built, the exported models included
	rm -rf $(VENV) .triton model_repository/*/[0-9]* .pytest_cache .mypy_cache .ruff_cache .hypothesis
