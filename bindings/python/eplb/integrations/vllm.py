"""vLLM's expert load balancer with eplb's plans.

    from eplb.integrations import vllm
    vllm.install(target=0.95)          # before the engine starts, in every worker

and `--enable-eplb` as ever: vLLM then plans with the class that `policy` makes instead of its default one.

Written for the interface of `vllm.distributed.eplb.policy.abstract.AbstractEplbPolicy` in vLLM 0.16 to 0.33:
`rebalance_experts(weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices=None) -> phy2log`. Every worker
plans by itself and all must come to the same map: a plan depends on nothing but the arguments.
"""

from typing import Any, Optional, Type

from eplb.planning import plan


def policy(name: Optional[str] = None, base: Type[Any] = object, **options: Any) -> Type[Any]:
    """A policy class with vLLM's interface.

    name: policy of `eplb.plan`; default: "incremental" where vLLM hands over the map in force, else "balanced".
    base: the class to derive from, vLLM's `AbstractEplbPolicy`. options: further ones of `eplb.plan`, such as `target` and
    `max_moves`; a limit on moves holds for each rebalance.
    """

    class EplbPolicy(base):  # type: ignore[misc]
        """Plans of eplb behind vLLM's interface."""

        @classmethod
        def rebalance_experts(
            cls,
            weight: Any,
            num_replicas: int,
            num_groups: int,
            num_nodes: int,
            num_ranks: int,
            old_global_expert_indices: Optional[Any] = None,
        ) -> Any:
            """Places experts; `weight` is `[layers, experts]`, the result `phy2log [layers, num_replicas]` (int64, CPU).

            `old_global_expert_indices [layers, slots]` is what is in force, -1 for empty slots. It is started from if it has
            `num_replicas` slots; when the number of ranks changes it has more or fewer, and the plan is fresh.

            Raises `EplbError` for loads that are not numbers.
            """
            old = old_global_expert_indices
            if old is not None and tuple(old.shape) != (weight.shape[0], num_replicas):
                old = None
            nodes = num_nodes if num_ranks % num_nodes == 0 else 1
            wanted = name
            if old is None and wanted in ("incremental", "split"):
                wanted = "balanced"
            made = plan(
                weight.double(),
                ranks=num_ranks,
                slots=num_replicas,
                nodes=nodes,
                groups=num_groups if weight.shape[1] % max(num_groups, 1) == 0 else 1,
                current=old,
                policy=wanted,
                **options,
            )
            return made.placement.phy2log

    return EplbPolicy


def install(name: Optional[str] = None, **options: Any) -> Type[Any]:
    """Makes vLLM plan with eplb in this process: what its setting "default" chooses is replaced. Returns the class.

    Arguments as of `policy`. Raises `ImportError` without vLLM, and `RuntimeError` if this vLLM keeps its policies elsewhere.
    """
    from vllm.distributed.eplb import policy as policies

    known = getattr(policies, "EPLB_POLICIES", None)
    if not isinstance(known, dict) or "default" not in known:
        raise RuntimeError("this vLLM has no EPLB_POLICIES['default'] to replace; pass the class of `policy` to it yourself")
    made = policy(name, policies.AbstractEplbPolicy, **options)
    known["default"] = made
    return made
