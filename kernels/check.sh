#!/usr/bin/env bash
# The kernels on a real GPU: twins, planted faults, compute-sanitizer, figures.
#
#   kernels/check.sh --prepare     where there is Rust: puts cases and fatbins into target/kernel-check
#   kernels/check.sh               where there is a GPU and nvcc: runs all with those files, prints a table, and writes it, figures
#                                  and logs to $OUT (target/kernel-check/out if that is not set)
#
# Exit code 0: all that was asked of this machine was run and held. A step that could not run is a failure.
set -uo pipefail
cd "$(dirname "$0")/.."
dir=target/kernel-check

if [ "${1:-}" = --prepare ]; then
  set -e
  mkdir -p $dir
  kernels/build.sh $dir --fetch
  built=${CARGO_TARGET_DIR:-target}/release/examples
  # Whoever has just built them says so.
  [ -n "${EPLB_BUILT:-}" ] || cargo build --release --locked --quiet -p eplb-comm -p eplb-cuda --example kernel_vectors --example kernel_check
  strip -o $dir/kernel_vectors "$built"/kernel_vectors
  strip -o $dir/kernel_check "$built"/kernel_check
  $dir/kernel_vectors $dir/small.vec small 1
  exit 0
fi

out=${OUT:-$dir/out}
mkdir -p "$out"
work=$(mktemp -d)
mkdir "$work/logs"
trap 'rm -rf "$work"' EXIT
failed=0
table=()
row() { table+=("$(printf '%-46s %s' "$1" "$2")"); }

# step NAME SECONDS EXPECTED-CODE COMMAND..: runs with a time limit, its output in a log of its name.
step() {
  local name=$1 limit=$2 expected=$3 began=$SECONDS code=0
  shift 3
  timeout -k 5 "$limit" "$@" >"$work/logs/$name.log" 2>&1 || code=$?
  if [ $code = "$expected" ]; then
    row "$name" "ok ($((SECONDS - began)) s)"
    return 0
  fi
  row "$name" "FAILED: exit code $code, not $expected; see $name.log"
  tail -5 "$work/logs/$name.log"
  failed=1
  return 1
}

finish() {
  tar -czf "$out/logs.tar.gz" -C "$work" logs
  printf '%s\n' "${table[@]}" | tee "$out/table.txt"
  [ $failed = 0 ] && echo "KERNEL CHECKS HELD" || echo "KERNEL CHECKS FAILED"
  exit $failed
}

nvcc=$(kernels/nvcc.sh) || { row nvcc "FAILED: no nvcc"; failed=1; finish; }
arch=sm_$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
row GPU "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1), $arch"

build() { "$nvcc" -std=c++17 -O2 -lineinfo -arch="$arch" "$@" kernels/test/check.cu; }
export -f build; export nvcc arch
step build-check 120 0 bash -c "build -o $work/check & build -DEPLB_PLANTS -o $work/check-plants & wait -n && wait -n" || finish

# Large cases are made here; the small ones came along, should the program that makes them not run on this machine.
if step vectors 60 0 $dir/kernel_vectors "$work/large.vec" large 7; then
  step twins-large 120 0 "$work/check" "$work/large.vec" --grids 1,7,132,264
fi
step twins-small 60 0 "$work/check" $dir/small.vec --grids 1,2,5,64

# The same through the launches of eplb-cuda, with the fatbins and with what NVRTC makes of the source on this machine.
step launches-fatbin 90 0 $dir/kernel_check $dir
nvrtc=$(find / -name 'libnvrtc.so.13*' -not -path '/proc/*' 2>/dev/null | head -1)
step launches-nvrtc 90 0 env EPLB_KERNELS=/nowhere LD_LIBRARY_PATH="$(dirname "${nvrtc:-/}"):${LD_LIBRARY_PATH:-}" $dir/kernel_check

# Each fault must make the check fail; what only a sanitizer can be sure to see is planted below.
for fault in PaddingCounted HashWithoutLayer TailLeftOut PitchIgnored WordsLeftOut PositionLeftOut LastWordLeftOut; do
  step "fault-$fault" 60 1 "$work/check-plants" $dir/small.vec --plant $fault --grids 5
done

# sanitize NAME TOOL EXPECTED-CODE ARGUMENTS..: 99 = the tool found something.
sanitize() {
  local name=$1 tool=$2 expected=$3
  shift 3
  step "$name" 150 "$expected" compute-sanitizer --tool "$tool" --print-limit 5 --error-exitcode 99 "$@"
}
small=("$dir/small.vec" --exact --grids 3)
sanitize memcheck memcheck 0 "$work/check" "${small[@]}"
sanitize racecheck racecheck 0 "$work/check" "${small[@]}"
sanitize initcheck initcheck 0 "$work/check" "${small[@]}"
sanitize synccheck synccheck 0 "$work/check" "${small[@]}"
sanitize memcheck-finds-ReadBehind memcheck 99 "$work/check-plants" "${small[@]}" --plant ReadBehind
sanitize racecheck-finds-SumsNotAwaited racecheck 99 "$work/check-plants" "${small[@]}" --plant SumsNotAwaited
sanitize initcheck-finds-NotUploaded initcheck 99 "$work/check-plants" "${small[@]}" --plant NotUploaded

if step figures 240 0 python3 kernels/bench/bench.py --fatbins $dir --json "$out/figures.json"; then
  cat "$work/logs/figures.log"
fi
finish
