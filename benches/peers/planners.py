"""The published planners behind one interface: a first plan with the server's start in place, then a second one.

Two modules that vllm-ascend's files import are stood in for, since they need a device or a server: `vllm.logger` (logs
are dropped) and `torch_npu` (imported for its side effect; `torch.npu.device_count` says the ranks per node). Its
`parallel_state` tells the number of ranks. None of them takes part in the computation of a plan.
"""

import copy
import logging
import sys
import types
from dataclasses import dataclass
from time import thread_time

import numpy as np
import torch


@dataclass(frozen=True)
class Shape:
    """Experts and slots per layer, over all ranks; nodes; expert groups of the router."""

    experts: int
    slots: int
    ranks: int
    nodes: int
    groups: int

    def start(self, layers):
        """What a server starts with: slot p holds expert p mod E. [L, P]"""
        return np.tile(np.arange(self.slots) % self.experts, (layers, 1))


class Planner:
    """One planner. `call(loads, placement)` plans for `loads` [T, L, E] with `placement` [L, P] in place."""

    def __init__(self, name, call, state=None):
        self.name, self.call, self.state = name, call, state
        self.key = name.replace(" ", "-")

    def first(self, loads):
        return self.run(loads, self.start(loads.shape[1]))[1]

    def second(self, loads, placement):
        """Milliseconds of processor time of the second plan and its placement; from the same state every time it is called."""
        kept = copy.deepcopy(self.state)
        result = self.run(loads, placement)
        self.state = kept
        return result

    def run(self, loads, placement):
        call = self.call(self.state, loads, placement)
        start = thread_time()
        planned = call()
        ms = (thread_time() - start) * 1e3
        return ms, np.asarray(planned).reshape(loads.shape[1], -1)


def all_of(shape):
    """Every planner that takes the shape."""
    torch.set_num_threads(1)
    stand_ins(shape)
    planners = [*sglang(shape), vllm(shape), *ascend(shape)]
    for planner in planners:
        planner.start = shape.start
    return planners


def sglang(shape):
    from sglang.srt.eplb import eplb_algorithms

    def planner(algorithm):
        def call(_, loads, placement):
            tokens = torch.from_numpy(loads.astype(np.int32))
            per_rank = shape.slots // shape.ranks
            arguments = tokens, shape.slots, per_rank, shape.groups, shape.nodes, algorithm
            return lambda: eplb_algorithms.rebalance_experts(*arguments)[0]

        return Planner(f"sglang {algorithm.name}", call)

    kinds = eplb_algorithms.EplbAlgorithm
    if shape.nodes == 1:
        return [planner(kinds.deepseek), planner(kinds.deepseek_vec)]
    return [planner(kinds.deepseek_hierarchical), planner(kinds.deepseek_vec_hierarchical)]


def vllm(shape):
    from vllm.distributed.eplb.policy.default import DefaultEplbPolicy

    def call(_, loads, placement):
        tokens, old = torch.from_numpy(loads.sum(axis=0, dtype=np.int64)), torch.from_numpy(placement)
        return lambda: DefaultEplbPolicy.rebalance_experts(
            tokens, shape.slots, shape.groups, shape.nodes, shape.ranks, old
        )

    return Planner("vllm default", call)


def ascend(shape):
    from vllm_ascend.eplb.core.policy.policy_flashlb import FlashLB
    from vllm_ascend.eplb.core.policy.policy_swift_balancer import SwiftBalanceEplb

    def tables(loads, placement):
        """The placement as [L, G, P/G], and the load of each slot as [T, L, G, P/G]."""
        replicas = np.stack([np.bincount(row, minlength=shape.experts) for row in placement])
        share = loads / replicas
        by_slot = np.take_along_axis(share, np.broadcast_to(placement, (len(loads), *placement.shape)), axis=2)
        grid = (len(placement), shape.ranks, -1)
        table = torch.from_numpy(placement.reshape(grid))
        return table, torch.from_numpy(by_slot.reshape((len(loads), *grid)).astype(np.float32))

    def swift(policy, loads, placement):
        table, by_slot = tables(loads, placement)
        summed = by_slot.sum(dim=0)
        return lambda: policy.rebalance_experts(table, summed)[2]

    def flashlb(policy, loads, placement):
        table, by_slot = tables(loads, placement)
        return lambda: policy.rebalance_experts(table, by_slot)[2]

    return [
        Planner("vllm-ascend swift", swift, SwiftBalanceEplb()),
        Planner("vllm-ascend flashlb", flashlb, FlashLB()),
    ]


def stand_ins(shape):
    def module(name, **names):
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(names)

    silent = logging.getLogger("silent")
    silent.disabled = True
    module("vllm.logger", logger=silent)
    module("torch_npu")
    torch.npu = types.SimpleNamespace(device_count=lambda: shape.ranks // shape.nodes)
    group = types.SimpleNamespace(world_size=shape.ranks)
    module("vllm_ascend.distributed")
    module("vllm_ascend.distributed.parallel_state", get_dynamic_eplb_group=lambda: group)
    # Imported again for every shape: the planner keeps the function that tells its group.
    sys.modules.pop("vllm_ascend.eplb.core.policy.policy_flashlb", None)
