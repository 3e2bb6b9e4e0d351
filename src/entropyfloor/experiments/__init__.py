"""Plans of many runs: read a recipe, start its runs through the command line, look at what came of them."""
