# Everything a developer or a curious person does here. Needs Python 3.11 or newer and make.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-gpu lint format docs bench bench-long doctor wheel clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Create .venv with the pinned packages (the other targets do it when it is missing)

# Remade when the pins or the package's needs change. torch comes first, from constraints.txt, so that pip does not
# take the newest one on behalf of another package.
$(READY): constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -c constraints.txt torch
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY) ## Train teachers, their aggregator and a student on seven photographs, and compare them (minutes)
	$(RUN) -m mtkd_lightning +experiment=rcan_multi_teacher

test: $(READY) ## Run the tests (minutes)
	$(RUN) -m pytest -n auto --maxprocesses 4 --dist worksteal

test-slow: $(READY) ## Run the tests that train for minutes
	$(RUN) -m pytest -m slow

test-gpu: $(READY) ## Run the tests that need a CUDA device
	$(RUN) -m pytest -m gpu

lint: $(READY) ## Check style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(READY) ## Mend style where that can be done by a program
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

docs: $(READY) ## Build the manual into site/; open site/index.html
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build

bench: $(READY) ## Measure speed (an hour or more; DATA=... is a folder of benchmarks to score on)
	$(RUN) benchmarks/framework_overhead.py
	$(RUN) benchmarks/steps.py online
	$(RUN) benchmarks/step_profile.py
	$(RUN) benchmarks/gpu.py
	$(RUN) benchmarks/methods.py
	$(RUN) benchmarks/ddp.py
	$(RUN) benchmarks/stage1.py dctswin_repaired_compact dctswin
	$(RUN) benchmarks/options.py
	$(RUN) benchmarks/data_path.py
	$(RUN) benchmarks/teacher_cache.py
	$(RUN) benchmarks/evaluation.py $(if $(DATA),data.root=$(DATA))
	$(RUN) benchmarks/upscale.py
	$(RUN) benchmarks/wavelet_loss.py
	$(RUN) benchmarks/dctswin.py
	$(RUN) benchmarks/report.py
	$(RUN) benchmarks/export.py

bench-long: $(READY) ## Measure how memory, time and disk grow (hours; 14 GB of disk)
	$(RUN) benchmarks/memory.py
	$(RUN) benchmarks/growth.py

doctor: $(READY) ## Say what is on this machine and what is missing
	$(RUN) -m mtkd_lightning.doctor

wheel: $(READY) ## Build the wheel into dist/
	$(RUN) -m pip wheel --quiet --no-deps -w dist .

clean: ## Remove the environment and what tools left; weights, runs and cache stay
	rm -rf $(VENV) dist build site .pytest_cache .mypy_cache .ruff_cache
