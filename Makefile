# make        everything: the environment, the library for each target that this machine can build, how well they agree
# make test   the tests           make check   style, types, and whether generated/ is up to date
# make certificates   measure every loss against exact arithmetic, anew
# make sweep  the slow tests      make fuzz    random definitions through the whole compiler
# make gpu    on a machine with a GPU: its tests, and how fast the kernels are     make memcheck  the same tests under compute-sanitizer
# make clean  back to the checkout; generated/ stays

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
LIBRARY := generated/.losscomp/state.json

.PHONY: all build test check certificates sweep fuzz gpu memcheck clean FORCE

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

gpu: .venv/tested
	$(BIN)/losscomp build --cuda
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python tests/cuda/bench.py

memcheck: .venv/tested
	$(BIN)/losscomp build --cuda
	for tool in memcheck racecheck synccheck; do \
	    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 $(BIN)/python -m pytest -m gpu -k agrees || exit 1; done

check: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/losscomp build --check

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache generated/.losscomp
	find . -name __pycache__ -prune -exec rm -rf {} +
	find generated -name '*.so' -delete 2>/dev/null || true
