#!/usr/bin/env bash
# Compiles the kernels: `kernels/build.sh FOLDER [--fetch]` writes FOLDER/{dispatch,rows,checksum,crowd}.fatbin with machine code for
# Ampere, Hopper and Blackwell, and PTX of the last for what comes later. Warnings are errors, and so are registers that
# spill. Exit code 3: there is no nvcc, and nothing was compiled.
set -euo pipefail
out=${1:?usage: build.sh FOLDER [--fetch]}
here=$(cd "$(dirname "$0")" && pwd)
nvcc=$("$here/nvcc.sh" "${2:-}") || {
  code=$?
  [ $code = 3 ] && printf '%s\n' '==================================================================' \
    'THE GPU KERNELS WERE NOT COMPILED: there is no nvcc on this machine.' \
    '`make kernels` fetches the compiler packages (100 MB) and checks them.' \
    '==================================================================' >&2
  exit $code
}
mkdir -p "$out"
targets=()
for arch in 80 90 100; do targets+=(-gencode "arch=compute_$arch,code=sm_$arch"); done
targets+=(-gencode arch=compute_100,code=compute_100)
for kernel in dispatch rows checksum crowd; do
  log=$("$nvcc" -std=c++17 -O3 -fatbin "${targets[@]}" -Werror all-warnings -Xptxas -v \
    -o "$out/$kernel.fatbin" "$here/$kernel.cu" 2>&1) || { printf '%s\n' "$log"; exit 1; }
  if grep 'spill' <<<"$log" | grep -qv ' 0 bytes spill stores, 0 bytes spill loads'; then
    printf '%s\n' "$log" "$kernel.cu: registers spill to memory"
    exit 1
  fi
  printf '%s.cu: %s entry points, most registers %s, no spills: %s bytes\n' "$kernel" \
    "$(grep -c "Compiling entry function '.*' for 'sm_90'" <<<"$log")" \
    "$(grep -oE 'Used [0-9]+ registers' <<<"$log" | grep -oE '[0-9]+' | sort -n | tail -1)" "$(stat -c %s "$out/$kernel.fatbin")"
done
