# Exchanges beside a thread that runs NCCL's all-reduces of the server's own communicator on the same GPUs: launched by a thread of ours, by the
# server's steps, and by a thread while NCCL orders launches itself. As many as fit, up to 20,000 small and 200 full ones of each: `iters` says how many.
if [ "$ranks" -ge 2 ]; then
  heading
  most=$(($(left) / 10))
  seconds=$((most > 80 ? 80 : most))
  [ -z "$quick" ] || seconds=3
  [ "$seconds" -ge 3 ] || seconds=3
  beside="--backend nccl --ranks $ranks --beside 1048576 --placement random"
  for mode in 'from a thread' 'in steps' 'from a thread, launch order implicit'; do
    more=''
    [ "$mode" != 'in steps' ] || more=--launch-in-steps
    order=${NCCL_LAUNCH_ORDER_IMPLICIT:-0}
    [ "$mode" != 'from a thread, launch order implicit' ] || order=1
    # shellcheck disable=SC2086
    NCCL_LAUNCH_ORDER_IMPLICIT=$order exchange $((seconds + 8)) "small, $mode" $beside --layers 2 --tensors 65536,1024 --iters 20000 --for-seconds $seconds $more
    # shellcheck disable=SC2086
    NCCL_LAUNCH_ORDER_IMPLICIT=$order exchange $((seconds / 2 + 10)) "full size, $mode" $beside --iters 200 --for-seconds $((seconds / 2 + 1)) $more
  done
  grep '"beside_bytes":1' "$out/exchange.jsonl" | sed 's/.*"iters":\([0-9]*\).*"beside_steps":\([0-9]*\),"beside_ms_worst":\([0-9.]*\),"launch_us":\([0-9.a-z]*\).*"note":"\(.*\)"}/\1 exchanges, \2 all-reduces, the longest \3 ms, longest launch \4 us: \5/'
fi
