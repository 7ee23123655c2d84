"""Replay of traces: what a policy would have done, judged on steps that it had not seen."""

import inspect
from ctypes import byref, c_double, c_size_t, c_uint64
from types import SimpleNamespace
from typing import Any, List, Union

from eplb import arrays
from eplb._native import Handle, call
from eplb._structures import ReplaySummary
from eplb.planning import plan
from eplb.request import describe
from eplb.trace import Trace


class Replay:
    """What a replay found. Balancedness is of steps that no plan had seen: mean over layers, 0 to 1, even split.

    first_step: the first step scored. balancedness, moves: of each step from there on; the moves of a plan are those of the step with
    which it came into force, and the first plan, which starts from nothing, has none. mean, p01: of the balancedness; all but
    the worst hundredth of the steps reach p01. moves_fraction: part of all slots that moved, mean over steps. waiting: part of
    the time of the mixture layers that ranks wait for the slowest. link_seconds: of all moves. plan_ms_median: time of a plan.
    """

    def __init__(self, handle: Handle) -> None:
        summary = ReplaySummary()
        call("eplb_replay_summarize", handle.pointer, byref(summary))
        balancedness = arrays.room((summary.steps,), c_double)
        call("eplb_replay_balancedness", handle.pointer, balancedness.pointer, len(balancedness))
        moves = arrays.room((summary.steps,), c_uint64)
        call("eplb_replay_moves", handle.pointer, moves.pointer, len(moves))
        self.first_step: int = summary.first_step
        self.balancedness: List[float] = balancedness.tolist()
        self.moves: List[int] = moves.tolist()
        self.plans: int = summary.plans
        self.mean: float = summary.mean
        self.p01: float = summary.p01
        self.moves_fraction: float = summary.moves_fraction
        self.waiting: float = summary.waiting
        self.link_seconds: float = summary.link_seconds
        self.plan_ms_median: float = summary.plan_ms_median

    def __repr__(self) -> str:
        return f"Replay(mean={self.mean:.4f}, moves_fraction={self.moves_fraction:.5f}, steps={len(self.balancedness)})"

    def plot(self, axes: Any = None, label: str = "") -> Any:
        """Draws balancedness over steps; returns the axes. Needs matplotlib."""
        try:
            import matplotlib.pyplot as plt
        except ImportError:
            raise ImportError("plots need matplotlib: pip install matplotlib") from None
        if axes is None:
            _, axes = plt.subplots()
        axes.plot(range(self.first_step, self.first_step + len(self.balancedness)), self.balancedness, label=label)
        axes.set_xlabel("step")
        axes.set_ylabel("balancedness")
        return axes


def replay(
    trace: Union[Trace, str],
    *,
    policy: str = "forecast",
    window: int = 20,
    interval: int = 1,
    link_gbps: float = 50.0,
    threads: int = 1,
    **options: Any,
) -> Replay:
    """Replays a trace: a plan after every `interval` steps, made from the `window` steps before, scored on the steps that follow.

    trace: a `Trace` or the path of one. link_gbps: what a rank's link carries, 10^9 bytes per second. Further options as of
    `eplb.plan`: `ranks`, `slots`, `target`, ..; there is no `current` among them, each plan starts from the one before.

    Raises `EplbError` for a trace that is too short, and for what `eplb.plan` refuses.
    """
    if "current" in options:
        raise TypeError("replay starts from nothing; it takes no current placement")
    trace = trace if isinstance(trace, Trace) else Trace(trace)
    # Names and defaults are those of `plan`; a name that it does not have is a TypeError, as it is there.
    given = inspect.signature(plan).bind(None, policy=policy, threads=threads, **options)
    given.apply_defaults()
    request, held = describe(trace.shape[1], SimpleNamespace(**given.arguments))
    handle = Handle(
        "eplb_replay_free",
        "eplb_replay_run",
        trace.pointer,
        byref(request),
        c_size_t(window),
        c_size_t(interval),
        c_double(link_gbps),
        c_size_t(threads),
    )
    del held
    return Replay(handle)
