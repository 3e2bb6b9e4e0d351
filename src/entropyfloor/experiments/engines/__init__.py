"""Engines: where the runs of a plan are executed.

`local` starts them on this machine, `ray` as tasks on a Ray cluster, `slurm` as a job array. An engine is a module
with one function, `run(plan, directory, workers, ended)`. Each executes a run by the same command, so that a plan
has the same results everywhere. Nodes share a file system: runs are written there, and continue from there.
"""
