"""Where the slots of a server's tensors lie."""

from typing import Any, List, NamedTuple, Optional, Tuple

from eplb import arrays
from eplb._structures import Tensor

#: What `Engine.layer` takes: a torch tensor or numpy array `[local slots, ..]`, or something with `__array_interface__`,
#: `__cuda_array_interface__` or DLPack.
Weights = Any

#: Kind of device of host memory in DLPack.
_DLPACK_CPU = 1


class Place(NamedTuple):
    """Memory of a tensor: address, shape, bytes of an element and from one to the next along each axis; the CUDA device that it is on, `None` for
    host memory, -1 for a device that the tensor does not name."""

    address: int
    shape: Tuple[int, ...]
    size: int
    strides: List[int]
    device: Optional[int]


def place_of(name: str, given: Weights) -> Place:
    """Where a tensor of any kind lies.

    Raises `ValueError` for one that cannot be written, and for devices that are neither the host nor CUDA.
    """
    if arrays.kind_of(given) == "torch":
        if given.device.type not in ("cpu", "cuda"):
            raise ValueError(f"{name} is on {given.device}; engines move memory of the host and of CUDA devices")
        device = None if given.device.type == "cpu" else given.device.index
        size = given.element_size()
        return Place(given.data_ptr(), tuple(given.shape), size, [stride * size for stride in given.stride()], device)
    if hasattr(given, "__array_interface__"):
        interface, device = given.__array_interface__, None
    elif hasattr(given, "__cuda_array_interface__"):
        interface, device = given.__cuda_array_interface__, -1
        if hasattr(given, "__dlpack_device__"):
            device = int(given.__dlpack_device__()[1])
    elif hasattr(given, "__dlpack_device__") and int(given.__dlpack_device__()[0]) != _DLPACK_CPU:
        import torch

        return place_of(name, torch.from_dlpack(given))
    else:
        import numpy

        interface, device = numpy.from_dlpack(given).__array_interface__, None
    address, readonly = interface["data"]
    if readonly:
        raise ValueError(f"{name} cannot be written; the engine writes slots")
    shape, size = tuple(interface["shape"]), int(interface["typestr"][2:])
    return Place(address, shape, size, list(interface.get("strides") or _contiguous(shape, size)), device)


def describe(name: str, given: Weights) -> Tuple[Tensor, Optional[int]]:
    """Where a tensor's slots and rows are, and its device, as of `Place`.

    Raises `ValueError` for a tensor whose slots are not rows of bytes at one distance.
    """
    address, shape, size, strides, device = place_of(name, given)
    if len(shape) < 2 or 0 in shape:
        raise ValueError(f"{name} has shape {list(shape)}; expected [local slots, ..] with none of them 0")
    # The longest run of axes without gaps from the last one on is a row; one axis of rows may be before it.
    row, axis = size, len(shape)
    while axis > 1 and (strides[axis - 1] == row or shape[axis - 1] == 1):
        row *= shape[axis - 1]
        axis -= 1
    if row == size and shape[-1] > 1:
        raise ValueError(f"{name}: elements of a row lie apart (strides {strides}); give a tensor whose last axis is contiguous")
    rows, pitch = 1, row
    if axis > 1:
        rows, pitch = shape[axis - 1], strides[axis - 1]
        for at in range(axis - 2, 0, -1):
            if strides[at] != pitch * rows:
                raise ValueError(f"{name}: rows of a slot lie at more than one distance (strides {strides})")
            rows *= shape[at]
    if pitch < row or strides[0] < (rows - 1) * pitch + row:
        raise ValueError(f"{name}: strides {strides} make rows or slots overlap")
    return Tensor(name.encode(), address, rows, row, pitch, strides[0]), device


def _contiguous(shape: Tuple[int, ...], size: int) -> List[int]:
    strides = [size]
    for length in reversed(shape[1:]):
        strides.insert(0, strides[0] * length)
    return strides
