"""Our exchange beside vLLM's, on the same GPUs, placements and sizes, one after the other in turns; prints a table and the ratios.

    make gpu-bundle && python3 benches/peers/vllm_files.py
    python3 benches/peers/exchange.py --ranks 4 --out results     # where PyTorch with CUDA and the GPUs are

Every line of `results/exchange.jsonl` has the keys of `eplb bench exchange --json`. A run that fails or finds a wrong byte is told, counted, and
left out of the ratios. It ends by itself: a run gets at most `--seconds`, all together `--limit`.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent

# Name -> arguments of `eplb bench exchange`, and variables.
OURS = {
    "nccl": (["--backend", "nccl"], {}),
    "nccl-in-turn": (["--backend", "nccl", "--overlap=false"], {}),
    "nccl-own-channels": (["--backend", "nccl", "--min-ctas", "1"], {}),
    "nccl-chunks": (["--backend", "nccl"], {"NCCL_P2P_NVL_CHUNKSIZE": "32768"}),
    "nccl-processes": (["--backend", "nccl", "--processes"], {}),
    "peer": (["--backend", "peer", "--overlap"], {}),
}
# Name -> transport of vLLM's, and variables.
THEIRS = {
    "pynccl": ("pynccl", {}),
    "torch_nccl": ("torch_nccl", {}),
    "pynccl-chunks": ("pynccl", {"NCCL_P2P_NVL_CHUNKSIZE": "32768"}),
}


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--eplb", default=str(HERE.parents[1] / "target/gpu-bundle/bin/eplb"))
    parser.add_argument("--files", default=str(HERE.parents[1] / "target/peers/vllm"), help="folder of vllm_files.py")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--placements", default="shift,random")
    parser.add_argument("--ours", default=",".join(OURS), help="of " + ", ".join(OURS))
    parser.add_argument("--theirs", default="pynccl,torch_nccl", help="of " + ", ".join(THEIRS))
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--iters", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--tensors", help="as `eplb bench exchange`")
    parser.add_argument("--more", default="", help="further arguments of `eplb bench exchange`, such as its sizes")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="of vLLM's ranks; cpu tries the script")
    parser.add_argument("--seconds", type=float, default=60, help="most for one run")
    parser.add_argument("--limit", type=float, default=300, help="most for all")
    parser.add_argument("--out", default="out")
    return parser.parse_args()


class Runs:
    """Runs commands under deadlines, and keeps the JSON lines that they print."""

    def __init__(self, args):
        self.args, self.end = args, time.monotonic() + args.limit
        self.out = Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.lines, self.failed = [], 0

    def command(self, name, command, environment=None):
        """The lines of JSON that a command prints."""
        seconds = min(self.args.seconds, self.end - time.monotonic())
        if seconds < 1:
            self.fail(name, "no time is left")
            return []
        with open(self.out / "errors.log", "a") as errors:
            print(f"== {name}", file=errors, flush=True)
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
            try:
                text, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                # With all that it started.
                os.killpg(process.pid, signal.SIGKILL)
                text, _ = process.communicate()
                self.fail(name, f"over {seconds:.0f} s")
                return []
        if process.returncode != 0:
            self.fail(name, f"ended with {process.returncode}; see errors.log")
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def fail(self, name, why):
        self.failed += 1
        print(f"{name} FAILED: {why}", flush=True)

    def keep(self, name, turn, lines):
        with open(self.out / "exchange.jsonl", "a") as file:
            for line in lines:
                line |= {"name": name, "turn": turn}
                file.write(json.dumps(line) + "\n")
                self.lines.append(line)
                print(row(line), flush=True)


def row(line):
    growth = line["device_bytes"]
    growth = f"{growth / 2**20:.0f}" if growth is not None else "-"
    # Staging and what we take beside it; vLLM has no more than its buffers.
    staging, wrong = (line["staging_bytes"] + (line.get("pool_bytes") or 0)) / 2**20, "" if line["verified"] else "  WRONG BYTES"
    return (
        f"{line['name']:18} {line['placement']:7} {line['ranks']:5} {line['ms_median']:9.2f} {line['ms_min']:9.2f} {line['ms_first']:9.2f}"
        f" {line['gbps_worst_rank']:8.1f} {staging:8.0f} {growth:>8}{wrong}"
    )


def ratios(lines, ours, theirs):
    """Our GB/s over theirs, by placement: the median over turns of each side's. Of theirs, the best transport."""
    found = []
    placements = dict.fromkeys(line["placement"] for line in lines)
    middle = lambda name, placement, key: statistics.median(
        [line[key] for line in lines if (line["name"], line["placement"], line["verified"]) == (name, placement, True)] or [0]
    )
    for placement in placements:
        best = max(theirs, key=lambda name: middle(name, placement, "gbps_worst_rank"), default=None)
        base = middle(best, placement, "gbps_worst_rank") if best else 0
        for name in ours:
            speed = middle(name, placement, "gbps_worst_rank")
            if speed and base:
                found.append({
                    "ours": name, "theirs": best, "placement": placement, "ratio": speed / base,
                    "first_over_median": middle(name, placement, "ms_first") / middle(name, placement, "ms_median"),
                    "their_first_over_median": middle(best, placement, "ms_first") / middle(best, placement, "ms_median"),
                })
    return found


def main():
    args = parse()
    runs = Runs(args)
    sizes = ["--tensors", args.tensors] if args.tensors else []
    shape = ["--ranks", str(args.ranks), "--iters", str(args.iters), "--warmup", str(args.warmup), *sizes, *args.more.split()]
    files = []
    for placement in args.placements.split(","):
        files.append(str(runs.out / f"{placement}.json"))
        with open(files[-1], "w") as file:
            subprocess.run([args.eplb, "bench", "placements", *shape, "--placement", placement], stdout=file, check=True)
    ours, theirs = args.ours.split(","), [name for name in args.theirs.split(",") if name]
    print(f"{'':18} {'place':7} {'ranks':>5} {'ms med':>9} {'ms min':>9} {'ms first':>9} {'GB/s':>8} {'own':>8} {'growth':>8}  (MiB)")
    for turn in range(args.turns):
        for label in theirs:
            transport, variables = THEIRS[label]
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(args.ranks)]
            script = [str(HERE / "vllm_exchange.py"), "--files", args.files, "--transport", transport, "--device", args.device]
            lines = runs.command(
                f"vllm {label}", [*torchrun, *script, "--warmup", str(args.warmup), *sizes, *files], {"OMP_NUM_THREADS": "1", **variables}
            )
            runs.keep(f"vllm {label}", turn, lines)
        for name in ours:
            for placement in args.placements.split(","):
                arguments, variables = OURS[name]
                command = [args.eplb, "bench", "exchange", "--json", *shape, "--placement", placement, *arguments]
                runs.keep(name, turn, runs.command(f"{name} {placement}", command, variables))
    found = ratios(runs.lines, ours, [f"vllm {label}" for label in theirs])
    (runs.out / "ratios.json").write_text(json.dumps(found, indent=1) + "\n")
    print("\nours over the faster of theirs")
    for line in found:
        print(
            f"{line['ours']:18} {line['placement']:7} {line['ratio']:6.2f} x {line['theirs']}; first over a later one: ours"
            f" {line['first_over_median']:.2f}, theirs {line['their_first_over_median']:.2f}"
        )
    sys.exit(runs.failed > 0 or not all(line["verified"] for line in runs.lines))


if __name__ == "__main__":
    main()
