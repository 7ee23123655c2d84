# A matrix product that replays without pause on the stream of commits, beside exchanges without pause.
if [ "$ranks" -ge 2 ] && [ -z "$quick" ]; then
  for load in grouped dense; do
    for carrier in peer nccl 'nccl --max-ctas 8'; do
      # shellcheck disable=SC2086
      step "interference $load $carrier" 10 45 "$eplb" bench interference --ranks "$ranks" --layers 4 --load $load --backend $carrier --seconds 1 ${tensors:+--tensors $tensors} |
        grep '^{' | tee -a "$out/interference.jsonl" | cut -c1-400
    done
  done
fi
