"""eplb behind the planner interfaces of vLLM and SGLang, beside their own planners (files of the published packages).

Needs `.venv/peers`, which `make test-integrations` fills.
"""

import inspect
import sys
import types
import unittest
from pathlib import Path

import torch

import eplb
from eplb.integrations import sglang, vllm

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / ".venv/peers"))

from sglang.srt.eplb.eplb_algorithms import deepseek, deepseek_vec  # noqa: E402
from vllm.distributed.eplb.policy.abstract import AbstractEplbPolicy  # noqa: E402
from vllm.distributed.eplb.policy.default import DefaultEplbPolicy  # noqa: E402

LAYERS, EXPERTS, SLOTS, NODES, RANKS = 5, 64, 80, 2, 16


def loads(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.exp(torch.randn(LAYERS, EXPERTS, generator=generator)).mul(1000).round()


def balancedness(weight, phy2log):
    """Mean over layers of mean rank load / largest, replicas sharing evenly: computed here, from the maps alone."""
    counts = torch.zeros_like(weight).scatter_add_(1, phy2log, torch.ones_like(phy2log, dtype=weight.dtype))
    of_slot = (weight / counts).gather(1, phy2log)
    of_rank = of_slot.reshape(LAYERS, RANKS, -1).sum(-1)
    return float((of_rank.mean(1) / of_rank.max(1).values).mean())


def moves(old, new):
    """Slots whose expert was not on the rank before."""
    old, new = (part.reshape(LAYERS, RANKS, -1).tolist() for part in (old, new))
    return sum(e not in before for a, b in zip(old, new) for before, after in zip(a, b) for e in after)


class Vllm(unittest.TestCase):
    def test_the_interface_is_vllms(self):
        made = vllm.policy(base=AbstractEplbPolicy)
        self.assertTrue(issubclass(made, AbstractEplbPolicy))
        ours, theirs = (inspect.signature(c.rebalance_experts) for c in (made, DefaultEplbPolicy))
        self.assertEqual(list(ours.parameters), list(theirs.parameters))
        made()  # nothing abstract is left

    def test_the_deepseek_policy_places_on_the_same_ranks_as_vllms_own(self):
        weight = loads()
        ours = vllm.policy("deepseek").rebalance_experts(weight, SLOTS, 1, 1, RANKS)
        theirs = DefaultEplbPolicy.rebalance_experts(weight, SLOTS, 1, 1, RANKS)
        self.assertEqual((ours.dtype, ours.shape, ours.device.type), (theirs.dtype, theirs.shape, "cpu"))
        self.assertAlmostEqual(balancedness(weight, ours), balancedness(weight, theirs), places=12)

    def test_from_the_map_in_force_fewer_moves_for_more_balance(self):
        old = vllm.policy().rebalance_experts(loads(), SLOTS, 1, 1, RANKS)
        weight = loads() * torch.exp(0.3 * torch.randn(LAYERS, EXPERTS, generator=torch.Generator().manual_seed(1)))
        ours = vllm.policy(target=0.99).rebalance_experts(weight, SLOTS, 1, 1, RANKS, old)
        theirs = DefaultEplbPolicy.rebalance_experts(weight, SLOTS, 1, 1, RANKS, old)
        self.assertGreaterEqual(balancedness(weight, ours), min(0.99, balancedness(weight, theirs)) - 1e-9)
        self.assertLess(moves(old, ours), moves(old, theirs) / 2)
        kept = vllm.policy(max_moves=0).rebalance_experts(weight, SLOTS, 1, 1, RANKS, old)
        self.assertEqual(moves(old, kept), 0)

    def test_a_map_of_another_number_of_ranks_is_not_started_from(self):
        old = vllm.policy().rebalance_experts(loads(), SLOTS + 20, 1, 1, RANKS + 4)
        fresh = vllm.policy().rebalance_experts(loads(), SLOTS, 1, 1, RANKS)
        self.assertTrue(torch.equal(vllm.policy().rebalance_experts(loads(), SLOTS, 1, 1, RANKS, old), fresh))

    def test_what_is_not_a_load_is_refused(self):
        weight = loads()
        weight[3, 7] = float("nan")
        with self.assertRaisesRegex(eplb.EplbError, "expert 7"):
            vllm.policy().rebalance_experts(weight, SLOTS, 1, 1, RANKS)

    def test_install_replaces_what_default_chooses(self):
        from vllm.distributed.eplb import policy as policies

        with self.assertRaisesRegex(RuntimeError, "EPLB_POLICIES"):
            vllm.install()
        # The package's own __init__ needs the whole of vLLM; these are the two names of it that count.
        policies.EPLB_POLICIES, policies.AbstractEplbPolicy = {"default": DefaultEplbPolicy}, AbstractEplbPolicy
        made = vllm.install(target=0.9)
        self.assertIs(policies.EPLB_POLICIES["default"], made)
        self.assertTrue(issubclass(made, AbstractEplbPolicy))


class Sglang(unittest.TestCase):
    def window(self):
        return torch.stack([loads(seed) for seed in range(4)]).int()

    def test_the_deepseek_policy_is_sglangs_own_slot_for_slot(self):
        window = self.window()
        ours = sglang.rebalance_experts(window, SLOTS, SLOTS // RANKS, None, NODES, policy="deepseek")
        theirs = deepseek.rebalance_experts(
            weight=window.sum(0), num_replicas=SLOTS, num_groups=None, num_nodes=NODES, num_gpus=RANKS, enable_hierarchical=False
        )
        for mine, other in zip(ours, theirs):
            self.assertEqual((mine.dtype, mine.shape), (other.dtype, other.shape))
        self.assertEqual(ours[0].tolist(), theirs[0].tolist())
        # Their replicas are listed in the order in which they were made, ours by slot; both pad with -1.
        self.assertEqual(ours[1].sort().values.tolist(), theirs[1].sort().values.tolist())
        self.assertEqual(ours[2].tolist(), theirs[2].tolist())

    def test_ours_is_better_than_both_of_theirs(self):
        window = self.window()
        weight = window.sum(0).double()
        ours = balancedness(weight, sglang.rebalance_experts(window, SLOTS, SLOTS // RANKS, None, NODES)[0])
        vec = deepseek_vec.rebalance_experts(
            tokens_per_expert=window,
            num_physical_experts=SLOTS,
            num_local_physical_experts=SLOTS // RANKS,
            num_groups=None,
            num_nodes=NODES,
            enable_hierarchical=False,
        )[0]
        plain = sglang.rebalance_experts(window, SLOTS, SLOTS // RANKS, None, NODES, policy="deepseek")[0]
        self.assertGreater(ours, balancedness(weight, vec))
        self.assertGreater(ours, balancedness(weight, plain))

    def test_install_starts_from_the_map_in_force(self):
        algorithms = sys.modules["sglang.srt.eplb.eplb_algorithms"]
        location = types.ModuleType("sglang.srt.eplb.expert_location")
        location.metadata = None
        location.get_global_expert_location_metadata = lambda: location.metadata
        sys.modules["sglang.srt.eplb.expert_location"] = location
        sys.modules["sglang.srt.eplb"].expert_location = location
        sglang.install(policy="incremental", max_moves=3)
        given = dict(
            tokens_per_expert=self.window(),
            num_physical_experts=SLOTS,
            num_local_physical_experts=SLOTS // RANKS,
            num_groups=None,
            num_nodes=NODES,
            algorithm="auto",
        )
        first = algorithms.rebalance_experts(**given)[0]
        location.metadata = types.SimpleNamespace(physical_to_logical_map_cpu=first)
        later = algorithms.rebalance_experts(**{**given, "tokens_per_expert": loads(9)[None].int()})[0]
        self.assertTrue(0 < moves(first, later) <= 3)

    def test_slots_that_would_stay_empty_are_refused(self):
        with self.assertRaisesRegex(ValueError, "fewer redundant experts"):
            sglang.rebalance_experts(torch.ones(1, LAYERS, 4), 24, 8, None, 1)
        with self.assertRaisesRegex(ValueError, "must divide"):
            sglang.rebalance_experts(torch.ones(1, LAYERS, 4), 25, 8, None, 1)


if __name__ == "__main__":
    unittest.main()
