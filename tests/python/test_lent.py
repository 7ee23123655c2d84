"""Memory that an engine lends, as torch and numpy see it: the same bytes, for as long as somebody looks."""

import gc
import unittest

import numpy as np
import torch

import eplb
from eplb import lent as module


class Lent(unittest.TestCase):
    def start(self):
        engine = eplb.Engine()
        main = engine.layer_set("main", layers=1, experts=3, slots=4)
        engine.lend(main, 0, {"w13": ((2, 6), "bfloat16"), "w2": ((5,), "float8_e4m3fn"), "scale": ((3,), "float32")})
        engine.start()
        return engine, engine.lent(main, 0)

    def test_torch_and_numpy_share_its_memory(self):
        engine, lent = self.start()
        with engine:
            w13, w2 = lent["w13"].torch(), lent["w2"].torch()
            self.assertEqual((w13.dtype, tuple(w13.shape), w13.data_ptr()), (torch.bfloat16, (4, 2, 6), lent["w13"].address))
            self.assertEqual((w2.dtype, tuple(w2.shape)), (torch.float8_e4m3fn, (4, 5)))
            self.assertTrue(w13.is_contiguous() and not w13.any())
            scale = np.asarray(lent["scale"])
            self.assertEqual((scale.dtype, scale.shape), (np.float32, (4, 3)))
            torch.from_dlpack(lent["scale"])[2] = 7.5
            self.assertEqual(scale.tolist(), [[0.0] * 3, [0.0] * 3, [7.5] * 3, [0.0] * 3])
            self.assertEqual(np.from_dlpack(lent["scale"]).tolist(), scale.tolist())

    def test_it_lives_as_long_as_a_tensor_on_it(self):
        engine, lent = self.start()
        held = len(module._held)
        tensor = torch.from_dlpack(lent["scale"])
        self.assertEqual(len(module._held), held + 1)
        tensor.fill_(3.0)
        engine.close()
        del engine, lent
        gc.collect()
        self.assertEqual(tensor.sum().item(), 36.0)
        del tensor
        gc.collect()
        self.assertEqual(len(module._held), held)


if __name__ == "__main__":
    unittest.main()
