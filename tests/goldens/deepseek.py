"""Writes deepseek.json: loads and the placements that DeepSeek EPLB's published algorithm makes of them.

An independent restatement of the algorithm in numpy, kept apart from the planner so that the two can disagree. It
follows the steps in words, one item at a time and in float32, with no thought of speed. Loads are drawn until no two
keys that are compared belong to different experts or groups and are equal, since the original leaves those cases to
its sort. Run it again with: python3 deepseek.py > deepseek.json
"""

import json
import sys

import numpy as np

F = np.float32


class Tie(Exception):
    """Two different things have equal keys."""


def descending(keys, names):
    """Positions by key, largest first; equal keys are allowed only for the same name."""
    order = sorted(range(len(keys)), key=lambda i: (-float(keys[i]), i))
    for a, b in zip(order, order[1:]):
        if keys[a] == keys[b] and names[a] != names[b]:
            raise Tie
    return order


def balanced_packing(keys, names, packs):
    """(pack, place in pack) of each item; every pack takes the same number of items."""
    capacity = len(keys) // packs
    if capacity == 1:
        return [(i, 0) for i in range(len(keys))]
    load, held, where = [F(0)] * packs, [0] * packs, [None] * len(keys)
    for item in descending(keys, names):
        open_packs = [p for p in range(packs) if held[p] < capacity]
        pack = min(open_packs, key=lambda p: (float(load[p]), p))
        where[item] = (pack, held[pack])
        held[pack] += 1
        load[pack] = F(load[pack] + keys[item])
    return where


def replicate(keys, slots):
    """Expert of each physical expert: all of them in order, then one copy at a time of the most loaded replica."""
    count = [1] * len(keys)
    chosen = list(range(len(keys)))
    while len(chosen) < slots:
        each = [F(k / F(c)) for k, c in zip(keys, count)]
        best = max(each)
        if sum(e == best for e in each) > 1:
            raise Tie
        expert = each.index(best)
        count[expert] += 1
        chosen.append(expert)
    return chosen, count


def plan_layer(row, slots, groups, nodes, gpus):
    """phy2log of one layer."""
    if groups % nodes:
        groups = nodes = 1
    weight = [F(w) for w in row]
    experts = len(weight)
    size = experts // groups
    group_load = []
    for g in range(groups):
        total = F(0)
        for w in weight[g * size:(g + 1) * size]:
            total = F(total + w)
        group_load.append(total)
    in_node = [[None] * (groups // nodes) for _ in range(nodes)]
    for group, (node, place) in enumerate(balanced_packing(group_load, range(groups), nodes)):
        in_node[node][place] = group

    phy2log = []
    for node in range(nodes):
        local = [g * size + i for g in in_node[node] for i in range(size)]
        chosen, count = replicate([weight[e] for e in local], slots // nodes)
        each = [F(weight[local[c]] / F(count[c])) for c in chosen]
        packs = gpus // nodes
        filled = [[None] * (slots // gpus) for _ in range(packs)]
        for i, (gpu, place) in enumerate(balanced_packing(each, chosen, packs)):
            filled[gpu][place] = local[chosen[i]]
        phy2log += [e for gpu in filled for e in gpu]
    return phy2log


# experts, slots, groups, nodes, gpus
SHAPES = [
    (12, 16, 4, 2, 8),     # the published example's shape
    (12, 16, 1, 1, 8),     # global
    (12, 16, 4, 1, 8),     # groups reordered on the only node
    (12, 16, 3, 2, 8),     # groups do not divide over the nodes: global
    (8, 8, 2, 2, 8),       # one slot per GPU
    (8, 12, 4, 4, 4),      # one group per node
    (16, 16, 1, 1, 4),     # no spare slot
    (16, 32, 8, 4, 8),     # twice as many slots as experts
    (6, 24, 1, 1, 4),      # duplicates are forced
    (32, 40, 8, 2, 8),
    (64, 80, 8, 4, 16),
    (64, 80, 1, 1, 16),
    (60, 72, 4, 2, 12),
    (64, 128, 8, 8, 64),
    (128, 160, 8, 4, 32),
]


def draw(rng, kind, experts):
    if kind == "tokens":
        return [int(x) for x in rng.integers(1, 2000, experts)]
    if kind == "zipf":
        return [int(x) for x in 1e6 / rng.permutation(np.arange(1, experts + 1)) ** 0.9]
    return [round(float(x), 4) for x in 1000 * np.exp(rng.normal(size=experts))]


def main():
    rng = np.random.default_rng(20250117)
    cases = []
    for experts, slots, groups, nodes, gpus in SHAPES:
        for kind in ("tokens", "zipf", "fractions", "tokens"):
            loads, phy2log = [], []
            while len(loads) < 2:
                row = draw(rng, kind, experts)
                try:
                    phy2log.append(plan_layer(row, slots, groups, nodes, gpus))
                    loads.append(row)
                except Tie:
                    continue
            cases.append({"slots": slots, "groups": groups, "nodes": nodes, "gpus": gpus, "loads": loads, "phy2log": phy2log})
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    sys.stdout.write(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
