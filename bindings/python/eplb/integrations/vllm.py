"""vLLM's expert load balancer with eplb's plans, and its exchange over eplb's transports.

    from eplb.integrations import vllm
    vllm.install(target=0.95)          # before the engine starts, in every worker

and `--enable-eplb` as ever: vLLM then plans with the class that `policy` makes instead of its default one.

Written for the interface of `vllm.distributed.eplb.policy.abstract.AbstractEplbPolicy` in vLLM 0.16 to 0.33:
`rebalance_experts(weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices=None) -> phy2log`. Every worker
plans by itself and all must come to the same map: a plan depends on nothing but the arguments.

`EplbCommunicator` is what vLLM's `rearrange_expert_weights_inplace` and `transfer_layer` take as `communicator`. It answers both forms
of the interface: `add_send(tensor, dst_rank)` of 0.20, and `add_send(tensors, dst_rank, expert_id)` of later versions up to 0.33. With 0.33.0
both functions are run, the second also on a thread and a stream of its own and in vLLM's batches of pairs, on host memory by `make
test-integrations` and on GPUs by `tests/gpu/beside_torch.py`; every byte is looked at.
"""

from typing import Any, List, Optional, Tuple, Type

from eplb.pairs import Message, Pairs
from eplb.planning import plan


def policy(name: Optional[str] = None, base: Type[Any] = object, **options: Any) -> Type[Any]:
    """A policy class with vLLM's interface.

    name: policy of `eplb.plan`; default: "incremental" where vLLM hands over the map in force, else "balanced".
    base: the class to derive from, vLLM's `AbstractEplbPolicy`. options: further ones of `eplb.plan`, such as `target` and
    `max_moves`; a limit on moves holds for each rebalance.
    """

    class EplbPolicy(base):  # type: ignore[misc]
        """Plans of eplb behind vLLM's interface."""

        @classmethod
        def rebalance_experts(
            cls,
            weight: Any,
            num_replicas: int,
            num_groups: int,
            num_nodes: int,
            num_ranks: int,
            old_global_expert_indices: Optional[Any] = None,
        ) -> Any:
            """Places experts; `weight` is `[layers, experts]`, the result `phy2log [layers, num_replicas]` (int64, CPU).

            `old_global_expert_indices [layers, slots]` is what is in force, -1 for empty slots. It is started from if it has
            `num_replicas` slots; when the number of ranks changes it has more or fewer, and the plan is fresh.

            Raises `EplbError` for loads that are not numbers.
            """
            old = old_global_expert_indices
            if old is not None and tuple(old.shape) != (weight.shape[0], num_replicas):
                old = None
            nodes = num_nodes if num_ranks % num_nodes == 0 else 1
            wanted = name
            if old is None and wanted in ("incremental", "split"):
                wanted = "balanced"
            made = plan(
                weight.double(),
                ranks=num_ranks,
                slots=num_replicas,
                nodes=nodes,
                groups=num_groups if weight.shape[1] % max(num_groups, 1) == 0 else 1,
                current=old,
                policy=wanted,
                **options,
            )
            return made.placement.phy2log

    return EplbPolicy


def install(name: Optional[str] = None, **options: Any) -> Type[Any]:
    """Makes vLLM plan with eplb in this process: what its setting "default" chooses is replaced. Returns the class.

    Arguments as of `policy`. Raises `ImportError` without vLLM, and `RuntimeError` if this vLLM keeps its policies elsewhere.
    """
    from vllm.distributed.eplb import policy as policies

    known = getattr(policies, "EPLB_POLICIES", None)
    if not isinstance(known, dict) or "default" not in known:
        raise RuntimeError("this vLLM has no EPLB_POLICIES['default'] to replace; pass the class of `policy` to it yourself")
    made = policy(name, policies.AbstractEplbPolicy, **options)
    known["default"] = made
    return made


class EplbCommunicator:
    """vLLM's communicator interface on `eplb.Pairs`.

    Tensors travel from where they are to where they go, without a copy if they are contiguous: those in host memory over pairs of
    "gloo", those on a device over pairs of "nccl" or "pynccl" of that device. Over "gloo", those on a device are staged through
    host memory. Either way the calling thread waits for the stream given with `set_stream` (else the current one) alone: for
    what was to be done with the tensors before, and, when `execute` returns, what was received is there for all streams that
    are ordered behind this one.

    timeout: seconds that one `execute` may take; after it, or when a rank dies, `execute` raises `EplbError` with the rank and the cause,
    instead of waiting for ever, and so does every later one.
    """

    #: No buffers are made behind vLLM's back while it measures memory.
    needs_profile_buffer_reservation = False

    def __init__(self, pairs: Pairs, timeout: float = 60.0) -> None:
        self._pairs, self._timeout = pairs, timeout
        self._stream: Optional[Any] = None
        self._sends: List[Tuple[Any, int]] = []
        self._receives: List[Tuple[Any, int]] = []

    def set_stream(self, stream: Optional[Any]) -> None:
        """The stream on which tensors of a device are written and read."""
        self._stream = stream

    def set_transfer_context(self, old_indices: Any, layer_idx: int) -> None:
        """Nothing is needed of it."""

    def add_send(self, tensors: Any, dst_rank: int, expert_id: Optional[int] = None) -> None:
        """Adds a tensor, or several, to what the next `execute` sends to a rank."""
        self._sends += [(tensor, dst_rank) for tensor in _listed(tensors)]

    def add_recv(self, tensors: Any, src_rank: int, expert_id: Optional[int] = None) -> None:
        """Adds a tensor, or several, to what the next `execute` receives from a rank."""
        self._receives += [(tensor, src_rank) for tensor in _listed(tensors)]

    def execute(self) -> None:
        """Sends and receives all that was added; the tensors are complete when it returns, on a device in stream order."""
        sends, receives = self._sends, self._receives
        self._sends, self._receives = [], []
        if not sends and not receives:
            return
        out = [self._readable(tensor) for tensor, _ in sends]
        into = [self._writable(tensor) for tensor, _ in receives]
        self._settle([tensor for tensor, _ in sends + receives])
        self._pairs.exchange(
            [_message(tensor, peer) for tensor, (_, peer) in zip(out, sends)],
            [_message(tensor, peer) for tensor, (_, peer) in zip(into, receives)],
            self._timeout,
        )
        for landed, (tensor, _) in zip(into, receives):
            if landed is not tensor:
                with _on(self._stream, tensor):
                    tensor.copy_(landed, non_blocking=landed.device == tensor.device or landed.is_pinned())
        # Pinned memory must outlive the copies; torch's allocator sees to that for copies on streams it knows.

    def _travels(self, tensor: Any) -> bool:
        """Whether the pairs move memory of the tensor's device."""
        device = self._pairs.device
        if tensor.device.type == "cpu":
            if device is not None:
                raise ValueError(f"a tensor in host memory over pairs of device {device}: make them with backend='gloo'")
            return True
        if device is not None and tensor.device.index != device:
            raise ValueError(f"a tensor on {tensor.device} over pairs of device {device}")
        return device is not None

    def _readable(self, tensor: Any) -> Any:
        """The tensor itself, or a contiguous copy that the pairs move, perhaps still under way on the stream."""
        if self._travels(tensor):
            if tensor.is_contiguous():
                return tensor
            with _on(self._stream, tensor):
                return tensor.contiguous()
        with _on(self._stream, tensor):
            return _host_like(tensor).copy_(tensor, non_blocking=True)

    def _writable(self, tensor: Any) -> Any:
        """The tensor itself where bytes can land in it, else memory of its shape that the pairs move."""
        if not self._travels(tensor):
            return _host_like(tensor)
        if tensor.is_contiguous():
            return tensor
        import torch

        with _on(self._stream, tensor):
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)

    def _settle(self, tensors: List[Any]) -> None:
        """Waits for what the stream does with tensors of a device."""
        device = next((tensor for tensor in tensors if tensor.device.type != "cpu"), None)
        if device is None:
            return
        if self._stream is not None:
            self._stream.synchronize()
        else:
            import torch

            torch.cuda.current_stream(device.device).synchronize()


def _listed(tensors: Any) -> List[Any]:
    return list(tensors) if isinstance(tensors, (list, tuple)) else [tensors]


def _host_like(tensor: Any) -> Any:
    """Contiguous host memory of a tensor's shape; pinned where it stands in for memory of a device."""
    import torch

    pinned = tensor.device.type == "cuda"
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pinned)


def _on(stream: Optional[Any], tensor: Any) -> Any:
    """Makes a stream the current one for a tensor of a device."""
    import contextlib

    if stream is None or tensor.device.type == "cpu":
        return contextlib.nullcontext()
    import torch

    return torch.cuda.stream(stream)


def _message(tensor: Any, peer: int) -> Message:
    return peer, tensor.data_ptr(), tensor.numel() * tensor.element_size()
