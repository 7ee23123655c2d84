"""Pairs over NCCL with no GPU: on the fakes of `fakes.py`, each case in a process of its own."""

import ctypes
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from fakes import Device, build, environment  # noqa: E402

LONG = 120.0


def content(batch, source, to, at):
    """The bytes of a message, from who sends it to whom; some are empty."""
    size = (batch * 131 + source * 17 + to * 7 + at * 97) % 600 if (batch + at) % 5 else 0
    return bytes((i * 31 + batch * 7 + source * 3 + to + at) % 256 for i in range(size))


def rounds(rank, world, pairs, device):
    """Batches in which pairs of ranks have up to 3 messages, and 300 in the last: more than one group of NCCL takes."""
    wrong = 0
    for batch in range(6):

        def count(source, to):
            return 300 if batch == 5 else (batch + 2 * source + 3 * to) % 4

        others = [peer for peer in range(world) if peer != rank]
        out = [(peer, content(batch, rank, peer, at)) for peer in others for at in range(count(rank, peer))]
        into = [(peer, content(batch, peer, rank, at)) for peer in others for at in range(count(peer, rank))]
        places = [device.block(b"\xee" * len(expected)) for _, expected in into]
        pairs.exchange(
            [(peer, device.block(sent), len(sent)) for peer, sent in out],
            [(peer, place, len(expected)) for place, (peer, expected) in zip(places, into)],
            LONG,
        )
        wrong += sum(ctypes.string_at(place, len(expected)) != expected for place, (_, expected) in zip(places, into))
    return f"{wrong} wrong, {pairs.received_bytes > 0}"


def differ(rank, world, pairs, device):
    """Both agree on the number of bytes, and not on those of each message."""
    sizes = [8, 24] if rank == 0 else [24, 8]
    messages = [(1 - rank, device.block(b"\xee" * size), size) for size in sizes]
    return failing(pairs, *((messages, []) if rank == 0 else ([], messages)), LONG)


def late(rank, world, pairs, device):
    """The other rank has nothing to do with it, and never comes."""
    if rank == 1:
        return "waited"
    return failing(pairs, [(1, device.block(b"x"), 1)], [], 0.3)


def leave(rank, world, pairs, device):
    """The other rank is gone while this one waits for it."""
    if rank == 1:
        pairs.close()
        return "left"
    return failing(pairs, [], [(1, device.block(b"x"), 1)], LONG)


def lost(rank, world, pairs, device):
    """NCCL loses a message (planted): nothing but the deadline tells."""
    place = device.block(bytes(100))
    if rank == 0:
        pairs.exchange([(1, place, 100)], [], LONG)
        return "sent"
    return failing(pairs, [], [(0, place, 100)], 1.0)


def failing(pairs, sends, receives, timeout):
    """What an exchange that must fail says, twice."""
    import eplb

    said = []
    for _ in range(2):
        try:
            pairs.exchange(sends, receives, timeout)
            said.append("it went well")
        except eplb.EplbError as error:
            said.append(f"{error.kind}: {error}")
    return said[0] if said[0] == said[1] else f"{said[0]}, then {said[1]}"


def main(case, world):
    import eplb

    store = eplb.Store.in_process()
    said, parting = [None] * world, threading.Barrier(world)

    def run(rank):
        device = Device(rank)
        pairs = eplb.Pairs(rank, world, store, "nccl", device=rank, timeout=LONG)
        said[rank] = globals()[case](rank, world, pairs, device)
        # Who leaves ends the batches of others.
        parting.wait(LONG)
        pairs.close()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("\n".join(map(str, said)))


class PairsOnFakes(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        build(cls.folder.name)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def run_case(self, case, world=2, **variables):
        log = Path(self.folder.name) / f"{case}.log"
        done = subprocess.run(
            [sys.executable, __file__, case, str(world)],
            capture_output=True,
            text=True,
            timeout=4 * LONG,
            env=environment(self.folder.name, log, **variables),
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.log = log.read_text()
        return done.stdout.splitlines()

    def test_every_byte_arrives_and_groups_stay_small(self):
        self.assertEqual(self.run_case("rounds", 3), ["0 wrong, True"] * 3)
        self.assertNotIn("outside", self.log)
        depth, most = 0, 0
        of = [line for line in self.log.splitlines() if " rank=1 " in line or "ncclGroup" in line]
        for line in of:
            depth = 0 if "ncclGroupEnd" in line else depth + ("ncclSend" in line or "ncclRecv" in line)
            most = max(most, depth)
        self.assertLessEqual(most, 256)

    def test_sizes_that_differ_are_named_before_a_byte_lands(self):
        said = self.run_case("differ")
        self.assertRegex(said[1], "transfer: .*2 messages of 32 bytes in all, as expected, but in other sizes")
        self.assertRegex(said[0], "transfer: rank 0: transfer from rank 1 failed: .*other sizes")
        self.assertNotIn("nccl_mismatch", self.log)

    def test_who_never_comes_is_a_deadline(self):
        self.assertRegex(self.run_case("late")[0], "timeout: rank 0: the messages of a batch not done")

    def test_who_leaves_is_an_error_at_once(self):
        self.assertRegex(self.run_case("leave")[0], "transfer: rank 0: transfer from rank 1 failed: it closed its connections")

    def test_a_message_that_is_lost_is_a_deadline(self):
        # The first send of each rank opens the pair, then rank 0 sends a header; its next is the message.
        said = self.run_case("lost", EPLB_FAKE_FAULT="ncclSend:4")
        self.assertIn("planted ncclSend", self.log)
        self.assertEqual(said[0], "sent")
        self.assertRegex(said[1], "timeout: rank 1: the messages of a batch not done")

    def test_what_cannot_be_is_named(self):
        import eplb

        store = eplb.Store.in_process()
        with self.assertRaisesRegex(ValueError, "say which with device="):
            eplb.Pairs(0, 2, store, "nccl")
        with self.assertRaisesRegex(ValueError, "means nothing to it"):
            eplb.Pairs(0, 2, store, device=1)


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ("rounds", "differ", "late", "leave", "lost"):
        main(sys.argv[1], int(sys.argv[2]))
    else:
        unittest.main()
