# What a user types. `make run` runs the main job, `make test` passes the tests; each installs what it needs.
CARGO ?= cargo
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

TRACE := tests/data/day_26x64.npz

REPORT := target/report.html

# Where cargo puts what it builds.
DEBUG := $(abspath $(or $(CARGO_TARGET_DIR),target))/debug

PYTHON_TESTS = PYTHONPATH=bindings/python python3 -m unittest discover -s bindings/python/tests

.PHONY: help run report test test-python test-integrations check test-faults test-report bench wheel install bench-peers vllm-exchange kernels kernel-check gloo gloo-tools tools python gpu-bundle bindings bindings-check

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

run: tools ## Walk a real trace: plan, move the experts between 16 ranks, check every byte
	$(CARGO) run --release --locked --quiet -p eplb-cli -- rebalance --trace $(TRACE) --ranks 16 --slots 80

report: tools ## Replay the trace under five policies and write a report to look at
	$(CARGO) run --release --locked --quiet -p eplb-cli -- replay --trace $(TRACE) --slots 80 --gpus 16 \
	  --policy forecast,incremental,balanced,deepseek,static --oracle --report $(REPORT)

# The same in a real browser: the page must load without an error and answer, and broken ones must be noticed.
test-report: report
	@command -v chromium >/dev/null || { if [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq chromium; \
	  else sudo apt-get update -qq && sudo apt-get install -y -qq chromium; fi; }
	tests/browser/loads.sh $(REPORT)
	tests/browser/planted.sh $(REPORT)

# Kernels: their source runs on the CPU among the tests of eplb-comm; here they are compiled for GPUs, where there is an nvcc.
# Properties draw the same cases every time here, and new ones in test-faults. All is built once: the Python side takes its library from there.
test: export EPLB_LIBCLANG := required
test: tools gloo-tools python check ## Run every test that needs no GPU and no Python packages
	$(CARGO) test --workspace --locked --no-run
	EPLB_LIBRARY=$(DEBUG)/deps/libeplb.so $(PYTHON_TESTS)
	PROPTEST_RNG_SEED=1 $(CARGO) test --workspace --locked
	kernels/build.sh target/kernels || [ $$? = 3 ]

kernels: ## Compile the GPU kernels; fetches the CUDA 13.0 compiler packages if there is no nvcc
	kernels/build.sh target/kernels --fetch

kernel-check: tools ## Prepare target/kernel-check, with which kernels/check.sh runs on a GPU machine without Rust
	kernels/check.sh --prepare

test-python: tools gloo-tools python
	$(CARGO) build --locked --quiet -p eplb-capi
	EPLB_LIBRARY=$(DEBUG)/libeplb.so $(PYTHON_TESTS)

wheel: tools python ## Build the Python package for all versions of Python into target/wheels
	python3 bindings/python/build_backend/eplb_build.py target/wheels

PREFIX ?= /usr/local
install: tools ## Build the C library and install it with header and pkg-config file into PREFIX (default /usr/local; DESTDIR as ever)
	$(CARGO) build --release --locked --quiet -p eplb-capi
	bindings/c/install.sh $(or $(CARGO_TARGET_DIR),target)/release $(PREFIX)

test-integrations: tools gloo-tools python ## Tests with torch and numpy, installed into .venv: torch's dumps, its Gloo beside ours, vLLM and SGLang
	python3 benches/peers/packages.py
	$(CARGO) build --locked --quiet -p eplb-cli -p eplb-capi -p gloo-sys
	cd benches/peers && ../../.venv/bin/python -m unittest test_scores
	EPLB=$(DEBUG)/eplb EPLB_LIBRARY=$(DEBUG)/libeplb.so PYTHONPATH=bindings/python \
	  .venv/bin/python -m unittest discover -s tests/python
	rm -rf target/wheel-check && python3 bindings/python/build_backend/eplb_build.py target/wheel-check
	.venv/bin/python -m pip install --quiet --no-deps --target target/wheel-check/installed target/wheel-check/*.whl
	.venv/bin/python -m pip install --quiet --no-deps --target target/wheel-check/from-source bindings/python
	for made in installed from-source; do ( cd target/wheel-check/$$made && PYTHONPATH=. ../../../.venv/bin/python -c \
	  'import eplb; assert "wheel-check" in eplb.__file__; assert eplb.plan([[3, 1]], ranks=2, slots=4).balancedness == 1' ) || exit 1; done

check: tools
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked --quiet

test-faults: tools ## The long form of the fault tests: more seeds, longer runs
	EPLB_SIM_SEEDS=10000 EPLB_FAULTS=all $(CARGO) test --release --workspace --locked

bench: tools ## The criterion suites
	$(CARGO) bench --locked -p eplb-benches

bench-peers: tools python ## Compare with the published planners of SGLang, vLLM and vllm-ascend, installed into .venv
	python3 benches/peers/compare.py

gloo: gloo-tools ## Build target/release/libeplb_gloo.so, which the gloo backend loads; installs libgloo-dev
	$(CARGO) build --release --locked --quiet -p gloo-sys

# Where Gloo's headers are, cargo builds libeplb_gloo.so beside every program; its tests need them, and libclang.
gloo-tools: tools
	@{ test -e /usr/include/gloo/config.h && ls /usr/lib/llvm-*/lib/libclang*.so*; } >/dev/null 2>&1 || { \
	  if [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq libgloo-dev libclang-dev; \
	  else sudo apt-get update -qq && sudo apt-get install -y -qq libgloo-dev libclang-dev; fi; }

# A linker is all that building needs beside Rust; tests compile C and C++ (the C interface, the kernels on the CPU).
tools:
	@command -v $(CARGO) >/dev/null || { echo "cargo is missing: install Rust 1.89 or later"; exit 1; }
	@{ command -v cc && command -v c++; } >/dev/null || { \
	  if [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq gcc g++ libc6-dev; \
	  else sudo apt-get update -qq && sudo apt-get install -y -qq gcc g++ libc6-dev; fi; }

# For the Python side: 3.11 or later, with venv where packages are installed.
python:
	@python3 -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  if [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq python3 python3-venv; \
	  else sudo apt-get update -qq && sudo apt-get install -y -qq python3 python3-venv; fi; }
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed"; exit 1; }

# Runs on any x86-64 Linux with an NVIDIA driver and NCCL, without Rust.
gpu-bundle: tools ## Build target/gpu-bundle: copy it to a machine with GPUs and start its run.sh
	tests/gpu/bundle.sh target/gpu-bundle

vllm-exchange: python ## Fetch vLLM's exchange (340 MB, a few files of it are kept) for the next gpu-bundle, to be measured beside ours
	python3 benches/peers/vllm_files.py target/peers/vllm

bindings: ## Generate the bindings of NCCL from its header again; needs libclang
	EPLB_WRITE_BINDINGS=1 $(CARGO) test --locked -p nccl-rs --features generate --test generated
	rustfmt --edition 2024 bindings/nccl-rs/src/sys.rs

bindings-check: ## Check that the bindings of NCCL are those of its header; needs libclang
	$(CARGO) test --locked -p nccl-rs --features generate --test generated
