# Two commands to know: `make demo` answers a question about a photo, `make test` runs the tests.
# Both set up .venv first if it is not there; `make demo PYTHON=python3.12` picks the Python it is made of.

PYTHON ?= python3
PHOTO ?= examples/coffee.jpg
PROMPT ?= What is in this picture?
TESTS ?= tests

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_TO_TEST := $(VENV)/.ready-to-test

.DEFAULT_GOAL := help
.PHONY: help demo test clean

help: ## show this list
	@echo "make demo   set up, fetch the default language model (once, 93 MB) and describe $(PHOTO)"
	@echo "make test   set up and run the tests"
	@echo "make clean  remove $(VENV) and what Python and the tests left behind; weights in the cache stay"
	@echo "variables:  PYTHON=$(PYTHON) PHOTO=$(PHOTO) PROMPT=\"$(PROMPT)\" TESTS=$(TESTS)"

demo: $(READY)
	@echo "asking about $(PHOTO): $(PROMPT)" >&2
	@$(BIN)/python demo.py --image "$(PHOTO)" --prompt "$(PROMPT)"

test: $(READY_TO_TEST)
	@echo "running the tests" >&2
	@$(BIN)/python -m pytest $(TESTS)

# requirements.txt says what is needed, req_fix.txt which versions of it are known to work together
$(READY): requirements.txt req_fix.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	    echo "$(PYTHON) is $$($(PYTHON) --version 2>&1 | tail -n 1)," \
	         "and Python 3.10 or newer is needed; name one: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || echo "making $(VENV) with $$($(PYTHON) --version)" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "$(PYTHON) cannot make an environment; install its venv module" \
	         "(on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null || { \
	    echo "$(VENV) has no pip and cannot get one; run: make clean, then install pip for $(PYTHON)" >&2; exit 1; }
	@echo "installing the requirements into $(VENV) (some 2 GB to download on Linux with x86-64)" >&2
	@$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt -c req_fix.txt
	@touch $@

$(READY_TO_TEST): $(READY) requirements-test.txt
	@echo "installing what the tests need into $(VENV) (some 200 MB)" >&2
	@$(BIN)/python -m pip install --disable-pip-version-check -r requirements-test.txt -c req_fix.txt
	@touch $@

clean: ## remove what can be made again
	rm -rf $(VENV) .pytest_cache .ruff_cache build *.egg-info
	find adapter_llm imagebind_encoder tests -name __pycache__ -prune -exec rm -rf {} +
