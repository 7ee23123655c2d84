# Kernels against their twins, planted faults, compute-sanitizer, figures beside PyTorch: on the last GPU, while the steps of `checks`, which are not
# timed, run on all. The results are taken in `kernel-results`.
kernels_begun=''
if [ -n "$quick" ]; then
  too_few 'kernels' 'they are left out of --quick'
elif [ "$(left)" -lt 90 ]; then
  note kernels skipped 0 "$(left) s of the budget are left, they want 90"
elif [ ! -x "$here/target/kernel-check/kernel_check" ]; then
  missing kernels 'they were left out when the bundle was made'
else
  (
    CUDA_VISIBLE_DEVICES=$((devices - 1)) OUT=$out/kernels timeout -k 5 150 "$here/kernels/check.sh" >"$out/kernels.log" 2>&1
    echo $? >"$out/kernels.code"
    # And the commit kernel inside an exchange.
    [ "$ranks" -lt 2 ] || timeout -k 5 100 compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 99 "$eplb" bench exchange --backend peer --ranks 2 --layers 1 \
      --experts 8 --redundant 2 --tensors 65537,1023 --gaps 24:8 --placement shift --iters 1 --commit kernel >"$out/memcheck.log" 2>&1
    echo $? >"$out/memcheck.code"
  ) &
  kernels_begun=$SECONDS kernels_job=$!
fi
