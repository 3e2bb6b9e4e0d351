"""The number of CPU threads that XLA computes with."""

import os

import jax


def limit_threads(threads: int) -> None:
    """Keep XLA to `threads` CPU threads, unless `XLA_FLAGS` or `NPROC` says otherwise already; 0 sets no limit.

    XLA reads both when it computes for the first time in a process: later calls change nothing.
    """
    if threads > 0:
        os.environ.setdefault("NPROC", str(threads))
    if threads == 1:
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
        # To hand a small policy to another thread and back takes longer than to compute it.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
