"""Experiments of many runs: reads a recipe, and starts its runs through the command line."""
