# Our exchange beside vLLM's own, in turns on the same work; the ratio is that of the medians.
if [ "$ranks" -ge 2 ]; then
  if [ ! -d "$here/vllm" ]; then
    missing 'beside vLLM' 'its files are not in this bundle: make vllm-exchange, then gpu-bundle'
  elif [ -n "$quick" ]; then
    too_few 'beside vLLM' 'it is left out of --quick'
  else
    theirs=pynccl ours=nccl,peer most=90
    if longer 'beside vLLM: smaller chunks, ranks that are processes'; then
      theirs=pynccl,pynccl-chunks ours=nccl,nccl-chunks,nccl-processes,peer most=200
    fi
    # Staging and what packs messages are 256 MiB together.
    step "beside vLLM" 45 $most python3 "$here/peers/exchange.py" --eplb "$eplb" --files "$here/vllm" --ranks "$ranks" --turns 1 --iters 6 --theirs $theirs \
      --ours $ours --more=--staging-bytes=251658240 --limit $(($(left) < most ? $(left) - 5 : most - 5)) --out "$out/vllm"
  fi
fi
