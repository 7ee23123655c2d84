# How fast: sizes of a large model, every byte checked; beside plain sends of NCCL and plain copies between the same pairs.
if [ "$ranks" -ge 2 ]; then
  heading
  iters=6 few='--layers 4'
  [ -z "$long" ] || iters=10 few=''
  [ -z "$quick" ] || iters=3 few='--layers 2'
  for placement in shift random; do
    # shellcheck disable=SC2086
    exchange 8 '' --backend nccl --ranks "$ranks" --iters $iters --placement $placement --sends ${quick:+$few}
  done
  for placement in few2 plan; do
    # shellcheck disable=SC2086
    exchange 8 '' --backend nccl --ranks "$ranks" --iters $iters --placement $placement $few
  done
  # shellcheck disable=SC2086
  exchange 8 '' --backend peer --ranks "$ranks" --iters $iters --placement plan $few
fi
