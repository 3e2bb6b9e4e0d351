"""The experiments of the paper, one file each: `entropyfloor.experiments.recipe` reads them."""
