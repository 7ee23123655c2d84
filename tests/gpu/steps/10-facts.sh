# What is there.
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null | head -n 1
nvidia-smi topo -m 2>/dev/null | head -n 6
step doctor 5 60 "$eplb" doctor
step facts 5 60 "$eplb" doctor --json >"$out/facts.json"
[ "$ranks" -ge 2 ] || too_few 'exchanges between ranks' 'they want two GPUs'
