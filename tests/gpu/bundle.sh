#!/usr/bin/env bash
# Builds the folder that runs the GPU tests and benches on a machine without Rust: `tests/gpu/bundle.sh FOLDER`. Everything is stripped. What
# needs files of other projects is left out, and named, unless they were fetched (make vllm-exchange; make test-integrations).
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:?usage: bundle.sh FOLDER}
cargo=${CARGO:-cargo}
built=${CARGO_TARGET_DIR:-target}/release
rm -rf "$out"
mkdir -p "$out"/bin/kernels "$out"/steps "$out"/target "$out"/python "$out"/peers

# All at once, so that every crate is built once, with one set of features.
"$cargo" build --release --locked --quiet -p eplb-cli -p eplb-capi -p gloo-sys -p eplb-engine -p eplb-comm -p eplb-cuda \
  --lib --bins --example serve --example kernel_vectors --example kernel_check

# Kernels: fatbins, and what their check needs; fetches the compiler packages if there is no nvcc.
EPLB_BUILT=1 kernels/check.sh --prepare
cp -r target/kernel-check "$out"/target/
rm -rf "$out"/target/kernel-check/out
cp "$out"/target/kernel-check/*.fatbin "$out"/bin/kernels/
cp -r kernels "$out"/

strip -o "$out"/bin/eplb "$built"/eplb
strip -o "$out"/bin/serve "$built"/examples/serve
cp tests/gpu/run.sh tests/gpu/audit.py tests/data/day_26x64.npz "$out"/
cp tests/gpu/steps/*.sh "$out"/steps/
cc -O1 -fPIC -shared -o "$out"/libinterpose.so tests/gpu/interpose.c -ldl

# Beside PyTorch: the package, its library, and Gloo with what it needs, where it was built.
cp -r bindings/python/eplb tests/gpu/*_torch.py tests/python/vllm_*.py bindings/python/examples/serve.py \
  tests/data/day_26x64.npz "$out"/python/
find "$out" -name __pycache__ -prune -exec rm -rf {} +
mkdir "$out"/python/lib
strip -o "$out"/python/lib/libeplb.so "$built"/libeplb.so
if [ -e "$built"/libeplb_gloo.so ]; then
  strip -o "$out"/python/lib/libeplb_gloo.so "$built"/libeplb_gloo.so
  ldd "$built"/libeplb_gloo.so | awk '$1 ~ /^lib(gloo|hiredis|ibverbs|nl)/ && $3 ~ /^\// {print $3}' | xargs -r cp -L -t "$out"/python/lib
else
  echo 'Gloo was left out of the bundle: its headers are not here (make gloo)' >&2
fi
cp benches/peers/exchange.py benches/peers/vllm_*.py "$out"/peers/
if [ -e target/peers/vllm/VERSION ]; then
  cp -r target/peers/vllm "$out"/
else
  echo "vLLM's exchange was left out of the bundle: make vllm-exchange" >&2
fi
if [ -d .venv/peers/sglang ] && [ -d .venv/peers/vllm ]; then
  mkdir "$out"/python/peers
  cp -r .venv/peers/sglang .venv/peers/vllm "$out"/python/peers/
else
  echo "vLLM's and SGLang's planners were left out of the bundle: make test-integrations fetches them" >&2
fi
du -sh "$out"
