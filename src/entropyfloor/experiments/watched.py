"""`python -m entropyfloor.experiments.watched MODULE ARGS`: a module that stops with the process that started it.

Its standard input is a pipe whose other end that process holds, and which is closed when the process ends, even by
a kill.
"""

import os
import runpy
import signal
import sys
import threading


def _stop_with_starter() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm warns all processes of a job; its starter acts on it
    threading.Thread(target=_stop_with_starter, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
