#!/usr/bin/env python3
"""Our planner beside the published planners of SGLang, vLLM and vllm-ascend: same loads, same run, one thread each.

    python3 benches/peers/compare.py [--rounds 5] [--shape N] [--out table.md]

Makes a virtual environment in .venv (see packages.py), then runs itself there. Every planner runs on its own: a first
plan for the loads of before, then, with that in place, a second plan for loads that have drifted. The second plan is
what the table shows: its time, its balancedness on the loads it was made for, and what it moves. Times are processor
times of the one thread that plans, of the planning call alone, without the start of a process or the reading of files;
rounds time all planners in turn. Every placement is scored twice, by our metrics and here in numpy, and a difference
ends the run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import packages

ROOT = Path(__file__).resolve().parents[2]
DAY = ROOT / "tests/data/day_26x64.npz"

# name, loads by kind, slots, ranks, nodes, expert groups
SHAPES = [
    ("58 x 256, 288 slots, 32 ranks", {"zipf": "dsv3-zipf", "lognormal": "dsv3-lognormal"}, 288, 32, 1, 1),
    ("58 x 256, 288 slots, 32 ranks, 4 nodes, 8 groups", {"zipf": "dsv3-zipf", "lognormal": "dsv3-lognormal"}, 288, 32, 4, 8),
    ("61 x 384, 448 slots, 64 ranks", {"zipf": "k2-zipf", "lognormal": "k2-lognormal"}, 448, 64, 1, 1),
    ("26 x 64, 80 slots, 16 ranks, real trace", {"steps 40-59, then 60-79": (40, 60, 80)}, 80, 16, 1, 1),
]

OURS = ["balanced", "incremental", "deepseek"]
# What the ratios of times refer to.
BASE = "eplb balanced"


class Server:
    """Our planner: the example planner_server, one request and one answer at a time."""

    def __init__(self):
        build = ["cargo", "build", "--release", "--locked", "--quiet", "-p", "eplb-benches", "--example", "planner_server"]
        subprocess.run(build, cwd=ROOT, check=True)
        target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
        program = target / "release/examples/planner_server"
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, *words):
        self.process.stdin.write(" ".join(str(word) for word in words) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"planner_server did not answer {words}: its message is above")
        return json.loads(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def loads_of(server, source, work):
    """Loads before and after, [T, L, E] each, and the files that our side reads them from."""
    import numpy as np

    if isinstance(source, str):
        made = work / f"{source}.npz"
        server.ask("generate", source, 0, made)
        counts = np.load(made)["counts"]
        windows = counts[:1], counts[1:2]
    else:
        a, b, c = source
        counts = np.load(DAY)["counts"]
        windows = counts[a:b], counts[b:c]
    files = work / "before.npz", work / "after.npz"
    for file, window in zip(files, windows):
        np.savez(file, counts=window)
    return windows, files


def compare(server, source, slots, ranks, nodes, groups, rounds, work):
    """One kind of loads on one shape: name of planner -> score, times of the second plan, and its placement."""
    import numpy as np

    import planners
    import scores

    (before, after), files = loads_of(server, source, work)
    server.ask("case", *files, slots, ranks, nodes, groups)
    shape = planners.Shape(before.shape[2], slots, ranks, nodes, groups)
    run, result = {}, {}

    def second_of_ours(policy):
        old, new = work / f"{policy}-1.npz", work / f"{policy}-2.npz"
        return lambda: server.ask("second", policy, old, new)["ms"]

    for policy in OURS:
        server.ask("first", policy, work / f"{policy}-1.npz")
        run[f"eplb {policy}"] = second_of_ours(policy)
    for planner in planners.all_of(shape):
        first = planner.first(before)
        np.savez(work / f"{planner.key}-1.npz", phy2log=first)

        def second(planner=planner, first=first):
            ms, placement = planner.second(after, first)
            np.savez(work / f"{planner.key}-2.npz", phy2log=placement)
            return ms

        run[planner.name] = second
    # The first call of each is not timed: some compile themselves then.
    for plan in run.values():
        plan()
    times = {name: [] for name in run}
    for _ in range(rounds):
        for name, plan in run.items():
            times[name].append(plan())

    keys = {f"eplb {policy}": policy for policy in OURS} | {p.name: p.key for p in planners.all_of(shape)}
    for name, key in keys.items():
        old, new = work / f"{key}-1.npz", work / f"{key}-2.npz"
        score = server.ask("score", old, new)
        placement = np.load(new)["phy2log"]
        scores.check(name, score, after.sum(axis=0, dtype=np.float64), np.load(old)["phy2log"], placement, ranks)
        result[name] = {"score": score, "times": times[name]}
    return result


def rows(kinds):
    """Table rows of a shape from the results per kind of loads; where there are two kinds, `zipf / lognormal`."""
    def both(values):
        return " / ".join(values)

    base = [statistics.median(result[BASE]["times"]) for result in kinds.values()]
    for name in next(iter(kinds.values())):
        results = [result[name] for result in kinds.values()]
        scores = [r["score"] for r in results]
        medians = [statistics.median(r["times"]) for r in results]
        times = [f"{m:.1f} ({min(r['times']):.1f}-{max(r['times']):.1f})" for m, r in zip(medians, results)]
        yield [
            name,
            both(times),
            both(f"{m / b:.2f}" for m, b in zip(medians, base)),
            both(f"{s['balancedness']:.4f}" for s in scores),
            both(f"{s['moves']}" for s in scores),
            both(f"{s['moves'] / s['slots']:.1%}" for s in scores),
            both(f"{s['duplicates']}" for s in scores),
        ]


HEAD = ["planner", "plan, ms: median (range)", f"x `{BASE}`", "balancedness", "moves", "of all slots", "duplicates"]


def table(name, kinds):
    bound = " / ".join(f"{next(iter(r.values()))['score']['bound']:.4f}" for r in kinds.values())
    lines = [f"**{name}** ({' / '.join(kinds)}; bound {bound})", ""]
    lines += ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows(kinds)]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="times that every planner is timed (default 5)")
    parser.add_argument("--shape", type=int, choices=range(len(SHAPES)), help="only this shape")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be 1 or more")
    versions = packages.enter(ROOT / ".venv", __file__)
    server = Server()
    text = [", ".join(f"{name} {version}" for name, version in versions.items()) + "\n"]
    print(text[0], flush=True)
    for name, kinds, *shape in SHAPES if args.shape is None else [SHAPES[args.shape]]:
        with tempfile.TemporaryDirectory() as work:
            results = {k: compare(server, source, *shape, args.rounds, Path(work)) for k, source in kinds.items()}
        text.append(table(name, results))
        print(text[-1], flush=True)
    server.close()
    if args.out:
        args.out.write_text("\n".join(text))


if __name__ == "__main__":
    main()
