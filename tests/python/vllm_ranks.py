"""One rank under vLLM's own exchange: weights that are computed from who an expert is, placements that all ranks draw alike, and a look at
every byte after each call. For `test_vllm_exchange.py` on the CPU and `tests/gpu/beside_torch.py` on GPUs."""

import threading

import torch

import vllm_stand_ins

SLOTS, LAYERS, EXPERTS = 5, 3, 14


def weights_of(layer, expert, tensor):
    """What a tensor of an expert must hold."""
    rows, columns, dtype = [(8, 96, torch.bfloat16), (5, 7, torch.float32), (1, 3, torch.uint8)][tensor]
    start = (layer * 1009 + expert * 131 + tensor * 17) % 251
    values = (torch.arange(rows * columns) * 3 + start) % 251
    return values.reshape(rows, columns).to(dtype)


class Rank:
    """Weights of a rank on a device, with a placement in force."""

    def __init__(self, rank, world, device, group, communicator):
        vllm_stand_ins.stand_in()
        from vllm.distributed.eplb import rebalance_execute

        self.vllm = rebalance_execute
        self.rank, self.world, self.device, self.group = rank, world, device, group
        self.communicator = communicator
        # Fewer experts where there are fewer slots: all must have one.
        self.experts = min(EXPERTS, world * SLOTS - 1)
        self.generator = torch.Generator().manual_seed(7)
        self.old = self.placement()
        held = lambda layer, slot: max(int(self.old[layer, rank * SLOTS + slot]), 0)
        self.weights = [
            [
                torch.stack([weights_of(layer, held(layer, slot), tensor) for slot in range(SLOTS)]).to(device)
                for tensor in range(3)
            ]
            for layer in range(LAYERS)
        ]
        self.buffers = [torch.empty_like(weight) for weight in self.weights[0]]

    def placement(self):
        """Every expert somewhere; what is left is drawn, -1 (empty) among it."""
        rows = []
        for _ in range(LAYERS):
            extra = torch.randint(-1, self.experts, (self.world * SLOTS - self.experts,), generator=self.generator)
            row = torch.cat([torch.arange(self.experts), extra])
            rows.append(row[torch.randperm(len(row), generator=self.generator)])
        return torch.stack(rows)

    def rearrange(self):
        """The synchronous way: all layers in one call."""
        new = self.placement()
        self.vllm.rearrange_expert_weights_inplace(
            self.old, new, self.weights, self.buffers, self.group, self.communicator
        )
        self.old = new

    def transfer_layers(self, batching):
        """The asynchronous way, as vLLM's worker does it: each layer's experts come into buffers on a thread and a stream of its own while
        this thread computes; then this thread moves them in."""
        new = self.placement()
        for layer in range(LAYERS):
            stream = torch.cuda.Stream(self.device) if self.on_gpu else None
            result = []

            def worker():
                if self.on_gpu:
                    torch.cuda.set_device(self.device)
                    # What the main thread did with the buffers comes before.
                    stream.wait_stream(torch.cuda.default_stream(self.device))
                self.communicator.set_stream(stream)
                arguments = (self.old[layer], new[layer], self.weights[layer], self.buffers, self.group, self.communicator)
                result.append(
                    self.vllm.transfer_layer(
                        *arguments, stream=stream, layer_idx=layer, enable_migration_batching=batching
                    )
                )

            thread = threading.Thread(target=worker)
            thread.start()
            self.compute()
            thread.join()
            if not result:
                raise RuntimeError("the worker thread failed; its traceback is above")
            if self.on_gpu:
                torch.cuda.current_stream().wait_stream(stream)
            self.vllm.move_from_buffer(self.weights[layer], self.buffers, result[0], new[layer].numpy(), self.rank)
        self.communicator.set_stream(None)
        self.old = new

    @property
    def on_gpu(self):
        return torch.device(self.device).type == "cuda"

    def compute(self):
        """Work of the main thread meanwhile, on memory of the caching allocator."""
        product = torch.ones(64, 64, device=self.device)
        for _ in range(3):
            product = (product @ product).clamp(max=1)
        if float(product.sum()) != 64 * 64:
            raise RuntimeError("a product beside the exchange is wrong")

    def look(self):
        """(tensors looked at, tensors that are not those of the expert that the placement names)."""
        checked = wrong = 0
        for layer in range(LAYERS):
            for slot in range(SLOTS):
                expert = int(self.old[layer, self.rank * SLOTS + slot])
                for tensor in range(3 if expert >= 0 else 0):
                    found = self.weights[layer][tensor][slot].cpu()
                    checked += 1
                    wrong += not torch.equal(found, weights_of(layer, expert, tensor))
        return checked, wrong
