"""vLLM's own exchange, `rearrange_expert_weights_inplace` and `transfer_layer`, over our communicator: real processes, host memory, every
byte checked. On GPUs the same runs from `tests/gpu/beside_torch.py`.

Needs `.venv/peers`, which `make test-integrations` fills.
"""

import os
import subprocess
import sys
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RANKS = 4


def worker(rank, world, address, port):
    """One rank; prints what it found."""
    sys.path[:0] = [str(HERE), str(ROOT / ".venv/peers")]
    import torch.distributed as dist
    import vllm_ranks

    import eplb
    from eplb.integrations.vllm import EplbCommunicator

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    if address == "torch":
        store = eplb.Store.of_torch(dist.distributed_c10d._get_default_store())
    else:
        store = eplb.Store.open(address)
    pairs = eplb.Pairs(rank, world, store.corner("pairs"))
    mine = vllm_ranks.Rank(rank, world, "cpu", dist.group.WORLD, EplbCommunicator(pairs, timeout=60))
    ways = [("rearrange", mine.rearrange)] * 4
    ways += [("transfer", lambda: mine.transfer_layers(False))] * 3 + [("batched", lambda: mine.transfer_layers(True))] * 3
    found = {name: [0, 0, 0] for name, _ in ways}
    for name, way in ways:
        before = pairs.received_bytes
        way()
        if name == os.environ.get("EPLB_TEST_PLANT") and rank == 0:
            mine.weights[0][0][[int(e) >= 0 for e in mine.old[0, :5]].index(True)].view(-1)[3] += 1
        more = (*mine.look(), pairs.received_bytes - before)
        found[name] = [a + b for a, b in zip(found[name], more)]
    for name, (checked, wrong, received) in found.items():
        print(f"rank {rank}: {name}: {checked} checked, {wrong} wrong, {received} bytes")
    dist.barrier()
    if rank == world - 1 and "EPLB_TEST_LEAVE" in os.environ:
        os._exit(0)
    if "EPLB_TEST_LEAVE" in os.environ:
        try:
            mine.rearrange()
            print(f"rank {rank}: nothing was noticed")
        except eplb.EplbError as error:
            print(f"rank {rank}: {error.kind}: {error}")
    sys.stdout.flush()
    os._exit(0)


def run(address="torch", **environment):
    """Runs the ranks; returns what they printed."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [sys.executable, __file__, "worker"]
    ranks = [
        subprocess.Popen(
            [*arguments, str(rank), str(RANKS), address, str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        for rank in range(RANKS)
    ]
    try:
        return [rank.communicate(timeout=300)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


class Exchange(unittest.TestCase):
    def check(self, said):
        for rank, text in enumerate(said):
            for way in ("rearrange", "transfer", "batched"):
                self.assertRegex(text, rf"rank {rank}: {way}: [1-9]\d* checked, 0 wrong, [1-9]\d* bytes")

    def test_every_byte_through_torchs_own_store(self):
        self.check(run())

    def test_every_byte_through_our_store(self):
        import eplb

        with eplb.StoreServer() as server:
            self.check(run(server.address))

    def test_a_rank_that_is_gone_is_an_error_of_the_others(self):
        said = run(EPLB_TEST_LEAVE="1")
        self.check(said)
        for rank, text in enumerate(said[:-1]):
            self.assertRegex(text, rf"rank {rank}: transfer: .*rank {RANKS - 1}", said)

    def test_a_wrong_value_is_noticed(self):
        for way in ("rearrange", "transfer"):
            self.assertRegex(run(EPLB_TEST_PLANT=way)[0], rf"rank 0: {way}: [1-9]\d* checked, [1-9]\d* wrong")


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
    else:
        unittest.main()
