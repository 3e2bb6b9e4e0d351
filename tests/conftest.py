"""One interface to both backends, so that every property is tested once for both."""

import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # before the libraries look for devices: the tests are for CPUs
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest
import torch
from jax.experimental.compilation_cache import compilation_cache

import entropyfloor.jax
import entropyfloor.torch

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.load_profile("repeatable")
gc.disable()  # until the tests are collected: what the libraries are made of stays, and need not be gone through
torch.set_num_threads(1)
jax.config.update("jax_enable_x64", True)  # float32 arrays stay float32; float64 ones become possible


@dataclass(frozen=True)
class Backend:
    """The parts of a backend that tests use."""

    name: str
    functional: ModuleType
    nn: ModuleType
    array: Callable[[Any, str], Any]

    def numpy(self, x: Any) -> np.ndarray:
        """`x` as a float64 NumPy array."""
        return x.detach().double().numpy() if self.name == "torch" else np.asarray(x, np.float64)

    def value_and_grads(self, function: Callable, *arrays: Any) -> tuple[np.ndarray, list[np.ndarray]]:
        """`function(*arrays)` and the gradients of its sum weighted by a fixed cotangent."""
        if self.name == "torch":
            arrays = tuple(a.clone().requires_grad_() for a in arrays)
            out = function(*arrays)
            cotangent = torch.tensor(weights(out.shape), dtype=out.dtype)
            grads = torch.autograd.grad((out * cotangent).sum(), arrays)
        else:
            out = function(*arrays)
            grads = jax.grad(
                lambda *a: (function(*a) * weights(out.shape)).sum(), argnums=tuple(range(len(arrays)))
            )(*arrays)
        return self.numpy(out), [self.numpy(g) for g in grads]


def weights(shape: tuple[int, ...]) -> np.ndarray:
    """A cotangent without symmetries, the same for both backends and the reference."""
    return np.cos(1.7 * np.arange(np.prod(shape, dtype=int)) + 0.3).reshape(shape)


BACKENDS = {
    "torch": Backend(
        "torch",
        entropyfloor.torch.functional,
        entropyfloor.torch.nn,
        lambda x, dtype="float64": torch.tensor(np.asarray(x, np.float64)).to(getattr(torch, dtype)),
    ),
    "jax": Backend(
        "jax",
        entropyfloor.jax.functional,
        entropyfloor.jax.nn,
        lambda x, dtype="float64": jnp.asarray(np.asarray(x, np.float64)).astype(dtype),
    ),
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test that is marked `slow_but_first`, every case but the first is slow."""
    begun = set()
    for item in items:
        test = item.nodeid.partition("[")[0]
        if item.get_closest_marker("slow_but_first") and test in begun:
            item.add_marker("slow")
        begun.add(test)


def pytest_collection_finish() -> None:
    """Collect garbage again, but only what the tests make."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """PyTorch, then JAX."""
    return BACKENDS[request.param]


@pytest.fixture(scope="module", autouse=True)
def forget() -> Iterator[None]:
    """Free the compiled programs at the end of a module once they are many: modules share the common ones."""
    yield
    if psutil.Process().memory_info().rss > 3 * 2**30:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the compiled programs of all modules, one for each worker: none waits for another."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def cache(programs: Path) -> Any:
    """Directory of compiled programs: each is compiled quickly, and once, also where a run is resumed."""
    options = {
        "jax_compilation_cache_dir": str(programs),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_disable_most_optimizations": True,
    }
    before = {name: jax.config.values[name] for name in options}
    for values in (options, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is options:
            yield programs
