# make run · make test · make check · make fmt · make bench · make bench-scaling
PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
PAGE_PORT ?= 8501
WEIGHTS ?= auto
BIN := .venv/bin

.PHONY: help setup run test check fmt bench bench-scaling plots
help: ## print the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile

setup: ## make .venv with the pinned packages; done by the others when needed
	@$(PYTHON) setup_venv.py

run: setup ## start the API and the page on this machine; Ctrl-C stops both
	@exec $(BIN)/python -m serve_app --host $(HOST) --port $(PORT) --page-port $(PAGE_PORT) --weights $(WEIGHTS)

test: setup ## run all tests
	@echo "· running the tests: unit, served (real Ray), browser (real Chromium)"
	@$(BIN)/python -m pytest $(ARGS)

check: setup ## lint and type-check; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: setup ## format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: plots ## measure the service against its peers, see benchmarks/README.md
	@$(BIN)/python -m benchmarks.serving $(ARGS)

bench-scaling: plots ## measure how the service scales, see benchmarks/README.md
	@$(BIN)/python -m benchmarks.scaling $(ARGS)

plots: setup
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
