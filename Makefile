# `make demo` and `make test` do all their own set-up in .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Images for containers often forbid bytecode files; every process would then compile PyTorch's thousands of modules anew.
unexport PYTHONDONTWRITEBYTECODE
# TORCH=cpu: PyTorch without CUDA's libraries, from an index that has it; in a new .venv only.
TORCH ?=
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH_PINS = $(shell sed -n 's/^ *"\(torch==[^"]*\)", "\(torchvision==[^"]*\)",$$/\1 \2/p' pyproject.toml)
# Workers share the cores, so none starts threads. What comes first stays first: tests of real processes, which wait.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
# How long `make attack` fuzzes each target.
SECONDS ?= 600
PACKAGES := nginx prometheus prometheus-alertmanager postgresql-15 postgresql-client-15 libpq5
DEMO := $(BIN)/fedcaptor simulate simulations/scenarios/demo.toml --fresh

.PHONY: setup demo test test-long test-cluster test-android test-fast attack tools coverage lint docs stubs site results clean

setup: .venv/ready

.venv/ready: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Setting up .venv (torch is large: this takes a few minutes the first time)"
	@test "$(TORCH)" != cpu || $(BIN)/python -m pip install -q --disable-pip-version-check --no-compile --no-deps \
	  --index-url $(TORCH_INDEX) $(TORCH_PINS)
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-compile -e '.[dev]'
	@touch $@

# Both runs side by side: each has steps that keep one core busy alone.
demo: setup
	@mkdir -p runs
	@$(DEMO) --set privacy.noise=false --out runs/demo-open > runs/demo-open.log 2>&1 & open=$$!; \
	$(DEMO) --out runs/demo > /dev/null; first=$$?; \
	wait $$open || { cat runs/demo-open.log; exit 1; }; exit $$first
	@$(BIN)/fedcaptor report runs/demo runs/demo-open

test: setup
	$(PYTEST) -m "not long and not android"

test-long: setup # the rest: whole runs through Flower's processes, stops and kills, pages from first line to last
	$(PYTEST) -m "long and not cluster and not android"

test-cluster: setup # Ray's engine on a cluster of two nodes on loopback
	$(PYTEST) -m cluster

test-android: setup # phones on a cable: adb's daemon and arm64 programs under qemu, unpacked from Debian into .tools
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m android -v --durations=20 tests/android

test-fast: setup # without real processes, browsers and computations of more than a second
	$(PYTEST) -m "not slow and not long and not android"

attack: setup # fuzz each target for SECONDS, then all attacks on what docs/privacy.md promises
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-compile -e '.[attack]'
	@broken=; for target in $$($(BIN)/python -m tests.fuzz); do \
	  $(BIN)/python -m tests.fuzz $$target --seconds $(SECONDS) || broken="$$broken $$target"; \
	done; \
	$(PYTEST) $$($(BIN)/python -m tests.attacks) || broken="$$broken attacks"; \
	test -z "$$broken" || { echo "broken:$$broken"; exit 1; }

tools: # nginx, Prometheus, Alertmanager and PostgreSQL of Debian in .tools: unpacked, not installed, so no service starts
	@mkdir -p .tools/packages
	@cd .tools/packages && apt-get download -qq $(PACKAGES)
	@for package in .tools/packages/*.deb; do dpkg -x $$package .tools || exit 1; done

coverage: setup # a page in runs/coverage
	$(BIN)/python -m pytest -m "not slow and not long" --cov --cov-report=term --cov-report=html:runs/coverage

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup # the pages that are made from code
	$(BIN)/fedcaptor config --reference > docs/configuration.md
	$(BIN)/fedcaptor messages > docs/messages.md
	$(BIN)/fedcaptor dashboards deploy/monitoring/dashboards

STUBS := catalogue/bytestream enrolment/enrolment
stubs: setup # the code of gRPC messages
	$(BIN)/python -m grpc_tools.protoc -Ifedcaptor/common=common --python_out=. --pyi_out=. $(STUBS:%=fedcaptor/common/%.proto)

site: setup # the documentation, in site/; needs no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

results: setup
	@$(BIN)/python -m benchmarks results

clean:
	rm -rf runs site .pytest_cache .mypy_cache .ruff_cache
