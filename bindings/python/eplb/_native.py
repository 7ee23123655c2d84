"""The shared library behind this package: where it is, its functions, and its errors as exceptions.

ctypes lets go of the interpreter's lock during every call, so that other threads go on while a plan is made.
"""

import ctypes
import os
import threading
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_int32, c_int64, c_size_t, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any, Dict, List, Optional

#: The interface version that this package was written for (`EPLB_ABI_VERSION` of the header).
ABI_VERSION = 1

_STATUS = {
    1: "invalid argument",
    2: "plan",
    3: "trace",
    4: "internal error",
    5: "store",
    6: "timeout",
    7: "transfer",
    8: "engine",
    9: "state",
    10: "must not run",
}


class EplbError(RuntimeError):
    """What the library refused, in its own words; `kind` is one of "invalid argument", "plan", "trace", "internal error", "store", "timeout",
    "transfer", "engine", "state" or "must not run": the forward pass must not run, and none until a new epoch is formed."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class Structure(ctypes.Structure):
    """A structure of the library: its first field is its size, which is set here."""

    def __init__(self, *values: Any, **named: Any) -> None:
        super().__init__(ctypes.sizeof(type(self)), *values, **named)


class PlanRequest(Structure):
    """`struct eplb_plan_request`."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("loads", POINTER(c_double)),
        ("steps", c_size_t),
        ("layers", c_size_t),
        ("experts", c_size_t),
        ("ranks", c_size_t),
        ("slots", c_size_t),
        ("slots_of_rank", POINTER(c_uint32)),
        ("nodes", c_size_t),
        ("speed_of_rank", POINTER(c_double)),
        ("dead", POINTER(c_uint8)),
        ("current", POINTER(c_int32)),
        ("policy", c_char_p),
        ("groups", c_size_t),
        ("target", c_double),
        ("max_moves", c_int64),
        ("max_moves_per_rank", c_int64),
        ("max_bytes", c_int64),
        ("max_bytes_per_rank", c_int64),
        ("expert_bytes", c_uint64),
        ("seed", c_uint64),
        ("max_replicas", c_size_t),
        ("expert_bytes_of_layer", POINTER(c_uint64)),
        ("worth_steps", c_double),
        ("worth_layer_seconds", c_double),
        ("worth_link_gbps", c_double),
        ("move_price", c_double),
        ("half_life", c_double),
        ("shrinkage", c_double),
        ("scenarios", c_size_t),
        ("strict_nodes", c_uint8),
        ("node_price", c_double),
        ("expert_cost", c_double),
        ("token_cost", c_double),
        ("dispatch", c_char_p),
        ("replicate_top", c_size_t),
        ("drift", c_double),
    ]


class PlanSummary(Structure):
    """`struct eplb_plan_summary`."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("layers", c_size_t),
        ("slots", c_size_t),
        ("experts", c_size_t),
        ("max_replicas", c_size_t),
        ("moves", c_size_t),
        ("local_copies", c_size_t),
        ("duplicates", c_size_t),
        ("shortages", c_size_t),
        ("left_out", c_size_t),
        ("lost", c_size_t),
        ("balancedness_before", c_double),
        ("balancedness", c_double),
        ("balancedness_min", c_double),
        ("balancedness_share", c_double),
        ("balancedness_steps", c_double),
        ("bound", c_double),
        ("predicted_balance", c_double),
        ("predicted_crossing", c_double),
        ("target_reached", c_int32),
    ]


class PairMessage(Structure):
    """`struct eplb_message`."""

    _fields_ = [("struct_size", c_size_t), ("peer", c_uint32), ("base", c_void_p), ("bytes", c_size_t)]


class Tensor(Structure):
    """`struct eplb_tensor`."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("name", c_char_p),
        ("data", c_void_p),
        ("rows", c_size_t),
        ("row_bytes", c_size_t),
        ("pitch", c_size_t),
        ("slot_stride", c_size_t),
    ]


class Pass(Structure):
    """`struct eplb_pass`."""

    _fields_ = [("struct_size", c_size_t), ("step", c_uint64), ("tag", c_uint32), ("dummy", c_uint32)]


class CountFaults(Structure):
    """`struct eplb_count_faults`."""

    _fields_ = [("struct_size", c_size_t), ("missing", c_uint64), ("out_of_range", c_uint64)]


class Choices(Structure):
    """`struct eplb_choices`."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("layer", c_size_t),
        ("ids", c_void_p),
        ("id_bytes", c_uint32),
        ("of_slots", c_uint32),
        ("tokens", c_size_t),
        ("k", c_size_t),
        ("row_stride", c_size_t),
        ("mask", c_void_p),
    ]


class MapArrays(Structure):
    """`struct eplb_map_arrays`."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("version", c_uint64),
        ("first_step", c_uint64),
        ("layers", c_size_t),
        ("slots", c_size_t),
        ("experts", c_size_t),
        ("columns", c_size_t),
        ("phy2log", c_void_p),
        ("log2phy", c_void_p),
        ("logcnt", c_void_p),
        ("share", c_void_p),
    ]


class DeviceMapArrays(Structure):
    """`struct eplb_device_maps`."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("layers", c_size_t),
        ("slots", c_size_t),
        ("experts", c_size_t),
        ("columns", c_size_t),
        ("phy2log", c_uint64),
        ("log2phy", c_uint64),
        ("logcnt", c_uint64),
        ("share", c_uint64),
    ]


class DeviceChoices(Structure):
    """`struct eplb_device_choices`."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("layer", c_size_t),
        ("ids", c_uint64),
        ("id_bytes", c_uint32),
        ("of_slots", c_uint32),
        ("tokens", c_size_t),
        ("k", c_size_t),
        ("row_stride", c_size_t),
        ("mask", c_uint64),
        ("valid", c_uint64),
    ]


class DeviceSlots(Structure):
    """`struct eplb_device_slots`."""

    _fields_ = [("struct_size", c_size_t), ("slots", c_uint64), ("row_stride", c_size_t), ("salt", c_uint64)]


class DeviceCounts(Structure):
    """`struct eplb_device_counts`."""

    _fields_ = [("struct_size", c_size_t), ("counts", c_uint64), ("count_bytes", c_uint32), ("of_slots", c_uint32)]


class RoundReport(Structure):
    """`struct eplb_round_report`."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("round", c_uint64),
        ("before", c_double),
        ("predicted", c_double),
        ("bound", c_double),
        ("reached", c_double),
        ("moves", c_uint64),
        ("local_copies", c_uint64),
        ("link_bytes", c_uint64),
        ("waves", c_uint64),
        ("committed", c_uint64),
        ("plan_seconds", c_double),
        ("seconds", c_double),
        ("launch_us", c_double),
    ]


class ReplaySummary(Structure):
    """`struct eplb_replay_summary`."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("first_step", c_size_t),
        ("steps", c_size_t),
        ("plans", c_size_t),
        ("mean", c_double),
        ("p01", c_double),
        ("moves", c_size_t),
        ("moves_fraction", c_double),
        ("waiting", c_double),
        ("link_seconds", c_double),
        ("plan_ms_median", c_double),
    ]


#: `eplb_source_fn`.
SOURCE = ctypes.CFUNCTYPE(c_int32, c_void_p, c_uint32, c_uint32, c_uint32, c_size_t, c_void_p, c_size_t)

#: `eplb_after_commit_fn`.
AFTER_COMMIT = ctypes.CFUNCTYPE(None, c_void_p, c_uint32, c_uint32, POINTER(c_uint32), c_size_t)


# Of `struct eplb_store_callbacks`: name -> arguments between the state and the value.
_CALLBACKS = {
    "set": [c_char_p, c_void_p, c_size_t, c_uint64],
    "get": [c_char_p, c_uint64],
    "compare_and_set": [c_char_p, c_void_p, c_size_t, c_void_p, c_size_t, c_uint64],
    "remove": [c_char_p, c_uint64],
}


def callback_types() -> Dict[str, Any]:
    """The kinds of functions of a host's store."""
    return {name: ctypes.CFUNCTYPE(c_int32, c_void_p, *kinds, c_void_p) for name, kinds in _CALLBACKS.items()}


class StoreCallbacks(Structure):
    """`struct eplb_store_callbacks`."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("name", c_char_p),
        ("state", c_void_p),
        *callback_types().items(),
        ("max_value", c_size_t),
    ]


# Name -> kinds of arguments; all return a status.
_FUNCTIONS = {
    "eplb_planner_new": [c_size_t, POINTER(c_void_p)],
    "eplb_planner_plan": [c_void_p, POINTER(PlanRequest), POINTER(c_void_p)],
    "eplb_plan_request_init": [POINTER(PlanRequest), c_size_t],
    "eplb_plan_summarize": [c_void_p, POINTER(PlanSummary)],
    "eplb_plan_phy2log": [c_void_p, POINTER(c_int32), c_size_t],
    "eplb_plan_log2phy": [c_void_p, c_size_t, POINTER(c_int32), c_size_t],
    "eplb_plan_logcnt": [c_void_p, POINTER(c_uint32), c_size_t],
    "eplb_plan_share": [c_void_p, POINTER(c_double), c_size_t],
    "eplb_trace_open": [c_char_p, POINTER(c_void_p)],
    "eplb_trace_shape": [c_void_p, POINTER(c_size_t)],
    "eplb_trace_loads": [c_void_p, c_size_t, c_size_t, POINTER(c_double), c_size_t],
    "eplb_replay_run": [
        c_void_p,
        POINTER(PlanRequest),
        c_size_t,
        c_size_t,
        c_double,
        c_size_t,
        POINTER(c_void_p),
    ],
    "eplb_replay_summarize": [c_void_p, POINTER(ReplaySummary)],
    "eplb_replay_balancedness": [c_void_p, POINTER(c_double), c_size_t],
    "eplb_replay_moves": [c_void_p, POINTER(c_uint64), c_size_t],
    "eplb_value_set": [c_void_p, c_void_p, c_size_t],
    "eplb_store_in_process": [POINTER(c_void_p)],
    "eplb_store_open": [c_char_p, c_uint64, POINTER(c_void_p)],
    "eplb_store_prefix": [c_void_p, c_char_p, POINTER(c_void_p)],
    "eplb_store_from_callbacks": [POINTER(StoreCallbacks), POINTER(c_void_p)],
    "eplb_store_serve": [c_char_p, POINTER(c_void_p)],
    "eplb_store_server_port": [c_void_p, POINTER(c_uint16)],
    "eplb_store_set": [c_void_p, c_char_p, c_void_p, c_size_t, c_uint64],
    "eplb_store_wait": [c_void_p, c_char_p, c_void_p, c_size_t, POINTER(c_size_t), c_uint64],
    "eplb_store_compare_and_set": [
        c_void_p,
        c_char_p,
        c_void_p,
        c_size_t,
        c_void_p,
        c_size_t,
        c_uint64,
        POINTER(c_uint8),
    ],
    "eplb_pairs_connect": [c_char_p, c_uint32, c_size_t, c_void_p, c_char_p, c_uint64, POINTER(c_void_p)],
    "eplb_pairs_connect_device": [c_char_p, c_uint32, c_uint32, c_size_t, c_void_p, c_uint64, POINTER(c_void_p)],
    "eplb_pairs_exchange": [c_void_p, POINTER(PairMessage), c_size_t, POINTER(PairMessage), c_size_t, c_uint64],
    "eplb_pairs_received_bytes": [c_void_p, POINTER(c_uint64)],
    "eplb_transport_local": [c_size_t, POINTER(c_void_p)],
    "eplb_transport_gloo": [c_char_p, c_char_p, POINTER(c_void_p)],
    "eplb_transport_peer": [c_uint8, POINTER(c_void_p)],
    "eplb_transport_nccl": [c_uint8, POINTER(c_void_p)],
    "eplb_transport_nccl_in_steps": [c_uint8, POINTER(c_void_p)],
    "eplb_transport_shared_memory": [POINTER(c_void_p)],
    "eplb_builder_device": [c_void_p, c_uint32],
    "eplb_builder_new": [c_char_p, c_uint32, c_size_t, c_void_p, c_void_p, POINTER(c_void_p)],
    "eplb_builder_layer_set": [
        c_void_p,
        c_char_p,
        c_size_t,
        c_size_t,
        c_size_t,
        POINTER(c_uint32),
        c_size_t,
        POINTER(c_uint32),
    ],
    "eplb_builder_register_layer": [c_void_p, c_uint32, c_size_t, POINTER(Tensor), c_size_t],
    "eplb_builder_lend_layer": [c_void_p, c_uint32, c_size_t, POINTER(Tensor), c_size_t],
    "eplb_builder_placement": [c_void_p, c_uint32, POINTER(c_int32), c_size_t],
    "eplb_builder_after_commit": [c_void_p, AFTER_COMMIT, c_void_p],
    "eplb_builder_source": [c_void_p, SOURCE, c_void_p],
    "eplb_builder_start": [c_void_p, POINTER(c_void_p)],
    "eplb_engine_step": [c_void_p, c_uint64],
    "eplb_engine_step_on": [c_void_p, c_uint64, POINTER(c_uint64), c_size_t],
    "eplb_engine_device_maps": [c_void_p, c_uint32, POINTER(DeviceMapArrays)],
    "eplb_engine_tick": [c_void_p],
    "eplb_engine_maps": [c_void_p, c_uint32, POINTER(c_void_p)],
    "eplb_engine_maps_version": [c_void_p, c_uint32, POINTER(c_uint64)],
    "eplb_engine_lent": [c_void_p, c_uint32, c_size_t, c_size_t, POINTER(c_void_p)],
    "eplb_maps_view": [c_void_p, POINTER(MapArrays)],
    "eplb_engine_record_slots": [c_void_p, c_uint32, POINTER(Pass), POINTER(c_uint64), c_size_t, POINTER(CountFaults)],
    "eplb_engine_record_experts": [c_void_p, c_uint32, POINTER(Pass), POINTER(c_uint64), c_size_t, POINTER(CountFaults)],
    "eplb_engine_record_choices": [c_void_p, c_uint32, POINTER(Pass), POINTER(Choices), POINTER(CountFaults)],
    "eplb_engine_dispatch_topk": [c_void_p, c_uint32, POINTER(Pass), POINTER(DeviceChoices), POINTER(DeviceSlots), c_uint64],
    "eplb_engine_record_topk": [c_void_p, c_uint32, POINTER(Pass), POINTER(DeviceChoices), c_uint64],
    "eplb_engine_record_counts": [c_void_p, c_uint32, POINTER(Pass), POINTER(DeviceCounts), c_uint64, POINTER(c_uint8)],
    "eplb_engine_rebalance_now": [c_void_p, POINTER(c_uint64)],
    "eplb_engine_wait_round": [c_void_p, c_uint64, c_uint64],
    "eplb_engine_pause": [c_void_p],
    "eplb_engine_resume": [c_void_p],
    "eplb_engine_quiesce": [c_void_p, c_uint64],
    "eplb_engine_reopen": [c_void_p, c_uint64],
    "eplb_engine_reform": [c_void_p, c_uint64],
    "eplb_engine_shutdown": [c_void_p, c_uint64],
    "eplb_engine_last_report": [c_void_p, c_uint32, POINTER(RoundReport)],
    "eplb_engine_state": [c_void_p, c_char_p, c_size_t, POINTER(c_size_t)],
    "eplb_engine_round_outcome": [c_void_p, c_uint32, c_char_p, c_size_t, POINTER(c_size_t)],
    "eplb_engine_metrics": [c_void_p, c_uint8, c_char_p, c_size_t, POINTER(c_size_t)],
    "eplb_engine_save": [c_void_p, c_uint32, c_char_p],
}

# Functions that free a handle.
_FREE = [
    "eplb_planner_free",
    "eplb_plan_free",
    "eplb_trace_free",
    "eplb_replay_free",
    "eplb_store_free",
    "eplb_store_server_free",
    "eplb_pairs_free",
    "eplb_transport_free",
    "eplb_builder_free",
    "eplb_engine_free",
    "eplb_maps_free",
]

_lock = threading.Lock()
_library: Optional[ctypes.CDLL] = None


def _candidates() -> List[Path]:
    """Where the library may be, best first: `EPLB_LIBRARY`, beside this file (a wheel), a build of this repository."""
    named = os.environ.get("EPLB_LIBRARY")
    if named:
        return [Path(named)]
    here = Path(__file__).resolve().parent
    target = Path(os.environ.get("CARGO_TARGET_DIR", here.parents[2] / "target"))
    return [here / "libeplb.so", target / "release" / "libeplb.so", target / "debug" / "libeplb.so"]


def library_path() -> Path:
    """The file of the shared library that this package uses.

    Raises `ImportError` if there is none, saying where it was looked for.
    """
    candidates = _candidates()
    for path in candidates:
        if path.is_file():
            return path
    looked = ", ".join(str(path) for path in candidates)
    raise ImportError(
        f"libeplb.so is not there (looked at {looked}): install the wheel, build it with "
        "`cargo build --release -p eplb-capi`, or name it in EPLB_LIBRARY"
    )


def library() -> ctypes.CDLL:
    """The shared library, loaded once."""
    global _library
    with _lock:
        if _library is None:
            path = library_path()
            loaded = ctypes.CDLL(str(path))
            loaded.eplb_abi_version.restype = c_uint32
            found = loaded.eplb_abi_version()
            if found != ABI_VERSION:
                raise ImportError(f"{path} has interface version {found}, this package needs {ABI_VERSION}")
            loaded.eplb_version.restype = c_char_p
            loaded.eplb_last_error.restype = c_char_p
            for name, arguments in _FUNCTIONS.items():
                function = getattr(loaded, name)
                function.argtypes, function.restype = arguments, c_int
            for name in _FREE:
                function = getattr(loaded, name)
                function.argtypes, function.restype = [c_void_p], None
            _library = loaded
        return _library


def version() -> str:
    """The version of the shared library."""
    return library().eplb_version().decode()


def call(name: str, *arguments: Any) -> None:
    """Calls a function of the library; raises `EplbError` with its words if it fails."""
    loaded = library()
    status = getattr(loaded, name)(*arguments)
    if status != 0:
        raise EplbError(loaded.eplb_last_error().decode(), _STATUS.get(status, "unknown"))


class Handle:
    """Something that the library made and that is freed with this object."""

    def __init__(self, free: str, make: str, *arguments: Any) -> None:
        self.pointer = c_void_p()
        call(make, *arguments, byref(self.pointer))
        self._free = getattr(library(), free)

    def __del__(self) -> None:
        pointer, self.pointer = getattr(self, "pointer", None), c_void_p()
        if pointer:
            self._free(pointer)
