# `make` prints the targets.
PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
PAGE_PORT ?= 8501
WEIGHTS ?= auto
CONFIG ?= configs/local.yaml
ADDRESS ?= http://127.0.0.1:8265
BIN := .venv/bin
# One process per core, each with one thread: threads that wait for each other take a third more CPU time.
UNIT_TESTS = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=logical --maxprocesses=8 --dist=worksteal tests/unit
SERVICE_TESTS = tests/cluster tests/containers tests/browser tests/service

# Keep ARGS from the `make run` that a test starts: make passes a command-line variable on through MAKEFLAGS
# (MAKEOVERRIDES) and through the environment.
MAKEOVERRIDES =
unexport ARGS

# What the setup of a target installs beside API and page: extras of pyproject.toml, separated by commas.
EXTRAS ?=
test test-unit test-nodes test-containers check fmt soak: EXTRAS = test
bench bench-scaling: EXTRAS = bench,test

.PHONY: help setup run deploy test test-unit test-nodes test-containers check fmt bench bench-scaling soak images up down
help: ## print the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile

setup: ## make .venv with the pinned packages, as every target does that needs it; EXTRAS=train,notebook adds some
	@$(PYTHON) setup_venv.py $(EXTRAS)

run: setup ## start the API and the page on this machine; Ctrl-C stops both
	@exec $(BIN)/python -m serve_app run --host $(HOST) --port $(PORT) --page-port $(PAGE_PORT) --weights $(WEIGHTS) $(ARGS)

deploy: setup ## deploy CONFIG to the Ray at ADDRESS, roll back if that fails; ARGS=--dry-run only prints the effect
	@exec $(BIN)/python -m serve_app deploy $(CONFIG) --address $(ADDRESS) $(ARGS)

# Both parts run, and both must pass. pytest exits with 5 if ARGS selects no test of a part; with 2 after Ctrl-C.
test: setup ## run all tests; ARGS="-k words" selects some
	@echo "· running the unit tests on all cores"
	@$(UNIT_TESTS) $(ARGS); unit=$$?; [ $$unit -ne 2 ] || exit 2; \
	echo "· running the cluster, browser (real Chromium) and service (real Ray) tests, one after the other"; \
	$(BIN)/python -m pytest $(SERVICE_TESTS) $(ARGS); service=$$?; \
	case "$$unit $$service" in "0 0" | "0 5" | "5 0") ;; *) exit 1 ;; esac

test-unit: setup ## run the unit tests only: no Ray service, no browser
	@$(UNIT_TESTS) $(ARGS)

test-nodes: setup ## spread the service over two Ray nodes on this machine and kill one under load; run a job on two nodes
	@NODES=1 $(BIN)/python -m pytest -s tests/cluster/test_two_nodes.py tests/cluster/test_jobs_on_nodes.py $(ARGS)

check: setup ## lint, type-check and check the imports; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/zizmor --offline --quiet .github

fmt: setup ## format the code and apply automatic fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## compare the service with other servers, see benchmarks/README.md
	@$(BIN)/python -m benchmarks.serving $(ARGS)

bench-scaling: setup ## measure the service under growing load, see benchmarks/README.md
	@$(BIN)/python -m benchmarks.scaling $(ARGS)

soak: setup ## run the service under load, updates and kills, and print a verdict; ARGS="--minutes 30"
	@$(BIN)/python -m benchmarks.soak $(ARGS)

images: ## build the two container images
	@GIT_SHA=$$(git rev-parse HEAD) docker compose build

up: images ## start API and page in containers; COMPOSE_PROFILES=gpu uses the GPU
	@docker compose up --wait --wait-timeout 300 || { docker compose logs --tail 5; exit 1; }

down: ## stop and remove the containers; ARGS=--volumes also deletes downloaded weights
	@docker compose down $(ARGS)

test-containers: setup ## build both images and test them in Docker; needs 10 GB
	@CONTAINERS=1 $(BIN)/python -m pytest -s tests/containers $(ARGS)
