"""One rank of vLLM's own expert exchange, measured as `eplb bench exchange` measures ours: same placements, same sizes, same keys.

Started by torchrun with as many processes as ranks; needs PyTorch with CUDA and the files of `vllm_files.py`:

    eplb bench placements --ranks 2 --placement shift --rounds 10 > shift.json
    torchrun --nproc-per-node 2 benches/peers/vllm_exchange.py --files target/peers/vllm shift.json

The call is that of the synchronous mode (`rearrange_expert_weights_inplace`), which is vLLM's fastest; it is timed from a barrier to the
end of its work on the slowest rank. Where vLLM reserves NCCL's buffers in its profile run, that run comes first, untimed.
`--device cpu --transport torch_nccl` tries the script without a GPU (over Gloo then). Every rank checks all bytes of its slots.
"""

import argparse
import datetime
import json
import os
import statistics
import sys
import time

import torch
import torch.distributed as dist

import vllm_standins

# An expert of a large model in 8-bit floats: two matrices and their scales.
TENSORS = "29360128,14680064,7168,3584"


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("placements", nargs="+", help="files of `eplb bench placements`")
    parser.add_argument("--files", required=True, help="the folder with vLLM's files")
    parser.add_argument("--tensors", default=TENSORS, help="bytes of each tensor of an expert")
    parser.add_argument("--transport", default="pynccl", choices=["pynccl", "torch_nccl"])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--warmup", type=int, default=2, help="exchanges before those measured; the first is reported by itself")
    parser.add_argument("--plant", type=int, default=0, help="spoil this many bytes of rank 0, which its check must find")
    return parser.parse_args()


class Device:
    """Waiting and memory of the device of this rank."""

    def __init__(self, kind, rank):
        self.on_gpu = kind == "cuda"
        self.device = torch.device("cuda", rank) if self.on_gpu else torch.device("cpu")
        if self.on_gpu:
            torch.cuda.set_device(self.device)

    def settle(self):
        if self.on_gpu:
            torch.cuda.synchronize()

    def free_bytes(self):
        """Free memory of the device, without what PyTorch keeps for later."""
        if not self.on_gpu:
            return 0
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]


def pattern(layer, expert, tensor, size, device):
    """The bytes that a tensor of an expert must have: those of no other expert, layer or tensor."""
    seed = (layer * 7919 + expert * 104729 + tensor * 1299709) & 0x7FFFFFFF
    at = torch.arange(size, device=device, dtype=torch.int32)
    return ((at * 31 + (at >> 8) * 17 + seed % 8191) % 251).to(torch.uint8)


class Rank:
    """Weights of a rank, and vLLM's communicator over them."""

    def __init__(self, args, sizes, layers, slots):
        self.args, self.sizes = args, sizes
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.local = slots // self.ranks
        self.device = Device(args.device, int(os.environ["LOCAL_RANK"]))
        self.cpu_group = dist.group.WORLD
        make = lambda size: torch.empty((self.local, size), dtype=torch.uint8, device=self.device.device)
        self.weights = [[make(size) for size in sizes] for _ in range(layers)]
        self.device.settle()
        before = self.device.free_bytes()
        # As vLLM: one layer to receive into, made once.
        self.buffer = [torch.empty_like(weight) for weight in self.weights[0]]
        self.group = dist.new_group(backend="nccl") if self.device.on_gpu else self.cpu_group
        self.communicator = self.connect()
        self.rearrange(None, None, is_profile=True)
        self.device.settle()
        self.before = before

    def connect(self):
        from vllm.distributed.eplb import eplb_communicator as theirs

        if self.args.transport == "torch_nccl":
            return theirs.TorchDistNcclEplbCommunicator(self.group)
        from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator

        pynccl = PyNcclCommunicator(self.cpu_group, self.device.device)
        if pynccl.disabled:
            sys.exit("pynccl found no NCCL that it takes: set VLLM_NCCL_SO_PATH to a libnccl.so.2")
        return theirs.PyNcclEplbCommunicator(pynccl)

    def rearrange(self, old, new, is_profile=False):
        from vllm.distributed.eplb.rebalance_execute import rearrange_expert_weights_inplace

        if is_profile:
            some = torch.zeros((len(self.weights), self.local * self.ranks), dtype=torch.int64)
            if not self.device.on_gpu or not self.communicator.needs_profile_buffer_reservation:
                return
            old = new = some
        rearrange_expert_weights_inplace(old, new, self.weights, self.buffer, self.group, self.communicator, is_profile)

    def mine(self, placement):
        """(layer, row, expert) of this rank's slots in use."""
        for layer, row in enumerate(placement.tolist()):
            begin = self.rank * self.local
            for at, expert in enumerate(row[begin : begin + self.local]):
                if expert >= 0:
                    yield layer, at, expert

    def fill(self, placement):
        for layer, row, expert in self.mine(placement):
            for tensor, size in enumerate(self.sizes):
                self.weights[layer][tensor][row] = pattern(layer, expert, tensor, size, self.device.device)

    def count_wrong(self, placement):
        wrong = 0
        for layer, row, expert in self.mine(placement):
            for tensor, size in enumerate(self.sizes):
                right = pattern(layer, expert, tensor, size, self.device.device)
                wrong += int((self.weights[layer][tensor][row] != right).sum())
        return wrong

    def over_ranks(self, number, how):
        value = torch.tensor([float(number)], dtype=torch.float64)
        dist.all_reduce(value, op=how, group=self.cpu_group)
        return float(value)


def bytes_into(old, new, local, ranks, expert_bytes):
    """Bytes over links into each rank: experts that it had in no slot."""
    into = [0] * ranks
    for before, after in zip(old.tolist(), new.tolist()):
        for rank in range(ranks):
            has = set(before[rank * local : (rank + 1) * local])
            needs = {expert for expert in after[rank * local : (rank + 1) * local] if expert >= 0}
            into[rank] += len(needs - has) * expert_bytes
    return into


def measure(rank, file, warmup):
    """Runs the exchanges of one file; the report, alike on every rank."""
    maps = [torch.tensor(one, dtype=torch.int64) for one in file["maps"]]
    rank.fill(maps[0])
    times, wrong = [], 0
    for number, (old, new) in enumerate(zip(maps, maps[1:])):
        rank.device.settle()
        dist.barrier(group=rank.cpu_group)
        begin = time.perf_counter()
        rank.rearrange(old, new)
        rank.device.settle()
        times.append(rank.over_ranks(time.perf_counter() - begin, dist.ReduceOp.MAX) * 1e3)
        if number in (0, len(maps) - 2):
            if number and rank.rank == 0 and rank.args.plant:
                rank.weights[0][0][0].view(-1)[: rank.args.plant] += 1
            wrong += int(rank.over_ranks(rank.count_wrong(new), dist.ReduceOp.SUM))
    staging = sum(buffer.nbytes for buffer in rank.buffer)
    growth = rank.over_ranks(rank.before - rank.device.free_bytes(), dist.ReduceOp.MAX) - staging
    measured = times[warmup:]
    into = max(bytes_into(maps[-2], maps[-1], rank.local, rank.ranks, sum(rank.sizes)))
    median = statistics.median(measured)
    return {
        "backend": f"vllm-{rank.args.transport}",
        "placement": file["placement"],
        "ranks": rank.ranks,
        "ms_median": median,
        "ms_min": min(measured),
        "ms_first": times[0],
        "ms": times,
        "bytes_worst_rank": into,
        "gbps_worst_rank": into / median / 1e6,
        "staging_bytes": staging,
        "device_bytes": max(0, int(growth)),
        "verified": wrong == 0,
        "bytes_wrong": wrong,
        "iters": len(measured),
    }


def main():
    args = parse()
    vllm_standins.install(os.path.abspath(args.files))
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    files = [json.load(open(name)) for name in args.placements]
    layers, slots = len(files[0]["maps"][0]), len(files[0]["maps"][0][0])
    rank = Rank(args, [int(size) for size in args.tensors.split(",")], layers, slots)
    right = True
    for file in files:
        report = measure(rank, file, args.warmup)
        right &= report["verified"]
        if rank.rank == 0:
            print(json.dumps(report), flush=True)
    dist.barrier(group=rank.cpu_group)
    sys.stdout.flush()
    # Without the end of process groups, which waits for what other ranks have left.
    os._exit(0 if right else 1)


if __name__ == "__main__":
    main()
