"""No GPU, and still device memory: recording fakes of `libcuda.so.1` and `libnccl.so.2` (`tests/fakes`), where device memory is host memory, a stream
is a thread, and ranks are threads. They must be there when the library first looks for them: what uses them runs in a process of its own."""

import ctypes
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def build(folder):
    """Compiles the fakes into a folder, with images of kernels for them."""
    flags = ["-O1", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden"]
    for source, soname in (("cuda.c", "libcuda.so.1"), ("nccl.c", "libnccl.so.2")):
        more = [] if source == "cuda.c" else ["-L", folder, "-l:libcuda.so.1"]
        command = ["cc", *flags, f"-Wl,-soname,{soname}", "-o", f"{folder}/{soname}", f"{ROOT}/tests/fakes/{source}", *more]
        subprocess.run(command, check=True)
    os.symlink("libcuda.so.1", f"{folder}/libcuda.so")
    for kernel in ("dispatch", "rows", "checksum"):
        Path(folder, f"{kernel}.fatbin").write_bytes(b"a fake image")


def environment(folder, log, **more):
    """Variables of a process that uses the fakes in a folder."""
    kernels = {"EPLB_FAKE_KERNELS": "1", "EPLB_KERNELS": str(folder)}
    made = {**os.environ, "LD_LIBRARY_PATH": str(folder), "EPLB_FAKE_LOG": str(log), **kernels, **more}
    for name in ("EPLB_NCCL_SO", "VLLM_NCCL_SO_PATH"):
        made.pop(name, None)
    return made


class Device:
    """Memory and streams of the fake device of one rank, for the thread that makes it."""

    def __init__(self, rank):
        self.cuda = ctypes.CDLL("libcuda.so.1")
        context = ctypes.c_void_p()
        self._do("cuInit", 0)
        self._do("cuDevicePrimaryCtxRetain", ctypes.byref(context), rank)
        self._do("cuCtxPushCurrent_v2", context)

    def _do(self, name, *arguments):
        code = getattr(self.cuda, name)(*arguments)
        if code != 0:
            raise RuntimeError(f"{name}: {code}")

    def block(self, content):
        """A block that holds bytes: its address."""
        address = ctypes.c_uint64()
        self._do("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(len(content), 1)))
        ctypes.memmove(address.value, content, len(content))
        return address.value

    def stream(self):
        """A stream, as a number."""
        stream = ctypes.c_void_p()
        self._do("cuStreamCreateWithPriority", ctypes.byref(stream), 1, 0)
        return stream.value

    def wait(self, stream):
        """Waits for all that was enqueued on a stream."""
        self._do("cuStreamSynchronize", ctypes.c_void_p(stream))
