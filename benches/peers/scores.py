"""The numbers that placements are judged by, computed once more in numpy, apart from the Rust that prints them."""

import sys

import numpy as np


def rank_experts(placement, ranks):
    """Which experts a rank holds: one [L, P/G] array per rank."""
    return np.split(placement, ranks, axis=1)


def balancedness(loads, placement, ranks):
    """Mean over layers with tokens of (mean over ranks of load) / (largest load of a rank), replicas sharing evenly.

    `loads` [L, E], `placement` [L, P].
    """
    values = []
    for row, slots in zip(loads, placement):
        share = row / np.maximum(np.bincount(slots, minlength=len(row)), 1)
        load = share[slots].reshape(ranks, -1).sum(axis=1)
        if load.max() > 0:
            values.append(load.mean() / load.max())
    return float(np.mean(values)) if values else 1.0


def moves(old, new, ranks):
    """Slots whose expert the rank did not hold before."""
    return sum(
        int((~np.isin(after, before)).sum())
        for old_rank, new_rank in zip(rank_experts(old, ranks), rank_experts(new, ranks))
        for before, after in zip(old_rank, new_rank)
    )


def duplicates(placement, ranks):
    """Slots that hold what another slot of their rank holds already."""
    return sum(len(row) - len(np.unique(row)) for rank in rank_experts(placement, ranks) for row in rank)


def check(name, score, loads, old, new, ranks):
    """Ends the run if a placement lacks an expert or if the two computations differ."""
    for layer, row in enumerate(new):
        missing = np.setdiff1d(np.arange(loads.shape[1]), row)
        if missing.size:
            sys.exit(f"{name}: layer {layer} lacks expert {missing[0]}")
    own = {
        "balancedness": balancedness(loads, new, ranks),
        "balancedness_old": balancedness(loads, old, ranks),
        "moves": moves(old, new, ranks),
        "duplicates": duplicates(new, ranks),
    }
    for key, value in own.items():
        if abs(value - score[key]) > 1e-9:
            sys.exit(f"{name}: {key} is {score[key]} by eplb and {value} in numpy")
