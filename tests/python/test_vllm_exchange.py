"""vLLM's own exchange, `rearrange_expert_weights_inplace`, over our communicator: real processes, host memory, every byte checked.

Needs `.venv/peers`, which `make test-integrations` fills. On a machine with at least two GPUs (`EPLB_TEST_DEVICE=cuda`) the weights are on them.
"""

import os
import subprocess
import sys
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RANKS, SLOTS, LAYERS, EXPERTS = 4, 5, 3, 14
if os.environ.get("EPLB_TEST_DEVICE") == "cuda":
    import torch

    RANKS = min(torch.cuda.device_count(), 4)


def weights_of(layer, expert, tensor):
    """The bytes that an expert must have, from who it is."""
    import torch

    rows, columns, dtype = [(8, 96, torch.bfloat16), (5, 7, torch.float32), (1, 3, torch.uint8)][tensor]
    start = (layer * 1009 + expert * 131 + tensor * 17) % 251
    values = (torch.arange(rows * columns) * 3 + start) % 251
    return values.reshape(rows, columns).to(dtype)


def worker(rank, world, address, port):
    """One rank; prints what it found."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    sys.path.insert(0, str(ROOT / ".venv/peers"))
    import torch
    import torch.distributed as dist
    import vllm_stand_ins

    vllm_stand_ins.stand_in()
    from vllm.distributed.eplb.rebalance_execute import rearrange_expert_weights_inplace

    import eplb
    from eplb.integrations.vllm import EplbCommunicator

    device = "cpu"
    if os.environ.get("EPLB_TEST_DEVICE") == "cuda":
        device = f"cuda:{rank}"
        torch.cuda.set_device(rank)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    if address == "torch":
        store = eplb.Store.of_torch(dist.distributed_c10d._get_default_store())
    else:
        store = eplb.Store.open(address)
    communicator = EplbCommunicator(eplb.Pairs(rank, world, store.corner("pairs")), timeout=30)
    generator = torch.Generator().manual_seed(7)

    def placement():
        """Every expert somewhere; what is left is drawn, -1 among it."""
        rows = []
        for _ in range(LAYERS):
            spare = world * SLOTS - EXPERTS if EXPERTS <= world * SLOTS else 0
            extra = torch.randint(-1, EXPERTS, (spare,), generator=generator)
            row = torch.cat([torch.arange(EXPERTS)[: world * SLOTS], extra])
            rows.append(row[torch.randperm(len(row), generator=generator)])
        return torch.stack(rows)

    old = placement()
    weights = [
        [
            torch.stack(
                [weights_of(layer, max(int(old[layer, rank * SLOTS + slot]), 0), tensor) for slot in range(SLOTS)]
            ).to(device)
            for tensor in range(3)
        ]
        for layer in range(LAYERS)
    ]
    buffers = [torch.empty_like(weight) for weight in weights[0]]
    wrong = checked = 0
    for _ in range(8):
        new = placement()
        rearrange_expert_weights_inplace(old, new, weights, buffers, dist.group.WORLD, communicator)
        if device != "cpu":
            torch.cuda.current_stream().synchronize()
        for layer in range(LAYERS):
            for slot in range(SLOTS):
                expert = int(new[layer, rank * SLOTS + slot])
                for tensor in range(3):
                    if expert >= 0:
                        checked += 1
                        wrong += not torch.equal(weights[layer][tensor][slot].cpu(), weights_of(layer, expert, tensor))
        old = new
    print(f"rank {rank}: {checked} checked, {wrong} wrong, {communicator._pairs.received_bytes} bytes")
    dist.barrier()
    if rank == world - 1 and "EPLB_TEST_LEAVE" in os.environ:
        os._exit(0)
    if "EPLB_TEST_LEAVE" in os.environ:
        try:
            rearrange_expert_weights_inplace(old, old.roll(SLOTS, 1), weights, buffers, dist.group.WORLD, communicator)
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
            env={**os.environ, **environment},
        )
        for rank in range(RANKS)
    ]
    try:
        return [rank.communicate(timeout=180)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


class Exchange(unittest.TestCase):
    def check(self, said):
        for rank, text in enumerate(said):
            self.assertRegex(text, rf"rank {rank}: [1-9]\d* checked, 0 wrong, [1-9]\d* bytes")

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


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
    else:
        unittest.main()
