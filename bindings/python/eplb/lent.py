"""Memory of slots that an engine lends, as arrays of other packages."""

import ctypes
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_uint8, c_uint16, c_uint64, c_void_p
from typing import Any, Dict, NamedTuple, Optional, Tuple

# Name of a dtype -> DLPack's code, bits of an element, and what array interfaces call it. Kinds that these do not know are lent as whole numbers
# of their size.
_DTYPES: Dict[str, Tuple[int, int, str]] = {
    "bool": (6, 8, "|b1"),
    "uint8": (1, 8, "|u1"),
    "int8": (0, 8, "|i1"),
    "int16": (0, 16, "<i2"),
    "uint16": (1, 16, "<u2"),
    "int32": (0, 32, "<i4"),
    "uint32": (1, 32, "<u4"),
    "int64": (0, 64, "<i8"),
    "uint64": (1, 64, "<u8"),
    "float16": (2, 16, "<f2"),
    "bfloat16": (4, 16, "<u2"),
    "float32": (2, 32, "<f4"),
    "float64": (2, 64, "<f8"),
    "float8_e4m3fn": (1, 8, "|u1"),
    "float8_e5m2": (1, 8, "|u1"),
}

#: Kinds of devices in DLPack.
_CPU, _CUDA = 1, 2


class Kind(NamedTuple):
    """Shape of one slot of a tensor, and its dtype by name."""

    shape: Tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Bytes of one slot."""
        size = _of(self.dtype)[1] // 8
        for length in self.shape:
            size *= length
        return size


def _of(dtype: str) -> Tuple[int, int, str]:
    known = _DTYPES.get(dtype)
    if known is None:
        raise ValueError(f"dtype {dtype!r} cannot be lent; known are {', '.join(_DTYPES)}")
    return known


class Lent:
    """The local slots of one tensor that an engine lends, `[local slots, ..]`: `numpy.asarray(lent)`, `torch.from_dlpack(lent)`, `lent.torch()`.

    On the host it has `__array_interface__`, on a device `__cuda_array_interface__`, and DLPack on both. The memory lives as long as whatever looks at it; after
    `Engine.close` nothing of the engine writes it any more. Types that an interface does not know (bfloat16 and 8-bit floats in array interfaces, 8-bit floats
    in DLPack) are seen as whole numbers of their size there.
    """

    def __init__(self, keep: Any, address: int, slots: int, kind: Kind, device: Optional[int]) -> None:
        self._keep = keep
        self.address, self.shape, self.dtype, self.device = address, (slots, *kind.shape), kind.dtype, device
        described = {
            "version": 3,
            "data": (address, False),
            "shape": self.shape,
            "typestr": _of(kind.dtype)[2],
            "strides": None,
        }
        if device is None:
            self.__array_interface__ = described
        else:
            self.__cuda_array_interface__ = {**described, "stream": None}

    def __dlpack_device__(self) -> Tuple[int, int]:
        return (_CPU, 0) if self.device is None else (_CUDA, self.device)

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Optional[bool] = None
    ) -> Any:
        """A capsule of DLPack. What an engine lends is written by it in the order of the streams given to `step` alone: no stream is waited for."""
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError("memory that an engine lends is not copied, nor moved to another device")
        return _capsule(self)

    def torch(self) -> Any:
        """A torch tensor on this memory, of the dtype that was asked for."""
        import torch

        return torch.from_dlpack(self).view(getattr(torch, self.dtype))


class _Device(ctypes.Structure):
    _fields_ = [("kind", c_int32), ("number", c_int32)]


class _Type(ctypes.Structure):
    _fields_ = [("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16)]


class _Tensor(ctypes.Structure):
    """`DLManagedTensor`: `DLTensor`, and how it is let go of."""

    _fields_ = [
        ("data", c_void_p),
        ("device", _Device),
        ("dimensions", c_int32),
        ("dtype", _Type),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
        ("manager", c_void_p),
        ("deleter", c_void_p),
    ]


# What is lent through capsules, by the address of its description: kept until the other side lets go of it.
_held: Dict[int, Tuple[Any, ...]] = {}


@ctypes.CFUNCTYPE(None, c_void_p)
def _let_go(address: int) -> None:
    _held.pop(address, None)


# A capsule's destructor gets an object that is being destroyed: its address is all that may be used of it.
_python = ctypes.PyDLL(None)
_is_valid = _python.PyCapsule_IsValid
_is_valid.argtypes, _is_valid.restype = [c_void_p, c_char_p], ctypes.c_int
_pointer = _python.PyCapsule_GetPointer
_pointer.argtypes, _pointer.restype = [c_void_p, c_char_p], c_void_p
_new = _python.PyCapsule_New
_new.argtypes, _new.restype = [c_void_p, c_char_p, c_void_p], ctypes.py_object
_NAME = b"dltensor"


@ctypes.PYFUNCTYPE(None, c_void_p)
def _unused(capsule: int) -> None:
    # One that was taken has another name, and its taker lets go.
    if _is_valid(capsule, _NAME):
        _held.pop(_pointer(capsule, _NAME), None)


def _capsule(lent: Lent) -> Any:
    code, bits, _ = _of(lent.dtype)
    shape = (c_int64 * len(lent.shape))(*lent.shape)
    made = _Tensor(
        lent.address,
        _Device(*lent.__dlpack_device__()),
        len(lent.shape),
        _Type(code, bits, 1),
        shape,
        None,
        0,
        None,
        ctypes.cast(_let_go, c_void_p),
    )
    address = ctypes.addressof(made)
    _held[address] = (made, shape, lent)
    return _new(address, _NAME, ctypes.cast(_unused, c_void_p))
