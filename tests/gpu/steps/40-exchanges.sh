# How fast: sizes of a large model, every byte checked.
if [ "$ranks" -ge 2 ]; then
  heading
  full="--ranks $ranks --iters 8"
  [ -z "$quick" ] || full="--ranks $ranks --layers 2 --iters 3"
  for placement in few2 shift random plan; do
    # shellcheck disable=SC2086
    exchange 8 '' --backend nccl $full --placement $placement
  done
  # shellcheck disable=SC2086
  exchange 8 '' --backend peer $full --placement plan
fi
