"""Reads files of `torch.save` without torch, and without running what is in them.

Such a file is a zip archive: `data.pkl` is a pickle in which each tensor refers to a storage, and `data/<key>` holds the
bytes of that storage. The pickle is loaded by an unpickler that knows tensors, storages and ordered dictionaries, and
refuses every other name, so that a file can build numbers, strings, lists, dictionaries and tensors, and nothing else.
The bytes of a tensor are read when they are asked for, and every claim about them is checked against what is there.
"""

import collections
import io
import pickle
import sys
import zipfile
import zlib
from array import array

# Storage class in torch -> dtype as numpy names it.
_STORAGES = {
    "ByteStorage": "u1",
    "CharStorage": "i1",
    "BoolStorage": "b1",
    "ShortStorage": "i2",
    "IntStorage": "i4",
    "LongStorage": "i8",
    "HalfStorage": "f2",
    "BFloat16Storage": "bf16",
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
}

_SIZES = {"bf16": 2}

# A tensor whose claims are larger than this is damaged: no machine holds that many elements.
_MOST_ELEMENTS = 1 << 48


class DumpError(ValueError):
    """A file that is not what it should be. The message names the file and the field."""


def size_of(dtype):
    """Bytes of an element."""
    return _SIZES.get(dtype) or int(dtype[1:])


class Tensor:
    """A tensor of a file: `shape`, `dtype` (`i4`, `f4`, .. or `bf16`), and its elements when asked for."""

    def __init__(self, storage, offset, shape, stride):
        self.storage, self.offset, self.shape, self.stride = storage, offset, tuple(shape), tuple(stride)
        numbers = (offset, *self.shape, *self.stride)
        whole = all(type(n) is int and 0 <= n < _MOST_ELEMENTS for n in numbers)
        if not whole or len(self.shape) != len(self.stride) or self.count() >= _MOST_ELEMENTS:
            raise DumpError(f"a tensor claims shape {self.shape}, stride {self.stride} and offset {offset}")

    @property
    def dtype(self):
        return self.storage.dtype

    def count(self):
        count = 1
        for n in self.shape:
            count *= n
        return count

    def bytes(self):
        """The elements in C order, little-endian."""
        if self.count() == 0:
            return b""
        size = size_of(self.dtype)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.stride))
        data = self.storage.read()
        # Repeated elements (a stride of 0) would let a small file claim any amount of memory.
        needed = max(last + 1, self.count()) * size
        if needed > len(data):
            raise DumpError(
                f"{self.storage.name} holds {len(data)} bytes, but the tensor of shape {self.shape} needs {needed}"
            )
        runs, axes = 1, len(self.shape)
        # The innermost axes that lie in C order are copied as one run.
        while axes > 0 and (self.shape[axes - 1] == 1 or self.stride[axes - 1] == runs):
            axes -= 1
            runs *= self.shape[axes]
        starts = [self.offset]
        for n, s in zip(self.shape[:axes], self.stride[:axes]):
            starts = [start + i * s for start in starts for i in range(n)]
        return b"".join(data[start * size : (start + runs) * size] for start in starts)


class _Storage:
    def __init__(self, archive, name, dtype):
        self.archive, self.name, self.dtype = archive, name, dtype

    def read(self):
        data = self.archive.entry(self.name)
        if self.archive.big_endian and size_of(self.dtype) > 1:
            swapped = array({2: "H", 4: "I", 8: "Q"}[size_of(self.dtype)])
            swapped.frombytes(data[: len(data) - len(data) % swapped.itemsize])
            swapped.byteswap()
            return swapped.tobytes()
        return data


class _Archive:
    def __init__(self, zipped):
        self.zipped = zipped
        pickles = [name for name in zipped.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise DumpError("no data.pkl in it: not a file of torch.save")
        self.root = pickles[0][: -len("data.pkl")]
        self.big_endian = self.root + "byteorder" in zipped.namelist() and self.entry("byteorder") == b"big"

    def entry(self, name):
        try:
            info = self.zipped.getinfo(self.root + name)
            if info.compress_type != zipfile.ZIP_STORED:
                # Torch compresses nothing; a few bytes that claim to be gigabytes are not its work.
                raise DumpError(f"{name} is compressed, which torch does not do")
            return self.zipped.read(info)
        except KeyError:
            raise DumpError(f"truncated: {name} is not in the archive") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
            raise DumpError(f"{name} cannot be read: {error}") from None


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive, data):
        super().__init__(io.BytesIO(data))
        self.archive = archive

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise DumpError(f"it holds a {module}.{name}, which is not read; save numbers and tensors only")

    def persistent_load(self, reference):
        if isinstance(reference, (tuple, list)) and len(reference) == 5:
            kind, dtype, key, _, size = reference
            named = isinstance(dtype, str) and dtype in _STORAGES.values() and isinstance(key, str) and key.isalnum()
            if kind == "storage" and named and isinstance(size, int):
                return _Storage(self.archive, f"data/{key}", dtype)
        raise DumpError(f"an unknown kind of storage: {reference!r:.120}")


def _rebuild(storage, offset, shape, stride, *_):
    if not isinstance(storage, _Storage):
        raise DumpError("a tensor without a storage")
    return Tensor(storage, offset, shape, stride)


def load(path):
    """What `torch.save` wrote to `path`, tensors as `Tensor`.

    Raises `DumpError`, or `OSError` if the file cannot be read.
    """
    with open(path, "rb") as file:
        start = file.read(4)
    if not start:
        raise DumpError(f"{path}: the file is empty")
    if start[:1] == b"\x80":
        raise DumpError(f"{path}: a pickle, or torch's format before 1.6; load it in torch and save it again")
    try:
        archive = _Archive(zipfile.ZipFile(path))
        loaded = _Unpickler(archive, archive.entry("data.pkl")).load()
    except zipfile.BadZipFile as error:
        raise DumpError(f"{path}: truncated, or not a file of torch.save: {error}") from None
    except DumpError as error:
        raise DumpError(f"{path}: {error}") from None
    except Exception as error:  # A damaged pickle can ask for anything; whatever it is, it is the file's fault.
        raise DumpError(f"{path}: data.pkl is damaged: {type(error).__name__}: {error}") from None
    return loaded


def numbers(data, dtype):
    """An `array` of the numbers in `data`; None for dtypes that `array` does not know."""
    code = {"u1": "B", "b1": "B", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "f4": "f", "f8": "d"}.get(dtype)
    if code is None:
        return None
    values = array(code)
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values
