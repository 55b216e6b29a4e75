# One entry point for people and CI. `make help` lists the targets; all of them set up what they need first.

SHELL := bash
.SHELLFLAGS := -o pipefail -c

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
LOCKS := deps/locks
# --no-deps: the locks have everything, and nothing comes in that is not in them.
# --no-compile: most modules are never imported; those that are get compiled then. Saves a third of the set-up.
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile
AUDIT := .cache/audit

# Images of Python often set it. Then each of the hundreds of processes that tests start would compile
# everything it imports, torch alone for 4 s.
unexport PYTHONDONTWRITEBYTECODE

export SWAA_CACHE_DIR ?= $(CURDIR)/.cache/swaa
export SWAA_STATE_DIR ?= $(CURDIR)/.cache/state

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-21s %s\n", $$1, $$2}'

.PHONY: setup
setup: $(STAMP) ## Create .venv with everything the other targets need

$(STAMP): pyproject.toml $(LOCKS)/requirements.pip.lock $(LOCKS)/requirements.lock $(LOCKS)/requirements.nodeps.lock $(LOCKS)/requirements.cpu.lock $(LOCKS)/requirements.cuda.lock
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "needs Python 3.11 or newer with its venv module (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) --require-hashes -r $(LOCKS)/requirements.pip.lock 2>/dev/null \
		|| echo "pip's indexes have no newer pip: an old one takes a minute more"
	@$(PIP_INSTALL) --require-hashes -r $(LOCKS)/requirements.cpu.lock 2>/dev/null \
		|| { echo "pip's indexes have no CPU build of PyTorch that is locked: taking the public one, with CUDA"; \
			$(PIP_INSTALL) --require-hashes -r $(LOCKS)/requirements.cuda.lock; }
	$(PIP_INSTALL) --require-hashes -r $(LOCKS)/requirements.lock -r $(LOCKS)/requirements.nodeps.lock
	$(PIP_INSTALL) --no-build-isolation --editable .
	touch $(STAMP)

.PHONY: demo
demo: $(STAMP) ## Ask a 6,000-token document two questions under three SLA classes, then stop everything
	$(BIN)/swaa demo $(if $(SLA),--sla $(SLA))

.PHONY: cluster-demo
cluster-demo: $(STAMP) ## Two replicas under Ray Serve; kill one in mid-answer and see the answer complete
	$(BIN)/swaa cluster-demo

.PHONY: serve
serve: $(STAMP) ## Run the service on 127.0.0.1:50051 until Ctrl-C
	$(BIN)/swaa serve

.PHONY: serve-cluster
serve-cluster: $(STAMP) ## Run a cluster on this machine, its gateway on 127.0.0.1:50051, until Ctrl-C
	$(BIN)/swaa serve --ray

.PHONY: calibrate
calibrate: $(STAMP) ## Measure this machine's costs thoroughly, for the planner
	$(BIN)/swaa calibrate

# Side by side, as most of them wait more than they compute. Lint is soonest of use; then the longest first, so
# that no long one is left alone at the end. Each prints when it is done.
TEST_PARTS := cluster walk runtime services gateway
CHECKS := lint $(TEST_PARTS:%=test-%)
LOGS := .cache/logs
JOBS ?= 3

.PHONY: test
test: $(STAMP) ## Lint, type-check and run all tests
	@rm -rf $(LOGS) && mkdir -p $(LOGS)
	@$(MAKE) --no-print-directory --keep-going --jobs $(JOBS) --output-sync=target $(CHECKS:%=logged-%) \
		|| { echo; echo "FAILED: $$(ls $(LOGS))"; tail -n 60 $(LOGS)/*; exit 1; }

# What is left in LOGS failed.
.PHONY: $(CHECKS:%=logged-%)
$(CHECKS:%=logged-%): logged-%:
	@$(MAKE) --no-print-directory $* 2>&1 | tee $(LOGS)/$* && rm $(LOGS)/$*

# One thread each: small models gain nothing by more, and threads of several processes that wait for
# one another on few cores take many times as long.
.PHONY: $(TEST_PARTS:%=test-%)
$(TEST_PARTS:%=test-%): export OMP_NUM_THREADS ?= 1
$(TEST_PARTS:%=test-%): $(STAMP)
	$(BIN)/pytest -q $(TESTS)
test-walk: TESTS = tests/walk
test-gateway: TESTS = tests/services/gateway
test-services: TESTS = tests/services --ignore=tests/services/gateway
test-cluster: TESTS = tests/cluster tests/chaos tests/soak
test-runtime: TESTS = tests $(patsubst %,--ignore=tests/%,walk services cluster chaos soak)

INPUTS ?= 100000

.PHONY: fuzz
fuzz: $(VENV)/.fuzz-done ## Send INPUTS (100000) nearly right inputs to all that takes any; says what it found (MINUTES=5: ends sooner)
	$(BIN)/python -m tests.fuzz --inputs $(INPUTS) $(if $(MINUTES),--minutes $(MINUTES))

$(VENV)/.fuzz-done: $(STAMP) $(LOCKS)/requirements.fuzz.lock
	$(PIP_INSTALL) --require-hashes -r $(LOCKS)/requirements.fuzz.lock
	touch $@

.PHONY: lint
lint: $(STAMP) ## ruff, mypy --strict, import-linter, and whether generated code is current
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory proto-check

.PHONY: format
format: $(STAMP) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

PROTOS := $(patsubst proto/%,services/pb/%,$(wildcard proto/swaa/v1/*.proto))
PROTOC = $(BIN)/python -m grpc_tools.protoc -Iservices/pb=proto

.PHONY: proto
proto: $(STAMP) ## Generate services/pb from proto/
	$(PROTOC) --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)

.PHONY: proto-check
proto-check: $(STAMP)
	@rm -rf .cache/proto && mkdir -p .cache/proto
	@$(PROTOC) --python_out=.cache/proto --pyi_out=.cache/proto --grpc_python_out=.cache/proto $(PROTOS)
	@diff -r -x __pycache__ -x __init__.py .cache/proto/services/pb services/pb || { echo "generated code is stale: run make proto"; exit 1; }

.PHONY: docs
docs: $(STAMP) ## Generate what of docs/ is made from the code
	$(BIN)/python -m docs.generate

.PHONY: k8s-check
k8s-check: $(STAMP) ## Check Kubernetes manifests, images and their locks, without a cluster
	$(BIN)/pytest -m k8s tests/k8s

.PHONY: k8s-locks
k8s-locks: $(STAMP) ## Write what the images install, from deps/locks/requirements.lock
	$(BIN)/python -m k8s.docker.locks

.PHONY: locks
locks: $(STAMP) ## Write what is installed, exact versions and hashes, from pyproject.toml
	$(BIN)/python -m deps.compile $(foreach name,$(UPGRADE),--upgrade-package $(name))
	$(BIN)/python -m k8s.docker.locks

$(AUDIT)/.setup-done: $(LOCKS)/requirements.audit.lock
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $<
	touch $@

INSTALLED := $(LOCKS)/requirements.lock $(LOCKS)/requirements.nodeps.lock $(LOCKS)/requirements.cuda.lock

.PHONY: sbom
sbom: $(AUDIT)/.setup-done ## Write sbom.cdx.json: what is installed, for CycloneDX's readers
	cat $(INSTALLED) | $(AUDIT)/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
		--output-file sbom.cdx.json -

.PHONY: audit
audit: $(AUDIT)/.setup-done ## Ask a database of known vulnerabilities about everything that is locked
	@failed=; for lock in $(INSTALLED) $(LOCKS)/requirements.audit.lock; do \
		$(AUDIT)/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off -r $$lock || failed=1; \
	done; test -z "$$failed"

.PHONY: soak
soak: $(STAMP) ## A mixed load with rude clients on the default model, MINUTES=30, checked each minute
	$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),30)

.PHONY: chaos
chaos: $(STAMP) ## A cluster under load while its parts are killed, paused, slowed and cut off, ROUNDS=1
	$(BIN)/python -m tests.chaos --rounds $(or $(ROUNDS),1)

.PHONY: bench
bench: $(STAMP) ## TTFT and KV memory of recipes against transformers' own generate
	$(BIN)/python -m benchmarks.bench_prefill

.PHONY: bench-sessions
bench-sessions: $(STAMP) ## Bytes per turn, save and restore rates beside raw Redis, ways to resume
	$(BIN)/python -m benchmarks.bench_sessions

.PHONY: bench-cluster
bench-cluster: $(STAMP) ## What gateway and Ray Serve cost, and what a second replica brings
	$(BIN)/python -m benchmarks.bench_cluster

.PHONY: bench-http
bench-http: $(STAMP) ## First token over HTTP, over gRPC, and of the engine alone
	$(BIN)/python -m benchmarks.bench_http

.PHONY: bench-prediction
bench-prediction: $(STAMP) ## Predicted against measured TTFT, idle and loaded
	$(BIN)/python -m benchmarks.bench_prediction

.PHONY: bench-sla
bench-sla: $(STAMP) ## SLAs met and quality kept under load: fixed recipes, first come first served, the planner
	$(BIN)/python -m benchmarks.bench_sla

.PHONY: bench-gpu
bench-gpu: $(STAMP) ## On an H100: first and next tokens of Qwen3-4B's shape, beside transformers and the card's rates
	$(BIN)/python -m benchmarks.bench_gpu

.PHONY: bench-dense
bench-dense: $(STAMP) ## On an H100: dense attention of prompts, flash-attn beside cuDNN and the matmul rate
	$(BIN)/python -m benchmarks.bench_dense

.PHONY: bench-tensor-parallel
bench-tensor-parallel: $(STAMP) ## On two GPUs of a host: first and next tokens beside one GPU
	$(BIN)/python -m benchmarks.bench_tensor_parallel

.PHONY: eval
eval: $(STAMP) ## Measure what recipes cost in quality: tables and a plot (days on a CPU; benchmarks/device_eval.sh on a GPU)
	$(BIN)/swaa eval run --timing-repeats 2 --perplexity-samples 12

.PHONY: clean
clean: ## Remove the venv and all caches
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
