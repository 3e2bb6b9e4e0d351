"""A platform of verl for tests on a CPU, and its engine; imported by verl through `VERL_USE_EXTERNAL_MODULES`."""

import contextlib
import os
import types

import torch
import torch.distributed
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry


def nothing(*args, **kwargs):
    """For what a CPU has not."""
    return 0


@PlatformRegistry.register(platform="cpu")
class CPU(PlatformBase):
    """Collectives by gloo; no memory of its own, no streams, no profiler."""

    device_name, vendor_name = "cpu", "none"
    device_module = types.SimpleNamespace(
        **dict.fromkeys(
            ("max_memory_allocated", "max_memory_reserved", "memory_allocated", "memory_reserved"), nothing
        ),
        **dict.fromkeys(("empty_cache", "synchronize", "set_device", "ipc_collect", "manual_seed"), nothing),
        mem_get_info=lambda *args: (1, 1),
        get_rng_state=torch.get_rng_state,
        set_rng_state=torch.set_rng_state,
        current_device=lambda: "cpu",
        get_device_name=lambda: "CPU",
        is_available=lambda: True,
        device_count=lambda: 1,
    )
    is_available = is_platform_available = lambda self, **kwargs: True
    current_device = lambda self: "cpu"  # noqa: E731
    device_count = lambda self: 1  # noqa: E731
    visible_devices_envvar = lambda self: "CPU_VISIBLE_DEVICES"  # noqa: E731
    ray_resource_name = lambda self: "GPU"  # noqa: E731  what verl counts; Ray takes any number of them
    ray_noset_envvars = lambda self: []  # noqa: E731
    get_device_capability = lambda self, *args: (None, None)  # noqa: E731
    nvtx_range = lambda self, message: contextlib.nullcontext()  # noqa: E731
    is_ipc_supported = lambda self: False  # noqa: E731

    def communication_backend_name(self):
        """Join the other workers too: verl is about to, and would ask for the CPU's backend twice."""
        if not torch.distributed.is_initialized():
            rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks)
        return "gloo"

    set_device = synchronize = manual_seed = manual_seed_all = set_allocator_settings = nothing
    empty_cache = profiler_start = profiler_stop = cudart = nothing


from verl.workers.engine import EngineRegistry  # noqa: E402  asks the platform when it is imported

from entropyfloor.integrations.verl.engine import STRATEGIES, ERAEngine  # noqa: E402

EngineRegistry.register("language_model", backend=STRATEGIES, device="cpu")(ERAEngine)
