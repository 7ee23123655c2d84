#!/usr/bin/env bash
# Prints the nvcc to use, and nothing else: $NVCC, the one on the PATH, CUDA's usual folder, or the compiler packages of CUDA
# 13.0 in .cache/cuda. `nvcc.sh --fetch` puts those there first if no other is found. Exit code 3: there is none.
set -euo pipefail
cd "$(dirname "$0")/.."
packages=.cache/cuda/nvidia/cu13

found() { printf '%s\n' "$1"; exit 0; }
[ -z "${NVCC:-}" ] || found "$NVCC"
! command -v nvcc >/dev/null || found "$(command -v nvcc)"
[ ! -x /usr/local/cuda/bin/nvcc ] || found /usr/local/cuda/bin/nvcc
[ ! -x "$packages/bin/nvcc" ] || found "$PWD/$packages/bin/nvcc"
[ "${1:-}" = --fetch ] || exit 3

# Exactly one CUDA release: parts of two do not fit together. Without dependencies, since these five are all there are.
python3 -m pip install --quiet --no-deps --target .cache/cuda --upgrade --disable-pip-version-check --root-user-action=ignore \
  'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*' 'nvidia-cuda-runtime==13.0.*' \
  'nvidia-cuda-cccl==13.0.*' >&2
[ -x "$packages/bin/nvcc" ] || { echo "the CUDA compiler packages have no $packages/bin/nvcc" >&2; exit 1; }
found "$PWD/$packages/bin/nvcc"
