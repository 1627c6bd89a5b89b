# make run: a git host and a relay to try it on.  make test: everything that decides whether it works.
.DEFAULT_GOAL := help
PY := .venv/bin/python
PYTEST_ARGS ?=
# Bytecode is kept, whatever the caller's environment says: the tests start hundreds of relays, and each would compile the relay anew.
unexport PYTHONDONTWRITEBYTECODE
QUICK := $(addprefix tests/,pages git config openssh observe admission test_floors.py test_address.py test_errors.py test_events.py test_model.py \
	test_splice.py test_tasks.py test_text.py)

help:            ## what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup:           ## the virtual environment with pinned versions, and the hardened libssh2 where it can be built
	@scripts/setup

native:          ## builds the hardened libssh2 and installs it into .venv
	@RELAY_NATIVE=0 scripts/setup
	@native/build.sh

wheels: setup    ## dist/: a manylinux wheel of git-ssh-relay-native, and the relay's wheel
	@scripts/wheels

dist: setup      ## dist/: the source distributions of both
	@scripts/dist

run:             ## the demo: ARGS=--once for the round trip
	@scripts/run $(ARGS)

test: setup      ## all tests
	@scripts/peers
	@$(PY) -m pytest -n 3 --dist loadgroup $(PYTEST_ARGS)

test-stock: setup ## the tests that touch libssh2, once more on the stock wheel, in an environment of its own
	@scripts/peers
	@scripts/test-stock $(PYTEST_ARGS)

lint: setup      ## ruff
	@$(PY) -m ruff check .

types: setup     ## mypy --strict
	@$(PY) -m mypy

check: lint types test ## what CI runs

quick: lint types quick-tests ## lint, types, and the tests that need no peer: what the commit hooks run

quick-tests: setup
	@$(PY) -m pytest -n 2 --dist loadgroup $(QUICK) $(PYTEST_ARGS)

debug: setup     ## the tests of sessions in asyncio's debug mode
	@scripts/peers
	@PYTHONASYNCIODEBUG=1 PYTHONDEVMODE=1 PYTHONMALLOC=pymalloc $(PY) -m pytest -n 3 --dist loadgroup tests/e2e tests/upstream tests/test_splice.py $(PYTEST_ARGS)

docs: setup      ## the generated parts of docs/, anew: after a setting, a metric or an audit field was added
	@$(PY) -m tests.pages

fuzz: setup      ## Atheris on the parsers: SECONDS=60 each
	@$(PY) -m tests.fuzz.run --seconds $${SECONDS:-60}

transcripts: setup ## the sessions in tests/git/transcripts, recorded anew from git, JGit, go-git, dulwich and pygit2
	@$(PY) -m tests.git.record

image-test: setup ## the container image, built by buildah, and a clone through the relay in it; as root
	@scripts/image-test

soak: setup      ## ten minutes of mixed load and random faults
	@scripts/peers
	@$(PY) -m tests.soak --minutes $${MINUTES:-10}

dashboards: setup ## draws the dashboards into docs/images, from a real Prometheus and two minutes of faults
	@scripts/peers
	@$(PY) -m grafana.build
	@$(PY) -m tests.grafana.render 2>/dev/null

bench: setup     ## the whole benchmark, about 47 minutes on a quiet machine of 2 cores
	@scripts/peers
	@$(PY) -m benchmarks

bench-quick: setup ## about eight minutes
	@scripts/peers
	@$(PY) -m benchmarks --quick

clean:           ## removes what the other targets made
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

.PHONY: help setup native wheels dist run test test-stock lint types check quick quick-tests debug docs fuzz transcripts image-test soak dashboards bench bench-quick clean
