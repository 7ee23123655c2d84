"""Stores: small maps through which ranks find each other and agree."""

import ctypes
import os
import threading
import uuid
from ctypes import POINTER, byref, c_char_p, c_int32, c_size_t, c_uint8, c_uint16, c_uint64, c_void_p
from typing import Any, Optional

from eplb._native import Handle, call, library
from eplb._structures import StoreCallbacks, callback_types

_DONE, _NOT, _ABSENT, _TIMEOUT, _LOST, _FAILED = range(6)


def milliseconds(timeout: float) -> int:
    """A time limit as the library takes it. Raises `ValueError` for what is none."""
    if not timeout >= 0:
        raise ValueError(f"timeout is {timeout}; give seconds, 0 or more")
    return min(int(timeout * 1000), 2**63)


class Store:
    """A store. Values are bytes, keys texts; every call has a time limit in seconds and raises `EplbError` when it fails.

    Made by `Store.open`, `Store.in_process` or `Store.of_torch`; `store.corner(prefix)` gives a part of a program its own keys.
    """

    def __init__(self, handle: Handle, keep: Any = None) -> None:
        self._handle = handle
        # What the library calls back into must live as long as it may.
        self._keep = keep

    @property
    def pointer(self) -> c_void_p:
        """The handle, for calls of the library."""
        return self._handle.pointer

    @classmethod
    def in_process(cls) -> "Store":
        """A store for ranks that are threads of this process."""
        return cls(Handle("eplb_store_free", "eplb_store_in_process"))

    @classmethod
    def open(cls, address: str, timeout: float = 60.0) -> "Store":
        """The store at `tcp://host:port` or `file:///folder`. A server that does not listen yet is tried again until the time is over.

        Where the server wants a token it is taken from `EPLB_STORE_TOKEN` or `EPLB_STORE_TOKEN_FILE`.
        """
        return cls(Handle("eplb_store_free", "eplb_store_open", address.encode(), c_uint64(milliseconds(timeout))))

    @classmethod
    def of_torch(cls, store: Any, prefix: Optional[str] = None) -> "Store":
        """A store on a `torch.distributed.Store` that the ranks share already (a TCPStore, a FileStore, a PrefixStore on one).

        Its keys begin with `prefix`, "eplb/" if none is given. The torch store stays open while this one is used.
        """
        host = _TorchStore(store, "eplb/" if prefix is None else prefix)
        return cls(Handle("eplb_store_free", "eplb_store_from_callbacks", byref(host.callbacks)), host)

    @classmethod
    def of(cls, given: Any) -> "Store":
        """A store of whatever is given: one of these, an address as of `open`, or a torch store as of `of_torch`."""
        if isinstance(given, cls):
            return given
        return cls.open(given) if isinstance(given, str) else cls.of_torch(given)

    def corner(self, prefix: str) -> "Store":
        """A store on the keys of this one that begin with `prefix` and a slash."""
        return Store(Handle("eplb_store_free", "eplb_store_prefix", self.pointer, prefix.encode()), self)

    def set(self, key: str, value: bytes, timeout: float = 10.0) -> None:
        """Writes a value, whatever the key held."""
        call("eplb_store_set", self.pointer, key.encode(), _bytes(value), len(value), milliseconds(timeout))

    def wait(self, key: str, timeout: float = 10.0) -> bytes:
        """Waits until a key is there; returns its value."""
        room = 4096
        while True:
            value, length = (c_uint8 * room)(), c_size_t()
            call("eplb_store_wait", self.pointer, key.encode(), value, room, byref(length), milliseconds(timeout))
            if length.value <= room:
                return bytes(value[: length.value])
            room = length.value

    def compare_and_set(self, key: str, expected: Optional[bytes], new: bytes, timeout: float = 10.0) -> bool:
        """Writes `new` if the key holds `expected` (`None`: if it is absent); whether it did."""
        swapped = c_uint8()
        held = (None, 0) if expected is None else (_bytes(expected), len(expected))
        call(
            "eplb_store_compare_and_set",
            self.pointer,
            key.encode(),
            *held,
            _bytes(new),
            len(new),
            milliseconds(timeout),
            byref(swapped),
        )
        return bool(swapped.value)


class StoreServer:
    """A TCP store served by this process, at `address` (`host:port`; port 0 takes a free one), until it is closed.

    Anywhere but on the loopback address a token is needed: `EPLB_STORE_TOKEN` or `EPLB_STORE_TOKEN_FILE`.
    """

    def __init__(self, address: str = "127.0.0.1:0") -> None:
        self._handle: Optional[Handle] = Handle("eplb_store_server_free", "eplb_store_serve", address.encode())
        port = c_uint16()
        call("eplb_store_server_port", self._handle.pointer, byref(port))
        host = address.rpartition(":")[0]
        #: What clients open.
        self.address = f"tcp://{host}:{port.value}"

    def close(self) -> None:
        """Ends it; clients then report that the store is lost."""
        self._handle = None

    def __enter__(self) -> "StoreServer":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _bytes(value: bytes) -> Any:
    """Bytes as the library takes them: never null, also when there are none."""
    return (c_uint8 * max(len(value), 1)).from_buffer_copy(value or b"\0")


class _TorchStore:
    """The operations of a torch store as the library calls them.

    Torch's compare-and-set tells "absent" and "swapped" apart by values alone, so every write carries a nonce in front: no two
    writes are the same bytes, and none is empty.
    """

    def __init__(self, store: Any, prefix: str) -> None:
        self.store, self.prefix = store, prefix
        self.wrote = threading.local()
        kinds = callback_types()
        # ctypes keeps no reference to what it hands out.
        self.functions = (
            kinds["set"](self._guard(self._set)),
            kinds["get"](self._guard(self._get)),
            kinds["compare_and_set"](self._guard(self._compare_and_set)),
            kinds["remove"](self._guard(self._remove)),
        )
        self.name = f"torch {type(store).__name__}".encode()
        self.callbacks = StoreCallbacks(self.name, None, *self.functions, 1 << 20)

    def _guard(self, operation: Any) -> Any:
        """What an operation raises becomes words for the library."""
        give = library().eplb_value_set

        def guarded(_state: Any, *arguments: Any) -> int:
            out = arguments[-1]
            try:
                code, value = operation(*arguments[:-1])
            except Exception as error:  # noqa: BLE001  whatever it is, it must not cross the boundary
                text = f"{type(error).__name__}: {error}"
                late = "timeout" in text.lower() or "timed out" in text.lower()
                code, value = (_TIMEOUT if late else _FAILED), text.encode()
            if value is not None:
                give(out, _bytes(value), len(value))
            return code

        return guarded

    def _key(self, key: bytes) -> str:
        return self.prefix + key.decode()

    def _read(self, key: str) -> Optional[bytes]:
        """What is stored, the nonce included."""
        try:
            return self.store.get(key) if self.store.check([key]) else None
        except Exception:
            # Gone between the two calls is absent; anything else fails again.
            if self.store.check([key]):
                raise
            return None

    def _set(self, key: bytes, value: Any, length: int, _timeout: int) -> Any:
        self.store.set(self._key(key), _stamp(value, length))
        return _DONE, None

    def _get(self, key: bytes, _timeout: int) -> Any:
        held = self._read(self._key(key))
        return (_NOT, None) if held is None else (_DONE, held[_NONCE:])

    def _compare_and_set(
        self, key: bytes, expected: Any, expected_len: int, value: Any, length: int, _timeout: int
    ) -> Any:
        name, new = self._key(key), _stamp(value, length)
        wanted = ctypes.string_at(expected, expected_len) if expected else None
        while True:
            held = self._read(name)
            if (None if held is None else held[_NONCE:]) != wanted:
                return (_ABSENT, None) if held is None else (_NOT, held[_NONCE:])
            # Torch takes "" for "absent".
            if bytes(self.store.compare_set(name, held or b"", new)) == new:
                return _DONE, None

    def _remove(self, key: bytes, _timeout: int) -> Any:
        return (_DONE if self.store.delete_key(self._key(key)) else _NOT), None


_NONCE = 16


def _stamp(value: Any, length: int) -> bytes:
    return uuid.UUID(bytes=os.urandom(_NONCE)).bytes + ctypes.string_at(value, length)
