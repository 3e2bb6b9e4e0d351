"""Reports from run directories: one page with learning curves, and the realised entropy beside its floor.

Reads files only, never a trainer. Needs the `report` extra.
"""

from entropyfloor.extras import require

require("report", "jinja2", "matplotlib", "scipy")

from entropyfloor.report.benchmarks import draw_benchmarks  # noqa: E402
from entropyfloor.report.page import write_report  # noqa: E402
from entropyfloor.report.tables import Published  # noqa: E402

__all__ = ["Published", "draw_benchmarks", "write_report"]
