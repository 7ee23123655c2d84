# What channels, thread blocks, chunks, overlap and processes change over NCCL, and what NCCL takes of a device's memory.
if [ "$ranks" -ge 2 ] && [ -z "$quick" ]; then
  heading
  size="--ranks $ranks --layers 4 --iters 4 --warmup 1 --backend nccl"
  # shellcheck disable=SC2086
  exchange 6 'CTA cap' $size --placement random --max-ctas 8
  exchange 6 'library of the process' --backend pynccl --ranks "$ranks" --layers 2 --iters 4 --warmup 1 --placement random
  if longer 'settings: other caps, chunks, overlap, processes, single tensors, steps'; then
    for ctas in 4 16; do
      # shellcheck disable=SC2086
      exchange 6 'CTA cap' $size --placement random --max-ctas $ctas
    done
    for placement in shift random; do
      # shellcheck disable=SC2086
      exchange 6 'NCCL alone says how many channels' $size --placement $placement --min-ctas 1
      # shellcheck disable=SC2086
      NCCL_P2P_NVL_CHUNKSIZE=32768 exchange 6 'NCCL_P2P_NVL_CHUNKSIZE=32768' $size --placement $placement
      # shellcheck disable=SC2086
      exchange 8 'ranks are processes' $size --placement $placement --processes
      # shellcheck disable=SC2086
      exchange 6 'one wave after another' $size --placement $placement --overlap=false
    done
    # shellcheck disable=SC2086
    exchange 6 'every tensor a message' $size --placement shift --gather-below 0
    # shellcheck disable=SC2086
    exchange 6 'steps of 20 ms' $size --placement random --step-ms 20
  fi
fi
