# Two commands for a newcomer: `make run` and `make check`. Both bootstrap by themselves, in either order.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Two processes of one thread each: threads of several processes slow one another many times over.
# An idle one takes over tests from the end of the other's: until then neighbours share their models.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

export HF_HUB_OFFLINE ?= 1
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: run check lint types test full oldest eval bench clean

run: $(STAMP)
	$(BIN)/tokenprune run configs/quickstart.yaml

check: lint types test

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

test: $(STAMP)
	$(PYTEST)

# With the products of cases of which `make test` runs a covering design; see CONTRIBUTING.
full: $(STAMP)
	$(PYTEST) -m 'not gpu and not slow and not network and not lmms'

# What meets transformers, on the oldest version that pyproject.toml allows: laid over the environment, for these tests only.
OLD := .oldest
oldest: $(OLD)/.installed
	PYTHONPATH=$(OLD) $(PYTEST) tests/adapters/test_contract.py tests/adapters/test_arguments.py tests/pruners/test_contract.py \
		tests/engine/attach/test_block_contract.py

$(OLD)/.installed: $(STAMP)
	rm -rf $(OLD)
	$(BIN)/pip install --quiet --no-deps --target $(OLD) 'transformers==5.20.0'
	touch $@

# Benchmarks through lmms-eval, in an environment of its own that lies over the other one: what lmms-eval declares would
# pin wandb, av and protobuf, and few of its tasks need that, so the extra names the packages that those here do.
EVAL := .eval
SITE := import site; print(site.getsitepackages()[0])
eval: $(EVAL)/.installed
	OMP_NUM_THREADS=1 $(EVAL)/bin/python -m pytest -m lmms tests/tasks tests/lmms_eval_plugin

$(EVAL)/.installed: $(STAMP)
	"$(PYTHON)" -m venv --clear $(EVAL)
	echo "import site; site.addsitedir('$$($(BIN)/python -c '$(SITE)')')" > "$$($(EVAL)/bin/python -c '$(SITE)')/beside.pth"
	$(EVAL)/bin/pip install --quiet -e '.[eval]'
	$(EVAL)/bin/pip install --quiet --no-deps 'lmms-eval==0.7.3'
	touch $@

bench: $(STAMP)
	$(BIN)/python benchmarks/selection.py

clean:
	rm -rf $(VENV) $(OLD) $(EVAL) .mypy_cache .pytest_cache .ruff_cache

# torchvision must match torch to the minor version, so both are named in one command: pip then takes a pair that fits.
$(STAMP): pyproject.toml
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@
