"""The structures and kinds of callbacks of the C header, field for field."""

import ctypes
from ctypes import POINTER, c_char_p, c_double, c_int32, c_int64, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from typing import Any, Dict


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
