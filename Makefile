# make run · make test · make check · make fmt
PYTHON ?= python3
PORT ?= 8000
PAGE_PORT ?= 8501
WEIGHTS ?= auto
BIN := .venv/bin

.PHONY: help setup run test check fmt
help: ## print the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' Makefile

setup: ## make .venv with the pinned packages; done by the others when needed
	@$(PYTHON) setup_venv.py

run: setup ## start the API and the page on this machine; Ctrl-C stops both
	@exec $(BIN)/python -m serve_app --port $(PORT) --page-port $(PAGE_PORT) --weights $(WEIGHTS)

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
