# `peer` in particular: between processes, with less staging, held back, beside another backend, and a rank that is
# stopped or killed in the middle of an exchange.
if [ "$ranks" -ge 2 ]; then
  heading
  [ -n "$quick" ] || longer 'peer: other stagings and limits, 50,000 exchanges, a rank that is killed' || true
  # An option may be given once: how many exchanges is said by each line.
  full="--backend peer --ranks $ranks"
  [ -z "$quick" ] || full="$full --layers 2"
  for placement in few2 shift $([ -n "$quick" ] || echo random plan); do
    # shellcheck disable=SC2086
    exchange 8 processes $full --iters 6 --processes --placement $placement --timeline "$out/peer.$placement"
  done
  # shellcheck disable=SC2086
  {
    exchange 8 'staging 128 MiB' $full --iters 6 --placement shift --staging-bytes 134217728
    [ -z "$long" ] || exchange 8 'staging 64 MiB' $full --iters 6 --placement shift --staging-bytes 67108864
    [ -z "$long" ] || exchange 8 'no staging' $full --iters 6 --placement few2 --drain-only
    exchange 8 'steps of 20 ms' $full --placement random --iters 3 --warmup 1 --step-ms 20
    [ -z "$long" ] || exchange 8 'steps of 20 ms, in place' $full --placement few2 --iters 3 --warmup 1 --step-ms 20 --drain-only
    for most in 50 $([ -z "$long" ] || echo 150); do exchange 8 "at most $most GB/s" $full --placement random --iters 3 --max-gbps $most; done
    # Inside a node by copy engines, between two by NCCL.
    [ $((ranks % 2)) -ne 0 ] || exchange 8 'two nodes' $full --iters 6 --placement random --nodes 2
  }
  if [ "$ranks" -ge 3 ] && [ -z "$quick" ]; then
    # One that is killed is among `checks`, too.
    for way in $([ -z "$long" ] || echo kill) --stop; do
      [ "$way" != kill ] || way=''
      fate=$([ -z "$way" ] && echo killed || echo stopped)
      # shellcheck disable=SC2086
      step "a rank of $ranks that is $fate" 25 60 "$eplb" bench faults --backend peer --ranks "$ranks" --kill 1 $way --after-ms 20 --layers 2 \
        --iters 3 --placement random --patience 20 | tr -d '\n ' | cut -c1-300
      echo
    done
  fi
fi
