# Commands, each of which sets up what it needs in .venv: demo, test, lint, docs, bench, torture; and comfy and pictures,
# in a ComfyUI of yours.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
# Without an NVIDIA GPU: the version of torch that has a CPU build at hand.
TORCH := $(if $(shell command -v nvidia-smi 2>/dev/null),torch>=2.4,torch==2.13.0)
# The advice that setuptools gives on every editable install says nothing of this one.
export PYTHONWARNINGS := ignore:Editable installation
PROMPT ?= a red apple, noto style

.PHONY: demo test lint docs bench torture comfy pictures clean

demo: $(VENV)/.headless
	$(BIN)/imagen generate "$(PROMPT)" -o demo.png
	@echo "The picture is in $(CURDIR)/demo.png"

# As many processes as there are cores, at most four, each with one thread.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadscope

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/oxlint web tests/web
	$(BIN)/pyright

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict --site-dir build/docs
	@echo "The pages are in $(CURDIR)/build/docs"

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/run.py

# Kills, faults and damaged files for about an hour; MUCH=5 takes some minutes.
MUCH ?= 100
torture: $(VENV)/.dev
	IMAGEN_TORTURE=$(MUCH) $(BIN)/python -m pytest -m "slow or not slow" tests/torture

comfy: $(VENV)/.dev
	@test -n "$(COMFYUI_DIR)" \
	  || { echo "COMFYUI_DIR must name a checkout of ComfyUI, and COMFYUI_PYTHON its interpreter"; exit 1; }
	$(BIN)/python -m pytest -m slow tests/comfy tests/web

# All that shows what the bundled weights make, again: artwork, the README's grid, thumbnails, help pages.
# In ComfyUI's real frontend: COMFYUI_DIR and COMFYUI_PYTHON as above.
pictures: $(VENV)/.dev
	$(BIN)/python tools/artwork.py
	$(BIN)/python tools/readme_grid.py
	$(BIN)/python tools/prompt_pictures.py
	$(BIN)/python tools/example_workflows.py --pictures
	$(BIN)/python tools/node_pictures.py graph

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "Python 3.10 or later is needed; set PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV) \
	  || { echo "python3-venv is missing: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.headless: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[headless]"
	touch $@

$(VENV)/.dev: $(VENV)/.headless
	$(BIN)/python -m pip install --quiet --editable ".[headless,train,dev]"
	touch $@

$(VENV)/.docs: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
