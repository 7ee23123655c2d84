"""What vLLM's exchange imports of the rest of vLLM, stood in for, so that its own files run without a server.

Only what is imported by name: a logger that drops everything, classes that are only named in annotations, and switches that say no.
None of them takes part in moving weights.
"""

import contextlib
import logging
import sys
import types


def _module(name, **contents):
    module = types.ModuleType(name)
    module.__dict__.update(contents)
    sys.modules[name] = module


class _Named:
    """A class that is only named."""


def stand_in():
    """Puts the stand-ins in place."""
    import torch

    logger = logging.getLogger("vllm-stand-in")
    _module("vllm.logger", init_logger=lambda name: logger)
    _module("vllm.config", ParallelConfig=_Named)
    _module("vllm.distributed.nixl_utils", NixlWrapper=None)
    _module("vllm.distributed.device_communicators.pynccl", PyNcclCommunicator=_Named)
    _module("vllm.distributed.device_communicators.pynccl_wrapper", ncclDataTypeEnum=_Named)
    _module(
        "vllm.distributed.parallel_state",
        GroupCoordinator=_Named,
        get_pp_group=lambda: None,
        is_local_first_rank=lambda: False,
    )
    _module("vllm.distributed.stateless_coordinator", StatelessGroupCoordinator=_Named)
    _module("vllm.distributed.utils", is_weak_contiguous=lambda tensor: tensor.is_contiguous())
    _module("vllm.platforms", current_platform=types.SimpleNamespace(is_rocm=lambda: False))
    _module("vllm.utils.gpu_sync_debug", gpu_sync_allowed=contextlib.nullcontext)
    _module("vllm.utils.torch_utils", PIN_MEMORY=torch.cuda.is_available())
