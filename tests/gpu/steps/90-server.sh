# In one process with PyTorch, its NCCL and its Gloo: the same libnccl, the same primary context, tensors of the caching allocator, and vLLM's own code
# over our communicator.
export EPLB_LIBRARY=$here/python/lib/libeplb.so EPLB_GLOO_SO=$here/python/lib/libeplb_gloo.so
[ ! -d "$here/bin/kernels" ] || export EPLB_KERNELS=$here/bin/kernels
beside_torch() {
  PYTHONPATH=$here/python OMP_NUM_THREADS=2 python3 "$here/python/beside_torch.py" --libraries "$here/python/lib" \
    $([ ! -d "$here/python/peers" ] || echo --peers "$here/python/peers") "$@"
}
serve() {
  PYTHONPATH=$here/python OMP_NUM_THREADS=2 python3 "$here/python/serve.py" --device cuda --trace "$here/python/day_26x64.npz" "$@"
}
export -f beside_torch serve
export here
if [ -n "$quick" ]; then
  too_few 'beside PyTorch' 'it is left out of --quick'
elif [ "$devices" -lt 2 ]; then
  too_few 'beside PyTorch' 'it wants two GPUs'
elif ! python3 -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  missing 'beside PyTorch' 'there is no PyTorch with CUDA for python3'
else
  step 'beside PyTorch' 30 60 bash -c "beside_torch --ranks $((ranks < 4 ? 2 : 4)) --limit 50" >"$out/beside_torch.jsonl"
  grep '"rank": 0\|"ok": false' "$out/beside_torch.jsonl" | cut -c1-200
  longer 'beside PyTorch: a value spoiled in vllm and in engine, the demo server over peer' || true
  for stage in $([ -z "$long" ] || echo vllm engine); do
    refused "beside PyTorch, a value spoiled in $stage" 20 35 bash -c "beside_torch --ranks 2 --limit 30 --plant $stage"
  done
  for carrier in $([ -z "$long" ] || echo peer) nccl; do
    step "demo server over $carrier" 30 45 bash -c "serve --ranks 2 --steps 100 --transport $carrier --limit 30" | grep -v '^{'
  done
  refused 'demo server, a value spoiled' 20 30 bash -c 'serve --ranks 2 --steps 100 --plant 50 --limit 25'
fi
