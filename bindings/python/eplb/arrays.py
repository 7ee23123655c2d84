"""Arrays of any kind in, the same kind out: torch tensors, numpy arrays, or nested lists of numbers."""

import ctypes
import sys
from array import array
from typing import Any, List, Sequence, Tuple

#: Kind of an array: "torch", "numpy" or "list".
Kind = str

# C type -> type code of `array`, and name of the dtype in torch and numpy.
_CODES = {
    ctypes.c_double: ("d", "float64"),
    ctypes.c_int32: ("i", "int32"),
    ctypes.c_uint32: ("I", "uint32"),
    ctypes.c_uint8: ("B", "uint8"),
    ctypes.c_int64: ("q", "int64"),
    # Torch's unsigned 64-bit numbers do little: counts are below 2^63.
    ctypes.c_uint64: ("Q", "int64"),
}


class Values:
    """Numbers in C order with a shape, in memory that the library can read.

    `pointer` is valid while this object lives.
    """

    def __init__(self, numbers: array, shape: Tuple[int, ...], c_type: Any) -> None:
        self.shape = shape
        self._numbers = numbers
        self._view = (c_type * max(len(numbers), 1)).from_buffer(numbers) if len(numbers) else (c_type * 1)()
        self.pointer = ctypes.cast(self._view, ctypes.POINTER(c_type))

    def __len__(self) -> int:
        return len(self._numbers)

    def tolist(self) -> Any:
        """Nested lists."""
        return nest(self._numbers.tolist(), self.shape)


def kind_of(given: Any) -> Kind:
    """The kind of an array."""
    for module, name in (("torch", "Tensor"), ("numpy", "ndarray")):
        loaded = sys.modules.get(module)
        if loaded is not None and isinstance(given, getattr(loaded, name)):
            return module
    return "list"


def take(given: Any, c_type: Any, name: str, dims: Sequence[int]) -> Values:
    """Copies an array of any kind; `dims` are the numbers of dimensions that are possible.

    Raises `ValueError` or `TypeError` with `name` for what is not an array of numbers of that many dimensions.
    """
    code, dtype = _CODES[c_type]
    kind = kind_of(given)
    if kind == "torch":
        import torch

        given = given.detach().to(device="cpu", dtype=getattr(torch, dtype)).contiguous()
        shape = tuple(given.shape)
        numbers = array(code)
        size = given.numel() * given.element_size()
        numbers.frombytes(ctypes.string_at(given.data_ptr(), size) if size else b"")
    elif kind == "numpy":
        import numpy

        given = numpy.ascontiguousarray(given, dtype=dtype)
        shape = given.shape
        numbers = array(code)
        numbers.frombytes(given.tobytes())
    else:
        shape, flat = _flatten(given, name)
        try:
            numbers = array(code, flat)
        except (TypeError, OverflowError) as error:
            raise type(error)(f"{name}: {error}") from None
    if len(shape) not in dims:
        raise ValueError(f"{name} has shape {list(shape)}; expected {' or '.join(map(str, dims))} dimensions")
    return Values(numbers, tuple(shape), c_type)


def room(shape: Tuple[int, ...], c_type: Any) -> Values:
    """An array of zeros for the library to fill."""
    size = 1
    for length in shape:
        size *= length
    return Values(array(_CODES[c_type][0], bytes(size * ctypes.sizeof(c_type))), shape, c_type)


def give(values: Values, kind: Kind, dtype: str) -> Any:
    """An array of a kind; `dtype` is its dtype's name where the kind has dtypes."""
    if kind == "torch":
        import torch

        if not len(values):
            return torch.zeros(values.shape, dtype=getattr(torch, dtype))
        return torch.tensor(values.tolist(), dtype=getattr(torch, dtype)).reshape(values.shape)
    if kind == "numpy":
        import numpy

        made = numpy.frombuffer(values._numbers, dtype=values._numbers.typecode)
        return made.astype(dtype).reshape(values.shape)
    return values.tolist()


def _flatten(given: Any, name: str) -> Tuple[Tuple[int, ...], List[Any]]:
    """Shape and numbers of nested sequences of equal lengths."""
    shape: List[int] = []
    level = [given]
    while level and hasattr(level[0], "__len__") and not isinstance(level[0], (str, bytes)):
        lengths = {len(part) if hasattr(part, "__len__") else -1 for part in level}
        if len(lengths) != 1:
            raise ValueError(f"{name}: rows of lengths {sorted(lengths)}; all must be equal")
        shape.append(lengths.pop())
        level = [number for part in level for number in part]
    return tuple(shape), level


def nest(flat: List[Any], shape: Tuple[int, ...]) -> Any:
    """Numbers in C order as nested lists."""
    for length in reversed(shape[1:]):
        flat = [flat[at : at + length] for at in range(0, len(flat), length)] if length else []
    return flat
