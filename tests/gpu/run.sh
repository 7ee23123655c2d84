#!/bin/bash
# Runs eplb's checks and benches on this machine's GPUs: needs an NVIDIA driver and NCCL (the system's or PyTorch's), no Rust. Prints a table
# and writes JSON. Usage: run.sh [OPTIONS] [OUTPUT_FOLDER], or with $OUT set; default ./out beside this file.
#
#   --budget S   seconds in all (default 420, with --long 2400); a step that no longer fits is skipped, and named
#   --long       more of each kind, and longer: 20,000 exchanges beside all-reduces in each mode, all settings; without it, what is left out is named
#   --quick      few and small runs: the steps that say so
#   --only LIST  files of steps/ to run, by name, separated by commas (such as exchanges,beside)
#   --ranks N    ranks, one GPU each (default: all GPUs, at most 4)
#   --tensors L  bytes of each tensor where a step says none, to try the script on small ones
#   --list       print the files of steps, and stop
#
# Exit code 0: every step that was run held. A step that failed, or that could not run for want of a tool, is named and makes it 1; one
# that was skipped for want of time or of GPUs, or is left to --long, is named, and does not.
set -u
here=$(cd "$(dirname "$0")" && pwd)
budget=${LIMIT:-} long=${LONG:-} quick=${QUICK:-} only='' tensors='' ranks=${RANKS:-} out=${OUT:-$here/out}
while [ $# -gt 0 ]; do
  case $1 in
    --budget) budget=$2; shift ;;
    --long) long=1 ;;
    --quick) quick=1 ;;
    --only) only=$2; shift ;;
    --ranks) ranks=$2; shift ;;
    --tensors) tensors=$2; shift ;;
    --list) ls "$here/steps" | sed 's/^[0-9]*-//; s/\.sh$//'; exit ;;
    -*) echo "unknown option $1; see the head of this file" >&2; exit 2 ;;
    *) out=$1 ;;
  esac
  shift
done
budget=${budget:-$([ -n "$long" ] && echo 2400 || echo 420)}
mkdir -p "$out"
: >"$out/errors.log"
: >"$out/steps.jsonl"
eplb=${EPLB:-$here/bin/eplb}
devices=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')
ranks=${ranks:-$((devices < 4 ? devices : 4))}
# cuBLAS of the system or of PyTorch, for the products.
blas=$(find /usr/local/cuda*/ /opt /usr/lib -name 'libcublas.so.1[23]' 2>/dev/null | head -n 1)
[ -z "$blas" ] || export EPLB_CUBLAS_SO=${EPLB_CUBLAS_SO:-$(readlink -f "$blas")}
# Multicast over NVLink is never used.
export NCCL_NVLS_ENABLE=0 NCCL_DEBUG=${NCCL_DEBUG:-WARN} NCCL_DEBUG_FILE=/dev/stderr

# Counted from the file: steps run in pipes, too.
count() { grep -c "\"state\":\"$1\"" "$out/steps.jsonl"; }

left() { echo $((budget - SECONDS)); }

# note NAME STATE SECONDS WHY: how a step ended.
note() {
  local name=${1//\"/\'} why=${4:-}
  why=${why//\"/\'}
  printf '{"step":"%s","state":"%s","seconds":%s,"why":"%s"}\n' "$name" "$2" "$3" "${why//\\/}" >>"$out/steps.jsonl"
  case $2 in
    failed) tail -n 4 "$out/errors.log" | cut -c1-300 >&2; echo "step $1 FAILED: $4" | tee -a "$out/errors.log" >&2 ;;
    skipped) echo "step $1 skipped: $4" >&2 ;;
    'left out') ;;
  esac
}

# step NAME LEAST MOST COMMAND..: runs a command under a deadline of MOST seconds; its stdout goes on. With fewer than LEAST seconds of the
# budget left it is skipped.
step() {
  local name=$1 least=$2 most=$3 begin=$SECONDS code limit
  shift 3
  if [ "$(left)" -lt "$least" ]; then
    note "$name" skipped 0 "$(left) s of the budget are left, it wants $least"
    return 125
  fi
  limit=$(($(left) < most ? $(left) : most))
  timeout -k 5 "$limit" "$@" 2>>"$out/errors.log"
  code=$?
  if [ $code -eq 0 ]; then
    note "$name" ok $((SECONDS - begin))
  else
    note "$name" failed $((SECONDS - begin)) "exit code $code after $((SECONDS - begin)) s (124, 137: over $limit s)"
  fi
  return $code
}

# refused NAME LEAST MOST COMMAND..: as step, for a command that must find what was planted: anything but failing by itself is a failure.
refused() {
  local name=$1 least=$2 most=$3 begin=$SECONDS code
  shift 3
  if [ "$(left)" -lt "$least" ]; then
    note "$name" skipped 0 "$(left) s of the budget are left, it wants $least"
    return 125
  fi
  timeout -k 5 "$most" "$@" >>"$out/errors.log" 2>&1
  code=$?
  case $code in
    0) note "$name" failed $((SECONDS - begin)) "what was planted was not found" ;;
    124 | 137 | 126 | 127) note "$name" failed $((SECONDS - begin)) "exit code $code" ;;
    *) note "$name" ok $((SECONDS - begin)) "found, exit code $code" ;;
  esac
}

# missing NAME WHY: a step that this machine cannot run: for want of a tool, which fails, or of GPUs.
missing() { note "$1" failed 0 "$2"; }
too_few() { note "$1" skipped 0 "$2"; }

# longer WHAT: whether a file of steps may take its time; if not, what it leaves out is named.
longer() {
  [ -n "$long" ] || { note "$1" 'left out' 0 'it is for --long'; return 1; }
}

# field KEY JSON: a number or word of a flat JSON object.
field() { sed -n "s/.*\"$1\":\"\{0,1\}\([^,\"}]*\).*/\1/p" <<<"$2"; }

heading() {
  printf '%-7s %-7s %5s %9s %9s %9s %9s %9s %6s %6s %6s %5s %8s %8s\n' backend place ranks 'ms med' 'ms min' 'ms first' 'GB/s' 'link' share waves moves ctas \
    staging 'NCCL,MiB'
}

# row JSON NOTE: a line of the table.
row() {
  local bytes staging sends batched
  sends=$(field sends_gbps "$1" | cut -c1-5)
  [ "$sends" != null ] || sends=''
  batched=$(field batched_share "$1" | cut -c1-5)
  [ "$batched" != null ] || batched=''
  bytes=$(field device_bytes "$1") staging=$(field staging_bytes "$1")
  printf '%-7s %-7s %5s %9.2f %9.2f %9.2f %9.1f %9s %6s %6s %6s %5s %8s %8s  %s\n' "$(field backend "$1")" "$(field placement "$1")" \
    "$(field ranks "$1")" "$(field ms_median "$1")" "$(field ms_min "$1")" "$(field ms_first "$1")" \
    "$(field gbps_worst_rank "$1")" "$(field link_gbps "$1" | cut -c1-7)" "$(field link_share "$1" | cut -c1-5)" \
    "$(field waves "$1")" "$(field moves "$1")" "$(field max_ctas "$1")" "$((${staging:-0} >> 20))" \
    "$([ "$bytes" = null ] && echo - || echo $((${bytes:-0} >> 20)))" "$2${batched:+ ($batched of batches)}${sends:+ (plain sends $sends GB/s)}"
}

# exchange LEAST NOTE ARGUMENTS..: one bench, to the table and to exchange.jsonl.
exchange() {
  local least=$1 note=$2 line
  shift 2
  [ -z "$tensors" ] || [[ " $* " == *" --tensors "* ]] || set -- "$@" --tensors "$tensors"
  line=$(step "exchange $* ${note:+($note)}" "$least" $((2 * least + 20)) "$eplb" bench exchange --json "$@")
  if [ "${line:0:1}" = '{' ]; then
    echo "${line%\}},\"note\":\"$note\"}" >>"$out/exchange.jsonl"
    row "$line" "$note"
  fi
}

echo "== $devices GPUs, $ranks ranks, budget $budget s"
for file in "$here"/steps/*.sh; do
  name=$(basename "$file" .sh)
  name=${name#[0-9]*-}
  if [ -n "$only" ] && [[ ",$only," != *",$name,"* ]]; then continue; fi
  echo "== $name ($SECONDS s)"
  # shellcheck disable=SC1090
  . "$file"
done

if [ "$(count failed)" -gt 0 ] && [ "$ranks" -ge 2 ] && [ "$(left)" -gt 20 ]; then
  echo "== a step failed; once more with NCCL's own log (nccl.log)"
  NCCL_DEBUG=INFO NCCL_DEBUG_FILE= timeout -k 5 20 "$eplb" bench exchange --backend nccl --ranks "$ranks" --layers 1 --tensors 65536 \
    --iters 1 --warmup 0 --json >"$out/nccl.log" 2>&1
fi
state() { grep "\"state\":\"$1\"" "$out/steps.jsonl" | sed 's/{"step":"\([^"]*\)".*"why":"\([^"]*\)"}/   \1: \2/'; }
ok=$(count ok) failed=$(count failed) skipped=$(count skipped) left_out=$(count 'left out')
{
  printf '{"budget_s":%s,"seconds":%s,"gpus":%s,"ranks":%s,"ok":%s,"failed":%s,"skipped":%s,"left_out":%s,"steps":[' "$budget" "$SECONDS" "$devices" "$ranks" "$ok" "$failed" "$skipped" "$left_out"
  paste -sd, "$out/steps.jsonl"
  echo ']}'
} >"$out/summary.json"
echo "== $ok steps held, $failed failed, $skipped skipped, $left_out left out, after $SECONDS s; results in $out"
[ "$failed" -eq 0 ] || { echo failed:; state failed; }
[ "$skipped" -eq 0 ] || { echo skipped:; state skipped; }
[ "$left_out" -eq 0 ] || { echo 'left out (--long has them):'; state 'left out'; }
exit $((failed > 0))
