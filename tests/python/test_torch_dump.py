"""Dumps that torch itself writes, converted and read by the `eplb` command. Needs torch and numpy, and EPLB, the command.

`make test-integrations` installs and sets what is needed; without it these tests fail.
"""

import json
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

import numpy as np
import torch

from eplb import convert
from eplb.torch_file import DumpError


def eplb(*arguments):
    """Runs the command; returns exit code, stdout and stderr."""
    done = subprocess.run([os.environ["EPLB"], *map(str, arguments)], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


class TorchDump(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.dump, self.out = self.folder / "dump.pt", self.folder / "dump.npz"
        counts = np.random.default_rng(0).integers(0, 5000, (7, 3, 16))
        self.counts = torch.from_numpy(counts.astype(np.int32))

    def save(self, counts, **options):
        content = {"rank": 0, "logical_count": counts, "average_utilization_rate_over_window": 0.5}
        torch.save(content, self.dump, **options)

    def test_a_dump_of_the_recorder_reaches_the_command(self):
        self.save(self.counts)
        code, _, message = eplb("trace", "convert", self.dump, "--out", self.folder / "direct.npz")
        self.assertEqual(code, 2)
        self.assertIn("python3 -m eplb.convert", message, "the command tells how to convert a torch file")
        convert.convert([self.dump], self.out)
        loaded = np.load(self.out)
        self.assertEqual(loaded["logical_count"].dtype, np.int32)
        np.testing.assert_array_equal(loaded["logical_count"], self.counts.numpy())
        self.assertEqual(loaded["average_utilization_rate_over_window"], 0.5)
        code, facts, message = eplb("trace", "info", self.out, "--json")
        self.assertEqual(code, 0, message)
        facts = json.loads(facts)
        self.assertEqual([facts["steps"], facts["layers"], facts["experts"]], [7, 3, 16])
        again = self.folder / "again.npz"
        self.assertEqual(eplb("trace", "convert", self.out, "--out", again)[0], 0)
        np.testing.assert_array_equal(np.load(again)["counts"], self.counts.numpy())

    def test_every_dtype_and_layout_that_torch_writes(self):
        for dtype in (torch.uint8, torch.int16, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64):
            small = (self.counts % 200).to(dtype)
            for name, tensor in [
                ("contiguous", small),
                ("transposed", small.transpose(0, 2).contiguous().transpose(0, 2)),
                ("part", small.repeat(2, 2, 2)[3:10, 1:4, 5:21]),
            ]:
                with self.subTest(dtype=dtype, layout=name):
                    self.save(tensor)
                    convert.convert([self.dump], self.out)
                    expected = tensor.double().numpy()
                    np.testing.assert_array_equal(np.load(self.out)["logical_count"].astype(np.float64), expected)

    def test_a_detailed_dump_is_folded_by_the_command(self):
        generator = np.random.default_rng(1)
        map_ = torch.tensor([[0, 1, 2, 3, 0, 3], [3, 2, 1, 0, 1, 1]])
        counts = generator.integers(0, 100, (2, 4, 2, 6))  # ranks, passes, layers, slots
        dumps = []
        for rank, passes in enumerate(counts):
            records = [
                {
                    "forward_pass_id": step,
                    "rank": rank,
                    "gatherer_key": "primary",
                    "global_physical_count": torch.from_numpy(count.astype(np.int32)),
                }
                for step, count in enumerate(passes)
            ]
            dumps.append(self.folder / f"rank{rank}.pt")
            torch.save({"records": records, "last_physical_to_logical_map": map_}, dumps[-1])
        convert.convert(dumps, self.out)
        code, _, message = eplb("trace", "convert", self.out, "--out", self.folder / "logical.npz")
        self.assertEqual(code, 0, message)
        expected = np.zeros((4, 2, 4))
        for layer in range(2):
            for slot in range(6):
                expected[:, layer, map_[layer, slot]] += counts.sum(axis=0)[:, layer, slot]
        np.testing.assert_array_equal(np.load(self.folder / "logical.npz")["counts"], expected)

    def test_files_that_are_refused(self):
        self.save(self.counts, _use_new_zipfile_serialization=False)
        with self.assertRaisesRegex(DumpError, "dump.pt: .*save it again"):
            convert.convert([self.dump], self.out)
        self.save(self.counts)
        whole = self.dump.read_bytes()
        for part in (0.1, 0.5, 0.9, 0.999):
            self.dump.write_bytes(whole[: int(len(whole) * part)])
            with self.assertRaisesRegex(DumpError, "dump.pt: truncated"):
                convert.convert([self.dump], self.out)
        self.save(self.counts.to_sparse())
        with self.assertRaisesRegex(DumpError, "dump.pt: .*torch._utils._rebuild_sparse_tensor"):
            convert.convert([self.dump], self.out)


if __name__ == "__main__":
    unittest.main()
