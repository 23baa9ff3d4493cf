# Everything that a fresh machine needs: Python 3.11+, make and a package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Threads that wait do not spin: several processes share a machine well.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo serve test check bench wheel docs gallery clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,wheel]'
	# Not as the extra `upscalers`: torchvision comes for CUDA only, and what is tested does without.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps spandrel einops
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m calotype.demo

serve: $(STAMP)
	$(BIN)/calotype serve

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks

wheel: $(STAMP)
	$(BIN)/python tests/wheel.py

docs: $(STAMP)
	$(BIN)/python -m calotype.reference

gallery: $(STAMP)
	$(BIN)/python -m calotype.gallery

clean:
	rm -rf $(VENV) build dist out *.egg-info
