# A matrix product that replays without pause on the stream of commits, beside exchanges without pause.
if [ "$ranks" -ge 2 ] && [ -z "$quick" ]; then
  loads=grouped carriers='peer nccl' seconds=0.6
  if longer 'interference: dense products, CTA caps'; then loads='grouped dense' carriers='peer nccl nccl/--max-ctas/8' seconds=1; fi
  for load in $loads; do
    for carrier in $carriers; do
      # shellcheck disable=SC2086
      step "interference $load ${carrier//\// }" 8 45 "$eplb" bench interference --ranks "$ranks" --layers 4 --load $load --backend ${carrier//\// } --seconds $seconds \
        ${tensors:+--tensors $tensors} | grep '^{' | tee -a "$out/interference.jsonl" | cut -c1-400
    done
  done
fi
