# The two commands of the README are `make demo` and `make test`. Everything is installed into .venv;
# choose the interpreter with PYTHON=python3.12.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test check format unit parity parity-backends wheel sanitize cuda-compile clean

demo: $(INSTALLED)
	$(BIN)/python scripts/demo.py

# everything that CI runs; where there is nvcc, the CUDA kernels for every target, too
test: check wheel sanitize $(if $(shell command -v nvcc),cuda-compile)
	$(BIN)/python -m pytest

# style, types, generated parts of the README; changes nothing
check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python scripts/update_readme_table.py --check

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/python scripts/update_readme_table.py

unit: $(INSTALLED)
	$(BIN)/python -m pytest -m "not parity and not e2e"

parity: $(INSTALLED)
	$(BIN)/python -m pytest -m parity

# the same without the compiled kernels: on torchvision's operators, and on the readable definitions (hours, in full)
parity-backends: $(INSTALLED)
	DCNZOO_OPS=torchvision $(BIN)/python -m pytest -m parity $(PYTEST_ARGUMENTS)
	DCNZOO_OPS=reference $(BIN)/python -m pytest -m parity $(PYTEST_ARGUMENTS)

# a wheel, installed into an empty environment and used from another directory
wheel: $(INSTALLED)
	scripts/check_wheel.sh

# the CUDA kernels for every target, warnings as errors; needs nvcc, no GPU
cuda-compile: $(INSTALLED)
	$(BIN)/python scripts/compile_cuda.py

# the compiled operators under AddressSanitizer and UndefinedBehaviorSanitizer
sanitize: $(INSTALLED)
	scripts/sanitize.sh $(BIN)/python

$(INSTALLED): pyproject.toml setup.py $(wildcard csrc/*.* csrc/*/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip 'setuptools>=77'
	$(BIN)/pip install --quiet torch torchvision # first: the build uses it too, and would fetch a copy of its own
	$(BIN)/pip install --quiet --no-build-isolation --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist demo *.egg-info dcnzoo/*.so
