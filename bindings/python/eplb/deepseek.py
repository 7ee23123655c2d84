"""The call that DeepSeek's EPLB has, for servers that make it."""

from typing import Any, Optional, Tuple

from eplb.planning import plan


def rebalance_experts(
    weight: Any,
    num_replicas: int,
    num_groups: int,
    num_nodes: int,
    num_gpus: int,
    policy: str = "deepseek",
    current: Optional[Any] = None,
) -> Tuple[Any, Any, Any]:
    """Places `num_replicas` physical experts of each layer on `num_gpus` GPUs, as DeepSeek's function of this name does.

    weight: load of each logical expert, `[layers, experts]`. num_groups: expert groups of the router; num_nodes: nodes, the
    GPUs are divided over them.
    policy: "deepseek" gives DeepSeek's placement, slot for slot; any other name gives ours (see `eplb.plan`), from
    `current`, the `phy2log` in force, if that is given.

    Returns `phy2log [layers, num_replicas]`, `log2phy [layers, experts, most replicas]` (ascending slots, -1 = no more) and
    `logcnt [layers, experts]`: 64-bit integers on the CPU, torch tensors for a torch tensor, numpy arrays for a numpy array,
    lists for lists.

    Raises `EplbError` for loads that are not numbers (NaN, infinite, negative) and sizes that do not divide.
    """
    made = plan(
        weight,
        ranks=num_gpus,
        slots=num_replicas,
        nodes=num_nodes,
        groups=num_groups,
        policy=policy,
        current=current,
    )
    return made.placement.phy2log, made.placement.log2phy, made.placement.logcnt
