#!/usr/bin/env bash
# Loads a report in a headless browser, points at a step of its chart and clicks a name. Fails if the browser logs an error for
# the page, if a part of the page is missing from what it built, or if pointing and clicking do not answer.
# Usage: loads.sh report.html [screenshot.png [dark.png]]
set -euo pipefail
page=$(realpath "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
browser() {
  timeout 90 chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run \
    --disable-background-networking --disable-component-update --disable-sync --user-data-dir="$work/profile" "$@"
}
fail() {
  echo "$page: $1" >&2
  exit 1
}
# One file, and no network: no address but the name of SVG, and nothing that a browser would fetch.
if sed 's#http://www.w3.org/2000/svg##g' "$page" | grep -oE '(src|href)=.{0,60}|url\(.{0,60}|@import.{0,60}|https?:.{0,60}'; then
  fail "it refers to other files"
fi
# What a visitor does, as a script at the end of a copy: half way along the steps, then a click on the first name.
cp "$page" "$work/visited.html"
cat >>"$work/visited.html" <<'VISIT'
<script>
const chart = document.querySelector('.key').parentElement.querySelector('.chart'), box = chart.getBoundingClientRect();
document.querySelector('.key button').click();
chart.dispatchEvent(new PointerEvent('pointermove', { clientX: box.left + box.width / 2, clientY: box.top + 50 }));
</script>
VISIT
browser --enable-logging=stderr --log-level=0 --dump-dom "file://$work/visited.html" >"$work/dom" 2>"$work/log"
if grep -E 'CONSOLE|net::ERR|Failed to load' "$work/log"; then
  fail "the browser reports errors"
fi
for part in 'Policies side by side' 'Balance over time' '<polyline' '<circle' 'Replicas at the end' 'How to read this' \
  'aria-pressed="false"' 'style="display: none;"'; do
  grep -qF -- "$part" "$work/dom" || fail "$part is not on the page"
done
grep -qE '<output class="step">step [0-9]+</output>' "$work/dom" || fail "pointing at the chart shows no step"
grep -qE '<output>[01]\.[0-9]{4}</output>' "$work/dom" || fail "pointing at the chart shows no value"
if [ $# -gt 1 ]; then
  browser --window-size=1200,3600 --hide-scrollbars --screenshot="$2" "file://$page" >/dev/null 2>&1
fi
if [ $# -gt 2 ]; then
  browser --window-size=1200,3600 --hide-scrollbars --blink-settings=preferredColorScheme=0 --screenshot="$3" "file://$page" \
    >/dev/null 2>&1
fi
echo "$page loads without errors, and answers"
