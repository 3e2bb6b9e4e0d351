"""Audits: the realised entropy of a model over states, images or responses, against a floor.

    samples = policies.policy(Path("model.zip"), observations=Path("observations.npy"))
    audit = summarise(samples, floor=-3.0)

One module for each kind of model yields `Samples`: `control` (runs), `policies` (files, which `stable_baselines`
and `exported` read), `vision` (classifiers), `language`. What follows is the same for all: `summarise`,
`write_page`. Reading a model executes nothing that its file holds, except a TorchScript program, which has to be
trusted.
"""

from entropyfloor.extras import BrokenFloorError, require

require("report", "matplotlib", "jinja2")

from entropyfloor.audit.page import table, write_page  # noqa: E402
from entropyfloor.audit.samples import Samples  # noqa: E402
from entropyfloor.audit.summary import Audit, summarise  # noqa: E402

__all__ = ["Audit", "BrokenFloorError", "Samples", "summarise", "table", "write_page"]
