"""Responses of a language model: decoding, rollouts, and the engines that benchmarks are answered with."""
