"""What vLLM's exchange files import of the rest of vLLM, as far as an exchange uses it.

`install(folder)` makes `import vllm.distributed.eplb...` find the files of `vllm_files.py` and, for everything else, the few names below.
"""

import contextlib
import logging
import os
import sys
import types

import torch


class Logger(logging.Logger):
    """vLLM's loggers can also say a thing only once."""

    def info_once(self, message, *args, **_):
        self.info(message, *args)

    def warning_once(self, message, *args, **_):
        self.warning(message, *args)


class Platform:
    """The platform that pynccl asks about."""

    def is_cuda(self):
        return True

    def is_cuda_alike(self):
        return True

    def is_rocm(self):
        # Asked only where a library lacks functions that an exchange does not call (suspend and resume of NCCL 2.29): with "no",
        # pynccl would refuse the 2.28 that PyTorch carries.
        return True

    def fp8_dtype(self):
        return torch.float8_e4m3fn


class Envs(types.ModuleType):
    """Every variable of vLLM's is unset."""

    def __getattr__(self, name):
        if name.startswith("VLLM_"):
            return None
        raise AttributeError(name)


def module(name, **names):
    made = Envs(name) if name == "vllm.envs" else types.ModuleType(name)
    made.__dict__.update(names)
    sys.modules[name] = made
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, made)
    return made


def named(name):
    """A class that is only named in annotations and `isinstance`."""
    return type(name, (), {})


def install(folder):
    """Makes the packages, whose files lie in `folder`, and the modules that stand in for others."""
    for package in ("vllm", "vllm.distributed", "vllm.distributed.device_communicators", "vllm.utils"):
        module(package, __path__=[os.path.join(folder, *package.split("."))])
    module("vllm.envs")
    module("vllm.logger", init_logger=Logger)
    module("vllm.platforms", current_platform=Platform())
    module("vllm.config", ParallelConfig=named("ParallelConfig"), ModelConfig=named("ModelConfig"))
    module("vllm.utils.gpu_sync_debug", gpu_sync_allowed=contextlib.nullcontext)
    module("vllm.utils.torch_utils", PIN_MEMORY=torch.cuda.is_available(), current_stream=lambda: torch.cuda.current_stream())
    module("vllm.utils.nccl", find_nccl_library=lambda: os.environ.get("VLLM_NCCL_SO_PATH") or "libnccl.so.2")
    module("vllm.distributed.utils", StatelessProcessGroup=named("StatelessProcessGroup"), is_weak_contiguous=bool)
    module("vllm.distributed.nixl_utils", NixlWrapper=None, nixl_agent_config=None)
    module("vllm.distributed.stateless_coordinator", StatelessGroupCoordinator=named("StatelessGroupCoordinator"))
    module(
        "vllm.distributed.parallel_state",
        GroupCoordinator=named("GroupCoordinator"),
        get_pp_group=lambda: None,
        is_local_first_rank=lambda: False,
    )
