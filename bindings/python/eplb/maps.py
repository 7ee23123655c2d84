"""The maps by which a server routes, on the host and on the device."""

from ctypes import byref, c_float, c_int32
from typing import Any, Dict, Tuple

from eplb import arrays
from eplb._native import Handle, call
from eplb._structures import DeviceMapArrays, MapArrays


class Maps:
    """The maps in force at some step. They never change; `Engine.maps` gives newer ones.

    version: their number on this rank; first_step: the first step that runs with them. phy2log `[layers, slots]`, -1 = empty or drained;
    log2phy `[layers, experts, columns]`, -1 = no more; logcnt `[layers, experts]`; share `[layers, slots]`: nested lists, or
    `numpy(name)` and `torch(name)` for arrays on the same memory.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        view = MapArrays()
        call("eplb_maps_view", handle.pointer, byref(view))
        self.version, self.first_step = view.version, view.first_step
        layers, slots, experts, columns = view.layers, view.slots, view.experts, view.columns
        self._arrays: Dict[str, Tuple[int, Any, Tuple[int, ...]]] = {
            "phy2log": (view.phy2log, c_int32, (layers, slots)),
            "log2phy": (view.log2phy, c_int32, (layers, experts, columns)),
            "logcnt": (view.logcnt, c_int32, (layers, experts)),
            "share": (view.share, c_float, (layers, slots)),
        }

    def _block(self, name: str) -> Tuple[Any, Tuple[int, ...]]:
        address, c_type, shape = self._arrays[name]
        size = 1
        for length in shape:
            size *= length
        block = (c_type * size).from_address(address)
        # The memory lives as long as whatever looks at it.
        block._maps = self
        return block, shape

    def _list(self, name: str) -> Any:
        block, shape = self._block(name)
        return arrays.nest(list(block), shape)

    @property
    def phy2log(self) -> Any:
        """Which expert is in which slot."""
        return self._list("phy2log")

    @property
    def log2phy(self) -> Any:
        """The slots of each expert, ascending."""
        return self._list("log2phy")

    @property
    def logcnt(self) -> Any:
        """The number of slots of each expert."""
        return self._list("logcnt")

    @property
    def share(self) -> Any:
        """The part of its expert's tokens that each slot gets."""
        return self._list("share")

    def numpy(self, name: str) -> Any:
        """One of the arrays as a numpy array on the same memory; not to be written."""
        import numpy

        block, shape = self._block(name)
        made = numpy.ctypeslib.as_array(block).reshape(shape)
        made.flags.writeable = False
        return made

    def torch(self, name: str) -> Any:
        """One of the arrays as a torch tensor of its own."""
        import torch

        block, shape = self._block(name)
        dtype = torch.float32 if name == "share" else torch.int32
        return torch.frombuffer(block, dtype=dtype).clone().reshape(shape)


class DeviceArray:
    """An array on the device that others read where it lies, through `__cuda_array_interface__`; not to be written."""

    def __init__(self, keep: Any, address: int, shape: Tuple[int, ...], typestr: str) -> None:
        # The memory is the engine's, which lives as long as whatever looks at it.
        self._keep = keep
        self.__cuda_array_interface__ = {
            "version": 3,
            "data": (address, False),
            "shape": shape,
            "typestr": typestr,
            "strides": None,
            "stream": None,
        }


class DeviceMaps:
    """The maps of a layer set on the engine's device, at addresses and in shapes that stay the same until the engine is closed, so that a
    captured graph may read them. What stands there are the maps of the pass, for all that is enqueued on the streams given to
    `Engine.step` after it has returned.

    phy2log `[layers, slots]`, -1 = empty or drained; log2phy `[layers, experts, columns]`, -1 = no more; logcnt `[layers, experts]`; share
    `[layers, slots]`: torch tensors on that memory, or `array(name)` for other packages. They are read only.
    """

    def __init__(self, engine: Handle, layer_set: int, device: int) -> None:
        view = DeviceMapArrays()
        call("eplb_engine_device_maps", engine.pointer, layer_set, byref(view))
        layers, slots, experts, columns = view.layers, view.slots, view.experts, view.columns
        shapes: Dict[str, Tuple[int, Tuple[int, ...], str]] = {
            "phy2log": (view.phy2log, (layers, slots), "<i4"),
            "log2phy": (view.log2phy, (layers, experts, columns), "<i4"),
            "logcnt": (view.logcnt, (layers, experts), "<i4"),
            "share": (view.share, (layers, slots), "<f4"),
        }
        self._arrays = {name: DeviceArray(engine, *rest) for name, rest in shapes.items()}
        self._tensors: Dict[str, Any] = {}
        self._device = device

    def array(self, name: str) -> DeviceArray:
        """One of the arrays, for packages that take `__cuda_array_interface__`."""
        return self._arrays[name]

    def _tensor(self, name: str) -> Any:
        if name not in self._tensors:
            import torch

            self._tensors[name] = torch.as_tensor(self._arrays[name], device=f"cuda:{self._device}")
        return self._tensors[name]

    @property
    def phy2log(self) -> Any:
        """Which expert is in which slot."""
        return self._tensor("phy2log")

    @property
    def log2phy(self) -> Any:
        """The slots of each expert, ascending."""
        return self._tensor("log2phy")

    @property
    def logcnt(self) -> Any:
        """The number of slots of each expert."""
        return self._tensor("logcnt")

    @property
    def share(self) -> Any:
        """The part of its expert's tokens that each slot gets."""
        return self._tensor("share")
