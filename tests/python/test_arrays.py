"""Plans for torch tensors and numpy arrays: the same numbers as for lists, in the kind that was given."""

import json
import unittest
from pathlib import Path

import numpy as np
import torch

import eplb

GOLDENS = Path(__file__).resolve().parents[1] / "goldens/deepseek.json"


class Arrays(unittest.TestCase):
    def test_the_drop_in_gives_torch_for_torch_and_numpy_for_numpy(self):
        for golden in json.loads(GOLDENS.read_text()):
            sizes = (golden["slots"], golden["groups"], golden["nodes"], golden["gpus"])
            expected = eplb.rebalance_experts(golden["loads"], *sizes)
            self.assertEqual(expected[0], golden["phy2log"])
            whole = all(load == int(load) for row in golden["loads"] for load in row)
            for dtype in (torch.float32, torch.float64, torch.int64)[: 3 if whole else 2]:
                found = eplb.rebalance_experts(torch.tensor(golden["loads"], dtype=dtype), *sizes)
                for tensor, numbers in zip(found, expected):
                    self.assertEqual((tensor.dtype, tensor.device.type), (torch.int64, "cpu"))
                    self.assertEqual(tensor.tolist(), numbers)
            found = eplb.rebalance_experts(np.array(golden["loads"]), *sizes)
            for values, numbers in zip(found, expected):
                self.assertEqual(values.dtype, np.int64)
                self.assertEqual(values.tolist(), numbers)

    def test_strides_are_followed(self):
        loads = torch.arange(48, dtype=torch.float64).reshape(6, 8).t()[::2]
        given = eplb.plan(loads, ranks=2, slots=8)
        self.assertIsInstance(given.share, torch.Tensor)
        self.assertEqual(given.placement.phy2log.tolist(), eplb.plan(loads.tolist(), ranks=2, slots=8).placement.phy2log)
        loads = np.asfortranarray(loads.numpy())
        self.assertEqual(
            eplb.plan(loads, ranks=2, slots=8).placement.phy2log.tolist(), given.placement.phy2log.tolist()
        )
        again = eplb.plan(loads, ranks=2, slots=8, current=given.placement)
        self.assertEqual(again.moves, 0)

    def test_a_trace_as_arrays(self):
        trace = eplb.Trace(Path(__file__).resolve().parents[1] / "data/day_26x64.npz")
        as_numpy, as_torch = trace.loads(0, 3, kind="numpy"), trace.loads(0, 3, kind="torch")
        self.assertEqual(as_numpy.shape, (3, 26, 64))
        self.assertEqual(as_numpy.tolist(), as_torch.tolist())
        self.assertEqual(as_numpy.tolist(), trace.loads(0, 3))


if __name__ == "__main__":
    unittest.main()
