"""Traces of loads on disk."""

import os
import tempfile
import zipfile
from ctypes import c_double, c_size_t
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple, Union

from eplb import arrays
from eplb._native import Handle, call


class Trace:
    """A trace: tokens per step, layer and logical expert, `[T, L, E]`.

    Reads `.npy`, `.npz` and `.csv` files, records of SGLang, vLLM and vllm-ascend among them (`eplb trace info` says what a file
    is taken for), and torch dumps of SGLang's recorder (`.pt`): one file, or those of all ranks of a detailed dump as a list. Torch is
    not needed; `python -m eplb.convert` keeps what is read as an `.npz` file.

    Raises `EplbError` (for torch dumps `ValueError`) that names the file and the field if it cannot be read.
    """

    def __init__(self, path: Union[str, "os.PathLike[str]", Sequence[Union[str, "os.PathLike[str]"]]]) -> None:
        files: List[Any] = [path] if isinstance(path, (str, os.PathLike)) else list(path)
        if len(files) == 1 and not _is_dump(files[0]):
            self._handle = Handle("eplb_trace_free", "eplb_trace_open", os.fsencode(files[0]))
        else:
            from eplb.convert import convert

            with tempfile.TemporaryDirectory() as folder:
                made = str(Path(folder) / "dump.npz")
                convert([os.fspath(file) for file in files], made)
                # What is open stays, whatever becomes of its name.
                self._handle = Handle("eplb_trace_free", "eplb_trace_open", os.fsencode(made))
        sizes = (c_size_t * 3)()
        call("eplb_trace_shape", self._handle.pointer, sizes)
        #: (steps, layers, experts)
        self.shape: Tuple[int, int, int] = (sizes[0], sizes[1], sizes[2])

    @property
    def pointer(self) -> Any:
        """The handle, for calls of the library."""
        return self._handle.pointer

    def loads(self, first: int = 0, steps: Optional[int] = None, kind: arrays.Kind = "list") -> Any:
        """Loads of `steps` steps from `first` on (default: all that follow), `[steps, layers, experts]`.

        kind: "list", "numpy" or "torch".
        """
        if kind not in ("list", "numpy", "torch"):
            raise ValueError(f"kind is {kind!r}; use list, numpy or torch")
        total, layers, experts = self.shape
        steps = total - first if steps is None else steps
        if first < 0 or steps < 1 or first + steps > total:
            raise ValueError(f"steps {first} to {first + steps} of a trace of {total}")
        values = arrays.room((steps, layers, experts), c_double)
        call("eplb_trace_loads", self._handle.pointer, first, steps, values.pointer, len(values))
        return arrays.give(values, kind, "float64")


def _is_dump(path: Union[str, "os.PathLike[str]"]) -> bool:
    """Whether a file is what `torch.save` writes; an `.npz` file is an archive, too."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name == "data.pkl" or name.endswith("/data.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False
