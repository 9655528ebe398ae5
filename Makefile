# Tidemill: what a person does with this checkout. `make` alone lists it.
#
# CARGO_FLAGS goes to every build (`make test CARGO_FLAGS=--offline`). Tools that make fetches lie in target/tools.

.DEFAULT_GOAL := help
.PHONY: help demo install test services-up services-down lint fmt bench torture dist picture build-needs

CARGO ?= cargo
CARGO_FLAGS ?=
# Where `make install` puts the binary: PREFIX/bin.
PREFIX ?= $(HOME)/.local
TOOLS := $(CURDIR)/target/tools
export PATH := $(TOOLS)/bin:$(PATH)

help: ## list these targets
	@echo "Tidemill: an exactly-once micro-batch ETL daemon. Targets:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build-needs ## run the whole thing once, with nothing set up: feed, clean, store, kill -9, count
	@test -x target/debug/tidemill || { echo "make demo: building Tidemill first: minutes the first time, seconds after that"; \
		$(CARGO) build $(CARGO_FLAGS) -p tidemill; }
	@$(CARGO) run -q $(CARGO_FLAGS) -p tidemill -- demo

install: build-needs ## the fastest binary into PREFIX/bin (default ~/.local; /usr for all): the build takes a while
	$(CARGO) build $(CARGO_FLAGS) --profile dist -p tidemill
	@install -D -m 0755 target/dist/tidemill "$(DESTDIR)$(PREFIX)/bin/tidemill"
	@echo "installed: $(DESTDIR)$(PREFIX)/bin/tidemill"
	@case ":$$PATH:" in *":$(PREFIX)/bin:"*) ;; *) echo "add it to your PATH: export PATH=\"$(PREFIX)/bin:\$$PATH\"" ;; esac

test: build-needs ## all tests: unit, conformance, golden, end to end, crash, power cuts
	@tests/tools.sh
	@tests/run.sh $(CARGO_FLAGS)

services-up: ## Kafka, PostgreSQL, MariaDB, MySQL, Redis for tests, on free ports; a test starts what it needs by itself
	@tests/services/up.sh

services-down: ## stop them, and remove their data
	@tests/services/down.sh

lint: build-needs ## formatting, clippy, licences and sources of dependencies, docs: no warning passes
	@tests/tools.sh --lint
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(CARGO_FLAGS) --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(CARGO_FLAGS) --workspace --no-deps --document-private-items
	$(CARGO) deny --locked --log-level error check bans licenses sources
	@! command -v shellcheck >/dev/null || shellcheck -x tests/*.sh tests/services/*.sh .ci/run

fmt: ## format the code
	$(CARGO) fmt --all

bench: build-needs ## job W beside DuckDB, topics beside psql and a bare loop, per CPU-second; SIZE_MB=50 RECORDS=100000 for a quick look
	@tests/tools.sh --bench
	@tests/bench/run.sh $(CARGO_FLAGS)

torture: build-needs ## the long runs: 2,100 power cuts, 200 kills in every phase of each pair, 500 faults to groups of daemons
	@tests/tools.sh
	@STATES=700 KILLS=200 FAULTS=500 WEBLOG_RECORDS=3000000 tests/run.sh $(CARGO_FLAGS)

picture: build-needs ## docs/demo.svg, from a run of the demo
	$(CARGO) build -q $(CARGO_FLAGS) -p tidemill
	@target/debug/tidemill demo --seconds 6 | docs/picture.py > docs/demo.svg

dist: build-needs ## the fastest and smallest binary: target/dist/tidemill
	$(CARGO) build $(CARGO_FLAGS) --profile dist -p tidemill
	@ls -l target/dist/tidemill

build-needs:
	@tests/tools.sh --build
