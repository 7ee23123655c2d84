"""A small Mixture-of-Experts server in PyTorch whose experts move while it serves, and whose outputs do not change by a bit.

    python3 bindings/python/examples/serve.py                      # two processes on the CPU
    python3 bindings/python/examples/serve.py --device cuda        # a process per GPU

Every rank routes its tokens by the popularity of experts in a recorded trace, sends them to the slots that the maps of the step name, serves the tokens
that come for its own slots from the bytes that lie there, and combines what came back in the order of the choices. It serves twice: first
without balancing, and keeps what came out; then with an engine that counts, plans and moves, and compares every output of every step with
the first run's, bit for bit. An expert is computed for each token alone, by products and sums of fixed order, so that who shares a batch
changes nothing.

Prints the time of a step in both runs, and what the rounds did. Ends with 1 if an output differs.
"""

import argparse
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

import eplb

TRACE = Path(__file__).resolve().parents[3] / "tests/data/day_26x64.npz"


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--transport", help="of the engine: gloo on the CPU; peer (default) or nccl on GPUs; auto")
    parser.add_argument("--nodes", type=int, default=1, help="hosts that the ranks are to be taken for ranks of, with auto")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--trace", default=str(TRACE))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--slots", type=int, default=80, help="per layer, over all ranks")
    parser.add_argument("--tokens", type=int, help="of a rank in a step (default: 32, on GPUs 512)")
    parser.add_argument("--top-k", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=32, help="a power of two")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=1, help="the second run goes on, over the same steps, until so many rounds moved experts")
    parser.add_argument("--interval", type=float, default=0.1, help="seconds from one plan to the next")
    parser.add_argument("--token-us", type=float, help="time that a token and choice takes where it is served (default: 20, on GPUs what it takes)")
    parser.add_argument("--plant", type=int, help="spoil values of rank 0 in this step of the second run")
    parser.add_argument("--limit", type=float, default=300, help="seconds for all")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    on_gpu = args.device == "cuda"
    args.tokens = args.tokens or (512 if on_gpu else 32)
    args.token_us = args.token_us if args.token_us is not None else (0 if on_gpu else 20)
    args.transport = args.transport or ("peer" if on_gpu else "gloo")
    return args


def halves(products):
    """Sums of the last axis, whose length is a power of two, by adding its halves: one order, whatever else is in the batch."""
    while products.shape[-1] > 1:
        half = products.shape[-1] // 2
        products = products[..., :half] + products[..., half:]
    return products[..., 0]


class Model:
    """The layers of one rank: what an expert is, who chooses it, and slots with experts in them."""

    def __init__(self, args, device):
        trace = eplb.Trace(args.trace)
        steps, layers, self.experts = trace.shape
        self.layers, self.device = min(args.layers, layers), device
        self.popularity = torch.tensor(trace.loads(), dtype=torch.float64)[:, : self.layers].float() + 1e-3
        self.hidden, self.local = args.hidden, args.slots // args.ranks

    def expert(self, layer, expert):
        """The tensors of an expert: two matrices and a scale per row, computed from its name."""
        generator = torch.Generator().manual_seed(layer * 100_003 + expert)
        matrix = lambda: torch.randn(self.hidden, self.hidden, generator=generator).to(torch.bfloat16)
        return matrix(), matrix(), torch.rand(self.hidden, generator=generator) + 0.5

    def weights(self, phy2log, rank):
        """Tensors [local slots, ..] of each layer with the experts that a placement puts there."""
        found = []
        for layer in range(self.layers):
            # The rows of the second matrix lie apart, as in servers that keep them in a larger tensor.
            wide = torch.zeros(self.local, self.hidden, self.hidden + 8, dtype=torch.bfloat16, device=self.device)
            tensors = {
                "w1": torch.zeros(self.local, self.hidden, self.hidden, dtype=torch.bfloat16, device=self.device),
                "w2": wide[:, :, : self.hidden],
                "scale": torch.zeros(self.local, self.hidden, device=self.device),
            }
            for slot in range(self.local):
                expert = phy2log[layer][rank * self.local + slot]
                if expert >= 0:
                    for tensor, values in zip(tensors.values(), self.expert(layer, expert)):
                        tensor[slot] = values.to(self.device)
            found.append(tensors)
        return found

    def route(self, args, step, rank, layer):
        """The experts that this rank's tokens choose in a step, `[tokens, top_k]`, all different, and their parts."""
        generator = torch.Generator().manual_seed(((step * 64 + rank) * 64 + layer) % (1 << 62))
        moment = step * len(self.popularity) // max(args.steps, 1) % len(self.popularity)
        chances = self.popularity[moment, layer].expand(args.tokens, -1)
        chosen = torch.multinomial(chances, args.top_k, generator=generator)
        parts = torch.rand(args.tokens, args.top_k, generator=generator)
        return chosen.to(self.device), parts.to(self.device)

    def embed(self, args, step, rank):
        """The states that a step's tokens begin with, `[tokens, hidden]`."""
        generator = torch.Generator().manual_seed(step * 64 + rank)
        return torch.randn(args.tokens, self.hidden, generator=generator).to(self.device)

    def apply(self, tensors, slots, states):
        """What local slots make of states, one of each for every row."""
        first = halves(tensors["w1"][slots].float() * states[:, None, :]).clamp(min=0)
        second = halves(tensors["w2"][slots].float() * first[:, None, :])
        return second * tensors["scale"][slots]


class Server:
    """One rank."""

    def __init__(self, args):
        self.args, self.rank, self.world = args, args.rank, args.ranks
        self.on_gpu = self.counts_there = args.device == "cuda"
        self.device = torch.device("cuda", self.rank) if self.on_gpu else torch.device("cpu")
        if self.on_gpu:
            torch.cuda.set_device(self.device)
        meeting = f"tcp://127.0.0.1:{args.port}"
        dist.init_process_group("gloo", init_method=meeting, rank=self.rank, world_size=self.world)
        self.group = dist.new_group(backend="nccl") if self.on_gpu else dist.group.WORLD
        self.store = eplb.Store.of_torch(dist.distributed_c10d._get_default_store())
        self.model = Model(args, self.device)
        # Both runs begin with the plan for the popularity of the first step.
        loads = self.model.popularity[0].tolist()
        self.start = eplb.plan(loads, ranks=self.world, slots=args.slots, policy="static").placement.phy2log

    def engine(self, weights, balancing):
        """An engine for a run. Without balancing it does all but plan."""
        args = self.args
        self.transport = {
            "auto": lambda: eplb.Transport.auto(),
            "gloo": lambda: eplb.Transport.gloo(),
            "peer": lambda: eplb.Transport.peer(processes=True),
            "nccl": lambda: eplb.Transport.nccl(loaded=True),
        }[args.transport]()
        trigger = {"interval_s": args.interval if balancing else 1e9, "rest_s": 0.0}
        config = {"trigger": trigger, "window": 8, "sample_ms": max(1, int(args.interval * 250)), "poll_ms": 5}
        corner = self.store.corner(f"run-{int(balancing)}")
        engine = eplb.Engine(config, rank=self.rank, world_size=self.world, store=corner, transport=self.transport)
        main = engine.layer_set("main", layers=self.model.layers, experts=self.model.experts, slots=args.slots)
        for layer, tensors in enumerate(weights):
            engine.layer(main, layer, tensors)
        engine.placement(main, self.start)
        return engine.start()

    def gather(self, tensor):
        """The rows of all ranks."""
        rows = [torch.empty_like(tensor) for _ in range(self.world)]
        dist.all_gather(rows, tensor.contiguous(), group=self.group)
        return torch.cat(rows)

    def go_on(self, wanted):
        """Whether rank 0 wants another step; all ranks go into it together."""
        said = torch.tensor([int(wanted and self.rank == 0)])
        dist.all_reduce(said)
        return bool(said)

    def serve(self, balancing, expected):
        """Serves; returns outputs, times in seconds, wrong tokens, reports, how often maps changed, metrics, and the number of steps."""
        args, model = self.args, self.model
        weights = model.weights(self.start, self.rank)
        engine = self.engine(weights, balancing)
        outputs, times, reports, switches = [], [], [], set()
        wrong = torch.zeros((), dtype=torch.int64, device=self.device)
        for step in itertools.count():
            moved = sum(report.outcome == "moved" for report in reports)
            if not self.go_on(step < args.steps or (balancing and moved < args.rounds)):
                break
            begin = time.perf_counter()
            states = self.step(engine, weights, step, spoil=balancing and step == args.plant and self.rank == 0)
            if self.on_gpu:
                torch.cuda.current_stream().synchronize()
            times.append(time.perf_counter() - begin)
            switches.add(engine.maps_version())
            report = engine.last_report()
            if report is not None and (not reports or report.round != reports[-1].round):
                reports.append(report)
            if expected is None:
                outputs.append(states)
            else:
                wrong += (states.view(torch.int32) != expected[step % args.steps].view(torch.int32)).any(1).sum()
        metrics = engine.metrics()
        engine.close(20)
        return outputs, times, int(wrong), reports, len(switches) - 1, metrics, step

    def step(self, engine, weights, step, spoil=False):
        """One forward pass; the states that the tokens end with. spoil: other values in the slots of a layer, which must show in what comes out."""
        args, model = self.args, self.model
        if self.on_gpu:
            engine.step(step, streams=[torch.cuda.current_stream()])
            maps = engine.device_maps()
            log2phy, logcnt = maps.log2phy, maps.logcnt
        else:
            engine.step(step)
            maps = engine.maps()
            log2phy, logcnt = maps.torch("log2phy"), maps.torch("logcnt")
        # What comes is the same in both runs, and again when a run goes on over the same steps.
        content = step % args.steps
        states = model.embed(args, content, self.rank)
        if spoil:
            weights[0]["scale"] += 1
        first = self.rank * model.local
        tokens = torch.arange(args.tokens, device=self.device)[:, None]
        for layer in range(model.layers):
            chosen, parts = model.route(args, content, self.rank, layer)
            # A token takes the replica that its number says: any is right.
            replica = (tokens * 7 + step) % logcnt[layer][chosen]
            slots = log2phy[layer][chosen, replica]
            all_states, all_slots = self.gather(states), self.gather(slots)
            made = torch.zeros(*all_slots.shape, model.hidden, device=self.device)
            mine = (all_slots >= first) & (all_slots < first + model.local)
            row, choice = mine.nonzero(as_tuple=True)
            made[row, choice] = model.apply(weights[layer], all_slots[row, choice].long() - first, all_states[row])
            if args.token_us:
                time.sleep(len(row) * args.token_us / 1e6)
            # Each was made by one rank; the others add zeros, which changes no bit.
            dist.all_reduce(made, group=self.group)
            own = made[self.rank * args.tokens : (self.rank + 1) * args.tokens]
            for k in range(args.top_k):
                states = states + parts[:, k, None] * own[:, k]
            states = states / (1 + states.abs())
            self.count(engine, step, layer, chosen)
        return states

    def count(self, engine, step, layer, chosen):
        """Hands over what the tokens chose: on a device by a kernel, where there are kernels."""
        if self.counts_there:
            try:
                engine.record_choices(step, layer, chosen, tag=1)
                return
            except eplb.EplbError as error:
                if "cannot be counted on the device" not in str(error):
                    raise
                self.counts_there = False
                if self.rank == 0:
                    print(f"counting on the host: {error}", file=sys.stderr)
        engine.record_choices(step, layer, chosen.cpu(), tag=1)


def percentiles(times):
    times = sorted(times)
    return {name: times[int((len(times) - 1) * part)] * 1e3 for name, part in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1))}


def run_rank(args):
    torch.set_num_threads(1)
    server = Server(args)
    expected, summary, bad = None, {"ranks": args.ranks, "device": args.device, "transport": args.transport}, 0
    for balancing in (False, True):
        outputs, times, wrong, reports, switches, metrics, steps = server.serve(balancing, expected)
        expected = outputs if expected is None else expected
        told = [None] * server.world
        # The slowest rank is what a step takes; the first steps warm up.
        dist.all_gather_object(told, (times[10:] or times, wrong, switches))
        times, wrongs, changes = zip(*told)
        bad += sum(wrongs)
        if server.rank:
            continue
        name = "balancing" if balancing else "not balancing"
        part = percentiles([max(of) for of in zip(*times)])
        print(f"{name}: ms per step " + ", ".join(f"{key} {value:.2f}" for key, value in part.items()))
        summary[name.replace(" ", "_")] = part
        if balancing:
            moved = [report for report in reports if report.outcome == "moved"]
            mean = lambda of: sum(map(of, moved)) / max(len(moved), 1)
            summary |= {"rounds": len(reports), "moved": len(moved), "moves": sum(r.moves for r in moved), "switches": sum(changes)}
            summary |= {key: mean(lambda r: getattr(r, key)) for key in ("before", "predicted", "reached", "bound")}
            summary["reasons"] = server.transport.reasons
            summary |= {"wrong": bad, "outputs": steps * args.tokens * args.ranks}
            print(
                f"  rounds: {len(moved)} of {len(reports)} moved experts, {summary['moves']} moves; balancedness {summary['before']:.3f} before, "
                f"{summary['predicted']:.3f} planned, {summary['reached']:.3f} reached; maps changed {summary['switches']} times"
            )
            print(f"  outputs: {summary['outputs']} compared bit for bit, {bad} wrong")
            print("\n".join("  " + line for line in [*metrics.splitlines(), *server.transport.reasons] if line.startswith(("eplb_stall", "backend"))))
            print(json.dumps(summary), flush=True)
    dist.barrier()
    sys.stdout.flush()
    # Without the end of process groups, which waits for what other ranks have left.
    os._exit(1 if bad else 0)


def main():
    args = parse()
    if args.rank is not None:
        return run_rank(args)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    more = lambda rank: ["--rank", str(rank), "--port", str(port)]
    host = lambda rank: {"EPLB_HOST_ID": f"node{rank * args.nodes // args.ranks}"} if args.nodes > 1 else {}
    start = lambda rank: subprocess.Popen([sys.executable, __file__, *sys.argv[1:], *more(rank)], env={**os.environ, **host(rank)})
    ranks = [start(rank) for rank in range(args.ranks)]
    end, codes = time.monotonic() + args.limit, []
    for rank in ranks:
        try:
            codes.append(rank.wait(max(0.1, end - time.monotonic())))
        except subprocess.TimeoutExpired:
            rank.kill()
            codes.append(f"over {args.limit:.0f} s")
    if any(code != 0 for code in codes):
        print(f"ranks ended with {codes}", file=sys.stderr)
        # 124, as `timeout` has it: that is no finding.
        sys.exit(124 if any(isinstance(code, str) for code in codes) else 1)


if __name__ == "__main__":
    main()
