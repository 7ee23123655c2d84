# `auto` between processes: copy engines where every path works; with NCCL in one wave where ranks are taken for those of two nodes, also when one of them
# is killed in it; with Gloo where NCCL is missing, and Gloo alone, all bytes through pinned memory; an error that says what to install where both are
# missing; and an engine's rounds over each.
if [ "$ranks" -ge 2 ] && [ -z "$quick" ]; then
  auto="--backend auto --ranks $ranks --layers 2 --iters 3"
  # Gloo and copy engines are in one wave where nodes have two ranks each. Two GPUs are shared by four then, as NCCL does not allow.
  nodes_of=$((ranks == 2 ? 4 : ranks))
  without_nccl="--backend auto --ranks $nodes_of --layers 2 --iters 3"
  # shellcheck disable=SC2086
  {
    exchange 8 'auto' $auto --placement random
    if [ $((ranks % 2)) -eq 0 ]; then
      exchange 8 'auto, two nodes' $auto --placement random --nodes 2
      refused 'auto, two nodes without NCCL and Gloo' 8 40 env EPLB_NCCL_SO=/nowhere/libnccl.so EPLB_GLOO_SO=/nowhere/libeplb_gloo.so \
        "$eplb" bench exchange $auto --nodes 2 --tensors 65536
      step 'engine over auto, two nodes' 15 45 "$here/bin/serve" --trace "$here/day_26x64.npz" --processes 1 --gpu auto --nodes 2 --ranks "$ranks" \
        --slots 80 --layers 8 --tokens 32 --steps 150 --interval-ms 50 --expert-kib 256 >"$out/engine-auto.txt"
      grep -E '^backend|outputs|rounds' "$out/engine-auto.txt" | tail -n 6 | cut -c1-200
    fi
    if [ "$ranks" -ge 3 ]; then
      step "a rank of $ranks on two nodes that is killed" 20 60 "$eplb" bench faults $auto --nodes 2 --kill 1 --after-ms 20 --placement random \
        --patience 20 | tr -d '\n ' | cut -c1-300
      echo
    fi
    # Gloo between devices, as where NCCL is not installed. An expert of 12 MB: TCP at the loopback address is slow.
    if [ ! -e "$here/python/lib/libeplb_gloo.so" ]; then
      missing 'Gloo between devices' 'libeplb_gloo.so is not in the bundle: make gloo before it is made'
    else
      gloo=$(mktemp "$out/gloo-XXXX")
      (
        export EPLB_GLOO_SO=$here/python/lib/libeplb_gloo.so LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$here/python/lib
        exchange 8 'gloo, pinned' --backend gloo --on-devices --ranks "$ranks" --layers 2 --iters 3 --placement random --tensors 8388608,4194304,7168
        export EPLB_NCCL_SO=/nowhere/libnccl.so
        if [ $((nodes_of % 2)) -eq 0 ]; then
          exchange 8 'auto, two nodes without NCCL' $without_nccl --placement random --nodes 2 --tensors 8388608,4194304,7168 | tee "$gloo"
        fi
        if longer 'Gloo between devices: rows with gaps, an engine, a death'; then
          exchange 8 'gloo, pinned, rows with gaps' --backend gloo --on-devices --processes --ranks "$ranks" --layers 2 --iters 2 --placement few2 \
            --tensors 1048576,65536,1000,7 --gaps 24:8
          if [ $((nodes_of % 2)) -eq 0 ]; then
            step 'engine over auto, two nodes without NCCL' 15 45 "$here/bin/serve" --trace "$here/day_26x64.npz" --processes 1 --gpu auto --nodes 2 \
              --ranks "$nodes_of" --slots 80 --layers 8 --tokens 32 --steps 150 --interval-ms 50 --expert-kib 256 >"$out/engine-gloo.txt"
            grep -E '^backend|outputs|rounds' "$out/engine-gloo.txt" | tail -n 6 | cut -c1-200
          fi
          if [ "$nodes_of" -ge 3 ]; then
            step "a rank of $nodes_of on two nodes without NCCL that is killed" 20 60 "$eplb" bench faults $without_nccl --nodes 2 --kill 1 --after-ms 20 \
              --placement random --patience 20 --tensors 8388608,4194304,7168 | tr -d '\n ' | cut -c1-300
            echo
          fi
        fi
      )
      if [ $((nodes_of % 2)) -eq 0 ]; then
        step 'without NCCL it is gloo between nodes' 1 5 grep -q '^peer and gloo ' "$gloo"
      fi
      rm -f "$gloo"
    fi
  }
fi
