"""How bytes travel between the ranks of an engine."""

from ctypes import c_size_t, c_uint8, c_void_p
from typing import List, Optional

from eplb._native import Handle, text_of


class Transport:
    """How bytes travel between the ranks of an engine.

    Ranks that are processes: `Transport.auto()`, which is also what engines take that are given none. Host memory: `Transport.local()`,
    `Transport.gloo()`, `Transport.shared_memory()`. Devices: `Transport.peer()`, `Transport.nccl()`, `Transport.gloo()`.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    @property
    def pointer(self) -> c_void_p:
        """The handle, for calls of the library."""
        return self._handle.pointer

    @classmethod
    def auto(
        cls, interface: Optional[str] = None, store_address: Optional[str] = None, in_steps: bool = False
    ) -> "Transport":
        """For ranks that are processes: what fits best, found out each time they meet, the same on all.

        Ranks that can open each other's memory pull from it: from devices by copy engines, each path tried out by a copy that is compared; in host
        memory from what the engine lends. Between others NCCL carries what lies on devices, Gloo what lies in host memory and, where a rank lacks NCCL,
        on devices; both in one wave where some can and some cannot. `reasons` tells what was taken and why.

        interface, store_address: for Gloo, as with `Transport.gloo`. in_steps: for NCCL, as with `Transport.nccl`, which is the copy that
        `EPLB_NCCL_SO` names, else the one that the process has loaded, else the one that is found.
        """
        texts = [None if text is None else text.encode() for text in (interface, store_address)]
        return cls(Handle("eplb_transport_free", "eplb_transport_auto", *texts, c_uint8(in_steps)))

    @property
    def reasons(self) -> List[str]:
        """What `Transport.auto` looked at when ranks last met, and why, what was taken last: a line for each backend. Empty before."""
        return text_of("eplb_transport_reasons", self.pointer).splitlines()

    @classmethod
    def local(cls, copy_threads: int = 1) -> "Transport":
        """For ranks that are threads of this process: all of them are given this one object."""
        return cls(Handle("eplb_transport_free", "eplb_transport_local", c_size_t(copy_threads)))

    @classmethod
    def gloo(cls, interface: Optional[str] = None, store_address: Optional[str] = None) -> "Transport":
        """For ranks that are processes, on host memory, and on CUDA devices by way of pinned host memory: TCP through `libeplb_gloo.so`.

        interface: name of a network interface or an address of this host that the others can reach; default: the one by
        which this host reaches `store_address`, and without that the loopback address.
        """
        texts = [None if text is None else text.encode() for text in (interface, store_address)]
        return cls(Handle("eplb_transport_free", "eplb_transport_gloo", *texts))

    @classmethod
    def peer(cls, processes: bool = True) -> "Transport":
        """For slots on CUDA devices of one host, one for each rank: copy engines pull from the memory of the others.

        processes: ranks are processes; else they are threads of this process, and all of them are given this one object. Torch's memory
        can be opened by other processes, also with `expandable_segments` (seen with PyTorch 2.11).
        """
        return cls(Handle("eplb_transport_free", "eplb_transport_peer", c_uint8(processes)))

    @classmethod
    def shared_memory(cls) -> "Transport":
        """For ranks that are processes of one Linux host, on host memory that the engine lends: all of them map each other's."""
        return cls(Handle("eplb_transport_free", "eplb_transport_shared_memory"))

    @classmethod
    def nccl(cls, loaded: bool = True, in_steps: bool = False) -> "Transport":
        """For slots on CUDA devices: NCCL over a communicator of its own.

        loaded: take the copy that the process has loaded, as torch does, and no other; else the one that is found: `EPLB_NCCL_SO`, a copy
        that is loaded, or where the system and Python keep it.

        in_steps: waves are launched by `Engine.step` of one agreed id on every rank, on the thread that calls it, so in one order with the
        collectives that the server launches itself: for servers that have such in flight. Ranks then run steps in step, at most one apart; while
        they run none, a wave waits, and its round is broken off. `Report.launch_us` tells what it cost.
        """
        name = "eplb_transport_nccl_in_steps" if in_steps else "eplb_transport_nccl"
        return cls(Handle("eplb_transport_free", name, c_uint8(loaded)))
