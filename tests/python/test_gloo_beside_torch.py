"""libeplb_gloo.so and the Gloo that PyTorch carries work in one process, each with its own symbols.

The library is opened as the Rust side opens it: local, deep binding. PyTorch's symbols are made visible to all first, as programs that
link it do, so that they would be taken for ours if the binding were not deep: the same script without it must fail.
"""

import ctypes
import os
import subprocess
import sys
import threading
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = os.environ.get("EPLB_GLOO_SO") or str(
    Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug/libeplb_gloo.so"
)
RTLD_DEEPBIND = 8

TAKE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t)
SET = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.POINTER(ctypes.c_char), ctypes.c_size_t,
                       ctypes.POINTER(ctypes.c_char), ctypes.c_size_t)
GET = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.POINTER(ctypes.c_char), ctypes.c_size_t,
                       ctypes.c_void_p, TAKE)


class Store(ctypes.Structure):
    _fields_ = [("state", ctypes.c_void_p), ("set", SET), ("get", GET)]


class Options(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("rank", ctypes.c_int32), ("world_size", ctypes.c_int32),
                ("address", ctypes.c_char_p), ("interface_name", ctypes.c_char_p),
                ("connect_ms", ctypes.c_int64), ("secret", ctypes.c_void_p), ("store", Store)]


def on_two(work):
    """Runs work(rank) on two threads, and gives what both return."""
    results = [None, None]

    def run(rank):
        results[rank] = work(rank)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def connect(library):
    """Two contexts of ours, through a store that is a dict."""
    values, changed = {}, threading.Condition()

    @SET
    def set_value(_state, key, key_bytes, value, size):
        with changed:
            values[key[:key_bytes]] = value[:size]
            changed.notify_all()
        return 0

    @GET
    def get_value(_state, key, key_bytes, sink, take):
        name = key[:key_bytes]
        with changed:
            if not changed.wait_for(lambda: name in values, timeout=20):
                return 1
            value = values[name]
        take(sink, value, len(value))
        return 0

    def one(rank):
        options = Options(ctypes.sizeof(Options), rank, 2, b"127.0.0.1", None, 20_000, None, Store(None, set_value, get_value))
        context, error = ctypes.c_void_p(), ctypes.create_string_buffer(512)
        status = library.eplb_gloo_connect(ctypes.byref(options), ctypes.byref(context), error)
        assert status == 0, error.value
        return context

    return on_two(one)


def main(flags):
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libtorch_cpu.so"), mode=os.RTLD_NOW | os.RTLD_GLOBAL)
    library = ctypes.CDLL(LIBRARY, mode=os.RTLD_NOW | os.RTLD_LOCAL | flags)
    store = dist.HashStore()
    groups = on_two(lambda rank: dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=20)))

    def torch_sum():
        def one(rank):
            tensor = torch.full((1000,), rank + 1.0)
            groups[rank].allreduce([tensor]).wait()
            return tensor.sum().item()

        assert on_two(one) == [3000.0, 3000.0]

    torch_sum()
    contexts = connect(library)

    def our_sum(tag):
        def one(rank):
            numbers, error = (ctypes.c_uint64 * 1000)(*([rank + 5] * 1000)), ctypes.create_string_buffer(512)
            status = library.eplb_gloo_all_reduce_sum(contexts[rank], numbers, ctypes.c_size_t(1000), tag,
                                                      ctypes.c_int64(20_000), error)
            assert status == 0, error.value
            return set(numbers)

        assert on_two(one) == [{11}, {11}]

    for tag in range(5):
        our_sum(tag)
        torch_sum()

    # An exception of our Gloo is caught by our shim, although PyTorch has one of the same name.
    memory, buffer = ctypes.create_string_buffer(8), ctypes.c_void_p()
    error = ctypes.create_string_buffer(512)
    assert library.eplb_gloo_buffer_new(contexts[0], memory, ctypes.c_size_t(8), ctypes.byref(buffer), error) == 0
    assert library.eplb_gloo_recv(buffer, 1, ctypes.c_uint64(9), error) == 0
    assert library.eplb_gloo_wait_recv(buffer, ctypes.c_int64(50), error) == 3, error.value
    assert b"Timed out" in error.value, error.value
    torch_sum()
    print("both work", flush=True)
    # Neither library is told to end: what is tested is done.
    os._exit(0)


class GlooBesideTorch(unittest.TestCase):
    def run_with(self, flags):
        command = [sys.executable, __file__, str(flags)]
        return subprocess.run(command, capture_output=True, text=True, timeout=180)

    def test_both_work_in_one_process(self):
        self.assertTrue(Path(LIBRARY).exists(), f"{LIBRARY} is missing: install libgloo-dev and build")
        done = self.run_with(RTLD_DEEPBIND)
        self.assertEqual((done.returncode, done.stdout), (0, "both work\n"), done.stderr)

    def test_without_deep_binding_they_do_not(self):
        done = self.run_with(0)
        self.assertNotEqual(done.returncode, 0, done.stdout)


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].isdigit():
        main(int(sys.argv[1]))
    else:
        unittest.main()
