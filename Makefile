# make demo   environment, install, then train the tiny vision-language model by reinforcement learning
# make test   environment, install, then lint, types and tests
# make docs   environment, install, then the documentation site in site/, every link checked
# make system packages of the operating system that a few tests use (a browser); needs apt and, when not root, sudo
#
# TORCH names the torch to install; override it for another build, e.g.  make demo TORCH="torch==2.13.0"  or  TORCH=/path/to/torch.whl

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: demo test docs system lint clean

demo: $(VENV)/.demo
	$(BIN)/fovea train --out runs/demo

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile

docs: $(VENV)/.docs
	$(BIN)/python docs/build.py

lint: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/basedpyright

system:
	@if command -v apt-get >/dev/null; then \
	  SUDO=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	  $$SUDO apt-get update -qq && $$SUDO apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	else echo "make system knows apt only; install Chromium by hand"; fi

# torch comes first and by itself, and what was installed is what everything after it must keep: `constraints` here are those of
# constraints.txt with that very build in place of its torch. The stamp holds TORCH, so that another TORCH is installed when asked for.
$(VENV)/.torch: constraints.txt $(shell test "$$(cat $(VENV)/.torch 2>/dev/null)" = "$(TORCH)" || echo again)
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check "$(TORCH)"
	@grep -v '^torch==' constraints.txt >$(VENV)/constraints.txt
	@$(BIN)/python -c "from importlib.metadata import version; print('torch==' + version('torch'))" >>$(VENV)/constraints.txt
	@echo "$(TORCH)" >$@

.PHONY: again
again:

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install -q --disable-pip-version-check -c $(VENV)/constraints.txt -e ".[math,data,tensorboard]"
	@touch $@

$(VENV)/.docs: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install -q --disable-pip-version-check -c $(VENV)/constraints.txt -e ".[docs]"
	@touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install -q --disable-pip-version-check -c $(VENV)/constraints.txt -e ".[test]"
	@touch $(VENV)/.demo $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
