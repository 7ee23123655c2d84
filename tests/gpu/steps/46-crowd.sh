# `peer` beside all that deadlocks with kernels of others: a server's all-reduces on its own communicator and, one after the other on each GPU, cooperative
# kernels that take every multiprocessor. As many exchanges as fit: `iters` says how many of 50,000 small ones and 200 of full size.
if [ "$ranks" -ge 2 ]; then
  heading
  seconds=$([ -n "$quick" ] && echo 2 || { [ -z "$long" ] && echo 4 || echo 80; })
  beside="--backend peer --ranks $ranks --beside 1048576 --crowd --patience 100"
  # shellcheck disable=SC2086
  {
    exchange $((seconds < 60 ? seconds + 8 : 40)) 'small, beside all-reduces and cooperative kernels' $beside --layers 1 --tensors 65536,1024 --placement few2 \
      --iters 50000 --check-every 500 --for-seconds "$seconds"
    exchange $((seconds < 60 ? seconds + 10 : 25)) 'full size, beside all-reduces and cooperative kernels' $beside --placement random --iters 200 --check-every 50 \
      --for-seconds "$seconds"
  }
fi
