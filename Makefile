# Two commands do all set-up: `make demo` and `make test`. Python 3.10 or newer is all that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test test-slow test-faults test-learn lint test-wheel test-docker test-tfio bench bench-reader bench-check bench-faults clean

help:
	@echo "make demo        the main job end to end on a small look-alike set (IMAGES=... METADATA=... for your own)"
	@echo "make test        the test suite, in two processes (ARGS=... for pytest; -n 0 in it for one process)"
	@echo "make test-slow   clusters, kills, faults and whole commands"
	@echo "make test-faults  flips, failing disks, kills and hostile inputs, drawn by a seed (FAULTS=... trials)"
	@echo "make test-learn  that the trainers learn: some minutes of training"
	@echo "make lint        style, likely mistakes and types"
	@echo "make test-wheel  the package from its wheel in a fresh environment, without TensorFlow"
	@echo "make test-docker  the images' files linted, and the worker's install steps in a fresh environment"
	@echo "make test-tfio   reading s3:// inside tf.data, in an environment of its own (TensorFlow 2.17)"
	@echo "make bench       builds beside others'; make bench-reader readers (ARGS='--folder DIR --images ... --metadata ...')"
	@echo "make bench-check  that reader, decoder and plan keep three quarters of their lead, by processor time"

$(VENV)/.installed: setup.cfg setup.py cxr_records/_pixels.c pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 10) else f"Python 3.10 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}; name another with make PYTHON=...")'
	@echo "Setting up $(VENV) (a few minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.installed
	@$(BIN)/cxr-records demo --out demo $(if $(IMAGES),--images $(IMAGES)) $(if $(METADATA),--metadata $(METADATA)) \
		$(if $(TRAIN_VAL_LIST),--train-val-list $(TRAIN_VAL_LIST)) $(if $(TEST_LIST),--test-list $(TEST_LIST))

test: $(VENV)/.installed
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-slow: $(VENV)/.installed
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m slow $(ARGS)

# Each trial depends on FAULT_SEED and its own number alone; benchmarks/README.md has the figures of the long form.
test-faults: $(VENV)/.installed
	@FAULTS=$(or $(FAULTS),600) $(BIN)/python -m pytest -n 2 -m faults --timeout 3600 \
		-o faulthandler_timeout=4000 tests/test_faults_*.py tests/test_cases.py $(ARGS)

test-learn: $(VENV)/.installed
	@$(BIN)/python -m pytest tests/test_learning.py -m learn -s $(ARGS)

lint: $(VENV)/.installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@BIN=$(BIN) bash tests/types.sh

test-wheel: $(VENV)/.installed
	@BIN=$(BIN) PYTHON=$(PYTHON) bash tests/wheel.sh

test-docker: $(VENV)/.installed
	@$(BIN)/hadolint docker/Dockerfile.worker docker/Dockerfile.trainer
	@PYTHON=$(PYTHON) bash tests/docker.sh docker/Dockerfile.worker

.venv-tfio/.installed: setup.cfg setup.py cxr_records/_pixels.c pyproject.toml constraints-tfio.txt
	@test -x .venv-tfio/bin/python || $(PYTHON) -m venv .venv-tfio
	@.venv-tfio/bin/python -m pip install --quiet --upgrade -c constraints-tfio.txt pip
	@.venv-tfio/bin/python -m pip install --quiet -c constraints-tfio.txt -e '.[tfio,aws]' 'moto[server]' hypothesis pytest pytest-timeout
	@touch $@

test-tfio: .venv-tfio/.installed
	@.venv-tfio/bin/python -m pytest tests/test_tfio.py -m tfio $(ARGS)

bench: $(VENV)/.installed
	@$(BIN)/python benchmarks/bench_build.py $(ARGS)

bench-reader: $(VENV)/.installed
	@$(BIN)/python benchmarks/bench_reader.py $(ARGS)

bench-check: $(VENV)/.installed
	@$(BIN)/python benchmarks/bench_check.py $(ARGS)

bench-faults:
	@$(MAKE) test-faults FAULTS=$(or $(FAULTS),10000)

clean:
	rm -rf $(VENV) .venv-tfio demo build dist *.egg-info
