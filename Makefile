# make run · make deploy · make test · make check · make fmt · make bench · make bench-scaling
PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
PAGE_PORT ?= 8501
WEIGHTS ?= auto
CONFIG ?= configs/local.yaml
ADDRESS ?= http://127.0.0.1:8265
BIN := .venv/bin

.PHONY: help setup run deploy test test-nodes test-containers check fmt bench bench-scaling soak plots images up down
help: ## print the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile

setup: ## make .venv with the pinned packages; done by the others when needed
	@$(PYTHON) setup_venv.py

run: setup ## start the API and the page on this machine; Ctrl-C stops both
	@exec $(BIN)/python -m serve_app run --host $(HOST) --port $(PORT) --page-port $(PAGE_PORT) --weights $(WEIGHTS) $(ARGS)

deploy: setup ## bring CONFIG to the Ray at ADDRESS, or back what ran before; ARGS=--dry-run only says what would change
	@exec $(BIN)/python -m serve_app.release.deploy $(CONFIG) --address $(ADDRESS) $(ARGS)

test: setup ## run all tests
	@echo "· running the tests: unit, served (real Ray), browser (real Chromium)"
	@$(BIN)/python -m pytest $(ARGS)

test-nodes: setup ## spread the service over two Ray nodes on this machine and kill one under load
	@NODES=1 $(BIN)/python -m pytest -s tests/cluster/test_two_nodes.py $(ARGS)

check: setup ## lint and type-check; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/zizmor --offline --quiet .github

fmt: setup ## format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: plots ## measure the service against its peers, see benchmarks/README.md
	@$(BIN)/python -m benchmarks.serving $(ARGS)

bench-scaling: plots ## measure how the service scales, see benchmarks/README.md
	@$(BIN)/python -m benchmarks.scaling $(ARGS)

soak: setup ## run the service under load, updates and kills, and print a verdict; ARGS="--minutes 30"
	@$(BIN)/python -m benchmarks.soak $(ARGS)

images: ## build the two container images
	@GIT_SHA=$$(git rev-parse HEAD) docker compose build

up: images ## start API and page in containers; COMPOSE_PROFILES=gpu takes the GPU
	@docker compose up --wait --wait-timeout 300 || { docker compose logs --tail 5; exit 1; }

down: ## stop and remove the containers; ARGS=--volumes forgets downloaded weights too
	@docker compose down $(ARGS)

test-containers: setup ## build both images and try them for real, needs Docker and 10 GB
	@CONTAINERS=1 $(BIN)/python -m pytest -s tests/containers $(ARGS)

plots: setup
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
