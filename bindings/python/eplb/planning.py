"""Plans: where each expert and its replicas should live."""

import ctypes
import threading
from ctypes import byref, c_double, c_int32, c_size_t, c_uint32
from types import SimpleNamespace
from typing import Any, Dict, Optional, Sequence, Tuple, Union

from eplb import arrays
from eplb._native import Handle, call
from eplb._structures import PlanSummary
from eplb.request import describe

_planners: Dict[int, Handle] = {}
_lock = threading.Lock()


def _planner(threads: int) -> Handle:
    """The planner with so many threads; made once, because its memory is used again from plan to plan."""
    with _lock:
        if threads not in _planners:
            _planners[threads] = Handle("eplb_planner_free", "eplb_planner_new", c_size_t(threads))
        return _planners[threads]


class Placement:
    """Which expert is in which slot.

    phy2log: `[layers, slots]`, -1 = empty. log2phy: `[layers, experts, columns]`, ascending slots, -1 = no more.
    logcnt: `[layers, experts]`, the number of slots of each expert.
    """

    def __init__(self, phy2log: Any, log2phy: Any, logcnt: Any) -> None:
        self.phy2log = phy2log
        self.log2phy = log2phy
        self.logcnt = logcnt


class Plan:
    """A placement, the split over its replicas, and what they are worth on the loads planned for.

    Balancedness is per layer the mean over ranks of rank load / the largest, 0 to 1, then the mean over the layers with any
    load; at even split over the replicas unless said.

    placement: `Placement`. share: `[layers, slots]`, the part of its expert's tokens that each slot gets.
    balancedness, balancedness_min (the worst layer), balancedness_share (with `share`), balancedness_steps (mean over the
    steps of the window), bound (what no placement can exceed), balancedness_before (`None` without a current placement).
    predicted_balance: of the ranks' times under the cost model and dispatch; predicted_crossing: part of the tokens that cross
    nodes beyond what whole groups would. target_reached: `None` if no target was asked for.
    moves: slots whose expert was not on their rank before; local_copies: inside ranks (`None` without a current placement).
    duplicates, shortages, left_out, lost: slots that hold a second copy on their rank; empty slots; experts without a
    slot; experts that only dead ranks held.
    """

    def __init__(self, handle: Handle, kind: arrays.Kind, with_current: bool) -> None:
        summary = PlanSummary()
        call("eplb_plan_summarize", handle.pointer, byref(summary))
        layers, slots, experts, columns = summary.layers, summary.slots, summary.experts, max(summary.max_replicas, 1)
        phy2log = arrays.room((layers, slots), c_int32)
        call("eplb_plan_phy2log", handle.pointer, phy2log.pointer, len(phy2log))
        log2phy = arrays.room((layers, experts, columns), c_int32)
        call("eplb_plan_log2phy", handle.pointer, columns, log2phy.pointer, len(log2phy))
        logcnt = arrays.room((layers, experts), c_uint32)
        call("eplb_plan_logcnt", handle.pointer, logcnt.pointer, len(logcnt))
        share = arrays.room((layers, slots), c_double)
        call("eplb_plan_share", handle.pointer, share.pointer, len(share))
        self.placement = Placement(*(arrays.give(values, kind, "int64") for values in (phy2log, log2phy, logcnt)))
        self.share = arrays.give(share, kind, "float64")
        self.balancedness: float = summary.balancedness
        self.balancedness_min: float = summary.balancedness_min
        self.balancedness_share: float = summary.balancedness_share
        self.balancedness_steps: float = summary.balancedness_steps
        self.bound: float = summary.bound
        self.predicted_balance: float = summary.predicted_balance
        self.predicted_crossing: float = summary.predicted_crossing
        self.target_reached: Optional[bool] = None if summary.target_reached < 0 else bool(summary.target_reached)
        self.balancedness_before: Optional[float] = summary.balancedness_before if with_current else None
        self.moves: Optional[int] = summary.moves if with_current else None
        self.local_copies: Optional[int] = summary.local_copies if with_current else None
        self.duplicates: int = summary.duplicates
        self.shortages: int = summary.shortages
        self.left_out: int = summary.left_out
        self.lost: int = summary.lost

    def __repr__(self) -> str:
        moved = "" if self.moves is None else f", moves={self.moves}"
        return f"Plan(balancedness={self.balancedness:.4f}, bound={self.bound:.4f}{moved})"


def plan(
    loads: Any,
    *,
    ranks: int,
    slots: Optional[int] = None,
    slots_of_rank: Any = None,
    nodes: int = 1,
    current: Any = None,
    policy: Optional[str] = None,
    target: Optional[float] = None,
    max_moves: Optional[int] = None,
    max_moves_per_rank: Optional[int] = None,
    max_bytes: Optional[int] = None,
    max_bytes_per_rank: Optional[int] = None,
    expert_bytes: Union[int, Sequence[int], None] = None,
    speed_of_rank: Any = None,
    dead: Any = (),
    groups: int = 1,
    max_replicas: Optional[int] = None,
    move_price: Optional[float] = None,
    half_life: Optional[float] = None,
    shrinkage: Optional[float] = None,
    scenarios: Optional[int] = None,
    drift: Optional[float] = None,
    worth: Optional[Tuple[float, float, float]] = None,
    strict_nodes: bool = False,
    node_price: Optional[float] = None,
    expert_cost: float = 0.0,
    token_cost: float = 1.0,
    dispatch: str = "even",
    replicate_top: int = 0,
    seed: int = 0,
    threads: int = 1,
) -> Plan:
    """Plans where experts should live.

    loads: tokens per logical expert, `[layers, experts]`, or a window `[steps, layers, experts]`. Torch tensor, numpy array or
    nested lists; the plan's arrays are of the same kind, on the CPU.
    ranks, slots: ranks, and slots per layer over all of them; or `slots_of_rank`, `[ranks]`. nodes: ranks are divided over
    them in order.
    current: `phy2log [layers, slots]` in force, or a `Placement`. policy: "balanced", "incremental", "forecast", "split",
    "deepseek", "static" or "random"; default: "incremental" with `current`, else "balanced".
    target: wanted balancedness. max_..: limits of "incremental", in all and per receiving rank; those in bytes need
    `expert_bytes`, the bytes of one expert (a number, or one per layer). speed_of_rank: `[ranks]`. dead: numbers of dead ranks.
    groups: of the router, for "deepseek" and node rules. max_replicas: of one expert. seed: of "random". threads: of the
    planner; the plan does not depend on it.
    move_price, half_life (steps; `inf` = no decay), shrinkage (steps), scenarios, drift (0 to 1): of "forecast", as its documentation says.
    worth: (steps that the plan serves, seconds of a layer's experts in a step, 10^9 bytes per second of a link): "incremental"
    leaves layers alone whose gain does not pay for their bytes.
    strict_nodes: expert groups whole on nodes, as DeepSeek's rule; node_price: a price for tokens that cross nodes instead.
    expert_cost, token_cost: a rank's time is the sum of both times what it has. dispatch: what the server does with
    replicas, "even", "share" or "nearest". replicate_top: so many hottest experts on every rank.

    Raises `EplbError` for a request that cannot be answered, `ValueError` for arrays of the wrong shape.
    """
    options = SimpleNamespace(**locals())
    kind = arrays.kind_of(loads)
    window = arrays.take(loads, c_double, "loads", (2, 3))
    steps, layers, experts = (1, *window.shape) if len(window.shape) == 2 else window.shape
    request, held = describe(layers, options)
    request.loads = window.pointer
    request.steps, request.layers, request.experts = steps, layers, experts
    made = Handle("eplb_plan_free", "eplb_planner_plan", _planner(threads).pointer, byref(request))
    del held
    return Plan(made, kind, current is not None)
