"""Temperature scaling of trained classifiers (Guo et al. 2017), to be compared with a floor.

    python examples/temperature_scaling.py runs/vision/overfit/cpu

One temperature for all logits is fitted to the labels of every second test image, by NLL. NLL and calibration
error are those of the other images, before and after. The runs need their checkpoints and their images.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Column, Table
from scipy.optimize import minimize_scalar

from entropyfloor.runs import find_runs, read_run
from entropyfloor.vision import metrics
from entropyfloor.vision.load import read_trained
from entropyfloor.vision.predict import accelerator_of, evaluation_loaders, logits_of
from entropyfloor.vision.sources import load


@dataclass
class TemperatureScaling:
    """Fit a temperature to each finished run."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs/vision"),)
    """Directories of the runs."""

    def table(self) -> Table:
        """A row for each run: its temperature, NLL and calibration error without and with it."""
        agent = Column("agent", overflow="fold")
        table = Table(agent, "seed", "T", "NLL", "with T", "calibration error (%)", "with T")
        for path in find_runs(*self.runs):
            record = read_run(path)
            if record.status["state"] == "finished":
                temperature, plain, scaled = measured(path)
                numbers = f"{temperature:.3f}", f"{plain['nll']:.3f}", f"{scaled['nll']:.3f}"
                errors = (f"{100 * values['ece']:.1f}" for values in (plain, scaled))
                table.add_row(str(record.config["agent"]), str(record.config["seed"]), *numbers, *errors)
        return table


def measured(run: Path) -> tuple[float, dict[str, float], dict[str, float]]:
    """The fitted temperature, and the metrics of the images that it was not fitted to, without and with it."""
    trained = read_trained(run)
    config = trained.config
    test = load(config.dataset, Path(config.data_dir), "test")
    test = test.numbered_as(trained.label_names or test.classes)
    accelerator = accelerator_of(config, training=False)
    loader, _ = evaluation_loaders(test, None, config, accelerator)
    batches = [
        (logits.double(), target)
        for logits, _, target in logits_of(trained.build().to(accelerator.device), accelerator, loader)
    ]
    logits, target = map(torch.cat, zip(*batches, strict=True))

    def nll(log_temperature: float) -> float:
        scaled = logits[::2] / torch.tensor(log_temperature).exp()
        return float(torch.nn.functional.cross_entropy(scaled, target[::2]))

    fitted = minimize_scalar(nll, bounds=(-3, 3), method="bounded").x
    temperature = float(torch.tensor(fitted).exp())
    plain, scaled = (
        metrics.summarise(metrics.predict(each, each, target[1::2]))
        for each in (logits[1::2], logits[1::2] / temperature)
    )
    return temperature, plain, scaled


if __name__ == "__main__":
    Console().print(tyro.cli(TemperatureScaling).table())
