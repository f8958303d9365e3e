# make        everything: the environment, the library for each target that this machine can build, how well they agree
# make test   the tests           make check   style, types, and whether generated/ is up to date
# make certificates   measure every loss against exact arithmetic, anew
# make sweep  the slow tests      make fuzz    random definitions through the whole compiler
# make clean  back to the checkout; generated/ stays

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
LIBRARY := generated/.losscomp/state.json

.PHONY: all build test check certificates sweep fuzz clean FORCE

all: .venv/agreement.txt
	@cat $<

# The environment, and what tests need besides.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11: make PYTHON=python3.x"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --editable .
	@touch $@

.venv/tested: .venv/installed
	$(PIP) --editable '.[test,torch]'
	@touch $@

# The library. losscomp itself knows what is up to date; the file is new only if something changed.
build: $(LIBRARY)

$(LIBRARY): .venv/installed FORCE
	@$(BIN)/losscomp build

.venv/agreement.txt: $(LIBRARY) $(wildcard losscomp/verify.py losscomp/oracle/*.py)
	@$(BIN)/losscomp verify --quick > $@.new || { cat $@.new; exit 1; }
	@mv $@.new $@

test: .venv/tested build
	$(BIN)/python -m pytest -n $(WORKERS) -m 'not slow and not fuzz'

certificates: .venv/tested build
	$(BIN)/losscomp verify --certify

sweep: .venv/tested build
	$(BIN)/python -m pytest -n $(WORKERS) -m slow

fuzz: .venv/tested build
	$(BIN)/python -m pytest -n $(WORKERS) -m fuzz

check: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/losscomp build --check

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache generated/.losscomp
	find . -name __pycache__ -prune -exec rm -rf {} +
	find generated -name '*.so' -delete 2>/dev/null || true
