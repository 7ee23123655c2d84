"""Plans and traces through the shared library, with lists only: neither torch nor numpy is needed.

    cargo build -p eplb-capi && PYTHONPATH=bindings/python python3 -m unittest discover -s bindings/python/tests
"""

import ctypes
import json
import re
import subprocess
import sys
import threading
import unittest
from pathlib import Path

import eplb
from eplb import _functions, _native, _structures

ROOT = Path(__file__).resolve().parents[3]
LOADS = [[90, 10, 50, 50, 20, 20], [1, 2, 3, 4, 5, 6]]


class Replays(unittest.TestCase):
    def test_forecasts_follow_the_traffic_better_than_what_a_server_starts_with(self):
        trace = eplb.Trace(ROOT / "tests/data/day_26x64.npz")
        shape = {"ranks": 16, "slots": 80}
        fixed = eplb.replay(trace, policy="static", **shape)
        moved = eplb.replay(trace, move_price=0.003, **shape)
        self.assertEqual((fixed.first_step, len(fixed.balancedness)), (20, trace.shape[0] - 20))
        self.assertEqual((sum(fixed.moves), fixed.plans), (0, len(fixed.balancedness)))
        self.assertGreater(moved.mean, fixed.mean + 0.1)
        self.assertGreater(sum(moved.moves), 0)
        self.assertEqual(moved.moves[0], 0)
        self.assertAlmostEqual(sum(moved.balancedness) / len(moved.balancedness), moved.mean)
        with self.assertRaisesRegex(eplb.EplbError, "smaller window"):
            eplb.replay(trace, window=10**6, **shape)
        with self.assertRaisesRegex(TypeError, "current"):
            eplb.replay(trace, current=[[0]], **shape)


class Planning(unittest.TestCase):
    def test_a_plan_is_complete_and_scored(self):
        plan = eplb.plan(LOADS, ranks=2, slots=8)
        self.assertEqual([sorted(set(row)) for row in plan.placement.phy2log], [list(range(6))] * 2)
        self.assertEqual([sum(row) for row in plan.placement.logcnt], [8, 8])
        for layer, experts in enumerate(plan.placement.log2phy):
            for expert, slots in enumerate(experts):
                held = [slot for slot, e in enumerate(plan.placement.phy2log[layer]) if e == expert]
                self.assertEqual([slot for slot in slots if slot >= 0], held)
                self.assertAlmostEqual(sum(plan.share[layer][slot] for slot in held), 1.0)
        self.assertTrue(0.9 < plan.balancedness <= plan.bound <= 1.0)
        self.assertIsNone(plan.moves)
        self.assertIsNone(plan.balancedness_before)

    def test_from_a_current_placement_within_a_budget(self):
        first = eplb.plan(LOADS, ranks=2, slots=8, policy="static")
        second = eplb.plan(LOADS, ranks=2, slots=8, current=first.placement, max_moves=1)
        self.assertLessEqual(second.moves, 1)
        self.assertGreaterEqual(second.balancedness, second.balancedness_before)
        kept = eplb.plan(LOADS, ranks=2, slots=8, current=first.placement.phy2log, max_moves=0)
        self.assertEqual(kept.placement.phy2log, first.placement.phy2log)

    def test_windows_ranks_that_differ_and_dead_ranks(self):
        plan = eplb.plan([LOADS, LOADS], ranks=3, slots_of_rank=[4, 3, 4], speed_of_rank=[1, 1, 2], dead=[1])
        self.assertEqual([row[4:7] for row in plan.placement.phy2log], [[-1] * 3] * 2)

    def test_objectives_and_forecasts_reach_the_planner(self):
        hot = eplb.plan(LOADS, ranks=2, slots=10, replicate_top=2)
        for layer, (first, second) in enumerate(((0, 2), (5, 4))):
            counts = hot.placement.logcnt[layer]
            self.assertEqual((counts[first], counts[second]), (2, 2))
        first = eplb.plan(LOADS, ranks=2, slots=8, policy="static")
        dear = {"ranks": 2, "slots": 8, "policy": "forecast", "current": first.placement, "move_price": 1e9}
        self.assertEqual(eplb.plan([LOADS] * 3, **dear).moves, 0)
        self.assertGreater(eplb.plan([LOADS] * 3, **{**dear, "move_price": 0.0}).moves, 0)
        worth = {"ranks": 2, "slots": 8, "current": first.placement, "expert_bytes": [10**9, 10**9]}
        self.assertEqual(eplb.plan(LOADS, **worth, worth=(1, 1e-6, 1)).moves, 0)
        self.assertGreater(eplb.plan(LOADS, **worth, worth=(1e9, 1, 100)).moves, 0)
        self.assertEqual(eplb.plan(LOADS, ranks=2, slots=8, nodes=2, groups=2, strict_nodes=True).predicted_crossing, 0.0)
        self.assertTrue(eplb.plan(LOADS, ranks=2, slots=8, target=0.5).target_reached)
        with self.assertRaisesRegex(eplb.EplbError, "dispatch is random"):
            eplb.plan(LOADS, ranks=2, slots=8, dispatch="random")
        with self.assertRaisesRegex(ValueError, "expert_bytes has 1"):
            eplb.plan(LOADS, ranks=2, slots=8, expert_bytes=[1])

    def test_what_is_wrong_is_named(self):
        with self.assertRaisesRegex(eplb.EplbError, "5 slots for 6 experts"):
            eplb.plan(LOADS, ranks=1, slots=5)
        with self.assertRaisesRegex(eplb.EplbError, "unknown policy"):
            eplb.plan(LOADS, ranks=2, slots=8, policy="best")
        with self.assertRaisesRegex(eplb.EplbError, "expert 1"):
            eplb.plan([[1.0, float("nan")]], ranks=1, slots=2)
        for words, options in {
            "give slots": {"ranks": 2},
            "current has shape": {"ranks": 2, "slots": 8, "current": [[0, 1]]},
            "dead": {"ranks": 2, "slots": 8, "dead": [2]},
            "max_moves is -1": {"ranks": 2, "slots": 8, "max_moves": -1},
            "speed_of_rank has 1": {"ranks": 2, "slots": 8, "speed_of_rank": [1]},
            "slots_of_rank has 1": {"ranks": 2, "slots_of_rank": [8]},
        }.items():
            with self.assertRaisesRegex(ValueError, words):
                eplb.plan(LOADS, **options)
        with self.assertRaisesRegex(ValueError, "rows of lengths"):
            eplb.plan([[1, 2], [3]], ranks=1, slots=2)
        with self.assertRaisesRegex(ValueError, "dimensions"):
            eplb.plan([1, 2], ranks=1, slots=2)
        with self.assertRaisesRegex(TypeError, "loads"):
            eplb.plan([["a", "b"]], ranks=1, slots=2)

    def test_the_drop_in_is_deepseek_slot_for_slot(self):
        goldens = json.loads((ROOT / "tests/goldens/deepseek.json").read_text())
        self.assertGreater(len(goldens), 10)
        for golden in goldens:
            phy2log, log2phy, logcnt = eplb.rebalance_experts(
                golden["loads"], golden["slots"], golden["groups"], golden["nodes"], golden["gpus"]
            )
            self.assertEqual(phy2log, golden["phy2log"])
            self.assertEqual(len(log2phy[0][0]), max(map(max, logcnt)))
        ours, _, _ = eplb.rebalance_experts(golden["loads"], golden["slots"], 1, 1, golden["gpus"], policy="balanced")
        self.assertNotEqual(ours, golden["phy2log"])

    def test_threads_plan_at_the_same_time(self):
        expected = eplb.plan(LOADS, ranks=2, slots=8).placement.phy2log
        found = []
        work = [
            threading.Thread(target=lambda: found.append(eplb.plan(LOADS, ranks=2, slots=8).placement.phy2log))
            for _ in range(8)
        ]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
        self.assertEqual(found, [expected] * 8)


class Traces(unittest.TestCase):
    def test_a_trace_gives_its_loads(self):
        trace = eplb.Trace(ROOT / "tests/data/day_26x64.npz")
        steps, layers, experts = trace.shape
        self.assertEqual((layers, experts), (26, 64))
        loads = trace.loads(steps - 2)
        self.assertEqual((len(loads), len(loads[0]), len(loads[0][0])), (2, 26, 64))
        self.assertEqual(loads[1], trace.loads(steps - 1, 1)[0])
        with self.assertRaisesRegex(ValueError, "of a trace of"):
            trace.loads(steps)

    def test_files_that_are_not_traces_are_named(self):
        with self.assertRaisesRegex(eplb.EplbError, "nothing.npz"):
            eplb.Trace("nothing.npz")


class Library(unittest.TestCase):
    def test_structures_are_the_headers(self):
        header = (ROOT / "crates/capi/include/eplb.h").read_text()
        known = _structures.Structure.__subclasses__()
        self.assertGreater(len(known), 12)
        for structure in known:
            name = re.search(r"`struct (\w+)`", structure.__doc__).group(1)
            body = re.search(r"typedef struct %s \{(.*?)\} %s;" % (name, name), header, re.S).group(1)
            lines = [line for line in body.split("\n") if not line.strip().startswith("//")]
            fields = [re.sub(r"\(\*(\w+)\)\(.*", r"\1", field) for field in " ".join(lines).split(";")]
            fields = [re.search(r"(\w+)$", field.strip()).group(1) for field in fields if field.strip()]
            self.assertEqual([field[0] for field in structure._fields_], fields, name)
            self.assertEqual(fields[0], "struct_size")

    def test_functions_are_the_headers(self):
        header = (ROOT / "crates/capi/include/eplb.h").read_text()
        code = re.sub(r"//[^\n]*|/\*.*?\*/", "", header.split('extern "C" {')[1], flags=re.S)
        declared = dict(re.findall(r"(eplb_\w+)\(([^)]*)\);", code))
        known = {name: len(kinds) for name, kinds in _functions.FUNCTIONS.items()}
        known.update({name: 1 for name in _functions.FREE})
        # What Python has no use for: it has no graphs of its own, and logs as its host does.
        unused = {"eplb_abi_version", "eplb_version", "eplb_last_error", "eplb_log_set", "eplb_engine_device_counters"}
        self.assertEqual(set(declared), set(known) | unused)
        for name, count in known.items():
            self.assertEqual(len(declared[name].split(",")), count, name)

    def test_a_missing_library_says_how_to_get_it(self):
        code = "import eplb; eplb.version()"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"EPLB_LIBRARY": "/nowhere/libeplb.so", "PYTHONPATH": str(ROOT / "bindings/python")},
            capture_output=True,
            text=True,
        )
        self.assertIn("/nowhere/libeplb.so", done.stderr)
        self.assertIn("cargo build", done.stderr)

    def test_a_smaller_structure_is_refused(self):
        request = _structures.PlanRequest()
        with self.assertRaisesRegex(eplb.EplbError, "struct_size"):
            _native.call("eplb_plan_request_init", ctypes.byref(request), 16)


if __name__ == "__main__":
    unittest.main()
