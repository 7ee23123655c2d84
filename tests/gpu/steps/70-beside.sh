# Exchanges beside a thread that runs NCCL's all-reduces of the server's own communicator on the same GPUs: launched by a thread of ours, by the
# server's steps, by those while NCCL orders launches itself, and over the communicator that the server lends. 20,000 small and 200 full ones by a
# thread and in steps, as far as time goes: `iters` says how many. Where there are four GPUs, two modes run at once on two of them each.
if [ "$ranks" -ge 2 ]; then
  heading
  # Experts of 64 KiB in one layer and of 1 MiB in the other.
  small='--layers 2 --tensors 49152,15872,384,128/786432,258048,3072,1024 --iters 20000' full='--iters 200' many=50 some=4
  if [ -n "$quick" ]; then
    many=4
  elif longer '20,000 small exchanges beside all-reduces with launches ordered by NCCL and over a lent communicator, and all on four GPUs'; then
    many=200 some=200
  fi
  # beside MODE SECONDS DEVICES NOTE ARGUMENTS..
  beside() {
    local mode=$1 seconds=$2 on=$3 note=$4 more='' order=${NCCL_LAUNCH_ORDER_IMPLICIT:-0} count=$ranks
    shift 4
    case $mode in
      'in steps') more=--launch-in-steps ;;
      'in steps, launch order implicit') more=--launch-in-steps order=1 ;;
      lent) more='--launch-in-steps --lent' ;;
    esac
    [ "$on" = all ] || { count=2; export CUDA_VISIBLE_DEVICES=$on; }
    # shellcheck disable=SC2086
    NCCL_LAUNCH_ORDER_IMPLICIT=$order exchange $((seconds + 10)) "$note, $mode" --backend nccl --ranks "$count" --beside 1048576 --placement random \
      --warmup 1 --for-seconds "$seconds" $more "$@"
  }
  # both SECONDS NOTE MODE MODE ARGUMENTS..: two modes, at once where each has two GPUs.
  both() {
    local seconds=$1 note=$2 first=$3 second=$4
    shift 4
    if [ "$devices" -ge 4 ]; then
      (beside "$first" "$seconds" 0,1 "$note" "$@") &
      local other=$!
      (beside "$second" "$seconds" 2,3 "$note" "$@")
      wait $other
    else
      beside "$first" "$seconds" all "$note" "$@"
      beside "$second" "$seconds" all "$note" "$@"
    fi
  }
  # shellcheck disable=SC2086
  {
    both $many small 'from a thread' 'in steps' $small
    both $((many / 2)) 'full size' 'from a thread' 'in steps' $full
    both $some small 'in steps, launch order implicit' lent $small
    if [ -n "$long" ] && [ "$devices" -ge 4 ]; then
      for mode in 'from a thread' 'in steps'; do
        beside "$mode" $many all small $small
        beside "$mode" 60 all 'full size' $full
      done
    else
      beside 'in steps' $some all small $small
    fi
  }
  # A thread beside a server whose NCCL takes launches from one thread is refused, and does not race.
  NCCL_LAUNCH_ORDER_IMPLICIT=1 refused 'a thread, launch order implicit' 5 30 "$eplb" bench exchange --backend nccl --ranks "$ranks" --beside 1048576 \
    --layers 2 --tensors 65536 --iters 1
  grep '"beside_bytes":1' "$out/exchange.jsonl" | grep '"backend":"nccl"' |
    sed 's/.*"iters":\([0-9]*\).*"beside_steps":\([0-9]*\).*"note":"\(.*\)"}/\1 exchanges, \2 all-reduces: \3/'
fi
