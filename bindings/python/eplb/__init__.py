"""eplb for Python: expert-parallel load balancing of Mixture-of-Experts inference.

>>> import eplb
>>> plan = eplb.plan([[90, 10, 50, 50]], slots=6, ranks=2)
>>> plan.placement.phy2log  # which expert is in which slot, [layers, slots]  # doctest: +SKIP

`rebalance_experts` has the signature of DeepSeek's EPLB. `python -m eplb.convert` converts recorder dumps. Arrays come
back in the kind that was given: torch tensors for torch tensors, numpy arrays for numpy arrays, nested lists for lists.
Neither torch nor numpy is needed.
"""

from eplb._native import EplbError, library_path, version
from eplb.deepseek import rebalance_experts
from eplb.engine import Engine, Report
from eplb.lent import Lent
from eplb.maps import DeviceMaps, Maps
from eplb.pairs import Pairs
from eplb.planning import Placement, Plan, plan
from eplb.replay import Replay, replay
from eplb.store import Store, StoreServer
from eplb.trace import Trace
from eplb.transport import Transport

__all__ = [
    "DeviceMaps",
    "Engine",
    "EplbError",
    "Lent",
    "Maps",
    "Pairs",
    "Placement",
    "Plan",
    "Replay",
    "Report",
    "Store",
    "StoreServer",
    "Trace",
    "Transport",
    "library_path",
    "plan",
    "rebalance_experts",
    "replay",
    "version",
]
