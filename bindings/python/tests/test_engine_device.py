"""The engine on device memory with no GPU: two ranks as threads on the fakes of `fakes.py`. Each case is a process of its own."""

import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from fakes import Device, build, environment  # noqa: E402
from rounds import settled  # noqa: E402

LAYERS, EXPERTS, LOCAL, ROWS, ROW, PITCH = 2, 8, 6, 2, 48, 64
CONFIG = {"trigger": {"interval_s": 1e6}, "sample_ms": 5, "poll_ms": 1, "margin": 4}
LONG = 120.0


class Tensor:
    """Device memory `[local slots, rows, row bytes]`, rows apart by `PITCH`, as other packages show theirs."""

    def __init__(self, device, number):
        self.address, self.number = device.block(bytes(LOCAL * ROWS * PITCH)), number
        self.__cuda_array_interface__ = {
            "version": 3,
            "data": (self.address, False),
            "shape": (LOCAL, ROWS, ROW),
            "typestr": "|u1",
            "strides": (ROWS * PITCH, PITCH, 1),
        }

    def __dlpack_device__(self):
        return 2, self.number

    def row(self, slot, row):
        return self.address + (slot * ROWS + row) * PITCH


def expert_bytes(layer, expert, row):
    """The bytes that an expert must have, from who it is."""
    return bytes((layer * 31 + expert * 7 + row * 5 + i * 3 + 1) % 256 for i in range(ROW))


class Numbers:
    """64-bit whole numbers on the device, `[rows, columns]`."""

    def __init__(self, device, rows, typestr="<i8"):
        columns = len(rows[0])
        content = (ctypes.c_int64 * (len(rows) * columns))(*[number for row in rows for number in row])
        shape = (len(rows), columns)
        self.__cuda_array_interface__ = {
            "version": 3,
            "data": (device.block(bytes(content)), False),
            "shape": shape,
            "typestr": typestr,
            "strides": None,
        }


class Rank:
    """One rank with its tensors, streams and engine."""

    def __init__(self, me, world, store, transport, config=CONFIG, fill=None):
        import eplb

        self.me, self.world, self.device = me, world, Device(me)
        self.tensors = [Tensor(self.device, me) for _ in range(LAYERS)]
        for layer, tensor in enumerate(self.tensors):
            for slot in range(LOCAL):
                for row in range(ROWS):
                    expert = (me * LOCAL + slot) % EXPERTS
                    ctypes.memmove(tensor.row(slot, row), expert_bytes(layer, expert, row), ROW)
        self.streams = [self.device.stream(), self.device.stream()]
        self.filled = self.looked = self.wrong = 0
        self.engine = eplb.Engine(config, rank=me, world_size=world, store=store, transport=transport)
        self.engine.layer_set("main", layers=LAYERS, experts=EXPERTS, slots=world * LOCAL)
        for layer, tensor in enumerate(self.tensors):
            self.engine.layer(0, layer, {"w13": tensor})

        def hook(_set, _layer, slots):
            self.filled += len(slots)

        self.engine.after_commit(hook)
        if fill is not None:
            self.engine.source(fill)
        self.engine.start()

    def step(self, number):
        """One pass: on both streams the device has the maps of the host, and the slots that they name hold their experts."""
        self.engine.step(number, streams=self.streams)
        maps, there = self.engine.maps(), self.engine.device_maps()
        for stream in self.streams:
            self.device.wait(stream)
        for name, kind in (("phy2log", ctypes.c_int32), ("log2phy", ctypes.c_int32), ("logcnt", ctypes.c_int32), ("share", ctypes.c_float)):
            interface = there.array(name).__cuda_array_interface__
            flat = getattr(maps, name)
            while isinstance(flat[0], list):
                flat = [value for part in flat for value in part]
            found = list((kind * len(flat)).from_address(interface["data"][0]))
            self.looked += 1
            self.wrong += found != flat
        for layer, tensor in enumerate(self.tensors):
            for slot in range(LOCAL):
                expert = maps.phy2log[layer][self.me * LOCAL + slot]
                for row in range(ROWS if expert >= 0 else 0):
                    self.looked += 1
                    self.wrong += ctypes.string_at(tensor.row(slot, row), ROW) != expert_bytes(layer, expert, row)


def tokens(engine):
    """The choices that an engine has counted in prefill."""
    return int(re.search(r'^eplb_tokens_total\{[^}]*tag="prefill"[^}]*\} (\d+)$', engine.metrics(), re.M).group(1))


def serve(kind, plant):
    """Rounds over two ranks while steps run; what was seen, as JSON."""
    import eplb

    store = eplb.Store.in_process()
    peer = kind == "peer"
    transport = eplb.Transport.peer(processes=False) if peer else eplb.Transport.nccl(loaded=False, in_steps=kind == "steps")
    turn = threading.Barrier(2, timeout=4 * LONG)
    told, problems, said = [None, None], [], [False, False]
    waiters = ThreadPoolExecutor(2)

    def run(me):
        rank = Rank(me, 2, store, transport)
        rank.step(0)
        step, rounds, moves, given, outcomes, before = 1, 0, 0, 0, [], []
        for number in range(3):
            if plant and number == 1 and me == 0:
                slot = next(s for s, e in enumerate(rank.engine.maps().phy2log[0][:LOCAL]) if e >= 0)
                ctypes.memset(rank.tensors[0].row(slot, 1), 0, 1)
            counts = [[1000 if (e * 3 + number) % EXPERTS == 0 else 30 for e in range(EXPERTS)] for _ in range(LAYERS)]
            given += sum(map(sum, counts))
            # In turns: numbers on the host, on the device, and choices on the device of as many tokens.
            if number == 0:
                rank.engine.record(step, experts=counts)
            elif number == 1:
                rank.engine.record(step, experts=Numbers(rank.device, counts))
            else:
                for layer, row in enumerate(counts):
                    chosen = [[expert, -1] for expert, count in enumerate(row) for _ in range(count)]
                    ids = Numbers(rank.device, chosen)
                    if layer == 0:
                        rank.engine.record_choices(step, layer, ids)
                        continue
                    # Slots take the places of the experts, by the maps of the pass before, which are in force.
                    assert rank.engine.dispatch(step, layer, ids) is ids
                    rank.device.wait(rank.streams[0])
                    of_slot = rank.engine.maps().phy2log[layer]
                    found = (ctypes.c_int64 * (2 * len(chosen))).from_address(ids.__cuda_array_interface__["data"][0])
                    rank.looked += len(chosen)
                    rank.wrong += sum(
                        found[2 * at + 1] != -1 or of_slot[found[2 * at]] != expert for at, (expert, _) in enumerate(chosen)
                    )
            for stream in rank.streams:
                rank.device.wait(stream)
            turn.wait()
            if me == 0:
                rank.engine.rebalance_now()
            waiter = waiters.submit(settled, rank.engine, rounds, LONG)
            while True:
                rank.step(step)
                step += 1
                # Both look at the same words, and stop after the same step.
                said[me] = waiter.done()
                turn.wait()
                over = all(said)
                turn.wait()
                if over:
                    break
            report, rounds = waiter.result()
            moves += report.moves
            outcomes.append(report.outcome)
            before.append(report.before)
        # Numbers of the device arrive when the next sample is taken.
        end = time.monotonic() + LONG
        while tokens(rank.engine) < given and time.monotonic() < end:
            rank.engine.tick()
        address = rank.engine.device_maps().array("phy2log").__cuda_array_interface__["data"][0]
        told[me] = dict(
            given=given, counted=tokens(rank.engine), looked=rank.looked, wrong=rank.wrong, filled=rank.filled, moves=moves, outcomes=outcomes, before=before, device=rank.engine.device, maps=address
        )
        turn.wait()
        rank.engine.close(LONG)

    def guarded(me):
        try:
            run(me)
        except BaseException as error:  # noqa: BLE001  shown by the test
            problems.append(f"rank {me}: {error!r}")
            turn.abort()
            print(json.dumps({"ranks": told, "problems": problems}), flush=True)
            os._exit(0)

    threads = [threading.Thread(target=guarded, args=(me,)) for me in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"ranks": told, "problems": problems}))


def back(fails):
    """A rank dies after a round, and one that is started anew takes its place: what its slots lack comes from the source."""
    import eplb

    store, transport = eplb.Store.in_process(), eplb.Transport.nccl(loaded=False)
    config = {**CONFIG, "deadlines": {"store.peer_timeout": 5000}}
    asked, told, gone = [], [None, None], threading.Event()
    turn = threading.Barrier(2, timeout=4 * LONG)

    def fill(layer, expert, tensor, row, place):
        asked.append((layer, expert, tensor, row, len(place)))
        if fails:
            raise OSError("the checkpoint is gone")
        place[:] = expert_bytes(layer, expert, row)

    def run(me):
        rank = Rank(me, 2, store, transport, config, fill)
        counts = [[1000 if (e * 3 + 1) % EXPERTS == 0 else 30 for e in range(EXPERTS)] for _ in range(LAYERS)]
        rank.step(0)
        rank.engine.record(0, experts=counts)
        turn.wait()
        if me == 0:
            rank.engine.rebalance_now()
        step, waiter = 1, waiters.submit(settled, rank.engine, 0, LONG)
        while True:
            rank.step(step)
            step += 1
            said[me] = waiter.done()
            turn.wait()
            over = all(said)
            turn.wait()
            if over:
                break
        waiter.result()
        rank.step(step)
        turn.wait()
        if me == 1:
            rank.engine.close(LONG)
            gone.wait(LONG)
            try:
                rank = Rank(me, 2, store, transport, config, fill)
            except eplb.EplbError as error:
                print(json.dumps({"error": str(error)}), flush=True)
                os._exit(0)
        else:
            while "failed" not in rank.engine.state:
                rank.engine.tick()
            gone.set()
            rank.engine.reform(LONG)
        rank.step(step + 1)
        told[me] = dict(looked=rank.looked, wrong=rank.wrong, phy2log=rank.engine.maps().phy2log)
        turn.wait()
        rank.engine.close(LONG)

    said, waiters = [False, False], ThreadPoolExecutor(2)
    threads = [threading.Thread(target=run, args=(me,)) for me in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"ranks": told, "asked": asked}))


def misuse():
    """What must be an error with words, one line each."""
    import eplb

    device = Device(0)

    class Host:
        block = (ctypes.c_uint8 * (LOCAL * 8))()
        __array_interface__ = {"version": 3, "data": (ctypes.addressof(block), False), "shape": (LOCAL, 8), "typestr": "|u1"}

    class Nameless:
        __cuda_array_interface__ = Tensor(device, 0).__cuda_array_interface__

    def engine(*tensors, **more):
        made = eplb.Engine(**more)
        made.layer_set("main", layers=1, experts=3, slots=LOCAL)
        made.layer(0, 0, {f"w{at}": tensor for at, tensor in enumerate(tensors)})
        return made

    started = engine(Tensor(device, 0)).start()
    on_host = engine(Host()).start()
    for case in (
        lambda: engine(Tensor(device, 0), Host()),
        lambda: engine(Host(), Tensor(device, 0)),
        lambda: engine(Tensor(device, 0), Tensor(device, 1)),
        lambda: engine(Nameless()),
        lambda: engine(Nameless(), device=0) and "fine",
        lambda: engine(Host(), device=0),
        lambda: engine(Tensor(device, 99)),
        lambda: eplb._native.call("eplb_engine_step_on", started._running(), 0, (ctypes.c_uint64 * 1)(0), 1),
        lambda: started.step(1, streams=list(range(100, 140))),
        lambda: started.record(0, experts=Numbers(device, [[1, 2, 3]]), stream=device.stream()),
        lambda: started.record(0, experts=Numbers(device, [[1, 2, 3]], "<f8"), stream=device.stream()),
        lambda: started.record(0, experts=Numbers(device, [[1, 2, 3]])),
        lambda: started.record_choices(0, 3, Numbers(device, [[1, 2, 3]]), stream=device.stream()),
        lambda: started.record_choices(0, 0, Numbers(device, [[1, 2]]), mask=Numbers(device, [[1]]), stream=device.stream()),
        lambda: started.dispatch(0, 0, Numbers(device, [[1, 2]]), Numbers(device, [[1]]), stream=device.stream()),
        lambda: on_host.dispatch(0, 0, Numbers(device, [[1, 2]])),
        lambda: on_host.device_maps(),
        lambda: on_host.step(0, streams=[device.stream()]) or "fine",
    ):
        try:
            print(case())
        except (ValueError, eplb.EplbError) as error:
            print(f"{type(error).__name__}: {error}".replace("\n", " "))
    started.close()
    on_host.close()


class EngineOnDevice(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        build(cls.folder.name)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def run_case(self, *case):
        log = Path(self.folder.name) / "calls.log"
        done = subprocess.run(
            [sys.executable, __file__, *case],
            capture_output=True,
            text=True,
            timeout=8 * LONG,
            env=environment(self.folder.name, log),
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def check(self, told):
        self.assertEqual(told["problems"], [])
        for number, rank in enumerate(told["ranks"]):
            self.assertEqual(rank["device"], number)
            self.assertGreater(rank["looked"], 100)
            self.assertTrue(set(rank["outcomes"]) <= {"moved", "nothing"}, rank)
            self.assertGreater(rank["moves"], 0)
            self.assertEqual(rank["counted"], rank["given"])
        self.assertGreater(sum(rank["filled"] for rank in told["ranks"]), 0)

    def test_experts_move_between_devices_while_steps_run(self):
        for kind in ("peer", "nccl", "steps"):
            with self.subTest(kind):
                told = json.loads(self.run_case("serve", kind))
                self.check(told)
                self.assertEqual([rank["wrong"] for rank in told["ranks"]], [0, 0])

    def test_a_spoiled_byte_is_noticed(self):
        told = json.loads(self.run_case("serve", "peer", "plant"))
        self.check(told)
        self.assertGreater(sum(rank["wrong"] for rank in told["ranks"]), 0)

    def test_a_rank_that_comes_back_is_filled_from_the_source(self):
        told = json.loads(self.run_case("back"))
        self.assertEqual([rank["wrong"] for rank in told["ranks"]], [0, 0])
        self.assertEqual(told["ranks"][0]["phy2log"], told["ranks"][1]["phy2log"])
        self.assertGreater(len(told["asked"]), 0)
        self.assertEqual({(tensor, size) for _, _, tensor, _, size in told["asked"]}, {(0, ROW)})

    def test_a_source_that_fails_is_named(self):
        self.assertIn("the host's source returned 1", json.loads(self.run_case("back", "fails"))["error"])

    def test_what_cannot_be_is_named(self):
        expected = [
            "ValueError: w1 lies in host memory, the engine's slots lie on CUDA device 0",
            "ValueError: w1 lies on CUDA device 0, the engine's slots lie in host memory",
            "ValueError: w1 lies on CUDA device 1, the engine's slots lie on CUDA device 0",
            "ValueError: w0 does not tell its device; give device= to the engine",
            "fine",
            "ValueError: w0 lies in host memory, the engine's slots lie on CUDA device 0",
            "EplbError: there is no device 99",
            "EplbError: .*0 stands for|EplbError: .*default stream",
            "EplbError: .*16",
            r"\(0, 0\)",
            "ValueError: experts are <f8",
            "ValueError: on which stream",
            "EplbError: .*layer 3",
            "ValueError: mask has shape",
            "ValueError: slots differ",
            "ValueError: ids are not on",
            "EplbError: .*host memory",
            "EplbError: .*host memory",
        ]
        said = self.run_case("misuse").splitlines()
        self.assertEqual(len(said), len(expected), said)
        for line, words in zip(said, expected):
            self.assertRegex(line, words)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2], len(sys.argv) > 3)
    elif sys.argv[1:2] == ["back"]:
        back(len(sys.argv) > 2)
    elif sys.argv[1:2] == ["misuse"]:
        misuse()
    else:
        unittest.main()
