# Every target installs what it needs by itself on a fresh Debian 12, as root.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
DEBIAN_PACKAGES := python3 python3-venv git nftables iproute2 iputils-ping conntrack procps util-linux \
  gcc libc6-dev python3-dev libnetfilter-cthelper0 libnetfilter-queue1 \
  sip-tester dnsmasq-base curl

APT_DOWNLOAD := apt-get download -qq -o APT::Sandbox::User=root

.PHONY: help install debian drill drill-all test test-all check format requirements wheel bench-failover bench-sync bench-rest churn clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

debian:
	@missing=""; for p in $(DEBIAN_PACKAGES); do \
	  dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; \
	done; \
	if [ -n "$$missing" ]; then \
	  echo "installing Debian packages:$$missing"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
	fi

$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("hafw needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

install: debian $(VENV)/.installed $(VENV)/.codec $(VENV)/.conntrackd $(VENV)/.keepalived ## Debian packages and the .venv

# The native codec, in place for the editable install. Where it cannot be built, the reference runs.
$(VENV)/.codec: $(VENV)/.installed setup.py sync/_codec.pyx $(wildcard sync/*.pxi)
	CYTHON_FORCE_REGEN=1 $(BIN)/python setup.py --quiet build_ext --inplace --force
	@touch $@

# To measure beside. Unpacked, not installed: the package would start a daemon on this machine.
$(VENV)/.conntrackd: $(VENV)/.installed
	rm -rf $(VENV)/conntrackd && mkdir $(VENV)/conntrackd
	cd $(VENV)/conntrackd && { $(APT_DOWNLOAD) conntrackd || { apt-get update -qq && $(APT_DOWNLOAD) conntrackd; }; } \
	  && dpkg -x conntrackd_*.deb . && rm conntrackd_*.deb
	@touch $@

# The same, with the libraries that only it needs.
$(VENV)/.keepalived: $(VENV)/.installed
	rm -rf $(VENV)/keepalived && mkdir $(VENV)/keepalived
	cd $(VENV)/keepalived && names() { apt-get install -s --no-install-recommends keepalived | awk '/^Inst/ { print $$2 }'; }; \
	  { $(APT_DOWNLOAD) keepalived $$(names) || { apt-get update -qq && $(APT_DOWNLOAD) keepalived $$(names); }; } \
	  && for deb in *.deb; do dpkg -x $$deb . || exit 1; done && rm *.deb
	@touch $@

drill: install ## the main drills once, default timers, IPv4 and IPv6 (drill-all: every one, 5 minutes)
	$(BIN)/hafwctl drill run power-cut freeze kill there-and-back

drill-all: install
	$(BIN)/hafwctl drill run all

# Most tests with a kernel wait for something, so there may be more of them than CPUs; those that
# measure time, or whose leases are counted in milliseconds, run one after the other.
BESIDE := -n 3 --dist loadscope --no-loadscope-reorder tests/packaging tests/fuzz tests/integration

# The same cores, and the world that they run in, as Cython makes machine code of them, for the
# million schedules of the lease: two thirds of the time. They must leave the same traces.
COMPILED := build/simulation
CORES := $(addprefix cluster/,$(addsuffix .py,acceptor announce_plan asks claims damping handover heir \
  lease lease_group pair proposer role session view voters)) \
  $(addprefix tests/simulation/lease_,checks.py engine.py node.py)
TRACES := for seed in 1 2 3 4 5 6; do for of in lease pair; do \
  $(CURDIR)/$(BIN)/python -m tests.simulation.$${of}_schedule --seed $$seed; done; done 2>&1
$(COMPILED)/.built: $(VENV)/.installed $(wildcard cluster/*.py hafw/*.py hafw/config/*.py tests/simulation/*.py)
	rm -rf $(COMPILED) && mkdir -p $(COMPILED)/tests
	cp -r cluster hafw sync $(COMPILED) && cp -r tests/conftest.py tests/simulation $(COMPILED)/tests
	cd $(COMPILED) && CFLAGS="-O2 -w" $(CURDIR)/$(BIN)/cythonize -q -3 -i -X annotation_typing=False $(CORES)
	cp pyproject.toml $(COMPILED)
	cmp <($(TRACES)) <(cd $(COMPILED) && $(TRACES))
	@touch $@

test: install ## what CI runs
	$(BIN)/pytest -m "not long" -n auto tests/unit tests/simulation
	$(BIN)/pytest -m "not long and not alone" $(BESIDE)
	$(BIN)/pytest -m "not long and alone" tests/integration

test-all: install $(COMPILED)/.built ## everything, long simulations and fuzzing included
	$(BIN)/pytest -n auto -k "not many_more_schedules" tests/unit tests/simulation
	cd $(COMPILED) && $(CURDIR)/$(BIN)/python -m pytest -n auto -k many_more_schedules tests/simulation
	$(BIN)/pytest -m "not long and not alone" $(BESIDE)
	$(BIN)/pytest -m "long or alone" tests/fuzz tests/integration

check: install ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install ## format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-failover: install ## 300 power cuts a profile, idle and starved, beside keepalived (some 45 minutes)
	$(BIN)/hafwctl drill bench-failover --json bench-failover.json

bench-sync: install ## replication beside the kernel's floor and conntrackd, 300,000 to 1,000,000 flows
	$(BIN)/hafwctl drill bench-sync --json bench-sync.json

bench-rest: install ## CPU time of each daemon at rest, leased's beside a bare loop (3 minutes)
	$(BIN)/hafwctl drill bench-rest --json bench-rest.json

churn: install ## 1,000,000 flows of churn under loss, both tables compared (some 10 minutes)
	$(BIN)/hafwctl drill churn

requirements: ## export the pinned requirements again (needs uv)
	uv pip compile --generate-hashes --no-header --no-annotate --no-emit-index-url \
	  --all-extras pyproject.toml -o requirements.txt
	uv pip compile --generate-hashes --no-header --no-annotate --no-emit-index-url \
	  -c requirements.txt pyproject.toml -o requirements-run.txt

wheel: install ## dist/hafw-*.whl
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info sync/_codec.*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
