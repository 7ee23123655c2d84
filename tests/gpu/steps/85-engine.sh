# The embedded engine on device memory: a server of threads, one GPU each, whose outputs are compared bit for bit while experts move under it.
serve() {
  local name=$1 least=$2
  shift 2
  step "engine, $name" "$least" $((least + 20)) "$here/bin/serve" --trace "$here/day_26x64.npz" --layers 8 --tokens 32 "$@" >"$out/engine-${name// /-}.txt"
  grep -v '^ *#' "$out/engine-${name// /-}.txt" | tail -n 8 | cut -c1-200
}
if [ "$ranks" -ge 2 ] && [ -z "$quick" ]; then
  [ "$ranks" -lt 4 ] || ! longer 'engine: four over peer' || serve 'four over peer' 15 --gpu peer --ranks 4 --slots 80 --steps 400 --interval-ms 50 --expert-kib 256
  [ "$ranks" -lt 4 ] || serve 'four over peer, staged' 15 --gpu peer --ranks 4 --slots 64 --steps 150 --interval-ms 50 --expert-kib 1024
  serve 'over nccl' 15 --gpu nccl --ranks "$ranks" --slots 80 --steps 200 --interval-ms 50 --expert-kib 256
fi
