#!/usr/bin/env bash
# Breaks a good report in several ways and checks that loads.sh refuses each. Usage: planted.sh report.html
set -euo pipefail
loads=$(dirname "$0")/loads.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
refused() {
  if cmp -s "$1" "$work/broken.html"; then
    echo "$2: the fault was not planted" >&2
    exit 1
  fi
  if "$loads" "$work/broken.html" >"$work/out" 2>&1; then
    echo "$2: loads.sh did not notice" >&2
    exit 1
  fi
  echo "noticed: $2"
}
sed 's/for (const key of/for (const chart of missing, key of/' "$1" >"$work/broken.html"
refused "$1" "a script that cannot run"
sed 's/chart.onpointermove = /chart.onpointerless = /' "$1" >"$work/broken.html"
refused "$1" "a chart that does not answer"
sed "s/line.style.display = shown/line.style.colour = shown/" "$1" >"$work/broken.html"
refused "$1" "names that hide nothing"
sed 's/Replicas at the end//' "$1" >"$work/broken.html"
refused "$1" "a part that is missing"
sed 's#</body>#<img src="missing.png"></body>#' "$1" >"$work/broken.html"
refused "$1" "something fetched"
