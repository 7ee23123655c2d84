"""What other servers call, answered by eplb: `eplb.integrations.vllm`, `eplb.integrations.sglang`.

Each module imports its server only where a function of it says so, so that both can be imported anywhere torch is.
"""
