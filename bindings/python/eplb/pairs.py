"""Batches of messages between ranks, over eplb's transports."""

import ctypes
from ctypes import byref, c_uint64
from typing import Any, List, Optional, Sequence, Tuple

from eplb._native import Handle, call
from eplb._structures import PairMessage
from eplb.store import Store, milliseconds

#: The other rank, the address of the first byte, the number of bytes.
Message = Tuple[int, int, int]


class Pairs:
    """Connections between all ranks, for batches of messages.

    Every rank makes one with the same `store` (or what `Store.of` makes one of), a corner of its own that nothing else uses, and the same `world_size`, at least 2.

    backend: "gloo": host memory, over TCP; needs `libeplb_gloo.so` (`EPLB_GLOO_SO` names it if it is not beside `libeplb.so`).
    "nccl" or "pynccl": memory of the CUDA device `device`, over NCCL; "nccl" takes the library that it finds (`EPLB_NCCL_SO` names
    it), "pynccl" the copy that the process has loaded, as torch does, and no other.
    interface: of "gloo": name of a network interface or an address of this host that the others can reach; default: the
    loopback address.
    timeout: seconds in which all must have come.

    Raises `EplbError` that says which rank did not come, or what to install.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        store: Any,
        backend: str = "gloo",
        interface: Optional[str] = None,
        timeout: float = 60.0,
        device: Optional[int] = None,
    ) -> None:
        self.rank, self.world_size = rank, world_size
        #: Number of the device whose memory travels; `None`: memory of the host does.
        self.device = device
        self._store = store = Store.of(store)
        limit = c_uint64(milliseconds(timeout))
        if backend in ("nccl", "pynccl"):
            if device is None:
                raise ValueError(f"backend {backend!r} moves memory of a device: say which with device=")
            arguments = ("eplb_pairs_connect_device", backend.encode(), device, rank, world_size, store.pointer, limit)
        else:
            if device is not None:
                raise ValueError(f"backend {backend!r} moves host memory: device={device} means nothing to it")
            name = None if interface is None else interface.encode()
            arguments = ("eplb_pairs_connect", backend.encode(), rank, world_size, store.pointer, name, limit)
        self._handle: Optional[Handle] = Handle("eplb_pairs_free", *arguments)

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message], timeout: float = 60.0) -> None:
        """Sends and receives a batch; returns when what is received is in and what is sent may be written again.

        Messages from one rank to another match in the order in which both sides give them, batch by batch, and must have equal
        sizes. On a device, what is sent is complete and what is received into is in nobody's use when this is called: the work of a
        stream on it was waited for. Other threads of Python run meanwhile; the memory must stay valid. After an error the connections are spent.

        Raises `EplbError` that names the rank and the cause.
        """
        if self._handle is None:
            raise RuntimeError("these connections are closed")
        call(
            "eplb_pairs_exchange",
            self._handle.pointer,
            _messages(sends),
            len(sends),
            _messages(receives),
            len(receives),
            milliseconds(timeout),
        )

    @property
    def received_bytes(self) -> int:
        """Bytes received from other ranks so far."""
        if self._handle is None:
            raise RuntimeError("these connections are closed")
        received = c_uint64()
        call("eplb_pairs_received_bytes", self._handle.pointer, byref(received))
        return received.value

    def close(self) -> None:
        """Closes the connections; ranks that still use theirs get an error."""
        self._handle = None


def _messages(given: Sequence[Message]) -> Any:
    messages: List[PairMessage] = [PairMessage(*message) for message in given]
    return (PairMessage * len(messages))(*messages) if messages else ctypes.POINTER(PairMessage)()
