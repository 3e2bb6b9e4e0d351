"""One algorithm, one page."""
