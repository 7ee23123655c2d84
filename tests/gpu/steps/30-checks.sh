# Right bytes, right calls, and an end whatever happens: nothing here is timed.
if [ "$ranks" -ge 2 ]; then
  # What every communicator must do, on device memory: all kinds. Gloo is in the bundle where its headers were.
  for carrier in '' --peer --gloo; do
    # shellcheck disable=SC2086
    step "suite of communicators ${carrier:-nccl}" 25 100 env EPLB_GLOO_SO="$here/python/lib/libeplb_gloo.so" \
      LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$here/python/lib" "$eplb" doctor --suite "$ranks" $carrier >>"$out/suite.log"
  done
  grep -c '^check.*ok$' "$out/suite.log" | sed 's/$/ checks of the suite held/'
  small="--ranks $ranks --layers 2 --tensors 1048576,65536,1024,1000,7 --iters 3 --warmup 1"
  for placement in same few2 shift random plan; do
    # Rows with gaps, and sizes of every alignment.
    # shellcheck disable=SC2086
    step "small $placement" 6 40 "$eplb" bench exchange --json --backend nccl $small --gaps 24:8 --placement $placement >>"$out/small.jsonl"
  done
  for carrier in nccl peer; do
    # Slots that are emptied and filled with copies of experts; checksums of the kernel beside the full compare.
    # shellcheck disable=SC2086
    step "small holes, checksums, $carrier" 6 40 "$eplb" bench exchange --json --backend $carrier $small --gaps 128:64 --placement holes --checksums >>"$out/small.jsonl"
  done
  echo "$(grep -c '"verified":true' "$out/small.jsonl") small exchanges, every byte right"

  # World size 1 makes no communicator; NCCL's own log counts them.
  communicators() {
    NCCL_DEBUG=INFO NCCL_DEBUG_FILE=$out/nccl-$1.log timeout -k 5 40 "$eplb" bench exchange --json --backend nccl --ranks "$1" --layers 1 --tensors 65536 \
      --iters 1 --warmup 0 2>>"$out/errors.log" >/dev/null || return 9
    [ "$(cat "$out/nccl-$1.log" 2>/dev/null | grep -c 'Init COMPLETE')" -eq "$2" ]
  }
  export -f communicators; export out eplb
  step 'a rank that is alone makes no communicator' 6 45 bash -c 'communicators 1 0'
  step 'two ranks make one each, counted alike' 6 45 bash -c 'communicators 2 2'
  rm -f "$out"/nccl-[12].log

  # A rank is killed: most of these runs is waiting, so they are beside the rest.
  killing=''
  if [ "$ranks" -ge 3 ]; then
    for carrier in nccl peer; do
      step "a rank is killed, $carrier" 20 90 "$eplb" bench faults --backend $carrier --ranks "$ranks" --kill 2 --after-ms 20 --layers 2 --iters 3 --patience 20 \
        >"$out/faults-$carrier.json" &
      killing="$killing $!"
    done
  else
    too_few 'a rank is killed' 'it wants three GPUs'
  fi
  echo "what the driver is asked for while a server would serve:"
  for carrier in peer nccl gloo; do
    on_devices=$([ $carrier != gloo ] || echo --on-devices)
    # shellcheck disable=SC2086
    EPLB_CALLS=$out/calls-$carrier.log LD_PRELOAD=$here/libinterpose.so EPLB_GLOO_SO=$here/python/lib/libeplb_gloo.so \
      LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$here/python/lib \
      step "recording of $carrier" 10 60 "$eplb" bench exchange --backend $carrier $on_devices --ranks "$ranks" --layers 2 --iters 3 >/dev/null
    step "audit of $carrier" 3 30 python3 "$here/audit.py" "$out/calls-$carrier.log" | tail -n 1
    step "audit of $carrier finds what is planted" 3 30 python3 "$here/audit.py" "$out/calls-$carrier.log" --planted
    gzip -f "$out/calls-$carrier.log"
  done
  if [ -n "$killing" ]; then
    # shellcheck disable=SC2086
    wait $killing
    for carrier in nccl peer; do
      grep -o '"ms_to_last_error":[0-9.]*\|"error":"[^"]*"\|"verified":[a-z]*' "$out/faults-$carrier.json" | sort | uniq -c
    done
  fi
fi
