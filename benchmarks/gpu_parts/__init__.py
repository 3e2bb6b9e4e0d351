"""The parts of `benchmarks/gpu.py`. Each is a module with a function `rows(plan, …)`."""
