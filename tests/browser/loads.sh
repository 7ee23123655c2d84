#!/usr/bin/env bash
# Loads a report in a headless browser. Fails if the browser logs an error for the page or if a part of the page is missing from
# what it built. Usage: loads.sh report.html [screenshot.png]
set -euo pipefail
page=$(realpath "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
browser() {
  timeout 90 chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run \
    --disable-background-networking --disable-component-update --disable-sync --user-data-dir="$work/profile" "$@"
}
browser --enable-logging=stderr --log-level=0 --dump-dom "file://$page" >"$work/dom" 2>"$work/log"
if grep -E 'CONSOLE|net::ERR|Failed to load' "$work/log"; then
  echo "the browser reports errors for $page" >&2
  exit 1
fi
for part in 'Policies side by side' 'Balance over time' '<polyline' '<circle' 'Replicas at the end' 'How to read this'; do
  grep -qF "$part" "$work/dom" || { echo "$page: $part is not on the page" >&2; exit 1; }
done
if [ $# -gt 1 ]; then
  browser --window-size=1200,3400 --screenshot="$2" "file://$page" >/dev/null 2>&1
fi
echo "$page loads without errors"
