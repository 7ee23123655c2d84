#!/bin/bash
# Runs eplb's checks and benches on this machine's GPUs: needs an NVIDIA driver and NCCL (the system's or PyTorch's), no
# Rust. Every stage has a deadline. Usage: run.sh [OUTPUT_FOLDER], or with $OUT set; default ./out beside this file.
#   RANKS   ranks, one GPU each (default: all GPUs, at most 4)
#   QUICK=1 fewer and smaller runs
#   LIMIT   seconds in all (default 900); what does not fit is reported as failed
set -u
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-${OUT:-$here/out}}
mkdir -p "$out"
eplb=$here/bin/eplb
# cuBLAS of the system or of PyTorch, for the products.
blas=$(find /usr/local/cuda*/ /opt /usr/lib -name 'libcublas.so.1[23]' 2>/dev/null | head -n 1)
[ -z "$blas" ] || export EPLB_CUBLAS_SO=${EPLB_CUBLAS_SO:-$(readlink -f "$blas")}
# Multicast over NVLink is never used.
export NCCL_NVLS_ENABLE=0 NCCL_DEBUG=${NCCL_DEBUG:-WARN} NCCL_DEBUG_FILE=/dev/stderr
failed=0

# stage NAME SECONDS COMMAND..: runs a command under a deadline; its stdout goes on.
stage() {
  local name=$1 seconds=$2 begin=$SECONDS code left=$((${LIMIT:-900} - SECONDS))
  shift 2
  [ "$seconds" -le $left ] || seconds=$((left > 1 ? left : 1))
  timeout -k 10 "$seconds" "$@" 2>>"$out/errors.log"
  code=$?
  if [ $code -ne 0 ]; then
    failed=$((failed + 1))
    echo "stage $name FAILED with $code after $((SECONDS - begin)) s (124, 137: over $seconds s); see errors.log" | tee -a "$out/errors.log" >&2
    tail -n 5 "$out/errors.log" >&2
  fi
  return $code
}

# field KEY JSON: a number or word of a flat JSON object.
field() {
  sed -n "s/.*\"$1\":\"\{0,1\}\([^,\"}]*\).*/\1/p" <<<"$2"
}

# row JSON: a line of the table.
row() {
  printf '%-7s %-7s %5s %9.2f %9.2f %9.2f %9.1f %9s %6s %6s %6s %5s %9s  %s\n' "$(field backend "$1")" "$(field placement "$1")" \
    "$(field ranks "$1")" "$(field ms_median "$1")" "$(field ms_min "$1")" "$(field ms_first "$1")" \
    "$(field gbps_worst_rank "$1")" "$(field link_gbps "$1" | cut -c1-7)" "$(field link_share "$1" | cut -c1-5)" \
    "$(field waves "$1")" "$(field moves "$1")" "$(field max_ctas "$1")" "$(($(field device_bytes "$1" | sed 's/null/0/') >> 20))MiB" "$2"
}

# exchange SECONDS NOTE ARGUMENTS..: one bench, to the table and to exchange.jsonl.
exchange() {
  local seconds=$1 note=$2 line
  shift 2
  line=$(stage "exchange $*" "$seconds" "$eplb" bench exchange --json "$@")
  if [ -n "$line" ]; then
    echo "$line" >>"$out/exchange.jsonl"
    row "$line" "$note"
  fi
}

devices=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')
ranks=${RANKS:-$((devices < 4 ? devices : 4))}
echo "== what is there ($devices GPUs, $ranks ranks)"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null | head -n 1
nvidia-smi topo -m 2>/dev/null | head -n 8
stage doctor 60 "$eplb" doctor
stage facts 60 "$eplb" doctor --json >"$out/facts.json"

if [ "$ranks" -ge 2 ]; then
  echo "== the checks that every communicator must pass, on device memory"
  stage suite 170 "$eplb" doctor --suite "$ranks" >"$out/suite.log"
  grep '^check' "$out/suite.log"
  echo "== exchanges"
  printf '%-7s %-7s %5s %9s %9s %9s %9s %9s %6s %6s %6s %5s %9s\n' backend place ranks 'ms med' 'ms min' 'ms first' 'GB/s' 'link' share waves moves ctas memory
  small="--layers 2 --tensors 1048576,65536,1024 --iters 3"
  # shellcheck disable=SC2086
  exchange 60 small --backend nccl --ranks "$ranks" $small --placement random
  # shellcheck disable=SC2086
  exchange 60 'rows with gaps' --backend nccl --ranks "$ranks" $small --gaps 128:64 --placement random
  if [ -z "${QUICK:-}" ]; then
    for placement in same few2 shift random plan; do
      exchange 90 '' --backend nccl --ranks "$ranks" --placement $placement --iters 8
    done
    for ctas in 4 8 16 32; do
      exchange 60 'CTA cap' --backend nccl --ranks "$ranks" --placement random --iters 5 --max-ctas $ctas
    done
    exchange 60 'larger groups' --backend nccl --ranks "$ranks" --placement random --iters 5 --operations 1024
    exchange 60 'staging 1 GiB' --backend nccl --ranks "$ranks" --placement shift --iters 5 --staging-bytes 1073741824
    exchange 60 'steps of 20 ms' --backend nccl --ranks "$ranks" --placement random --iters 3 --step-ms 20
    exchange 60 'library of the process' --backend pynccl --ranks "$ranks" --placement random --iters 5
    exchange 60 'ranks are processes' --backend nccl --ranks "$ranks" --placement random --iters 5 --processes
    for commit in copies kernel; do
      exchange 60 "commit by $commit" --backend peer --ranks "$ranks" --placement shift --iters 5 --commit $commit
    done
    echo "== exchanges beside matrix products on the same GPUs"
    for load in grouped dense; do
      for carrier in peer nccl 'nccl --max-ctas 8'; do
        # shellcheck disable=SC2086
        stage "interference $load $carrier" 45 "$eplb" bench interference --ranks "$ranks" --layers 4 --load $load --backend $carrier |
          grep '^{' | tee -a "$out/interference.jsonl"
      done
    done
    echo "== what the driver is asked for while a server would serve"
    for carrier in peer nccl; do
      EPLB_CALLS=$out/calls-$carrier.log LD_PRELOAD=$here/libinterpose.so \
        stage "recording $carrier" 60 "$eplb" bench exchange --backend $carrier --ranks "$ranks" --layers 2 --iters 3 >/dev/null
      stage "audit of $carrier" 30 python3 "$here/audit.py" "$out/calls-$carrier.log"
      stage "audit of $carrier, planted" 30 python3 "$here/audit.py" "$out/calls-$carrier.log" --planted
    done
    if command -v compute-sanitizer >/dev/null; then
      stage 'memcheck of commits' 120 compute-sanitizer --tool memcheck --error-exitcode 99 "$eplb" bench exchange --backend peer --ranks "$ranks" \
        --layers 1 --tensors 65537,1023 --gaps 24:8 --placement shift --iters 1 --commit kernel >"$out/memcheck.log"
      tail -n 1 "$out/memcheck.log"
    else
      echo "compute-sanitizer is not here; it was NOT run"
    fi
    if [ "$ranks" -ge 3 ]; then
      echo "== a rank is killed in the middle of an exchange"
      stage faults 60 "$eplb" bench faults --backend nccl --ranks "$ranks" --layers 2 --iters 3 --patience 20 >"$out/faults.json"
      grep -o '"ms_to_last_error":[0-9.]*\|"error":"[^"]*"\|"verified":[a-z]*' "$out/faults.json"
    else
      echo "a rank that is killed: wants three GPUs; it was NOT run"
    fi
    if [ -d "$here/vllm" ]; then
      echo "== beside vLLM's own exchange"
      stage 'beside vLLM' 200 python3 "$here/peers/exchange.py" --eplb "$eplb" --files "$here/vllm" --ranks "$ranks" --turns 1 --limit 190 --out "$out/vllm"
    else
      echo "vLLM's exchange is not in this bundle (make vllm-exchange); it was NOT measured"
    fi
  fi
  if [ -z "${QUICK:-}" ]; then
    echo "== beside a server's own all-reduces on the same GPUs, launched from a thread of our own and by the server's steps"
    beside="--beside 1048576 --placement random"
    for mode in '' --launch-in-steps; do
      # shellcheck disable=SC2086
      exchange 100 "10,000 small ${mode:-from a thread}" --backend nccl --ranks "$ranks" --layers 2 --tensors 65536,1024 --iters 10000 $beside $mode
      # shellcheck disable=SC2086
      exchange 60 "100 full ${mode:-from a thread}" --backend nccl --ranks "$ranks" --iters 100 $beside $mode
    done
    grep '"beside_bytes":1' "$out/exchange.jsonl" | sed 's/.*"iters"/"iters"/'
  fi
else
  echo "one GPU: exchanges between ranks need two; they were NOT run"
fi
if [ $failed -ne 0 ]; then
  echo "== $failed stages failed; once more with NCCL's own log (nccl.log)"
  NCCL_DEBUG=INFO NCCL_DEBUG_FILE= timeout -k 10 60 "$eplb" bench exchange --backend nccl --ranks "$ranks" --layers 1 --tensors 65536 \
    --iters 1 --warmup 0 --json >"$out/nccl.log" 2>&1
  tail -n 15 "$out/nccl.log"
fi
echo "== done: $failed failed; results in $out"
exit $((failed > 0))
