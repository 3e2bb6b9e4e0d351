# The few commands people need. Each creates the environment and installs everything it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# One thread per process: two processes of one thread each are the best use of a small CPU,
# and PyTorch's OpenMP threads spin under load unless told to sleep.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= passive

.PHONY: help demo demo-language test test-all lint bench figures clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable

$(VENV)/installed-demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(INSTALL) '.[control,report]'
	touch $@

$(VENV)/installed: $(VENV)/installed-demo
	$(INSTALL) '.[all,dev]'
	touch $@

$(VENV)/installed-hosts: $(VENV)/installed
	$(INSTALL) '.[all,dev,hosts]'
	touch $@

demo: $(VENV)/installed-demo  ## Train three agents for some minutes and draw a page: what was promised, what was done
	$(BIN)/python examples/demo.py

QUICK := warm_start_steps=700 steps=100 eval_every=20 checkpoint_every=50

demo-language: $(VENV)/installed  ## Train a small language model on countdown by GRPO, with ERA and without
	$(BIN)/entropyfloor reproduce language/countdown --arms grpo era --seeds 0 --set $(QUICK) --out runs/demo-language
	$(BIN)/entropyfloor report runs/demo-language --out runs/demo-language/report

lint: $(VENV)/installed  ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## What CI runs: style, types and the tests
	$(BIN)/python -m pytest -n 2 -m 'not slow'

test-all: lint $(VENV)/installed-hosts  ## `test` and everything slow: long runs, the demo, benchmarks beside other libraries
	$(BIN)/python -m pytest -n 2

bench: $(VENV)/installed-hosts  ## The floors beside plain heads, the agents and the fused head beside other libraries
	$(BIN)/python benchmarks/activations.py
	$(BIN)/python benchmarks/control.py
	$(BIN)/python benchmarks/vision.py
	$(BIN)/python benchmarks/token_log_probs.py

FIGURES := demo control/walker-run control/halfcheetah-ppo control/beside-sb3/pendulum control/beside-sb3/ppo \
	control/beside-sb3/sac vision/cifar10-regularisers language/countdown language/long language/longer
CIFAR10 := vision/cifar10-regularisers
COUNTDOWN := language/countdown

figures: $(VENV)/installed  ## Draw the figures of docs/ again, from results/
	for name in $(FIGURES); do \
		mkdir -p docs/$$name && $(BIN)/entropyfloor report results/$$name --out report/$$name && \
		cp report/$$name/overview.* report/$$name/table.csv docs/$$name/ || exit 1; \
	done
	for kind in png svg; do \
		cp report/$(CIFAR10)/cifar10-test-resnet-judged.$$kind docs/$(CIFAR10)/judged.$$kind || exit 1; \
		for name in pass thresholds shares tokens; do \
			cp report/$(COUNTDOWN)/countdown-3-tiny-$$name.$$kind docs/$(COUNTDOWN)/$$name.$$kind || exit 1; \
		done \
	done
	$(BIN)/python examples/min_entropy.py --runs results/vision/cifar10-min-entropy results/$(CIFAR10)
	$(BIN)/python examples/instability.py --draw --out results/control/instability

clean:  ## Remove the environment and caches, never results
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis
