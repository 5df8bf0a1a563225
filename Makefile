# Needs Python 3.11 to 3.13 and make. Everything else is fetched into .venv and the user's cache.
# Another interpreter: make test PYTHON=/path/to/python3.12. More arguments: make test ARGS="-k commit".

SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
UV := $(VENV)/tools/bin/uv
LOCK := requirements/dev.txt
INSTALLED := $(VENV)/.installed
KAFKA := $(VENV)/.kafka
ENCODER := $(VENV)/.encoder
READY := $(KAFKA) $(ENCODER)
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))

# The first interpreter that works and is of a supported version.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	"$$p" -c '$(SUPPORTED)' 2>/dev/null && echo "$$p" && break; done)

export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# uv reads neither pip's variable nor the system's certificates unless it is told to.
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
export UV_SYSTEM_CERTS ?= 1

HOURS ?= 0

.PHONY: demo test check bench data evaluate fuzz chaos lifecycle format docs install lock clean help

demo: $(READY)     ## see it work: broker, training, live traffic, two new users
	@$(BIN)/innerloop demo $(ARGS)

test: $(READY)     ## run all tests, those on the real broker too
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart=0 --durations=10 $(ARGS)

check: $(INSTALLED)  ## check format, lint, types and the layers of imports
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

bench: $(READY)    ## measure against a transactional pass-through on the same broker
	@$(BIN)/python -m benchmarks $(ARGS)

data: $(INSTALLED)  ## fetch two more real logs into var/data; their terms are printed
	@$(BIN)/python -m benchmarks.datasets --pip $(VENV)/tools/bin/python $(ARGS)

evaluate: $(READY) ## prove the learning on real logs, hours, resumes; QUICK=1 takes minutes
	@$(if $(QUICK),,$(MAKE) data ARGS=)
	@$(BIN)/python -m benchmarks.learning $(if $(QUICK),--quick) $(ARGS)

fuzz: $(INSTALLED)   ## feed a million damaged messages and records to what reads them
	@$(BIN)/python -m tests.fuzz $(ARGS)

chaos: $(READY)    ## kill workers and brokers at random, then check every list; HOURS=8 goes on
	@$(BIN)/python -m tests.chaos --hours $(HOURS) $(ARGS)

lifecycle: $(READY) ## train, judge, swap and roll back models under live traffic, then check
	@$(BIN)/python -m tests.lifecycle $(ARGS)

format: $(INSTALLED) ## correct format and lint where that can be done by itself
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: $(INSTALLED)   ## write the table of settings in docs/configuration.md anew
	@$(BIN)/python -m stream.config_docs docs/configuration.md

install: $(READY)  ## fetch packages and Kafka's jars, export BERT; the other targets do it by themselves

lock: $(UV)        ## pin the dependencies anew; ARGS=--upgrade takes newer versions
	@$(call compile,requirements/bootstrap.txt,--group bootstrap)
	@$(call compile,$(LOCK),pyproject.toml --group dev)
	@$(call compile,requirements/runtime.txt,pyproject.toml -c $(LOCK))

clean:             ## remove .venv and everything tools have left here
	rm -rf $(VENV) .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:              ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s%s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

compile = $(UV) pip compile --quiet --universal --generate-hashes --python-version 3.11 \
	--custom-compile-command "make lock" --no-emit-index-url --output-file $(1) $(2) $(ARGS)

# uv has an environment of its own, because a sync removes what the lock does not name.
$(UV): requirements/bootstrap.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11, 3.12 or 3.13 on the PATH; \
	install one or name it with PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c '$(SUPPORTED)' || { echo "make: PYTHON=$(PYTHON) is not Python 3.11, 3.12 or 3.13" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "make: $(PYTHON) comes without venv \
	or ensurepip; install them (Debian and Ubuntu: the package python3.11-venv) or name another PYTHON" >&2; exit 1; }
	@rm -rf $(VENV)/tools
	@"$(PYTHON)" -m venv $(VENV)/tools
	@PIP_USER=0 $(VENV)/tools/bin/python -m pip install --quiet --disable-pip-version-check \
		--require-hashes --requirement $<
	@touch $@

$(INSTALLED): $(UV) $(LOCK) pyproject.toml
	@test -x $(BIN)/python || $(VENV)/tools/bin/python -m venv --without-pip $(VENV)
	@$(UV) pip sync --compile-bytecode --python $(BIN)/python --require-hashes $(LOCK)
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

# BERT as ONNX for the worker: made of the installed package, once.
$(ENCODER): $(INSTALLED) export/to_onnx.py
	@$(BIN)/python -m export.to_onnx
	@touch $@

$(KAFKA): $(INSTALLED) stream/data/kafka_jars.txt
	@$(BIN)/python -m stream.kafka_install
	@touch $@
