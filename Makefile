# Everything from a fresh clone: needs python3 (3.11 or newer) with venv, and make.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
COMPILED := $(VENV)/.compiled
KERNELS := $(VENV)/.kernels
LINTED := $(VENV)/.linted
SOURCES := $(shell find *.py agents baselines benchmarks examples sponge_env tests traces -name '*.py')

# The suites of docs/results.md, and what python -m sponge_env.fidelity wrote beside them.
RESULTS := runs/results
SUITES := $(basename $(notdir $(wildcard traces/suites/*-v?.toml)))
FIDELITY := $(wildcard docs/fidelity*.json)

# Policies of one model learn the scenarios of a suite, those of variants and pipelines the cells of
# their stages.
STAGED := variants variants-wide pipeline-video pipeline-sentiment pipeline-nlp pipeline-fanout

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow fuzz package kernels lint bench results policies fidelity docs clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: $(COMPILED)  ## create .venv and install everything into it

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --editable '.[dev]'
	@touch $@

$(COMPILED): $(INSTALLED)
	$(PY) -m sponge_env.app.precompile
	@touch $@

demo: setup  ## measure this machine, train PPO, compare controllers simulated and live, six minutes
	$(PY) -m sponge_env demo

test: $(INSTALLED)  ## lint, check types, and run all tests but those of make test-slow
	@$(MAKE) --no-print-directory --jobs=2 kernels lint
	$(PY) -m pytest -n 2 --dist worksteal -m "not (live or cgroup or slow)"
	$(PY) -m pytest -m "(live or cgroup) and not slow"

test-slow: $(INSTALLED)  ## test a fake Kubernetes cluster, Ray and the notebook, five minutes
	$(PY) -m pytest -m slow

fuzz: setup  ## change files that are loaded and requests in 100,000 ways each, an hour
	HYPOTHESIS_PROFILE=fuzz $(PY) -m pytest tests/test_damaged_files.py
	HYPOTHESIS_PROFILE=fuzz $(PY) -m pytest tests/test_serve_fuzz.py tests/test_serve_codecs.py tests/test_serve_deadlines.py tests/test_serve_rpc.py

package: $(INSTALLED)  ## build the distributions, and use the wheel with the lowest versions of what it needs, a minute
	$(PY) -m tests.wheel

kernels: $(KERNELS)

$(KERNELS): $(INSTALLED) $(SOURCES)
	@touch $@.new
	$(PY) -m sponge_env.app.precompile --oracle & $(PY) -m sponge_env.app.precompile; s=$$?; \
	  wait $$! && exit $$s
	@mv $@.new $@
	@touch $(COMPILED)

lint: $(LINTED)  ## lint and check types only

$(LINTED): $(INSTALLED) $(SOURCES)
	@touch $@.new
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	@mv $@.new $@

# EARLIER is the version before scenarios had several stages, which cost the batch speed.
EARLIER := e2e7f30
# TRITON=PATH/bin/python, of an environment with nvidia-pytriton, puts Triton beside the server.
bench: setup  ## run the benchmarks of docs/benchmarks.md
	$(PY) -m benchmarks.throughput --against $(EARLIER)
	$(PY) -m benchmarks.serving $(if $(TRITON),--triton $(TRITON))

# Resumes where it was interrupted. Exit code 1 of the suite means that an agent failed
# somewhere; it has no row where it lacks a cell.
results: setup  ## run the large suites, write docs/results/*.csv and the tables of the pages
	@set -e; for suite in $(SUITES); do \
	  $(PY) evaluate.py --suite $$suite --run-dir $(RESULTS)/$$suite || [ $$? -eq 1 ]; \
	done
	$(PY) -m benchmarks.results --prove $(foreach suite,$(SUITES),--$(firstword $(subst -v, ,$(suite))) $(RESULTS)/$(suite)) $(if $(FIDELITY),--fidelity $(FIDELITY))

policies: setup  ## train the policies that ship, two at a time, an hour or two
	@{ echo "ppo-joint any --systems 192"; \
	for profile in yolov5s resnet18 lite0; do \
	  echo "ppo $$profile --suite standard-v1 --profile $$profile --randomised"; \
	done; \
	for scenario in $(STAGED); do \
	  echo "ppo $$scenario --suite stages --like $$scenario --randomised --steps 4000000"; \
	done; } | NUMBA_NUM_THREADS=1 xargs -P 2 -L 1 sh -ec 'run=runs/policies/$$0-$$1; \
	  [ ! -e $$run/whole ] || exit 0; rm -rf $$run; agent=$$0 name=$$1; shift; \
	  $(PY) train.py --agent $$agent "$$@" --run-dir $$run; touch $$run/whole; \
	  cp $$run/policy.safetensors agents/policies/$$agent-$$name.safetensors'

# On an otherwise idle machine: each run is as long as it says.
fidelity: setup  ## compare simulator and real worker anew, two hours
	@set -e; compare() { \
	  $(PY) -m sponge_env calibrate --scenario $$2; \
	  $(PY) train.py --agent ppo --scenario $$2 --steps 2000000 $$4 --run-dir runs/fidelity/ppo-$$2; \
	  $(PY) -m sponge_env.fidelity --scenario $$2 --agent $$3 ppo --duration 45 \
	    --out runs/fidelity/$$1 --option ppo.policy=runs/fidelity/ppo-$$2/policy.safetensors; \
	  cp runs/fidelity/$$1/fidelity.json docs/fidelity-$$1.json; \
	}; \
	compare ocr ocr "sponge-ip sponge-mpc proportional-split" "--also ocr-bursty"; \
	compare variants variants-local "sponge-ip sponge-mpc slackfit" ""; \
	$(PY) -m sponge_env calibrate; \
	$(PY) -m baselines.tune --suite live --agents hpa --out runs/fidelity/hpa.json; \
	for scenario in local swing-local flash-crowd-local; do \
	  sizes=$$($(PY) -m benchmarks.live $$scenario runs/fidelity/hpa.json); \
	  $(PY) -m sponge_env.fidelity --scenario $$scenario --start warm --seed 1 --duration 45 \
	    --agent static hpa sponge-joint ppo-joint $$sizes --out runs/fidelity/$$scenario; \
	  cp runs/fidelity/$$scenario/fidelity.json docs/fidelity-$$scenario.json; \
	done

docs: setup  ## write the generated pages again, and build the site in build/site
	$(PY) -m benchmarks.results
	$(PY) -m benchmarks.pages

clean:  ## remove the environment and its caches, not runs or profiles
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
