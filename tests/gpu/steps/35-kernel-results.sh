# What `kernels` came to. Waited for, so that what follows is timed alone.
if [ -n "${kernels_begun:-}" ]; then
  wait "$kernels_job"
  code=$(cat "$out/kernels.code" 2>/dev/null || echo 1)
  rm -f "$out/kernels.code"
  [ "$code" = 0 ] && note kernels ok $((SECONDS - kernels_begun)) || note kernels failed $((SECONDS - kernels_begun)) "exit code $code; see kernels.log"
  cat "$out/kernels.log" | tail -n 70
fi
