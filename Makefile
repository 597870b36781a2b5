PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
STAMP := $(VENV)/.installed

.PHONY: env demo test lint device wheelhouse

env: $(STAMP)  ## the environment in .venv, from nothing but Python 3.11+

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found; install one or type: make PYTHON=/path/to/python env"; exit 1; }
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/bin/python -m uv pip install --quiet --python $(VENV)/bin/python -r requirements.lock
	$(VENV)/bin/python -m uv pip install --quiet --python $(VENV)/bin/python --no-deps -e .
	@touch $@

demo: env  ## train a style on the embedded backbone (or backbone=mini_flow), sample, score; prints the table row
	$(VENV)/bin/python -m bench method=pair dataset=halftone seed=0 $(if $(backbone),backbone=$(backbone))

test: env
	$(VENV)/bin/python -m pytest

lint: env
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy

# With .venv its Python, else python3: a machine without a network has PyTorch of its own, and .whl/ holds the rest.
device:  ## verify and measure the GPU paths: make device STAGE=a OUT=dir, more options in FLAGS; see docs/gpu.md
	$(or $(wildcard $(VENV)/bin/python),python3) tests/perf/device.py --out $(or $(OUT),build/out) --stage $(or $(STAGE),a,b,c,d,e) $(FLAGS)

wheelhouse: env  ## collect in .whl/ what a CUDA machine without a network lacks
	$(VENV)/bin/python tests/perf/wheelhouse.py
