# How fast: sizes of a large model, every byte checked.
if [ "$ranks" -ge 2 ]; then
  heading
  full="--ranks $ranks --iters 8"
  [ -z "$quick" ] || full="--ranks $ranks --layers 2 --iters 3"
  for placement in few2 shift random plan; do
    for carrier in nccl peer; do
      # shellcheck disable=SC2086
      exchange 8 '' --backend $carrier $full --placement $placement
    done
  done
fi
