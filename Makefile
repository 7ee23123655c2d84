# What a user types. `make run` runs the main job, `make test` passes the tests; each installs what it needs.
CARGO ?= cargo
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

TRACE := tests/data/day_26x64.npz

REPORT := target/report.html

.PHONY: help run report test check test-faults test-report bench tools

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

run: tools ## Walk a real trace: plan, move the experts between 16 ranks, check every byte
	$(CARGO) run --release --locked --quiet -p eplb-cli -- rebalance --trace $(TRACE) --ranks 16 --slots 80

report: tools ## Replay the trace under five policies and write a report to look at
	$(CARGO) run --release --locked --quiet -p eplb-cli -- replay --trace $(TRACE) --slots 80 --gpus 16 \
	  --policy incremental,balanced,deepseek,static,random --oracle --report $(REPORT)

# The same in a real browser: the page must load without an error.
test-report: report
	@command -v chromium >/dev/null || { if [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq chromium; \
	  else sudo apt-get update -qq && sudo apt-get install -y -qq chromium; fi; }
	tests/browser/loads.sh $(REPORT)

test: tools check ## Run every test that needs no GPU and no Python packages
	$(CARGO) test --workspace --locked

check: tools
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked --quiet

test-faults: tools ## The long form of the fault tests: more seeds, longer runs
	EPLB_SIM_SEEDS=10000 $(CARGO) test --release --workspace --locked

bench: tools ## The criterion suites
	$(CARGO) bench --locked -p eplb-benches

# A linker is all that is needed beside Rust.
tools:
	@command -v $(CARGO) >/dev/null || { echo "cargo is missing: install Rust 1.89 or later"; exit 1; }
	@command -v cc >/dev/null || { \
	  if [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq gcc libc6-dev; \
	  else sudo apt-get update -qq && sudo apt-get install -y -qq gcc libc6-dev; fi; }
