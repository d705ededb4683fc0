# Umbrella. `make vae` and `make test` are the whole set-up: each makes .venv from requirements.lock when it is missing
# or older than the lock, and needs Python 3.11 or newer, make, and a package index.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Two workers by default: a laptop's cores are shared, and each test process compiles with all the threads it finds.
JOBS   ?= 2

.PHONY: help venv vae test test-slow faults lint lint-deploy types format lock bench docs clean

help:            ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 12

venv: $(VENV)/.ready  ## the environment, in .venv

# The stamp is written last: an installation that was interrupted is made again.
$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Umbrella needs Python 3.11 or newer; $(PYTHON) is older. Try: make venv PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

vae: venv        ## train the variational autoencoder on handwritten digits; prints the path of its report
	$(BIN)/python launch.py --config=configs/vae.py --workdir=runs/vae

test: venv       ## the tests, the notebooks included
	$(BIN)/python -m pytest -n $(JOBS) --dist=worksteal -m "not slow"

test-slow: venv  ## more of the same: every variant of every config, every law of every augmentation
	$(BIN)/python -m pytest -n $(JOBS) --dist=worksteal -m slow

faults: venv     ## inject faults by the thousand (about 15 minutes), and print what was lost
	$(BIN)/python -m tests.faults

lint: venv       ## ruff
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

# Its linters have an environment of their own: nothing else needs them.
lint-deploy: build/lint-deploy/.ready  ## shellcheck, hadolint, yamllint and the schemas of Kubernetes on deploy/
	build/lint-deploy/bin/shellcheck deploy/slurm.sbatch
	build/lint-deploy/bin/hadolint deploy/Dockerfile
	build/lint-deploy/bin/yamllint --strict -c deploy/.yamllint deploy
	build/lint-deploy/bin/python deploy/validate.py

build/lint-deploy/.ready: deploy/requirements-lint.txt
	$(PYTHON) -m venv build/lint-deploy
	build/lint-deploy/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

types: venv      ## mypy
	$(BIN)/mypy

format: venv     ## put every file into the house format
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

lock:            ## resolve pyproject.toml anew into requirements.lock (needs uv)
	uv pip compile pyproject.toml --universal --python-version 3.11 --extra test --extra notebooks \
	  --generate-hashes --quiet --output-file requirements.lock

bench: venv      ## the side-by-side timings; torch and lightning join when they are installed (pip install -e '.[bench]')
	$(BIN)/python -m benchmarks

clean:           ## remove the environment and the runs
	rm -rf $(VENV) runs
