"""What a plan is asked for, as the library takes it."""

import ctypes
from ctypes import byref, c_double, c_int32, c_uint8, c_uint32
from types import SimpleNamespace
from typing import Any, List, Tuple

from eplb import arrays
from eplb._native import call
from eplb._structures import PlanRequest


def describe(layers: int, options: SimpleNamespace) -> Tuple[PlanRequest, List[Any]]:
    """A request for `layers` layers, without loads; `options` has every option of `eplb.plan`.

    Also returns what must live until the call is over. Raises `ValueError` for arrays of the wrong shape.
    """
    request = PlanRequest()
    call("eplb_plan_request_init", byref(request), ctypes.sizeof(PlanRequest))
    held: List[Any] = []

    def hold(given: Any, c_type: Any, name: str, dims: int) -> Any:
        values = arrays.take(given, c_type, name, (dims,))
        held.append(values)
        return values

    request.ranks, request.nodes, request.groups, request.seed = options.ranks, options.nodes, options.groups, options.seed
    if options.slots_of_rank is not None:
        of_rank = hold(options.slots_of_rank, c_uint32, "slots_of_rank", 1)
        if len(of_rank) != options.ranks:
            raise ValueError(f"slots_of_rank has {len(of_rank)} values for {options.ranks} ranks")
        request.slots_of_rank, total = of_rank.pointer, sum(of_rank.tolist())
    elif options.slots is not None:
        request.slots = total = options.slots
    else:
        raise ValueError("give slots (over all ranks) or slots_of_rank")
    if options.current is not None:
        phy2log = hold(getattr(options.current, "phy2log", options.current), c_int32, "current", 2)
        if phy2log.shape != (layers, total):
            raise ValueError(f"current has shape {list(phy2log.shape)}; loads and slots say {[layers, total]}")
        request.current = phy2log.pointer
    if options.speed_of_rank is not None:
        speed = hold(options.speed_of_rank, c_double, "speed_of_rank", 1)
        if len(speed) != options.ranks:
            raise ValueError(f"speed_of_rank has {len(speed)} values for {options.ranks} ranks")
        request.speed_of_rank = speed.pointer
    gone = [int(rank) for rank in options.dead]
    if any(not 0 <= rank < options.ranks for rank in gone):
        raise ValueError(f"dead: {gone} of ranks 0 to {options.ranks - 1}")
    if gone:
        request.dead = hold([int(rank in gone) for rank in range(options.ranks)], c_uint8, "dead", 1).pointer
    if options.policy is not None:
        request.policy = options.policy.encode()
    if options.target is not None:
        request.target = options.target
    for name in ("move_price", "half_life", "shrinkage", "scenarios", "drift", "node_price"):
        if getattr(options, name) is not None:
            setattr(request, name, getattr(options, name))
    if options.worth is not None:
        request.worth_steps, request.worth_layer_seconds, request.worth_link_gbps = options.worth
    request.strict_nodes, request.replicate_top = int(options.strict_nodes), options.replicate_top
    request.expert_cost, request.token_cost, request.dispatch = options.expert_cost, options.token_cost, options.dispatch.encode()
    if options.expert_bytes is not None and not isinstance(options.expert_bytes, int):
        of_layer = [int(size) for size in options.expert_bytes]
        if len(of_layer) != layers or min(of_layer) < 1:
            raise ValueError(f"expert_bytes has {len(of_layer)} values for {layers} layers, or one below 1")
        of_layer = (ctypes.c_uint64 * layers)(*of_layer)
        held.append(of_layer)
        request.expert_bytes_of_layer = ctypes.cast(of_layer, ctypes.POINTER(ctypes.c_uint64))
    limits = ["max_moves", "max_moves_per_rank", "max_bytes", "max_bytes_per_rank", "max_replicas"]
    if not request.expert_bytes_of_layer:
        limits.append("expert_bytes")
    for name in limits:
        limit = getattr(options, name)
        if limit is not None:
            if limit < (1 if name in ("expert_bytes", "max_replicas") else 0):
                raise ValueError(f"{name} is {limit}")
            setattr(request, name, limit)
    return request, held
