# Everything happens in .venv and .cycleqd; `make clean` removes what was computed.
PYTHON ?= python3.11
BIN := .venv/bin
CYCLEQD_BENCHMARKS ?= $(wildcard ../shared/data)
CLUSTER ?= $(wildcard ../shared/cluster)
export CYCLEQD_BENCHMARKS
# torch spins its threads while it waits; two of them on two busy cores are many times slower than one.
export OMP_NUM_THREADS ?= 1

.PHONY: help demo study test test-fast test-containers test-manifests test-cluster lint format golden docs pictures os-root \
    images clean

help: ## what there is to make
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

.venv/.demo: pyproject.toml constraints.txt requirements/no-deps.txt
	scripts/system-packages bubblewrap mariadb-server
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@scripts/torch-build $(BIN)/pip
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[run]'
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -r requirements/no-deps.txt
	touch $@

.venv/.dev: .venv/.demo requirements/no-deps-dev.txt
	scripts/system-packages bubblewrap mariadb-server debootstrap uidmap sudo
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[run,dev]'
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -r requirements/no-deps-dev.txt
	touch $@

demo: .venv/.demo ## an evolution of three tiny experts, from nothing to a report, in at most ten minutes
	@$(BIN)/python -m examples.tiny.demo

study: .venv/.demo ## methods x seeds on the tiny suite at equal evaluations: docs/study.md
	$(BIN)/python -m benchmarks.study

# Two workers, each with services of its own. The tests of a file share fixtures, so they stay together, and files come
# in their order: the longest of all has few tests and would be the last, alone.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
test: .venv/.dev ## the whole test suite
	$(BIN)/pytest $(PARALLEL)

# Pure functions and small models, without S3, MLflow, MariaDB or a sandbox: a test of those belongs to `make test`.
QUICK := tests/search tests/weights tests/pipelines tests/scripts tests/report/test_statistics.py \
    tests/report/test_pictures.py tests/cli/test_cli.py tests/cli/test_init.py tests/run/test_decisions.py \
    tests/evaluation/test_evaluator.py tests/test_loading.py tests/evaluation/test_splits.py \
    tests/test_readme.py
test-fast: .venv/.dev ## the quick tests, for the loop while working
	$(BIN)/pytest $(PARALLEL) $(QUICK)

test-containers: .venv/.dev ## build the images, test them and run an evolution with a container a task
	docker/test

test-manifests: .venv/.dev ## apply the manifests to a one-node Kubernetes, and use what they start
	CYCLEQD_CLUSTER=$(CLUSTER) scripts/test-manifests

test-cluster: .venv/.dev ## run evolutions on a Kubeflow: PROFILE=file, and the services' addresses in the environment
	CYCLEQD_CLUSTER_PROFILE=$(PROFILE) $(BIN)/pytest tests/cluster

images: ## the three container images
	docker/build

lint: .venv/.dev ## style, types and import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.dev ## rewrite the code in its style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

golden: .venv/.dev ## regenerate the compiled pipelines that tests compare with
	CYCLEQD_REGENERATE=1 $(BIN)/pytest tests/pipelines/test_compiled.py

docs: .venv/.demo ## rewrite docs/configuration.md from the settings' descriptions
	$(BIN)/python -m scripts.configuration >docs/configuration.md

pictures: demo ## docs/images/mlflow-*.png, of the demo's evolution
	scripts/system-packages chromium
	$(BIN)/python -m scripts.mlflow_pictures

os-root: .venv/.demo ## the root file system of the OS benchmark, once
	scripts/system-packages debootstrap
	$(BIN)/python -m cycleqd.evaluation.benchmarks.os.root

clean: ## remove the evolutions, models and reports that were made in .cycleqd
	rm -rf .cycleqd
