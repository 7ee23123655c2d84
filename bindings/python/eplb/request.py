"""What a plan is asked for, as the library takes it."""

import ctypes
from ctypes import byref, c_double, c_int32, c_uint8, c_uint32
from typing import Any, List, Optional, Sequence, Tuple, Union

from eplb import arrays
from eplb._native import PlanRequest, call


def describe(
    layers: int,
    *,
    ranks: int,
    slots: Optional[int] = None,
    slots_of_rank: Any = None,
    nodes: int = 1,
    current: Any = None,
    policy: Optional[str] = None,
    target: Optional[float] = None,
    max_moves: Optional[int] = None,
    max_moves_per_rank: Optional[int] = None,
    max_bytes: Optional[int] = None,
    max_bytes_per_rank: Optional[int] = None,
    expert_bytes: Union[int, Sequence[int], None] = None,
    speed_of_rank: Any = None,
    dead: Any = (),
    groups: int = 1,
    max_replicas: Optional[int] = None,
    move_price: Optional[float] = None,
    half_life: Optional[float] = None,
    shrinkage: Optional[float] = None,
    scenarios: Optional[int] = None,
    worth: Optional[Tuple[float, float, float]] = None,
    strict_nodes: bool = False,
    node_price: Optional[float] = None,
    expert_cost: float = 0.0,
    token_cost: float = 1.0,
    dispatch: str = "even",
    replicate_top: int = 0,
    seed: int = 0,
) -> Tuple[PlanRequest, List[Any]]:
    """A request for `layers` layers, without loads; the options are those of `eplb.plan`.

    Also returns what must live until the call is over. Raises `ValueError` for arrays of the wrong shape.
    """
    request = PlanRequest()
    call("eplb_plan_request_init", byref(request), ctypes.sizeof(PlanRequest))
    held: List[Any] = []

    def hold(given: Any, c_type: Any, name: str, dims: int) -> Any:
        values = arrays.take(given, c_type, name, (dims,))
        held.append(values)
        return values

    request.ranks, request.nodes, request.groups, request.seed = ranks, nodes, groups, seed
    if slots_of_rank is not None:
        of_rank = hold(slots_of_rank, c_uint32, "slots_of_rank", 1)
        if len(of_rank) != ranks:
            raise ValueError(f"slots_of_rank has {len(of_rank)} values for {ranks} ranks")
        request.slots_of_rank, total = of_rank.pointer, sum(of_rank.tolist())
    elif slots is not None:
        request.slots = total = slots
    else:
        raise ValueError("give slots (over all ranks) or slots_of_rank")
    if current is not None:
        phy2log = hold(getattr(current, "phy2log", current), c_int32, "current", 2)
        if phy2log.shape != (layers, total):
            raise ValueError(f"current has shape {list(phy2log.shape)}; loads and slots say {[layers, total]}")
        request.current = phy2log.pointer
    if speed_of_rank is not None:
        speed = hold(speed_of_rank, c_double, "speed_of_rank", 1)
        if len(speed) != ranks:
            raise ValueError(f"speed_of_rank has {len(speed)} values for {ranks} ranks")
        request.speed_of_rank = speed.pointer
    gone = [int(rank) for rank in dead]
    if any(not 0 <= rank < ranks for rank in gone):
        raise ValueError(f"dead: {gone} of ranks 0 to {ranks - 1}")
    if gone:
        request.dead = hold([int(rank in gone) for rank in range(ranks)], c_uint8, "dead", 1).pointer
    if policy is not None:
        request.policy = policy.encode()
    if target is not None:
        request.target = target
    numbers = {"move_price": move_price, "half_life": half_life, "shrinkage": shrinkage, "scenarios": scenarios}
    numbers["node_price"] = node_price
    for name, number in numbers.items():
        if number is not None:
            setattr(request, name, number)
    if worth is not None:
        request.worth_steps, request.worth_layer_seconds, request.worth_link_gbps = worth
    request.strict_nodes, request.replicate_top = int(strict_nodes), replicate_top
    request.expert_cost, request.token_cost, request.dispatch = expert_cost, token_cost, dispatch.encode()
    if expert_bytes is not None and not isinstance(expert_bytes, int):
        of_layer = [int(size) for size in expert_bytes]
        if len(of_layer) != layers or min(of_layer) < 1:
            raise ValueError(f"expert_bytes has {len(of_layer)} values for {layers} layers, or one below 1")
        of_layer = (ctypes.c_uint64 * layers)(*of_layer)
        held.append(of_layer)
        request.expert_bytes_of_layer = ctypes.cast(of_layer, ctypes.POINTER(ctypes.c_uint64))
        expert_bytes = None
    limits = {
        "max_moves": max_moves,
        "max_moves_per_rank": max_moves_per_rank,
        "max_bytes": max_bytes,
        "max_bytes_per_rank": max_bytes_per_rank,
        "expert_bytes": expert_bytes,
        "max_replicas": max_replicas,
    }
    for name, limit in limits.items():
        if limit is not None:
            if limit < (1 if name in ("expert_bytes", "max_replicas") else 0):
                raise ValueError(f"{name} is {limit}")
            setattr(request, name, limit)
    return request, held
