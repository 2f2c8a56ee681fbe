# `make` alone lists the targets, with the text after ## of each.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV ?= $(BIN)/uv

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

# A key of what the virtual environment is made from. If a lock, the interpreter or the folder changes, it is made again.
KEY := $(shell { pwd; $(PYTHON) -V; cat requirements/run.txt requirements/dev.txt; } 2>&1 | cksum | cut -d' ' -f1)
RUN := $(VENV)/run-$(KEY)
DEV := $(VENV)/dev-$(KEY)
BENCH := $(VENV)/bench-$(KEY)-$(shell cksum < requirements/bench.txt | cut -d' ' -f1)
PROJECT := $(VENV)/project-$(KEY)

##@ Use

.PHONY: run
run: $(PROJECT) ## Install what is needed into .venv and start everything on this machine
	@exec $(BIN)/relay up

##@ Work on it

.PHONY: setup
setup: $(DEV) $(PROJECT) ## Create .venv with everything that tests and lint need

# Files run in order: the longest, which inject faults and have few tests, come first, and the many short ones follow.
# Three on two cores: while one waits for a timer or for a process to start, the others have them.
PARALLEL := --numprocesses 3 --dist loadfile --no-loadscope-reorder

.PHONY: test
test: $(DEV) $(PROJECT) ## Run all tests, on a PostgreSQL they start themselves (ARGS="-k lease" chooses)
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

.PHONY: quick
quick: $(DEV) $(PROJECT) ## Run the tests that are not marked slow, for work between commits
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow" $(ARGS)

# They have a short form in `make test`, and take some minutes here.
LONG := tests/contract tests/faults/test_model.py tests/service/store/test_side_by_side.py

.PHONY: soak
soak: $(DEV) $(PROJECT) ## Run long forms of tests, the worst tenant of each tier, then inject all faults repeatedly and audit (SECONDS=1800, SEED=1)
	$(BIN)/python -m pytest --long $(LONG)
	$(BIN)/python -m tests.tenants
	$(BIN)/python -m tests.faults $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) $(ARGS)

.PHONY: clients
clients: $(DEV) $(PROJECT) ## Generate clients from the OpenAPI document with three generators, and test them (needs npm, go)
	$(BIN)/python -m tests.clients

TARGETS := event array lines key key_with_its_checksum idempotency_key

.PHONY: fuzz
fuzz: $(DEV) $(PROJECT) ## Fuzz the parsers, each for a while (SECONDS=60)
	@for target in $(TARGETS); do new=bench/report/fuzz/$$target/ && mkdir -p "$$new" && \
	    $(BIN)/python -m tests.fuzz $$target -max_total_time=$(or $(SECONDS),60) -artifact_prefix="$$new" "$$new" || exit 1; \
	done

# Each migration runs in a transaction of its own. Attempts, statuses and the like will always be small numbers.
SQUAWK := --pg-version 18 --assume-in-transaction --exclude=prefer-bigint-over-int,prefer-bigint-over-smallint

.PHONY: bench
bench: $(BENCH) $(PROJECT) ## Run the load scenarios and check them against the targets (ARGS=--quick, SECONDS=20)
	@$(BIN)/python -m bench $(if $(SECONDS),--seconds $(SECONDS)) $(ARGS)

.PHONY: profile
profile: $(BENCH) $(PROJECT) ## Draw flame graphs of the API and of the delivery process under load
	@$(BIN)/python -m bench.flames $(if $(SECONDS),--seconds $(SECONDS)) $(ARGS)

# These are not on PyPI, so they run only if they are installed.
if-there = if command -v $(1) > /dev/null; then echo "$(2)"; $(2); else echo "$(1) is not here: not looked at"; fi

.PHONY: lint
lint: $(DEV) $(PROJECT) ## Check format, lint, types, layers, migrations, workflows and scripts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/squawk $(SQUAWK) sql/migrations/*.sql
	$(BIN)/zizmor --offline --quiet --no-progress .github
	@$(call if-there,shellcheck,shellcheck scripts/*.sh)
	@$(call if-there,hadolint,hadolint Dockerfile)
	@$(call if-there,actionlint,actionlint)

.PHONY: check
check: lint test ## Run lint, then test, as CI does

.PHONY: lock
lock: $(if $(filter $(BIN)/uv,$(UV)),$(DEV)) ## Resolve the newest versions again and write requirements/ (hashes, no URLs)
	@all=$$(mktemp) && trap 'rm -f "$$all"' EXIT && set -e && \
	resolve() { $(UV) pip compile pyproject.toml --quiet --universal --python-version 3.11 \
	    --no-header --no-annotate "$$@"; } && \
	resolve --extra embedded --extra redis --extra otel --group build --group test --group dev --group bench > "$$all" && \
	write() { echo "writing requirements/$$1.txt" && name=$$1 && shift && \
	    resolve --generate-hashes --constraint "$$all" "$$@" --output-file requirements/$$name.txt > /dev/null; } && \
	write prod --extra redis --extra otel && \
	write run --extra embedded --extra redis --group build && \
	write dev --extra embedded --extra redis --extra otel --group build --group test --group dev && \
	write bench --extra embedded --extra redis --group build --group bench

.PHONY: clean
clean: ## Remove the virtual environment, builds and caches
	rm -rf $(VENV) dist .coverage* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -path ./.git -prune -o -name __pycache__ -prune -exec rm -rf {} +

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^##@ /{printf "%s\n", substr($$0, 5)} /^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The virtual environment. Its stamp is written last, and removed before more is installed. So an environment that was
# interrupted half way is never used: the next make finds no stamp and begins again.

found = $(shell $(PYTHON) -c 'import sys; print("fit" if sys.version_info >= (3, 11) else sys.version.split()[0])' \
	2> /dev/null || echo missing)
need-python = $(if $(filter-out fit,$(found)),$(error relay needs Python 3.11 or newer, and $(PYTHON) is $(found). \
	Name another one: make PYTHON=python3.12))

# Debian leaves ensurepip out of python3; there the pip of $(PYTHON) installs into a virtual environment without one.
pip = pip="$(BIN)/python -m pip"; [ -e $(BIN)/pip ] || pip="$(PYTHON) -m pip --python $(BIN)/python"; \
	$$pip --quiet --disable-pip-version-check --no-input install
locked = echo "installing $$(grep '==' requirements/$(1).txt | grep -vc win32) packages from requirements/$(1).txt" && \
	{ $(pip) --require-hashes --only-binary=:all: -r requirements/$(1).txt; }

$(RUN):
	$(need-python)
	@rm -rf $(VENV)
	@echo "making $(VENV) with $$($(PYTHON) -V)"
	@if $(PYTHON) -c 'import ensurepip; ensurepip.version()' 2> /dev/null; \
	then $(PYTHON) -m venv $(VENV); else $(PYTHON) -m venv --without-pip $(VENV); fi
	@$(call locked,run)
	@touch $@

$(DEV): $(RUN)
	@rm -f $(RUN)
	@$(call locked,dev)
	@touch $(RUN) $@

# Adds to what is installed: all locks are made together, so nothing conflicts.
$(BENCH): | $(RUN)
	@$(call locked,bench)
	@touch $@

$(PROJECT): pyproject.toml relay/__init__.py | $(RUN)
	@echo "installing relay from this folder"
	@$(pip) --no-deps --no-build-isolation --no-index --editable .
	@touch $@
