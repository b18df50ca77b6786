# Standoff. `make run` and `make test` work alone, on a fresh Debian with Python 3.11 or newer.
#
# Variables: PYTHON (empty: the first 3.11+ found), VENV, SOURCE, LISTEN, WORKERS, RUN_ARGS (more for `standoff run`),
# TEST_ARGS (more for pytest), MINUTES (stress, fuzz), SEED (the one that a failure printed), KILLS (stress), BENCH_ARGS,
# PREFIX, BINDIR, DESTDIR (install).

PYTHON    ?=
VENV      ?= .venv
SOURCE    ?= file:deploy/sample/example.test.zone
LISTEN    ?= 127.0.0.1:5300
WORKERS   ?= 2
RUN_ARGS  ?=
TEST_ARGS ?=
MINUTES   ?= 10
SEED      ?=
KILLS     ?= 2000
BENCH_ARGS ?=
PREFIX    ?= /opt/standoff
BINDIR    ?= /usr/local/bin
DESTDIR   ?=

BUILD_INPUTS := pyproject.toml $(wildcard $(foreach room,shm server loader cli,$(room)/*.pyx $(room)/*.pxd $(room)/*.h))
BUILT        := $(VENV)/.built
PYTEST       := PATH="$(CURDIR)/.cache/tools/bin:$$PATH" $(VENV)/bin/python -m pytest

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: help run build test check format stress fuzz bench wheel install uninstall clean test-tools

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  make %-10s %s\n' "$$name" "$$text"; done

run: $(BUILT)  ## build, then serve the sample zone on 127.0.0.1:5300
	exec $(VENV)/bin/standoff run --source "$(SOURCE)" --listen "$(LISTEN)" --workers $(WORKERS) $(RUN_ARGS)

build: $(BUILT)  ## the environment and the compiled modules, nothing else

test: $(BUILT) $(VENV)/.extras-test test-tools  ## build, fetch what the tests need, run them all (TEST_ARGS="-k lock")
	PATH="$(CURDIR)/.cache/tools/bin:$$PATH" $(VENV)/bin/python -m tests.run $(TEST_ARGS)

check: $(BUILT) $(VENV)/.extras-test $(VENV)/.extras-dev  ## style, types, house rules, fast tests
	.ci/check $(VENV)

format: $(VENV)/.extras-dev  ## lay out the Python sources
	$(VENV)/bin/ruff check --fix --quiet .
	$(VENV)/bin/ruff format .

stress: $(BUILT) $(VENV)/.extras-test test-tools  ## kill and reload without end while every answer is checked (MINUTES, KILLS, SEED)
	STANDOFF_TORTURE_S=$$(($(MINUTES) * 60)) STANDOFF_MAYHEM_S=$$(($(MINUTES) * 60)) \
		STANDOFF_TORTURE_KILLS=$(KILLS) STANDOFF_TORTURE_SEED=$(SEED) \
		$(PYTEST) tests/torture -s --timeout 0 $(TEST_ARGS)

fuzz: $(BUILT) $(VENV)/.extras-test  ## packets and tables out of a generator (MINUTES, SEED)
	STANDOFF_FUZZ_MINUTES=$(MINUTES) STANDOFF_SEED=$(SEED) $(PYTEST) tests/fuzz -s --timeout 0 $(TEST_ARGS)

bench: $(BUILT) $(VENV)/.extras-bench test-tools  ## measure (BENCH_ARGS)
	PATH="$(CURDIR)/.cache/tools/bin:$$PATH" $(VENV)/bin/python -m bench $(BENCH_ARGS)
	PATH="$(CURDIR)/.cache/tools/bin:$$PATH" $(VENV)/bin/python -m bench.kinds
	PATH="$(CURDIR)/.cache/tools/bin:$$PATH" $(VENV)/bin/python -m bench.tcp
	PATH="$(CURDIR)/.cache/tools/bin:$$PATH" $(VENV)/bin/python -m bench.scale
	PATH="$(CURDIR)/.cache/tools/bin:$$PATH" $(VENV)/bin/python -m bench.skydns

wheel: $(BUILT)  ## sdist, wheel from it, a clean environment, the command
	.ci/wheel $(VENV)/bin/python

install: $(BUILT)  ## into PREFIX, with units and man pages (DESTDIR honoured)
	deploy/install.sh install "$(VENV)" "$(PYTHON)" "$(PREFIX)" "$(BINDIR)" "$(DESTDIR)"

uninstall:  ## remove what install put there; /etc/standoff and the snapshots stay
	deploy/install.sh uninstall "$(VENV)" "$(PYTHON)" "$(PREFIX)" "$(BINDIR)" "$(DESTDIR)"

clean:  ## remove all that was built or fetched
	rm -rf $(VENV) .cache build dist *.egg-info bench/out bench/bin .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f $(foreach room,shm server loader cli,$(room)/*.so $(patsubst %.pyx,%.c,$(wildcard $(room)/*.pyx)))
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

test-tools:
	@deploy/prerequisites.sh test

$(BUILT): $(BUILD_INPUTS) deploy/build.sh
	@deploy/prerequisites.sh build "$(PYTHON)"
	@deploy/build.sh package "$(VENV)" "$(PYTHON)"
	@touch $@

$(VENV)/.extras-%: pyproject.toml $(BUILT)
	@deploy/build.sh extras "$(VENV)" $*
	@touch $@
