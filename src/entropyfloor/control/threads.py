"""Settings of XLA on a CPU: its number of threads, and memory that the process keeps."""

import ctypes
import os
import sys

import jax


def limit_threads(threads: int) -> None:
    """Keep XLA to `threads` CPU threads, unless `XLA_FLAGS` or `NPROC` says otherwise already; 0 sets no limit.

    XLA reads both when it computes for the first time in a process: later calls change nothing.
    """
    if threads > 0:
        os.environ.setdefault("NPROC", str(threads))
    if threads == 1:
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
        # A small policy is computed faster than it is handed to another thread and back.
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def keep_memory() -> None:
    """Let this process keep the memory that it frees, where its C library is GNU's.

    Each call of a compiled function allocates its temporary arrays in one piece. GNU's library asks the system for
    more than 32 MB each time, which must then clear every page: a fifth of the time of an update of TD-MPC2.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(parameter, value)


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
