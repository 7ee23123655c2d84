"""The engine that a server embeds: it counts tokens, plans with the other ranks, and moves experts while the server serves."""

import ctypes
import os
import traceback
from ctypes import byref, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from eplb import arrays
from eplb._native import EplbError, Handle, call, text_of
from eplb._structures import AFTER_COMMIT, SOURCE, RoundReport, Tensor
from eplb.config import toml
from eplb.counting import Counting, number_of
from eplb.lent import Kind, Lent
from eplb.maps import DeviceMaps, Maps
from eplb.store import Store, milliseconds
from eplb.tensors import Weights, describe
from eplb.transport import Transport


#: Engines that could not be ended, with what they hold.
_unfinished: List[Any] = []


class Report(NamedTuple):
    """What the last round of a layer set did on this rank. Balancedness is 0 to 1, on the loads planned for. launch_us: longest time that a step took to
    launch waves of the round, where steps do (`Transport.nccl(in_steps=True)`)."""

    round: int
    outcome: str
    before: float
    predicted: float
    bound: float
    reached: float
    moves: int
    local_copies: int
    link_bytes: int
    waves: int
    committed: int
    plan_seconds: float
    seconds: float
    launch_us: float


class Engine(Counting):
    """The engine of one rank.

    First layers are added, then it is started:

        engine = eplb.Engine(config, rank=0, world_size=2, store=store, transport=transport)
        main = engine.layer_set("main", layers=2, experts=8, slots=12)
        for layer in range(2):
            engine.layer(main, layer, {"w13": w13[layer], "w2": w2[layer]})   # tensors [local slots, ..]
        engine.start()

    transport: `Transport.auto()` unless another is given: for ranks that are processes of one host or on devices, what fits best. Slots in host memory also travel over
    `Transport.local` or `Transport.gloo`, those on CUDA devices over `Transport.peer`, `Transport.nccl` or `Transport.gloo`. On a device every `step` is told the streams on which its pass runs.

    store: an `eplb.Store`, an address of one (`tcp://host:port`, `file:///folder`), or a torch store; the same for all ranks, and nobody else's.

    config: a TOML text, or a dictionary of keys and values; variables `EPLB_..` of the environment override it. A rank that is alone
    leaves out `store` and `transport`: it has no thread, store or connection. device: the CUDA device that the slots lie on, where the
    tensors do not tell it.

    Instead of registering tensors the engine can be asked for the memory: `lend` before the start, `lent` after it. `Transport.shared_memory` needs that, and
    without it `Transport.auto` takes Gloo for slots in host memory.

    `step` and `tick` are called by one thread at a time; everything else may be called from any thread. Calls that may take
    long let other threads of Python run. Tensors are kept alive until the engine is closed.

    Raises `EplbError` that names key and value, layer and tensor, or rank and cause.
    """

    def __init__(
        self,
        config: Union[str, Dict[str, Any]] = "",
        *,
        rank: int = 0,
        world_size: int = 1,
        store: Any = None,
        transport: Optional[Transport] = None,
        device: Optional[int] = None,
    ) -> None:
        text = config if isinstance(config, str) else toml(config)
        store = None if store is None else Store.of(store)
        self.rank, self.world_size = rank, world_size
        self._keep: List[Any] = [store, transport]
        self._builder: Optional[Handle] = Handle(
            "eplb_builder_free",
            "eplb_builder_new",
            text.encode(),
            rank,
            world_size,
            None if store is None else store.pointer,
            None if transport is None else transport.pointer,
        )
        self._engine: Optional[Handle] = None
        #: Number of the CUDA device that all slots lie on; `None`: they lie in host memory, or nothing is known yet.
        self.device = device
        self._placed = False
        # Of each layer set: local slots, and by layer the tensors that are lent.
        self._slots: List[int] = []
        self._kinds: List[Dict[int, Dict[str, Kind]]] = []
        self._streams: List[Any] = []
        self._device_maps: Dict[int, DeviceMaps] = {}
        if device is not None:
            call("eplb_builder_device", self._building(), device)

    # Putting it together.

    def layer_set(
        self, name: str, *, layers: int, experts: int, slots: int, slots_of_rank: Optional[Sequence[int]] = None, nodes: int = 1
    ) -> int:
        """Names a set of layers: `slots` per layer over all ranks, or `slots_of_rank` of each. Returns its number."""
        number = c_uint32()
        of_rank = None if slots_of_rank is None else (c_uint32 * self.world_size)(*slots_of_rank)
        call(
            "eplb_builder_layer_set",
            self._building(),
            name.encode(),
            layers,
            experts,
            slots,
            of_rank,
            nodes,
            byref(number),
        )
        # Where they do not divide, the first ranks have one more.
        even = slots // self.world_size + int(self.rank < slots % self.world_size)
        self._slots.append(even if slots_of_rank is None else int(slots_of_rank[self.rank]))
        self._kinds.append({})
        return number.value

    def lend(self, layer_set: int, layer: int, tensors: Dict[str, Tuple[Sequence[int], str]]) -> None:
        """Has the engine allocate the tensors of a layer, zeroed: for each the shape of one slot and the name of a dtype, such as `((4096, 7168), "bfloat16")`.
        On the device that `device=` of the engine names, else in host memory. `lent` gives them after the start.

        Raises `ValueError` for a dtype that is not known.
        """
        kinds = {name: Kind(tuple(int(n) for n in shape), dtype) for name, (shape, dtype) in tensors.items()}
        described = [Tensor(name.encode(), None, 1, kind.bytes, 0, 0) for name, kind in kinds.items()]
        block = (Tensor * max(len(described), 1))(*described)
        call("eplb_builder_lend_layer", self._building(), layer_set, layer, block, len(described))
        self._kinds[layer_set][layer] = kinds
        self._placed = True

    def lent(self, layer_set: int, layer: int) -> Dict[str, Lent]:
        """The tensors of a layer that the engine lends, `[local slots, ..]` each; after the start.

        Raises `KeyError` for a layer that is not lent.
        """
        made = {}
        for at, (name, kind) in enumerate(self._kinds[layer_set][layer].items()):
            data = c_void_p()
            call("eplb_engine_lent", self._running(), layer_set, layer, at, byref(data))
            made[name] = Lent(self._engine, data.value or 0, self._slots[layer_set], kind, self.device)
        return made

    def layer(self, layer_set: int, layer: int, tensors: Dict[str, Weights]) -> None:
        """Registers the tensors of a layer, each `[local slots, ..]` in the server's memory, whose slots the engine will write.

        Slots may be apart, and rows of a slot too (a tensor that is a part of a larger one); within a row the elements must be
        next to each other.

        All lie in host memory, or all on one CUDA device, which the first tensor tells.

        Raises `ValueError` for tensors that lie apart, and for those that are laid out otherwise.
        """
        described = []
        for name, given in tensors.items():
            tensor, device = describe(name, given)
            described.append(tensor)
            self._lies_on(name, device)
        self._keep += tensors.values()
        block = (Tensor * max(len(described), 1))(*described)
        call("eplb_builder_register_layer", self._building(), layer_set, layer, block, len(described))

    def _lies_on(self, name: str, device: Optional[int]) -> None:
        """All tensors lie on one device, or all on none."""
        if device == -1:
            if self.device is None:
                raise ValueError(f"{name} does not tell its device; give device= to the engine")
            device = self.device
        if not self._placed and device is not None and self.device is None:
            call("eplb_builder_device", self._building(), device)
            self.device = device
        self._placed = True
        if device != self.device:
            there = lambda number: "in host memory" if number is None else f"on CUDA device {number}"
            raise ValueError(f"{name} lies {there(device)}, the engine's slots lie {there(self.device)}: one engine, one device")

    def placement(self, layer_set: int, phy2log: Any) -> None:
        """What the slots hold at the start, `[layers, slots]`; default: slot `p` holds expert `p % experts`."""
        values = arrays.take(getattr(phy2log, "phy2log", phy2log), c_int32, "phy2log", (2,))
        call("eplb_builder_placement", self._building(), layer_set, values.pointer, len(values))

    def after_commit(self, hook: Callable[[int, int, List[int]], None]) -> None:
        """Has `hook(layer_set, layer, slots)` called inside `step` and `tick` after commits. It must not call the engine.

        What it raises cannot reach the caller of `step`: it is printed, and the engine goes on.
        """

        def called(_state: Any, layer_set: int, layer: int, slots: Any, count: int) -> None:
            hook(layer_set, layer, slots[:count])

        kept = AFTER_COMMIT(called)
        self._keep.append(kept)
        call("eplb_builder_after_commit", self._building(), kept, None)

    def source(self, fill: Callable[[int, int, int, int, memoryview], None]) -> None:
        """Where experts come from that no rank holds any more, as after a rank died: `fill(layer, expert, tensor, row, place)` writes the bytes of one row
        of one tensor into `place`, host memory of as many bytes (on a device they are copied from there). It may be called by other threads.

        What it raises is printed, and the epoch is not formed.
        """

        def called(_state: Any, layer: int, expert: int, tensor: int, row: int, address: int, size: int) -> int:
            place = memoryview((ctypes.c_uint8 * size).from_address(address)).cast("B")
            try:
                fill(layer, expert, tensor, row, place)
            except BaseException:  # noqa: BLE001  it cannot cross the library
                traceback.print_exc()
                return 1
            return 0

        kept = SOURCE(called)
        self._keep.append(kept)
        call("eplb_builder_source", self._building(), kept, None)

    def start(self) -> "Engine":
        """Starts it; in a group, when all ranks have come and fit together. Returns itself."""
        builder = self._building()
        self._engine = Handle("eplb_engine_free", "eplb_builder_start", builder)
        self._builder = None
        return self

    def _building(self) -> c_void_p:
        if self._builder is None:
            raise RuntimeError("the engine is started, or closed; layers are added before that")
        return self._builder.pointer

    def _running(self) -> c_void_p:
        if self._engine is None:
            raise RuntimeError("the engine is not started, or closed")
        return self._engine.pointer

    # The forward path.

    def step(self, number: int, streams: Optional[Sequence[Any]] = None) -> None:
        """Before each forward pass, with numbers that rise and are the same on all ranks. If it raises, the pass must not run.

        streams: on a device, all streams on which this pass reads slots or maps, at most 16: torch streams, or numbers of `CUstream`. Commits run
        on the first, behind what was enqueued on any of them before, and ahead of what will be. Left out: those given last.
        """
        if streams is None:
            call("eplb_engine_step", self._running(), number)
            return
        handles = [number_of(stream) for stream in streams]
        call("eplb_engine_step_on", self._running(), number, (c_uint64 * max(len(handles), 1))(*handles), len(handles))
        # They live until others have taken their place.
        self._streams = list(streams)

    def tick(self) -> None:
        """Now and then while no pass is under way and none is due."""
        call("eplb_engine_tick", self._running())

    def maps(self, layer_set: int = 0) -> Maps:
        """The maps by which the pass of the last `step` routes its tokens."""
        return Maps(Handle("eplb_maps_free", "eplb_engine_maps", self._running(), c_uint32(layer_set)))

    def device_maps(self, layer_set: int = 0) -> DeviceMaps:
        """The maps on the engine's device, where they lie as long as it lives; one call is enough for all steps."""
        if layer_set not in self._device_maps:
            self._running()
            self._device_maps[layer_set] = DeviceMaps(self._engine, layer_set, self.device or 0)
        return self._device_maps[layer_set]

    def maps_version(self, layer_set: int = 0) -> int:
        """The number of the maps in force: whether they changed."""
        version = c_uint64()
        call("eplb_engine_maps_version", self._running(), layer_set, byref(version))
        return version.value

    # Control.

    def rebalance_now(self) -> int:
        """Asks for a round whatever the triggers say. Returns how many have ended so far, for `wait_round`."""
        rounds = c_uint64()
        call("eplb_engine_rebalance_now", self._running(), byref(rounds))
        return rounds.value

    def wait_round(self, after: int, timeout: float = 60.0) -> None:
        """Waits until more than `after` rounds have ended on this rank. Steps go on in another thread meanwhile. This counts from the start of the engine; the numbers of rounds in reports do not."""
        call("eplb_engine_wait_round", self._running(), after, milliseconds(timeout))

    def pause(self) -> None:
        """No new round begins until `resume`; one that is under way goes on."""
        call("eplb_engine_pause", self._running())

    def resume(self) -> None:
        """Rounds may begin again."""
        call("eplb_engine_resume", self._running())

    def quiesce(self, timeout: float = 60.0) -> None:
        """Finishes or cancels what is under way and closes all handles on other ranks. All ranks call it."""
        call("eplb_engine_quiesce", self._running(), milliseconds(timeout))

    def reopen(self, timeout: float = 60.0) -> None:
        """Goes on after `quiesce`."""
        call("eplb_engine_reopen", self._running(), milliseconds(timeout))

    def reform(self, timeout: float = 60.0) -> None:
        """Forms the next epoch with the same ranks, after a failure. All ranks call it."""
        call("eplb_engine_reform", self._running(), milliseconds(timeout))

    def close(self, timeout: float = 10.0) -> None:
        """Ends the engine from any state; tensors are let go of. Nothing happens the second time."""
        self._builder = None
        if self._engine is None:
            return
        call("eplb_engine_shutdown", self._engine.pointer, milliseconds(timeout))
        self._engine = None
        self._device_maps.clear()
        self._keep.clear()
        self._streams.clear()

    def __del__(self) -> None:
        if getattr(self, "_engine", None) is None:
            return
        try:
            self.close()
        except EplbError:
            # Its thread may still write slots: neither it nor the tensors are let go of.
            _unfinished.append((self._engine, self._keep))

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # Looking at it.

    @property
    def state(self) -> str:
        """Where it is, in words: "idle", "collecting", "moving wave 3", "failed: .."."""
        return self._text("eplb_engine_state")

    def metrics(self, per_layer: bool = False) -> str:
        """Metrics in Prometheus' text format."""
        return self._text("eplb_engine_metrics", int(per_layer))

    def last_report(self, layer_set: int = 0) -> Optional[Report]:
        """What the last round of a layer set did; `None` if there was none."""
        found = RoundReport()
        call("eplb_engine_last_report", self._running(), layer_set, byref(found))
        if found.round == 0:
            return None
        values = {name: getattr(found, name) for name, _ in RoundReport._fields_ if name != "struct_size"}
        return Report(outcome=self._text("eplb_engine_round_outcome", layer_set), **values)

    def save(self, path: Union[str, "os.PathLike[str]"], layer_set: int = 0) -> None:
        """Writes plan and window as an `.npz` file, which the keys `start_plan` and `load_window` of a configuration name."""
        call("eplb_engine_save", self._running(), layer_set, os.fsencode(path))

    def _text(self, name: str, *arguments: Any) -> str:
        return text_of(name, self._running(), *arguments)
