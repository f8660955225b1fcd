# Two commands for a newcomer: `make quickstart` and `make test`. They make .venv when it is missing, as all others do.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test numeric matrix lint format docs package clean

quickstart: $(INSTALLED) ## the main job on the toy dataset: prepare, evaluate frozen, train, evaluate, report
	$(BIN)/python scripts/quickstart.py

# Tests side by side, a thread each: threads of two processes would wait for each other.
test: $(INSTALLED) ## the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

numeric: $(INSTALLED) ## the tests that compare computations in floats, as on the plainest processor and with two threads
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m "numeric and not long"

matrix: $(INSTALLED) ## every promised Python, release and kind of processor: docs/portability.md
	rm -f .nox/.cache/matrix.md
	$(BIN)/nox

lint: $(INSTALLED) ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## rewrite files in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED) ## the documentation as a site, in site/; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

package: $(INSTALLED) ## sdist and wheel, built into dist/, installed and used in fresh environments
	$(BIN)/python scripts/check_package.py

clean: ## remove the environment; datasets and results stay
	rm -rf $(VENV)

# Installed again only when pyproject.toml changed.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("fss-svf needs Python >= 3.10, this is " + sys.version.split()[0] + "; set PYTHON=") if sys.version_info < (3, 10) else None'
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "Installing PyTorch and the rest into $(VENV): about 5 GB, some minutes, once."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
