# What `kernels` came to. Waited for, so that what follows is timed alone.
if [ -n "${kernels_begun:-}" ]; then
  wait "$kernels_job"
  code=$(cat "$out/kernels.code" 2>/dev/null || echo 1)
  rm -f "$out/kernels.code"
  [ "$code" = 0 ] && note kernels ok $((SECONDS - kernels_begun)) || note kernels failed $((SECONDS - kernels_begun)) "exit code $code; see kernels.log"
  tail -n 70 "$out/kernels.log"
  if [ "$ranks" -ge 2 ]; then
    code=$(cat "$out/memcheck.code" 2>/dev/null || echo 1)
    rm -f "$out/memcheck.code"
    [ "$code" = 0 ] && note 'memcheck of an exchange' ok 0 || note 'memcheck of an exchange' failed 0 "exit code $code; see memcheck.log"
  fi
fi
