"""Benchmarks of mathematics and knowledge: their problems, the judge of answers, scores and results."""
