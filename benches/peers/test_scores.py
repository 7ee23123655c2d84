"""The second computation of the scores, by hand, and that a placement or a score that is wrong ends a run."""

import unittest

import numpy as np

import scores

LOADS = np.array([[6.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
OLD = np.array([[0, 1, 2, 0], [0, 1, 2, 2]])
NEW = np.array([[0, 0, 1, 2], [0, 1, 2, 2]])


class Scores(unittest.TestCase):
    def good(self):
        # Layer 0: 3 + 3 and 2 + 2 tokens, mean 5 of at most 6; layer 1 is idle. Before: 3 + 2 on both ranks.
        return {"balancedness": 5 / 6, "balancedness_old": 1.0, "moves": 1, "duplicates": 2}

    def test_by_hand(self):
        self.assertAlmostEqual(scores.balancedness(LOADS, NEW, 2), 5 / 6)
        # Expert 1 comes to rank 1, where 2 was; the second copy of 0 on rank 0 is none that crosses a link.
        self.assertEqual(scores.moves(OLD, NEW, 2), 1)
        self.assertEqual(scores.duplicates(NEW, 2), 2)
        scores.check("right", self.good(), LOADS, OLD, NEW, 2)

    def test_differences_end_the_run(self):
        for key in self.good():
            wrong = self.good() | {key: self.good()[key] + 0.01}
            with self.assertRaisesRegex(SystemExit, f"planner: {key} is"):
                scores.check("planner", wrong, LOADS, OLD, NEW, 2)

    def test_a_lost_expert_ends_the_run(self):
        lost = np.array([[0, 0, 1, 1], [0, 1, 2, 2]])
        with self.assertRaisesRegex(SystemExit, "planner: layer 0 lacks expert 2"):
            scores.check("planner", self.good(), LOADS, OLD, lost, 2)


if __name__ == "__main__":
    unittest.main()
