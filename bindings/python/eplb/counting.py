"""Counting tokens, from numbers on the host and on the device."""

import ctypes
from ctypes import byref, c_uint8, c_uint64, c_void_p
from typing import Any, List, Optional, Tuple

from eplb import arrays
from eplb._native import call
from eplb._structures import Choices, CountFaults, DeviceChoices, DeviceCounts, DeviceSlots, Pass
from eplb.tensors import Place, place_of


class Counting:
    """The part of `Engine` that counts."""

    _streams: List[Any]
    device: Optional[int]

    def _running(self) -> c_void_p:
        raise NotImplementedError

    def record(
        self,
        step: int,
        *,
        slots: Any = None,
        experts: Any = None,
        layer_set: int = 0,
        tag: int = 0,
        dummy: bool = False,
        stream: Any = None,
    ) -> Tuple[int, int]:
        """Counts tokens of a pass on this rank: `slots [layers, slots]` that each slot got, or `experts [layers, experts]` that chose each expert.

        tag: kind of pass (0 = prefill, 1 = decode by default). dummy: nothing is counted. Returns the tokens that could not
        be counted: at empty slots, and out of range.

        On a device, contiguous 32 or 64 bit integers in its memory are copied behind the work of `stream` (default: torch's current one, else
        the first of the step's), without waiting; what cannot be counted is in the metrics only, and zeros are returned.
        """
        if (slots is None) == (experts is None):
            raise ValueError("give either slots or experts")
        name, given = ("slots", slots) if experts is None else ("experts", experts)
        if self._is_there(given):
            _whole(name, given)
            place = _contiguous(name, given, 2)
            counts = DeviceCounts(place.address, place.size, int(slots is not None))
            on = self._stream_of(given, stream)
            call("eplb_engine_record_counts", self._running(), layer_set, byref(Pass(step, tag, dummy)), byref(counts), on, None)
            return 0, 0
        values = arrays.take(given, c_uint64, name, (2,))
        faults = CountFaults()
        call(
            f"eplb_engine_record_{name}",
            self._running(),
            layer_set,
            byref(Pass(step, tag, dummy)),
            values.pointer,
            len(values),
            byref(faults),
        )
        return faults.missing, faults.out_of_range

    def record_choices(
        self,
        step: int,
        layer: int,
        ids: Any,
        *,
        mask: Any = None,
        of_slots: bool = False,
        layer_set: int = 0,
        tag: int = 0,
        dummy: bool = False,
        stream: Any = None,
    ) -> Tuple[int, int]:
        """Counts the router's choices of one layer: `ids [tokens, k]` of experts, or of slots.

        mask: `[tokens]`, 0 where a token is padding. Returns as `record`.

        On a device, ids of 32 or 64 bits in its memory are counted by one launch on `stream` (default: torch's current one, else the first of the
        step's), which may be captured into a graph; slots are folded with the maps in force on that stream.
        """
        if self._is_there(ids):
            self._record_there(step, layer, ids, mask, of_slots, Pass(step, tag, dummy), layer_set, stream)
            return 0, 0
        values = arrays.take(ids, ctypes.c_int64, "ids", (2,))
        padding = None if mask is None else arrays.take(mask, c_uint8, "mask", (1,))
        if padding is not None and len(padding) != values.shape[0]:
            raise ValueError(f"mask has {len(padding)} values for {values.shape[0]} tokens")
        choices = Choices(
            layer,
            ctypes.cast(values.pointer, c_void_p),
            8,
            of_slots,
            values.shape[0],
            values.shape[1],
            0,
            None if padding is None else ctypes.cast(padding.pointer, c_void_p),
        )
        faults = CountFaults()
        call(
            "eplb_engine_record_choices",
            self._running(),
            layer_set,
            byref(Pass(step, tag, dummy)),
            byref(choices),
            byref(faults),
        )
        return faults.missing, faults.out_of_range

    def dispatch(
        self,
        step: int,
        layer: int,
        ids: Any,
        slots: Any = None,
        *,
        mask: Any = None,
        salt: Any = None,
        layer_set: int = 0,
        tag: int = 0,
        dummy: bool = False,
        stream: Any = None,
    ) -> Any:
        """Turns the router's choices of one layer, `ids [tokens, k]` of experts on the device, into slots by the device's maps, and counts them: one
        launch on `stream` (as `record_choices`), which may be captured into a graph.

        slots: where they are written, in the shape and type of the ids; default: over the ids. -1 is written for a token that the mask leaves
        out, and for an id that names no expert. salt: one 64-bit number on the device, mixed into the choice among replicas. Returns slots.
        """
        if not self._is_there(ids):
            raise ValueError("ids are not on the engine's device; on the host, choose slots by `maps`")
        choices = self._choices("ids", layer, ids, mask, False)
        slots = ids if slots is None else slots
        there = self._choices("slots", layer, slots, None, False)
        if (there.tokens, there.k, there.id_bytes) != (choices.tokens, choices.k, choices.id_bytes):
            raise ValueError("slots differ from ids in shape or type")
        mixed = 0 if salt is None else _contiguous("salt", salt, 1).address
        place = DeviceSlots(there.ids, there.row_stride, mixed)
        of, on = Pass(step, tag, dummy), self._stream_of(ids, stream)
        call("eplb_engine_dispatch_topk", self._running(), layer_set, byref(of), byref(choices), byref(place), on)
        return slots

    def _record_there(
        self, step: int, layer: int, ids: Any, mask: Any, of_slots: bool, of: Pass, layer_set: int, stream: Any
    ) -> None:
        choices = self._choices("ids", layer, ids, mask, of_slots)
        call("eplb_engine_record_topk", self._running(), layer_set, byref(of), byref(choices), self._stream_of(ids, stream))

    def _choices(self, name: str, layer: int, ids: Any, mask: Any, of_slots: bool) -> DeviceChoices:
        """Where choices lie on the device."""
        _whole(name, ids)
        place = place_of(name, ids)
        if len(place.shape) != 2 or place.size not in (4, 8):
            raise ValueError(f"{name} has shape {list(place.shape)} and {place.size} bytes per id; expected [tokens, k] of 4 or 8")
        tokens, k = place.shape
        if tokens > 0 and k > 1 and place.strides[1] != place.size:
            raise ValueError(f"{name}: the choices of a token lie apart (strides {place.strides})")
        padding = 0
        if mask is not None:
            masked = _contiguous("mask", mask, 1)
            if masked.size != 1 or masked.shape[0] != tokens or masked.device is None:
                raise ValueError(f"mask has shape {list(masked.shape)}; expected {tokens} bytes on the device of the ids")
            padding = masked.address
        # A tensor of one token may have any stride.
        stride = place.strides[0] // place.size if tokens > 1 else k
        return DeviceChoices(layer, place.address, place.size, int(of_slots), tokens, k, stride, padding, 0)

    def _is_there(self, given: Any) -> bool:
        """Whether numbers lie on the engine's device."""
        if arrays.kind_of(given) == "torch":
            on_device = given.device.type == "cuda"
        else:
            on_device = hasattr(given, "__cuda_array_interface__")
        # An engine in host memory takes numbers of a device over, and waits for them.
        return on_device and self.device is not None

    def _stream_of(self, given: Any, stream: Any) -> int:
        """The stream on which numbers are counted; torch keeps them until that has run."""
        if stream is None and arrays.kind_of(given) == "torch":
            import torch

            return number_of(torch.cuda.current_stream(given.device))
        if stream is None and not self._streams:
            raise ValueError("on which stream? give stream=, or streams= to step")
        stream = self._streams[0] if stream is None else stream
        if arrays.kind_of(given) == "torch" and hasattr(stream, "cuda_stream"):
            given.record_stream(stream)
        return number_of(stream)


def _contiguous(name: str, given: Any, dims: int) -> Place:
    """Where an array without gaps lies."""
    place = place_of(name, given)
    if len(place.shape) != dims:
        raise ValueError(f"{name} has shape {list(place.shape)}; expected {dims} dimensions")
    gapless = place.size
    for length, stride in zip(reversed(place.shape), reversed(place.strides)):
        if length > 1 and stride != gapless:
            raise ValueError(f"{name} has gaps (strides {place.strides}); give a contiguous array")
        gapless *= length
    return place


def _whole(name: str, given: Any) -> None:
    """Numbers that are read where they lie are whole ones."""
    if arrays.kind_of(given) == "torch":
        kind, is_whole = given.dtype, not (given.dtype.is_floating_point or given.dtype.is_complex)
    else:
        kind = given.__cuda_array_interface__["typestr"]
        is_whole = kind[1] in "iu"
    if not is_whole:
        raise ValueError(f"{name} are {kind}; on a device they are whole numbers of 32 or 64 bits")


def number_of(stream: Any) -> int:
    """The number of a stream; torch's default stream is the device's own, which the library calls 1."""
    return int(getattr(stream, "cuda_stream", stream)) or 1
