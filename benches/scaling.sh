#!/usr/bin/env bash
# Instructions of one warm plan per layer and slot, for every size of the example `scaling`: what two plans take less what
# one takes, counted by callgrind. Needs valgrind. Arguments: sizes, by number; all if none are given.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --quiet --release --locked -p eplb-benches --example scaling
program=${CARGO_TARGET_DIR:-target}/release/examples/scaling
count() { # planner, size, rounds
  valgrind --tool=callgrind --callgrind-out-file=/dev/null "$program" --count "$1" --size "$2" --rounds "$3" 2>&1 |
    awk '/Collected/ { print $4 }'
}
of() { # planner, size
  local one two
  one=$(count "$1" "$2" 1)
  two=$(count "$1" "$2" 2)
  echo $((two - one))
}
echo "| slots per rank | layers x experts | slots | ranks | instructions per layer and slot | yardstick | x yardstick |"
echo "|---|---|---|---|---|---|---|"
for size in ${@:-$(seq 0 17)}; do
  name=$("$program" --name "$size")
  balanced=$(of balanced "$size")
  yardstick=$(of yardstick "$size")
  awk -v cells="${name%% *}" -v name="${name#* }" -v b="$balanced" -v y="$yardstick" 'BEGIN {
    printf "| %s | %.0f | %.0f | %.2f |\n", name, b / cells, y / cells, b / y }'
done
