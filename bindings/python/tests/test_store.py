"""Stores and batches of messages, between threads of this process. Pairs need `libeplb_gloo.so`, which cargo builds where Gloo's headers are."""

import ctypes
import threading
import unittest

import eplb


class Stores(unittest.TestCase):
    def test_values_are_waited_for_and_swapped(self):
        store = eplb.Store.in_process()
        late = threading.Timer(0.05, lambda: store.set("late", b"x" * 10_000))
        late.start()
        self.assertEqual(store.wait("late", 20), b"x" * 10_000)
        late.join()
        self.assertTrue(store.compare_and_set("empty", None, b""))
        self.assertEqual(store.wait("empty"), b"")
        self.assertFalse(store.compare_and_set("empty", None, b"1"))
        self.assertTrue(store.compare_and_set("empty", b"", b"1"))
        corner = store.corner("part")
        corner.set("key", b"mine")
        self.assertEqual(store.wait("part/key"), b"mine")
        with self.assertRaisesRegex(eplb.EplbError, "nobody") as caught:
            store.wait("nobody", 0.02)
        self.assertEqual(caught.exception.kind, "timeout")
        with self.assertRaises(ValueError):
            store.wait("key", -1)

    def test_a_server_and_its_end(self):
        with eplb.StoreServer() as server:
            one, other = eplb.Store.open(server.address), eplb.Store.open(server.address)
            one.set("key", b"value")
            self.assertEqual(other.wait("key"), b"value")
            self.assertEqual(eplb.Store.of(server.address).wait("key"), b"value")
            self.assertIs(eplb.Store.of(one), one)
        with self.assertRaises(eplb.EplbError) as caught:
            other.wait("key", 2)
        self.assertIn(caught.exception.kind, ("store", "timeout"))
        with self.assertRaisesRegex(eplb.EplbError, "tcp://host:port"):
            eplb.Store.open("here")


class TorchLike:
    """A store with torch's calls and torch's habits: get blocks, compare_set takes "" for absent and returns what is held then."""

    def __init__(self):
        self.values, self.lock = {}, threading.Lock()
        self.broken = False

    def check(self, keys):
        if self.broken:
            raise RuntimeError("Connection reset by peer")
        return all(key in self.values for key in keys)

    def get(self, key):
        return self.values[key]

    def set(self, key, value):
        with self.lock:
            self.values[key] = value

    def compare_set(self, key, expected, new):
        with self.lock:
            if key not in self.values:
                if expected:
                    return expected
                self.values[key] = new
            elif self.values[key] == expected:
                self.values[key] = new
            return self.values[key]

    def delete_key(self, key):
        with self.lock:
            return self.values.pop(key, None) is not None


class OverTorch(unittest.TestCase):
    def test_it_behaves_as_any_other(self):
        host = TorchLike()
        store = eplb.Store.of_torch(host, "job/")
        store.set("key", b"")
        self.assertEqual(store.wait("key"), b"")
        self.assertTrue(all(key.startswith("job/") for key in host.values))
        self.assertFalse(store.compare_and_set("key", None, b"1"))
        self.assertTrue(store.compare_and_set("key", b"", b"1"))
        # Equal values of two writers: exactly one of them swaps.
        won, threads = [], []
        for _ in range(4):
            threads.append(threading.Thread(target=lambda: won.append(store.compare_and_set("leader", None, b"me"))))
            threads[-1].start()
        for thread in threads:
            thread.join()
        self.assertEqual(sorted(won), [False, False, False, True])
        host.broken = True
        with self.assertRaisesRegex(eplb.EplbError, "Connection reset"):
            store.wait("key", 1)


class Messages(unittest.TestCase):
    def test_batches_arrive_and_a_peer_that_differs_is_named(self):
        store, results = eplb.Store.in_process(), [None, None]

        def rank(me):
            try:
                pairs = eplb.Pairs(me, 2, store.corner("pairs"))
                out = (ctypes.c_uint8 * 100_000)(*([me + 1] * 100_000))
                into = (ctypes.c_uint8 * 100_000)()
                for _ in range(3):
                    pairs.exchange(
                        [(1 - me, ctypes.addressof(out), 100_000)], [(1 - me, ctypes.addressof(into), 100_000)], 30
                    )
                results[me] = set(into), pairs.received_bytes
                more = 1 if me else 2
                try:
                    pairs.exchange([(1 - me, ctypes.addressof(out), more)], [(1 - me, ctypes.addressof(into), 1)], 30)
                    results[me] = "it went unnoticed"
                except eplb.EplbError as error:
                    results[me] += (error.kind, str(error))
                pairs.close()
            except Exception as error:  # noqa: BLE001  shown by the test
                results[me] = repr(error)

        threads = [threading.Thread(target=rank, args=(me,)) for me in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for me, found in enumerate(results):
            self.assertEqual(found[:2], ({2 - me}, 300_000), results)
            self.assertEqual(found[2], "transfer", results)
        self.assertIn("1 messages of 2 bytes in all; expected 1 messages of 1 bytes", results[1][3])


if __name__ == "__main__":
    unittest.main()
