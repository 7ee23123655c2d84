"""The shared library behind this package: where it is, its functions, and its errors as exceptions.

ctypes lets go of the interpreter's lock during every call, so that other threads go on while a plan is made.
"""

import ctypes
import os
import threading
from ctypes import byref, c_char, c_char_p, c_int, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any, List, Optional

from eplb._functions import FREE, FUNCTIONS

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
            for name, arguments in FUNCTIONS.items():
                function = getattr(loaded, name)
                function.argtypes, function.restype = arguments, c_int
            for name in FREE:
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


def text_of(name: str, *arguments: Any) -> str:
    """The text that a function of the library copies out, whose last arguments are where to, room and length."""
    room = 1 << 12
    while True:
        text, length = (c_char * room)(), c_size_t()
        call(name, *arguments, text, room, byref(length))
        if length.value < room:
            return text.value.decode()
        room = length.value + 1


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
