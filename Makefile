# make demo   sets everything up, then simulates, trains, evaluates, generates and validates
# make test   sets everything up, then runs the unit tests
# make docs   sets everything up, then builds the documentation site; a broken link or page fails
# make gpu-check   sets everything up, then checks this machine's GPUs in eight minutes (docs/performance.md)
# make base-model   sets everything up, then simulates a million events and trains a model to begin from (docs/turns.md)
# make federation   a local Pelican federation of XRootD servers, to try pelican:// on (docs/pelican.md)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCKED := $(VENV)/locked.txt
TORCH := 2.13.0
# Compiled afterwards, on all cores: 80 of the set-up's CPU-seconds, which pip would spend on one.
PIP := $(BIN)/python -m pip install -q --no-compile

BASE_EVENTS := 1000000

# Images often set it; every process, also each of xdist's, would then compile crmuons and the tests anew: 5 CPU-seconds.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo base-model test integration gpu-check federation lint types docs lock audit clean
.DELETE_ON_ERROR:

setup: $(VENV)/.ready

# PyPI's torch brings the CUDA libraries (gigabytes). Without a GPU the CPU build of the same version is looked for first:
# where pip already finds one, then at PyTorch's own index. With a GPU, `===` keeps pip from preferring a CPU build at hand.
$(VENV)/.ready: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "crmuons needs Python 3.11 or newer, %s is %s: make PYTHON=python3.11" % (sys.executable, sys.version.split()[0]))'
	$(PYTHON) -m venv $(VENV)
	@sed 's/ --hash=.*//' requirements.lock > $(LOCKED)  # Hashes are those of the images' platform (cluster/container).
	@if nvidia-smi -L >/dev/null 2>&1; then \
	  echo "GPU found: installing torch $(TORCH) with CUDA"; $(PIP) torch===$(TORCH); \
	else \
	  echo "no GPU: installing the CPU build of torch $(TORCH)"; \
	  $(PIP) torch==$(TORCH)+cpu -c $(LOCKED) 2>/dev/null \
	  || $(PIP) torch==$(TORCH)+cpu --extra-index-url https://download.pytorch.org/whl/cpu 2>/dev/null \
	  || { echo "no CPU build at hand: installing PyPI's"; $(PIP) torch==$(TORCH); }; \
	fi
	@echo "installing crmuons and the versions of requirements.lock"
	$(PIP) -c $(LOCKED) -e '.[dev]'
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true  # Some packages bring templates, which are no Python.
	@touch $@

# About 5 minutes on 2 cores, and 3 of set-up. Everything it makes is below demo/, which it begins by emptying.
demo: setup
	rm -rf demo
	$(BIN)/crmuons simulate --events 400000 --out demo/data --seed 1
	$(BIN)/crmuons train demo data.train=demo/data run.storage_path=demo/runs run.name=demo
	$(BIN)/crmuons evaluate --truth demo/data --split test --model demo/runs/demo --events 15000 --out demo/evaluation
	$(BIN)/crmuons generate --model demo/runs/demo --primaries demo/data/events-00000.parquet --out demo/generated
	$(BIN)/crmuons validate demo/runs/demo --events 200000 --out demo/validation
	@echo
	@echo "model      demo/runs/demo/model"
	@echo "report     demo/evaluation/report.html"
	@echo "bundles    demo/generated"
	@echo "nature     demo/validation/report.html"
	@echo "MLflow     demo/mlflow.db; to look at the run: $(BIN)/mlflow ui --backend-store-uri sqlite:///demo/mlflow.db"

# Everything it makes is below base-model/; after an interruption the same command continues. BASE_WORDS are more settings.
base-model: setup
	$(BIN)/crmuons simulate --events $(BASE_EVENTS) --out base-model/data --seed 1
	$(BIN)/crmuons train base data.train=base-model/data run.storage_path=base-model/runs run.name=base run.resume=auto $(BASE_WORDS)
	$(BIN)/crmuons evaluate --truth base-model/data --split test --model base-model/runs/base --events 15000 --out base-model/evaluation
	@echo
	@echo "begin from it: $(BIN)/crmuons train default data.train=DATA train.init_from=base-model/runs/base"

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit -n auto --dist loadfile $(PYTEST)

integration: setup
	$(BIN)/python -m pytest tests/integration -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST)

gpu-check: setup
	$(BIN)/crmuons benchmark gpu

federation: setup
	$(BIN)/python -m tests.integration.pelican.federation

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck --external-sources .ci/run cluster/*.sh cluster/*/*.sh cluster/slurm/job.sbatch

types: setup
	$(BIN)/mypy

# About 2 minutes on 2 cores; half of it executes docs/notebook.py. Material's notice about its successor is left out.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "site       site/index.html; with search: $(BIN)/python -m http.server -d site"

# Every version of the environment at hand, to be run after a change of pyproject.toml, on Linux x86-64 with Python 3.11.
lock:
	$(BIN)/python .ci/lock.py > $(LOCKED).new
	mv $(LOCKED).new requirements.lock

# Compares the locked versions with the known vulnerabilities. It needs the network, so it is no part of .ci/run.
audit: setup
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install -q pip-audit
	$(VENV)/audit/bin/pip-audit --disable-pip --no-deps -r $(LOCKED)

clean:
	rm -rf $(VENV) demo base-model site
