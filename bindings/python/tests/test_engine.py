"""The engine, one rank alone and two as threads of this process, on memory of numpy-like arrays: neither torch nor numpy is needed."""

import ctypes
import re
import sys
import tempfile
import threading
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import eplb
from eplb import engine as module
from eplb import lent as module_lent
from eplb.config import toml
from eplb.tensors import describe

sys.path.insert(0, str(Path(__file__).resolve().parent))
from rounds import settled  # noqa: E402

LAYERS, EXPERTS, LOCAL, ROW = 2, 8, 6, 48
CONFIG = {"trigger": {"interval_s": 1e6}, "sample_ms": 5, "poll_ms": 1, "margin": 4}


class Block:
    """Memory with an array interface, `[slots, rows, row bytes]`, rows apart by `pitch`."""

    def __init__(self, slots, rows, row, pitch=None):
        self.pitch = pitch or row
        self.bytes = (ctypes.c_uint8 * (slots * rows * self.pitch))()
        self.rows, self.row = rows, row
        self.__array_interface__ = {
            "version": 3,
            "data": (ctypes.addressof(self.bytes), False),
            "shape": (slots, rows, row),
            "typestr": "|u1",
            "strides": (rows * self.pitch, self.pitch, 1),
        }

    def at(self, slot, row):
        start = (slot * self.rows + row) * self.pitch
        return bytes(self.bytes[start : start + self.row])

    def put(self, slot, row, value):
        start = (slot * self.rows + row) * self.pitch
        self.bytes[start : start + self.row] = list(value)


class View(Block):
    """The same bytes in memory that an engine lends."""

    def __init__(self, lent):
        _, self.rows, self.row = lent.shape
        self.pitch = self.row
        self.bytes = (ctypes.c_uint8 * (lent.shape[0] * self.rows * self.row)).from_address(lent.address)
        self.lent = lent


def expert_bytes(layer, expert, row):
    """The bytes that an expert must have, from who it is."""
    return bytes((layer * 31 + expert * 7 + row * 5 + i * 3 + 1) % 256 for i in range(ROW))


class Alone(unittest.TestCase):
    def start(self, config="", **layers):
        engine = eplb.Engine(config)
        main = engine.layer_set("main", layers=1, experts=3, slots=4)
        self.block = Block(4, 1, 8)
        engine.layer(main, 0, {"w": self.block})
        return engine.start()

    def test_it_counts_and_tells(self):
        with self.start() as engine:
            engine.step(0)
            maps = engine.maps()
            self.assertEqual((maps.phy2log, maps.logcnt, maps.version), ([[0, 1, 2, 0]], [[2, 1, 1]], 0))
            self.assertEqual(maps.share, [[0.5, 1.0, 1.0, 0.5]])
            self.assertEqual(engine.record(0, slots=[[1, 2, 3, 4]]), (0, 0))
            self.assertEqual(engine.record(0, experts=[[1, 2, 3]], tag=1), (0, 0))
            self.assertEqual(engine.record_choices(0, 0, [[0, 1], [2, 9]], mask=[1, 1]), (0, 1))
            self.assertIn("eplb_", engine.metrics(per_layer=True))
            self.assertIsNone(engine.last_report())
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "plan.npz"
                engine.save(path)
                self.assertEqual(eplb.Trace(path).shape[1:], (1, 3))
            for call, words, kind in (
                (lambda: engine.step(0), "step 0", "invalid argument"),
                (lambda: engine.record(0, slots=[[1, 2, 3]]), "need 4", "invalid argument"),
                (lambda: engine.record(0, experts=[[1, 2, 3]], tag=7), "tag 7", None),
                (lambda: engine.record(0, experts=[[1, 2, 3]], layer_set=3), "set is 3", "invalid argument"),
            ):
                with self.assertRaisesRegex(eplb.EplbError, words) as caught:
                    call()
                if kind:
                    self.assertEqual(caught.exception.kind, kind)
        with self.assertRaisesRegex(RuntimeError, "closed"):
            engine.step(1)
        engine.close()

    def test_what_cannot_be_is_named(self):
        with self.assertRaisesRegex(eplb.EplbError, "polcy"):
            eplb.Engine({"polcy": "balanced"})
        with self.assertRaisesRegex(eplb.EplbError, "target"):
            self.start({"target": 7})
        with self.assertRaisesRegex(ValueError, "a configuration cannot hold"):
            eplb.Engine({"target": None})
        with self.assertRaisesRegex(eplb.EplbError, "store is null"):
            eplb.Engine(world_size=2)
        engine = eplb.Engine()
        main = engine.layer_set("main", layers=2, experts=3, slots=4)
        with self.assertRaisesRegex(RuntimeError, "not started"):
            engine.step(0)
        with self.assertRaisesRegex(eplb.EplbError, "2 layers of 4 slots need 8"):
            engine.placement(main, [[0, 1, 2, 0]])
        engine.layer(main, 0, {"w": Block(4, 1, 8)})
        with self.assertRaisesRegex(eplb.EplbError, "layer 1"):
            engine.start()

    def test_an_engine_that_cannot_be_ended_keeps_its_tensors(self):
        engine = self.start()
        held = len(module._unfinished)

        def late(timeout=0):
            raise eplb.EplbError("shutdown was not over in time", "timeout")

        engine.close = late
        del engine
        self.assertEqual(len(module._unfinished), held + 1)
        handle, kept = module._unfinished.pop()
        self.assertIn(self.block, kept)
        del handle

    def test_memory_that_is_lent_is_seen_by_others(self):
        engine = eplb.Engine()
        main = engine.layer_set("main", layers=1, experts=3, slots=4)
        with self.assertRaisesRegex(ValueError, "float7"):
            engine.lend(main, 0, {"w": ((2, 3), "float7")})
        engine.lend(main, 0, {"w": ((2, 3), "bfloat16"), "scale": ((5,), "float32")})
        with self.assertRaisesRegex(eplb.EplbError, "registered twice"):
            engine.lend(main, 0, {"w": ((2, 3), "bfloat16")})
        engine.start()
        lent = engine.lent(main, 0)
        self.assertEqual((lent["w"].shape, lent["scale"].shape), ((4, 2, 3), (4, 5)))
        self.assertEqual(lent["w"].__array_interface__["typestr"], "<u2")
        self.assertEqual(lent["w"].__dlpack_device__(), (1, 0))
        scale = (ctypes.c_float * 20).from_address(lent["scale"].address)
        self.assertEqual(list(scale), [0.0] * 20)
        with self.assertRaises(KeyError):
            engine.lent(main, 1)
        with self.assertRaises(BufferError):
            lent["w"].__dlpack__(copy=True)
        # What a package that takes DLPack reads, and how it lets go.
        held = len(module_lent._held)
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.argtypes, get.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
        capsule = lent["w"].__dlpack__(stream=None, max_version=(1, 0))
        told = module_lent._Tensor.from_address(get(capsule, b"dltensor"))
        self.assertEqual((told.data, told.device.kind, told.dimensions), (lent["w"].address, 1, 3))
        self.assertEqual((told.dtype.code, told.dtype.bits, told.dtype.lanes, told.shape[:3]), (4, 16, 1, [4, 2, 3]))
        self.assertEqual(len(module_lent._held), held + 1)
        rename = ctypes.pythonapi.PyCapsule_SetName
        rename.argtypes = [ctypes.py_object, ctypes.c_char_p]
        taken = b"used_dltensor"
        self.assertEqual(rename(capsule, taken), 0)
        del capsule
        self.assertEqual(len(module_lent._held), held + 1, "who took it still has it")
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(told.deleter)(ctypes.addressof(told))
        self.assertEqual(len(module_lent._held), held)
        unused = lent["w"].__dlpack__()
        self.assertEqual(len(module_lent._held), held + 1)
        del unused
        self.assertEqual(len(module_lent._held), held, "a capsule that nobody took lets go by itself")
        engine.close()
        # The memory is there for as long as something looks at it.
        self.assertEqual(list(scale), [0.0] * 20)

    def test_where_rows_are(self):
        described, device = describe("w", Block(4, 3, 8, pitch=10))
        self.assertIsNone(device)
        self.assertEqual(
            (described.rows, described.row_bytes, described.pitch, described.slot_stride), (3, 8, 10, 30)
        )
        whole, _ = describe("w", Block(4, 3, 8))
        self.assertEqual((whole.rows, whole.row_bytes, whole.slot_stride), (1, 24, 24))
        turned = Block(4, 3, 8)
        turned.__array_interface__["strides"] = (24, 1, 3)
        with self.assertRaisesRegex(ValueError, "lie apart"):
            describe("w", turned)

    def test_dictionaries_become_toml(self):
        text = toml({"versions": 'a"b\\c\n', "tags": ["x", "y"], "trigger": {"rest_s": 0.5}, "dry_run": True})
        self.assertEqual(
            text,
            '"versions" = "a\\u0022b\\u005cc\\u000a"\n"tags" = ["x", "y"]\n"trigger" = { "rest_s" = 0.5 }\n"dry_run" = true\n',
        )


class Together(unittest.TestCase):
    def test_experts_move_while_steps_run_and_every_byte_is_right(self):
        self.move(eplb.Transport.local(), lends=False)

    def test_experts_move_between_memory_that_is_lent_and_that_all_map(self):
        self.move(eplb.Transport.shared_memory(), lends=True)

    def test_experts_move_with_what_auto_takes_which_says_why(self):
        transport = eplb.Transport.auto()
        self.assertEqual(transport.reasons, [])
        self.move(transport, lends=True)
        self.assertEqual(len(transport.reasons), 1)
        self.assertRegex(transport.reasons[0], r"^backend peer \(host memory\): taken: all ranks opened each other's memory")
        self.assertEqual(eplb.Transport.local().reasons, [])

    def test_ranks_that_are_given_no_transport_find_one(self):
        self.move(None, lends=True)

    def move(self, transport, lends):
        store = eplb.Store.in_process()
        done, turn = threading.Barrier(2), threading.Barrier(2)
        problems, moved, hooked = [], [0, 0], [0, 0]

        def check(rank, engine, blocks):
            phy2log = engine.maps().phy2log
            for layer in range(LAYERS):
                for slot in range(LOCAL):
                    expert = phy2log[layer][rank * LOCAL + slot]
                    for row in range(2):
                        if expert >= 0 and blocks[layer].at(slot, row) != expert_bytes(layer, expert, row):
                            problems.append((rank, layer, slot, expert))

        def rank(me):
            engine = eplb.Engine(CONFIG, rank=me, world_size=2, store=store, transport=transport)
            main = engine.layer_set("main", layers=LAYERS, experts=EXPERTS, slots=2 * LOCAL)
            blocks = [Block(LOCAL, 2, ROW, pitch=ROW + 5) for _ in range(LAYERS)]
            for layer, block in enumerate(blocks):
                if lends:
                    engine.lend(main, layer, {"w13": ((2, ROW), "uint8")})
                else:
                    engine.layer(main, layer, {"w13": block})

            def filled(_set, _layer, slots):
                hooked[me] += len(slots)

            engine.after_commit(filled)
            engine.start()
            if lends:
                blocks = [View(engine.lent(main, layer)["w13"]) for layer in range(LAYERS)]
            for layer, block in enumerate(blocks):
                for slot in range(LOCAL):
                    for row in range(2):
                        block.put(slot, row, expert_bytes(layer, (me * LOCAL + slot) % EXPERTS, row))
            step = rounds = 0
            for number in range(3):
                counts = [[1000 if (e * 3 + number) % EXPERTS == 0 else 30 for e in range(EXPERTS)] for _ in range(LAYERS)]
                engine.record(step, experts=counts)
                done.wait(60)
                if me == 0:
                    engine.rebalance_now()
                waiter = waiters.submit(settled, engine, rounds, 60)
                # Ranks that exchange tokens are in step; both stop after the same one.
                while True:
                    engine.step(step)
                    check(me, engine, blocks)
                    step += 1
                    over.append((me, step, waiter.done()))
                    turn.wait(60)
                    both = all(end for rank, at, end in over if at == step)
                    turn.wait(60)
                    if both:
                        break
                report, rounds = waiter.result()
                self.assertRegex(report.outcome, "^(moved|nothing)$")
                moved[me] += report.moves
            done.wait(60)
            check(me, engine, blocks)
            self.assertEqual(re.search("failed", engine.state), None)
            engine.close()

        over = []

        def guarded(me):
            try:
                rank(me)
            except BaseException as error:  # noqa: BLE001  shown by the test
                problems.append(repr(error))
                done.abort()
                turn.abort()

        threads = [threading.Thread(target=guarded, args=(me,)) for me in range(2)]
        with ThreadPoolExecutor(2) as waiters:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual(problems, [])
        self.assertGreater(moved[0], 0)
        self.assertEqual(moved[0], moved[1])
        self.assertGreater(sum(hooked), 0)


if __name__ == "__main__":
    unittest.main()
