"""The demo server in PyTorch on the CPU: outputs of every step are those of a server that does not balance, and a spoiled value is noticed."""

import json
import subprocess
import sys
import unittest
from pathlib import Path

SERVE = Path(__file__).resolve().parents[2] / "bindings/python/examples/serve.py"


class Serve(unittest.TestCase):
    def run_demo(self, *more):
        small = ["--steps", "80", "--rounds", "2", "--tokens", "16", "--token-us", "0", "--hidden", "16", "--interval", "0.05"]
        done = subprocess.run([sys.executable, str(SERVE), *small, *more], capture_output=True, text=True, timeout=600)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return done, lines[0] if lines else None

    def test_outputs_are_those_of_a_server_that_does_not_balance(self):
        done, told = self.run_demo("--ranks", "3", "--slots", "81")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual(told["wrong"], 0)
        self.assertGreaterEqual(told["outputs"], 80 * 16 * 3)
        self.assertGreaterEqual(told["moved"], 2)
        self.assertGreater(told["moves"], 0)
        self.assertGreater(told["switches"], 0)

    def test_ranks_of_two_hosts_find_out_what_fits(self):
        # Tensors of torch cannot be opened by other processes: nothing is left but Gloo.
        done, told = self.run_demo("--transport", "auto", "--nodes", "2")
        self.assertEqual((done.returncode, told and told["wrong"]), (0, 0), done.stdout + done.stderr)
        self.assertGreaterEqual(told["moved"], 2)
        self.assertRegex(told["reasons"][0], "passed over: .*node0.*node1")
        self.assertRegex(told["reasons"][-1], "^backend gloo: taken")

    def test_a_spoiled_value_is_noticed(self):
        done, told = self.run_demo("--plant", "20")
        self.assertNotEqual(done.returncode, 0)
        self.assertGreater(told["wrong"], 0, done.stdout + done.stderr)


if __name__ == "__main__":
    unittest.main()
