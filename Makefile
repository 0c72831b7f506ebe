# One command each; everything happens in .venv, which the first of them makes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
KERNELS := $(wildcard edge_client/kernels/*.cpp edge_client/kernels/*.h edge_client/kernels/isa/*)

.PHONY: demo test check bench faults soak fuzz wheels clean help
help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml CMakeLists.txt $(KERNELS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[coordinator,export,demo,plots,dev]'
	touch $@

demo: $(INSTALLED) ## Train a small federation on this machine: sparse beside dense, with bytes and joules
	$(BIN)/sparsefleet demo

test: $(INSTALLED) ## Run every test: those of check, then the slow ones
	tools/install-test-tools
	$(MAKE) check
	$(BIN)/python -m pytest -m "slow and not alone" --numprocesses 2 --dist loadfile
	$(BIN)/python -m pytest -m alone

check: $(INSTALLED) ## Format, lint, types, C++ warnings as errors, the quick tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/cmake -S . -B build/check -DSPARSEFLEET_WERROR=ON -DSKBUILD_STATE=check >/dev/null
	$(BIN)/cmake --build build/check --parallel
	$(BIN)/python -m pytest -m "not slow" --numprocesses 3 --dist loadfile

bench: $(INSTALLED) ## Measure training steps, layers and memory of this machine into runs/bench; many minutes
	$(BIN)/sparsefleet bench --out runs/bench

faults: $(INSTALLED) ## Inject every fault, with all trials, and write docs/faults.md; an hour and the soak's length
	tools/install-test-tools
	rm -f runs/faults.jsonl; mkdir -p runs
	-SPARSEFLEET_FAULTS=$(CURDIR)/runs/faults.jsonl $(BIN)/python -m pytest --timeout 0
	$(BIN)/python -m tests.faults.matrix runs/faults.jsonl

soak: $(INSTALLED) ## Twenty clients and a random fault every ten seconds for SPARSEFLEET_SOAK_S (two hours)
	SPARSEFLEET_SOAK_S=$${SPARSEFLEET_SOAK_S:-7200} $(BIN)/python -m pytest tests/faults/test_soak.py -s --timeout 0

fuzz: $(INSTALLED) ## Feed every decoder with rubbish for SPARSEFLEET_FUZZ_S (30 minutes)
	SPARSEFLEET_FUZZ_S=$${SPARSEFLEET_FUZZ_S:-1800} $(BIN)/python -m pytest tests/fuzz --timeout 0

wheels: $(INSTALLED) ## Build the wheels for boards (aarch64) and for this machine into dist/
	$(BIN)/python -m tools.wheels dist

clean: ## Remove everything that was built
	rm -rf build dist $(VENV) edge_client/kernels/libsparsefleet_ops.*
