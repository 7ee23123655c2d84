# Exchanges beside a thread that runs NCCL's all-reduces of the server's own communicator on the same GPUs: launched by a thread of ours, by the
# server's steps, by those while NCCL orders launches itself, and over the communicator that the server lends. With --long 20,000 small and 200 full
# ones in each mode, as far as time goes: `iters` says how many.
if [ "$ranks" -ge 2 ]; then
  heading
  small=4 full=4
  if [ -z "$quick" ] && longer '20,000 small and 200 full exchanges beside all-reduces, in every mode'; then small=150 full=60; fi
  beside="--backend nccl --ranks $ranks --beside 1048576 --placement random"
  for mode in 'from a thread' 'in steps' 'in steps, launch order implicit' 'lent'; do
    more='' order=${NCCL_LAUNCH_ORDER_IMPLICIT:-0}
    case $mode in
      'in steps') more=--launch-in-steps ;;
      'in steps, launch order implicit') more=--launch-in-steps order=1 ;;
      lent) more='--launch-in-steps --lent' ;;
    esac
    # shellcheck disable=SC2086
    NCCL_LAUNCH_ORDER_IMPLICIT=$order exchange $((small + 8)) "small, $mode" $beside --layers 2 --tensors 65536,1024 --iters 20000 --for-seconds $small $more
    if [ -n "$long" ] || [ "$mode" = 'from a thread' ] || [ "$mode" = 'in steps' ]; then
      # shellcheck disable=SC2086
      NCCL_LAUNCH_ORDER_IMPLICIT=$order exchange $((full + 10)) "full size, $mode" $beside --iters 200 --for-seconds $full $more
    fi
  done
  # A thread beside a server whose NCCL takes launches from one thread is refused, and does not race.
  # shellcheck disable=SC2086
  NCCL_LAUNCH_ORDER_IMPLICIT=1 refused 'a thread, launch order implicit' 5 30 "$eplb" bench exchange $beside --layers 2 --tensors 65536 --iters 1
  grep '"beside_bytes":1' "$out/exchange.jsonl" | sed 's/.*"iters":\([0-9]*\).*"beside_steps":\([0-9]*\),"beside_ms_worst":\([0-9.]*\),"launch_us":\([0-9.a-z]*\).*"note":"\(.*\)"}/\1 exchanges, \2 all-reduces, the longest \3 ms, longest launch \4 us: \5/'
fi
