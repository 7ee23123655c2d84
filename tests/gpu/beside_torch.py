"""eplb in one process with PyTorch, its NCCL and its Gloo, on GPUs: one process per GPU, each stage a line, every byte looked at.

    python3 beside_torch.py [--ranks 2] [--peers FOLDER] [--limit SECONDS] [--plant STAGE]

Needs PyTorch with CUDA, `libeplb.so` (EPLB_LIBRARY) and the package `eplb` on PYTHONPATH; `--peers` holds vLLM's and SGLang's few files. `--device cpu`
tries the script where there is no GPU (what needs one is left out, and said). `--plant` spoils a value in a stage, which must then fail.
"""

import argparse
import ctypes
import json
import os
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent / "python"):
    if (folder / "vllm_ranks.py").exists():
        sys.path.insert(0, str(folder))

#: Attribute of a pointer: the context that its memory belongs to (`CU_POINTER_ATTRIBUTE_CONTEXT`).
POINTER_CONTEXT = 1


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--peers", help="folder with vLLM's and SGLang's files")
    parser.add_argument("--libraries", help="folder with the libraries that libeplb_gloo.so needs")
    parser.add_argument("--limit", type=float, default=70, help="seconds for all")
    parser.add_argument("--plant", default="", help="stage in which a value is spoiled")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def preload(folder):
    """Opens what `libeplb_gloo.so` needs from a folder, where the system does not have it; each with its own symbols, as the library itself."""
    for name in ("libnl-3.so.200", "libnl-route-3.so.200", "libibverbs.so.1", "libhiredis.so.0.14", "libgloo.so.0"):
        try:
            ctypes.CDLL(name, mode=os.RTLD_LOCAL | os.RTLD_DEEPBIND)
        except OSError:
            ctypes.CDLL(str(Path(folder) / name), mode=os.RTLD_LOCAL | os.RTLD_DEEPBIND)


class Wrong(Exception):
    """A stage found what must not be."""


class Rank:
    """One rank: PyTorch with its groups, and ours beside it."""

    def __init__(self, args):
        import torch
        import torch.distributed as dist

        import eplb

        if args.libraries:
            preload(args.libraries)
        self.args, self.rank, self.world = args, args.rank, args.ranks
        self.torch, self.dist, self.eplb = torch, dist, eplb
        self.on_gpu = args.device == "cuda"
        self.device = torch.device("cuda", self.rank) if self.on_gpu else torch.device("cpu")
        if self.on_gpu:
            torch.cuda.set_device(self.device)
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{args.port}", rank=self.rank, world_size=self.world)
        self.group = dist.new_group(backend="nccl") if self.on_gpu else dist.group.WORLD
        self.store = eplb.Store.of_torch(dist.distributed_c10d._get_default_store())
        self.sums = 0

    def planted(self, stage):
        return self.args.plant == stage and self.rank == 0

    def sum(self, group=None):
        """An all-reduce of torch's own, looked at."""
        self.sums += 1
        value = self.torch.full((4096,), float(self.rank + self.sums), device=self.device if group is None else "cpu")
        self.dist.all_reduce(value, group=self.group if group is None else group)
        expected = sum(rank + self.sums for rank in range(self.world))
        # All have the same sum, so all stop here or none.
        if not bool((value == expected).all()):
            raise Wrong("an all-reduce of torch is wrong")

    def message(self, batch, source, at):
        """What a message holds: memory of the caching allocator, of a size of its own."""
        size = 1 + (batch * 4099 + source * 257 + at * 65537) % (1 << 20)
        start = (batch * 131 + source * 17 + at * 7) % 251
        return ((self.torch.arange(size, device=self.device, dtype=self.torch.int32) + start) % 251).to(self.torch.uint8)

    def batches(self, pairs, stage, device):
        """Batches of messages with every other rank, with torch's own collectives before, after and under way, and memory of the caching
        allocator that comes and goes. Returns tensors looked at."""
        looked, wrong = 0, []
        others = [rank for rank in range(self.world) if rank != self.rank]
        place = lambda tensor: tensor.to(device)
        for batch in range(12):
            self.sum()
            sent = [(peer, place(self.message(batch, self.rank, at))) for peer in others for at in range(4)]
            expected = [(peer, place(self.message(batch, peer, at))) for peer in others for at in range(4)]
            got = [self.torch.empty_like(tensor) for _, tensor in expected]
            if self.on_gpu:
                self.torch.cuda.current_stream().synchronize()
            describe = lambda peer, tensor: (peer, tensor.data_ptr(), tensor.numel())
            pairs.exchange(
                [describe(peer, tensor) for peer, tensor in sent],
                [describe(peer, tensor) for (peer, _), tensor in zip(expected, got)],
                20,
            )
            if batch == 7 and self.planted(stage):
                got[0][got[0].numel() // 2] ^= 1
            self.sum()
            for tensor, (_, right) in zip(got, expected):
                looked += 1
                if not self.torch.equal(tensor, right):
                    wrong.append(batch)
        # Said at the end: the other ranks are in this with us.
        if wrong:
            raise Wrong(f"batches {wrong}: other bytes than were sent")
        return looked

    # Stages. Each returns what it found, or raises.

    def stage_context(self):
        """torch's memory belongs to the primary context, which is what ours is made in; the library changes no thread's current one."""
        if not self.on_gpu:
            return None
        cuda = ctypes.CDLL("libcuda.so.1")
        context_of = ctypes.c_void_p()
        tensor = self.torch.empty(1 << 20, device=self.device)
        primary, current = ctypes.c_void_p(), ctypes.c_void_p()
        codes = [
            cuda.cuPointerGetAttribute(ctypes.byref(context_of), POINTER_CONTEXT, ctypes.c_uint64(tensor.data_ptr())),
            cuda.cuDevicePrimaryCtxRetain(ctypes.byref(primary), self.rank),
            cuda.cuCtxGetCurrent(ctypes.byref(current)),
        ]
        if any(codes) or not context_of.value == primary.value == current.value:
            raise Wrong(f"contexts: tensor {context_of}, primary {primary}, current {current}, codes {codes}")
        cuda.cuDevicePrimaryCtxRelease_v2(self.rank)
        self.primary = primary.value
        return "the tensor's context is the primary one"

    def stage_plan(self):
        """torch tensors of the device in, torch tensors out, the same as from the host."""
        loads = self.torch.rand(6, 32, generator=self.torch.Generator().manual_seed(5)) ** 4 * 1000
        there, here = ([tensor.tolist() for tensor in self.eplb.rebalance_experts(given, 40, 1, 1, 8)]
                       for given in (loads.to(self.device), loads))
        plan = self.eplb.plan(loads.to(self.device), ranks=8, slots=40)
        current = self.eplb.plan(loads.flip(1).to(self.device), ranks=8, slots=40, current=plan.placement.phy2log.to(self.device), target=0.9)
        if self.planted("plan"):
            there[0][0][0] += 1
        if there != here or not isinstance(plan.placement.phy2log, self.torch.Tensor):
            raise Wrong("a plan from tensors of the device is another than from those of the host")
        return f"balancedness {plan.balancedness:.4f} of {plan.bound:.4f}, then {current.balancedness:.4f} with {current.moves} moves"

    def stage_servers(self):
        """SGLang's and vLLM's planner interfaces with tensors of the device."""
        from eplb.integrations import sglang, vllm

        window = (self.torch.rand(4, 6, 32, generator=self.torch.Generator().manual_seed(6)) ** 4 * 1000).int().to(self.device)
        phy2log = sglang.rebalance_experts(window, 40, 5, None, 1)[0]
        ours = vllm.policy().rebalance_experts(window.sum(0).float(), 40, 1, 1, 8, phy2log)
        theirs = "SGLang's own file is not here"
        if self.args.peers and (Path(self.args.peers) / "sglang").exists():
            from sglang.srt.eplb.eplb_algorithms import deepseek

            given = window.sum(0)
            theirs = deepseek.rebalance_experts(
                weight=given, num_replicas=40, num_groups=None, num_nodes=1, num_gpus=8, enable_hierarchical=False
            )[0].cpu()
            mine = sglang.rebalance_experts(window, 40, 5, None, 1, policy="deepseek")[0]
            if theirs.tolist() != mine.tolist():
                raise Wrong("the deepseek policy is not SGLang's own")
            theirs = "as SGLang's own, slot for slot"
        return f"{tuple(ours.shape)}; {theirs}"

    def stage_pairs(self):
        """Our NCCL communicator beside torch's, on the library that torch has loaded."""
        backend = "pynccl" if self.on_gpu else "gloo"
        where = {"device": self.rank} if self.on_gpu else {}
        try:
            pairs = self.eplb.Pairs(self.rank, self.world, self.store.corner("pairs"), backend, **where)
        except self.eplb.EplbError as error:
            if "no NCCL found" not in str(error):
                raise
            # A torch that has NCCL inside itself: then there are two, and both must work.
            backend = "nccl"
            pairs = self.eplb.Pairs(self.rank, self.world, self.store.corner("pairs-nccl"), backend, **where)
        self.pairs = pairs
        return f"{backend}: {self.batches(pairs, 'pairs', self.device)} messages, {pairs.received_bytes} bytes"

    def stage_gloo(self):
        """Our Gloo beside torch's: host memory, and tensors of the device staged through it."""
        from eplb.integrations.vllm import EplbCommunicator

        pairs = self.eplb.Pairs(self.rank, self.world, self.store.corner("gloo"))
        looked = self.batches(pairs, "gloo", "cpu")
        self.sum(self.dist.group.WORLD)
        communicator, peer = EplbCommunicator(pairs, timeout=20), (self.rank + 1) % self.world
        before = (self.rank - 1) % self.world
        sent, right = self.message(3, self.rank, 1), self.message(3, before, 1)
        got = self.torch.empty_like(right)
        communicator.add_send([sent], peer, expert_id=0)
        communicator.add_recv([got], before, expert_id=0)
        communicator.execute()
        self.sum()
        if not self.torch.equal(got, right):
            raise Wrong("a tensor that was staged has other bytes")
        self.keep = pairs
        return f"{looked + 1} messages"

    def stage_vllm(self):
        """vLLM's own exchange over our communicator, synchronous and asynchronous."""
        import vllm_ranks

        from eplb.integrations.vllm import EplbCommunicator

        mine = vllm_ranks.Rank(self.rank, self.world, self.device, self.group, EplbCommunicator(self.pairs, timeout=20))
        told, bad = [], []
        ways = {"rearrange": mine.rearrange, "transfer": lambda: mine.transfer_layers(False), "batched": lambda: mine.transfer_layers(True)}
        for name, way in ways.items():
            checked = 0
            begin, received = time.perf_counter(), self.pairs.received_bytes
            for turn in range(6):
                way()
                if turn == 3 and self.planted("vllm"):
                    mine.weights[1][0].view(-1)[5] += 1
                looked, wrong = mine.look()
                checked += looked
                if wrong:
                    bad.append(f"{name}: {wrong} tensors are not those of their experts")
                self.sum()
            took = (time.perf_counter() - begin) * 1e3 / 6
            told.append(f"{name} {checked} tensors, {self.pairs.received_bytes - received} bytes, {took:.1f} ms each with the look")
        if bad:
            raise Wrong("; ".join(bad))
        return "; ".join(told)

    def stage_engine(self):
        """The engine on torch's tensors: a pass captured into a CUDA graph reads the slots that the maps of the device name, and counts what was
        chosen, in every replay, while experts move over the copy engines between processes."""
        if not self.on_gpu:
            return None
        torch, layers, experts, local, width, tokens, k = self.torch, 2, 16, 12, 1 << 16, 64, 2
        first = self.rank * local
        names = torch.arange(layers * experts).view(layers, experts, 1)
        table = ((torch.arange(width) * 7 + names * 131) % 251).to(torch.uint8).to(self.device)
        weights = [table[layer, [slot % experts for slot in range(first, first + local)]].clone() for layer in range(layers)]
        config = {"trigger": {"interval_s": 1e9}, "sample_ms": 5, "poll_ms": 1, "margin": 4}
        engine = self.eplb.Engine(
            config, rank=self.rank, world_size=self.world, store=self.store.corner("engine"), transport=self.eplb.Transport.peer()
        )
        engine.layer_set("main", layers=layers, experts=experts, slots=self.world * local)
        for layer in range(layers):
            engine.layer(0, layer, {"w": weights[layer]})
        engine.start()
        maps, stream = engine.device_maps(), torch.cuda.Stream(self.device)
        ids = torch.zeros(tokens, k, dtype=torch.int32, device=self.device)
        wrong = torch.zeros((), dtype=torch.int64, device=self.device)

        def forward():
            for layer in range(layers):
                held = maps.phy2log[layer, first : first + local]
                right = table[layer][held.clamp(min=0).long()]
                wrong.add_(((weights[layer] != right).any(1) & (held >= 0)).sum())
                engine.record_choices(0, layer, ids, tag=1)

        stream.wait_stream(torch.cuda.current_stream())
        engine.step(0, streams=[stream])
        with torch.cuda.stream(stream):
            forward()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            forward()
        step, versions, outcomes, asked, seen = 0, set(), [], 0, 0
        goes_on = torch.zeros(1, dtype=torch.int64)
        while True:
            goes_on[0] = int(self.rank == 0 and step < 3000 and outcomes.count("moved") < 4)
            self.dist.all_reduce(goes_on)
            if not bool(goes_on):
                break
            step += 1
            engine.step(step, streams=[stream])
            with torch.cuda.stream(stream):
                if step % 50 == 1:
                    hot = torch.randint(0, experts, (tokens, k), generator=torch.Generator().manual_seed(step))
                    hot[: tokens * 3 // 4] = (step // 50 * 5 + torch.arange(k)) % experts
                    ids.copy_(hot.to(torch.int32))
                if step == 120 and self.planted("engine"):
                    weights[1][int(next(s for s, e in enumerate(engine.maps().phy2log[1][first : first + local]) if e >= 0))][7] ^= 1
                graph.replay()
            versions.add(engine.maps_version())
            report = engine.last_report()
            if report is not None and report.round > seen:
                seen = report.round
                outcomes.append(report.outcome)
            if self.rank == 0 and step % 50 == 40 and len(outcomes) == asked:
                engine.rebalance_now()
                asked += 1
        stream.synchronize()
        given, counted, end = (step + 1) * layers * tokens * k, 0, time.monotonic() + 5
        while counted < given and time.monotonic() < end:
            engine.tick()
            line = next(line for line in engine.metrics().splitlines() if line.startswith("eplb_tokens_total") and "decode" in line)
            counted = int(float(line.split()[-1]))
        self.dist.barrier()
        engine.close(10)
        found = f"{step} replays, maps changed {len(versions) - 1} times, rounds {outcomes}, {counted} of {given} choices counted"
        if int(wrong) or counted != given or "moved" not in outcomes or len(versions) < 2:
            raise Wrong(f"{int(wrong)} slots were not the expert that the maps named; {found}")
        return found

    def stage_library(self):
        """One libnccl in the process, and the context of this thread is what it was."""
        if not self.on_gpu:
            return None
        files = {line.split()[-1] for line in open("/proc/self/maps") if "libnccl.so" in line}
        if len(files) != 1:
            raise Wrong(f"more than one NCCL is loaded, or none: {sorted(files)}")
        current = ctypes.c_void_p()
        ctypes.CDLL("libcuda.so.1").cuCtxGetCurrent(ctypes.byref(current))
        if current.value != self.primary:
            raise Wrong("the current context of the thread is another than before")
        return f"{files.pop()}, NCCL {self.torch.cuda.nccl.version()}"


STAGES = ["context", "plan", "servers", "pairs", "gloo", "vllm", "engine", "library"]


def run_rank(args):
    if args.peers:
        sys.path.insert(0, args.peers)
    begin = time.perf_counter()
    rank = Rank(args)
    failed = 0
    tell = lambda **line: print(json.dumps({"rank": args.rank, **line}), flush=True)
    tell(stage="start", ok=True, s=round(time.perf_counter() - begin, 2))
    for stage in STAGES:
        begin, line = time.perf_counter(), {"stage": stage, "ok": True}
        try:
            found = getattr(rank, f"stage_{stage}")()
            line["found"] = "left out: there is no GPU" if found is None else found
        except Exception as error:  # noqa: BLE001  told, and the next stage is tried
            line |= {"ok": False, "found": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()[-600:]}
            failed += 1
        # All go on together, or none: what follows needs everybody.
        codes = [None] * rank.world
        rank.dist.all_gather_object(codes, line["ok"], group=rank.dist.group.WORLD)
        tell(s=round(time.perf_counter() - begin, 2), **line)
        if not all(codes) and stage in ("pairs", "vllm", "engine"):
            failed += line["ok"]
            break
    sys.stdout.flush()
    # Without the end of process groups, which waits for what other ranks have left.
    os._exit(1 if failed else 0)


def main():
    args = parse()
    if args.rank is not None:
        return run_rank(args)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    end = time.monotonic() + args.limit
    ranks = [
        subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--rank", str(rank), "--port", str(port)])
        for rank in range(args.ranks)
    ]
    codes = []
    for rank in ranks:
        try:
            codes.append(rank.wait(max(0.1, end - time.monotonic())))
        except subprocess.TimeoutExpired:
            rank.kill()
            codes.append(f"over {args.limit:.0f} s")
    print(f"ranks ended with {codes}", flush=True)
    # 124, as `timeout` has it: that is no finding.
    sys.exit(124 if any(isinstance(code, str) for code in codes) else int(any(codes)))


if __name__ == "__main__":
    main()
