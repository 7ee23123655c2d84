"""SGLang's expert load balancer with eplb's plans.

    from eplb.integrations import sglang
    sglang.install(target=0.95)        # before the server starts, in every process of it

and `--enable-eplb` as ever: SGLang then calls `rebalance_experts` of this module, whatever `--eplb-algorithm` says.

Written for `sglang.srt.eplb.eplb_algorithms.rebalance_experts` of SGLang 0.5. Every rank plans by itself and all must come to the
same maps: a plan depends on nothing but the arguments and the map in force, which SGLang keeps equal on all ranks.
"""

from typing import Any, Optional, Tuple

from eplb.planning import plan


def rebalance_experts(
    tokens_per_expert: Any,
    num_physical_experts: int,
    num_local_physical_experts: int,
    num_groups: Optional[int],
    num_nodes: int,
    algorithm: Any = None,
    *,
    current: Optional[Any] = None,
    policy: Optional[str] = None,
    **options: Any,
) -> Tuple[Any, Any, Any]:
    """Places experts, with the arguments and results of SGLang's function.

    tokens_per_expert: `[steps, layers, experts]`, a window; its steps count one by one. num_local_physical_experts: slots per
    rank. num_groups: of the router, `None` = none. algorithm: what SGLang was told, not looked at.
    current: `phy2log [layers, slots]` in force. policy, options: as of `eplb.plan`; default: "incremental" from `current`,
    else "balanced".

    Returns `phy2log [layers, slots]`, `log2phy [layers, experts, most replicas]` (-1 = no more) and `logcnt [layers, experts]`, int64
    on the CPU.

    Raises `ValueError` for sizes that do not divide and for more slots than experts can use: SGLang has no empty slots.
    """
    if num_local_physical_experts < 1 or num_physical_experts % num_local_physical_experts:
        raise ValueError(f"{num_physical_experts} slots in ranks of {num_local_physical_experts}: sizes must divide")
    ranks = num_physical_experts // num_local_physical_experts
    experts = tokens_per_expert.shape[-1]
    groups = num_groups if num_groups and experts % num_groups == 0 else 1
    made = plan(
        tokens_per_expert.double(),
        ranks=ranks,
        slots=num_physical_experts,
        nodes=num_nodes if ranks % num_nodes == 0 else 1,
        groups=groups,
        current=current,
        policy=policy,
        **options,
    )
    if made.shortages:
        raise ValueError(
            f"{made.shortages} of {num_physical_experts} slots per layer stay empty: {experts} experts on {ranks} ranks cannot use "
            "more; set fewer redundant experts"
        )
    return made.placement.phy2log, made.placement.log2phy, made.placement.logcnt


def install(policy: Optional[str] = None, **options: Any) -> None:
    """Makes SGLang plan with eplb in this process, starting from the map in force once there is one.

    Arguments as of `rebalance_experts`. Raises `ImportError` without SGLang.
    """
    from sglang.srt.eplb import eplb_algorithms

    def rebalance(**arguments: Any) -> Tuple[Any, Any, Any]:
        slots = arguments["num_physical_experts"]
        in_force = _in_force()
        current = in_force if in_force is not None and in_force.shape[-1] == slots else None
        wanted = "balanced" if current is None and policy in ("incremental", "split") else policy
        return rebalance_experts(**arguments, current=current, policy=wanted, **options)

    eplb_algorithms.rebalance_experts = rebalance


def _in_force() -> Optional[Any]:
    """SGLang's own `phy2log`, or `None` before there is one."""
    from sglang.srt.eplb import expert_location

    metadata = expert_location.get_global_expert_location_metadata()
    return None if metadata is None else metadata.physical_to_logical_map_cpu
