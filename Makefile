# The README's two commands, and what they need. Both work on a fresh machine with Python 3.11, make and git.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: inference test test-slow lint format reports clean

inference: .venv/installed
	$(BIN)/retbench inference --seq-len 8192

# Two processes share the cores: spinning threads would hold each other up.
test: .venv/installed-dev lint
	OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 $(BIN)/pytest -n 2 --dist worksteal

test-slow: .venv/installed-dev
	OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 $(BIN)/pytest -m slow -rs -n 2 --dist worksteal

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The repository's own reports/ and README's generated parts, from the records that git keeps.
reports: .venv/installed
	$(BIN)/python -m retbench.report.repository

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The markers are touched last, so that an interrupted installation is taken up again.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
