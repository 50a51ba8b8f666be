"""Good arguments for every public function: the table of ``tests/arguments.py``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from regimes import control, measure, models
from regimes.core import loss
from regimes.core.state import State
from regimes.papers.feature_lazy.runs import FlowRun
from regimes.study import Store, grid
from tests.arguments_made import (
    Arguments,
    costs,
    draw,
    folder,
    inputs,
    kernel,
    lazy_rows,
    network,
    on_top,
    one,
    parameters,
    renewed,
    rows,
    signs,
    sparse,
    spectrum,
    statement,
    study,
)
from tests.study.toy import Toy

__all__ = ["ABSTRACT", "BASES", "ENDLESS", "FILES", "FOLDERS", "LEFT_OUT", "RECORDS", "network"]

FOLDERS = ("control", "models", "data", "train", "measure", "compare", "study", "report")
FILES = (
    "papers.feature_lazy.figures",
    "papers.feature_lazy.tables.frozen",
    "papers.feature_lazy.tables.plane",
    "papers.lazy_training.figures",
)
LEFT_OUT = {
    "kernel": "`measure` offers all of it",
    "core": "the ground of the other folders, which hand it what they checked; what is `checked` there is tried",
    "papers": "studies for the command line (tests/bad_commands.py), but for the `FILES`; runs check their own fields",
}

# Values that the library hands out; nobody makes one.
RECORDS = {
    *("control.Block", "control.HeldBatch", "control.LayerPlan", "control.StableRate"),
    *("train.BlockDescent", "train.Descent", "train.Flow", "train.GaussNewtonStep"),
    *("train.KernelPath", "train.KernelState", "train.RungeKutta"),
    *(
        "measure.Averaging",
        "measure.Eigenpairs",
        "measure.Fluctuation",
        "measure.KernelForecast",
        "measure.LayerForecast",
    ),
    *("measure.LayerCosts", "measure.Prediction"),
    *("measure.Row", "measure.StochasticEstimate", "measure.TangentOperator"),
    *("measure.ActiveSet", "measure.Changes", "measure.LayerChange", "measure.Reset", "measure.Unmoved"),
    *(
        "compare.Comparison",
        "compare.FeatureUpdates",
        "compare.LayerChoice",
        "compare.Payoff",
        "study.Failure",
        "study.Forecast",
        "study.Interrupted",
        "study.Result",
    ),
    *("report.claim.Estimate", "report.fit.PowerLaw", "report.page.Shown"),
    *("data.Teacher", "data.Dataset", "data.Split"),
}
# Interfaces; a run checks its fields by itself (tests/study/test_run.py).
ABSTRACT = {"control.Moves", "measure.Probe", "measure.Snapshot", "study.Run", "report.page.Described"}


NET: Mapping[str, Callable[[], Any]] = {"module": network, "x": inputs}
SIZES: Mapping[str, Any] = {"seed": 0, "dtype": torch.float64, "symmetric": False}
TRAINED: Mapping[str, Callable[[], Any]] = {"modules": network, "inputs": inputs, "targets": signs}


def of(fields: Mapping[str, Callable[[], Any]], **more: Any) -> Callable[[], Arguments]:
    """A table of factories, and values, as one factory."""
    return lambda: {name: make() for name, make in fields.items()} | more


def values(**fields: Any) -> Callable[[], Arguments]:
    return lambda: dict(fields)


FRAME = lambda: {"frame": rows()}  # noqa: E731
MEMBERS = np.array([[1.0, -1.0, 2.0], [2.0, -1.0, 1.0], [1.5, -2.0, -1.0]])
FIGURES = {
    **{
        f"papers.feature_lazy.figures.{name}": FRAME
        for name in ("crossover", "crossover_by_law", "ensemble_error", "fluctuation", "fluctuation_width")
    },
    **{
        f"papers.feature_lazy.figures.{name}": FRAME
        for name in ("kernel_change", "learning_time", "phase_diagram", "test_error", "weight_change")
    },
    **{f"papers.feature_lazy.figures.{name}": FRAME for name in ("frozen_error", "regime_error")},
    **{
        f"papers.lazy_training.figures.{name}": lambda: {"frame": lazy_rows()}
        for name in ("accuracy_stability", "lazy_rates", "neuron_paths", "student_loss", "student_width")
    },
    "papers.feature_lazy.figures.figures": FRAME,
    "papers.lazy_training.figures.figures": lambda: {"frame": lazy_rows()},
    "papers.lazy_training.figures.kernel_spectrum": lambda: {"frame": lazy_rows()},
}
BASES: dict[str, Callable[[], Arguments]] = {
    "core.activation.Softplus": values(),
    "core.estimate.array": values(values=[1.0, 2.0]),
    "core.estimate.jackknife": values(samples=[[1.0, 2.0, 3.0]], statistic=np.mean),
    "core.estimate.mean": values(values=[1.0, 2.0, 3.0]),
    "core.estimate.paired_share": values(first=3, second=1, n=9),
    "core.estimate.positive": values(values=np.array([1.0, 2.0]), name="values"),
    "core.estimate.quantile": values(freedom=3.0),
    "core.estimate.share": values(count=3, n=9),
    "core.estimate.two_way": values(values=MEMBERS),
    "core.estimate.two_way_variances": values(values=MEMBERS),
    "core.layer.Scaling": values(),
    "core.layer.ToImage": values(channels=1, height=2, width=3),
    "core.loss.SoftHinge": values(),
    "core.loss.Squared": values(),
    "core.stream.entropy": values(seed=0, names=("mlp", 32)),
    "core.stream.generator": values(seed=0, names=("mlp", 32)),
    "control.Adaptive": values(trust=0.5),
    "control.AtSteps": values(moments=[1, 4]),
    "control.CachedPrefix": lambda: {"policy": on_top(network()), "samples": 9},
    "control.Cut": values(p=0.2),
    "control.CyclicBlocks": values(),
    "control.Every": values(steps=4),
    "control.Fixed": values(top=1),
    "control.IterativeLinearisation": lambda: renewed(network()),
    "control.Law": values(name="mine", in_weights=False, output_power=0.0, fast=False, alpha_star=-0.5),
    "control.LayerwiseSparse": lambda: sparse(network()),
    "control.Linearized": of({"network": network}),
    "control.RandomLayers": values(count=1),
    "control.Scaled": of({"network": network}, alpha=2.0),
    "control.UniformCut": values(),
    "control.law": values(name="ntk"),
    "control.layer_plan": of({"module": network, "example": inputs}, moves=control.Cut(0.2)),
    "control.least_variance": values(squared_norms=[1.0, 2.0], costs=[2.0, 1.0], budget=2.0),
    "control.linearize": of({"module": network}),
    "control.rates": of({"module": network}),
    "control.scale": of({"module": network}, alpha=2.0),
    "control.stable_rate": of({"module": network, "inputs": inputs, "targets": signs}, loss=loss.squared),
    "control.table": of({"module": network}),
    "control.unscaled": of({"module": network}),
    "models.cnn": values(channels=1, width=2, **SIZES),
    "models.mlp": values(inputs=3, width=4, depth=1, **SIZES),
    "models.resnet": values(width_factor=0.01, **SIZES),
    "models.two_layer": values(inputs=3, width=4, **SIZES),
    "models.vgg": values(width_factor=0.01, size=9, **SIZES),
    "data.fetch": of({"directory": folder}, name="digits", server="http://127.0.0.1:9"),
    "data.load": of({"directory": folder}, train=20, test=10, probe=5),
    "data.teacher": values(inputs=3, train=5, test=4, probe=2),
    "train.GaussNewton": of({"module": network}, loss=loss.squared),
    "train.Tolerance": values(),
    "train.descent": of(TRAINED, lr=0.1, steps=2),
    "train.flow": of(TRAINED, max_steps=2),
    "train.runge_kutta": of(TRAINED, dt=0.1, steps=2),
    "train.blocks": of(TRAINED, lr=0.1, anchor=control.Every(2), steps=3),
    "train.damping_filter": of({"spectrum": spectrum}, damping=0.5),
    "train.descent_filter": of({"spectrum": spectrum}, steps=3, lr=0.5),
    "train.filter_gap": of({"spectrum": spectrum}, steps=3, lr=0.5),
    "train.kernel": of({"kernel": kernel, "targets": signs}, max_steps=2),
    "measure.Activity": values(),
    "measure.Error": of({"inputs": inputs, "targets": signs}),
    "measure.Gap": of({"inputs": inputs}),
    "measure.KernelDrift": of({"inputs": inputs, "targets": signs}),
    "measure.Movement": values(),
    "measure.Outputs": of({"inputs": inputs}),
    "measure.Pattern": of({"inputs": inputs}),
    "measure.Times": values(),
    "measure.activity": lambda: {"parameters": parameters(0.1), "origin": parameters()},
    "measure.alignment": of({"k": kernel, "y": signs}),
    "measure.at_end": values(),
    "measure.averaging": of({"targets": signs}, outputs=inputs().T),
    "measure.drift": of({"k": kernel, "k0": kernel}),
    "measure.error_rate": of({"targets": signs}, outputs=inputs()[:, 0]),
    "measure.fluctuation": values(outputs=inputs().T),
    "measure.gap": of(NET, origin=parameters(0.1)),
    "measure.kappa": of(NET, y=signs(), starts=2),
    "measure.kernel_distance": of({"k": kernel, "k0": kernel}),
    "measure.layer_costs": lambda: {
        "module": network(),
        "batches": [(inputs(), signs())],
        "loss": lambda outputs, targets: (outputs[:, 0] - targets).square().mean(),
        "rounds": 1,
    },
    "measure.linearized": of(NET, origin=parameters(0.1)),
    "measure.log_spaced": values(per_decade=4),
    "measure.movement": lambda: {"parameters": parameters(0.1), "origin": parameters()},
    "measure.ntk": lambda: {"module": network(), "x1": inputs(), "x2": inputs(3), "parameters": parameters()},
    "measure.ntk_forecast": lambda: {"module": network(), "x1": inputs(), "parameters": parameters()},
    "measure.ntk_operator": of(NET, parameters=parameters()),
    "measure.ntk_sketch": lambda: {"module": network(), "x1": inputs(), "probes": 2},
    "measure.observe": lambda: {"states": [State.of(network(), step=1)], "probes": [measure.Movement()]},
    "measure.pattern": of(NET, origin=parameters(0.1)),
    "measure.reset_test": of(NET, y=signs(), origin=parameters(0.1), draws=1),
    "measure.unmoved": lambda: {"module": network(), "before": parameters(0.1), "declared": ["0.weight"]},
    "study.Option": values(type=int, default=1),
    "study.Scale": values(sweep=lambda settings: grid(Toy, width=1), cost="1 s", description="one"),
    "study.Store": of({"out": folder}, classes=[Toy]),
    "study.Study": lambda: {"name": "toys", "title": "Toys", "runs": [Toy], "scales": study().scales},
    "study.bisection": values(run=Toy, axis="x", column="value", level=1.0, start=[0.1, 10.0], width=1),
    "study.combine": lambda: {"sweeps": (grid(Toy, width=1),)},
    "study.Amendment": values(date="2025-01-31", claims=["R1"], what="a", why="b", effect="none"),
    "study.forecast_study": of({"study": study, "out": folder}, scale="quick"),
    "study.grid": values(run=Toy, width=[1, 2]),
    "study.keep_memory": values(),
    "study.load_study_file": values(path=str(Path(__file__).parent / "study" / "toy.py")),
    "study.parse_settings": values(texts=["a=1"]),
    "study.read_record": lambda: {"store": Store(folder())},
    "study.run_study": of({"study": study, "out": folder}, scale="quick", quiet=True),
    "compare.how_many_feature_updates": lambda: {
        "module": models.mlp(3, 4, 1),
        "x": inputs(8),
        "y": signs(8),
        "x_test": inputs(6),
        "y_test": signs(6),
        "ladder": [1],
        "loss": loss.squared,
        "lr": 0.1,
        "batch_size": 4,
        "epochs": 2,
        "rates": [1.0],
        "seeds": 1,
    },
    "compare.which_layers": lambda: {
        "module": models.mlp(3, 4, 1),
        "x": inputs(8),
        "y": signs(8),
        "loss": loss.squared,
        "rates": [0.1],
        "epochs": 2,
        "folds": 2,
        "candidates": {"head": control.Fixed(top=1)},
        "layers": ["0"],
    },
    "compare.would_linear_do": lambda: {
        "module": models.mlp(3, 4, 1),
        "x": inputs(8),
        "y": signs(8),
        "x_test": inputs(6),
        "y_test": signs(6),
        "loss": loss.squared,
        "lr": 0.1,
        "epochs": 2,
    },
    "compare.would_sampling_pay": lambda: {
        "module": models.mlp(3, 4, 1),
        "x": inputs(8),
        "y": signs(8),
        "x_test": inputs(6),
        "y_test": signs(6),
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        "loss": loss.squared,
        "rates": [1.0],
        "policies": {"cut": control.Cut(0.5)},
        "costs": costs(),
        "epochs": 1,
        "seeds": 2,
    },
    "report.activity.layers_in_time": lambda: {"frame": layers()},
    "report.claim.Claim": lambda: {
        "id": "R1",
        "paper": "Toys",
        "claim": "One is one.",
        "reference": 1.0,
        "origin": "table 1",
        "range": (0.0, 2.0),
        "statistic": one,
    },
    "report.claim.Scope": values(least={"n": 10.0}, reason="few tell nothing"),
    "report.claim.holds": values(found=[{"verdict": "reproduced"}]),
    "report.claim.said": values(one={"verdict": "reproduced"}),
    "report.claim.dumps": values(rows=[{"id": "R1", "value": 1.0}]),
    "report.claim.judge": lambda: {"claim": statement(), "frame": rows()},
    "report.claim.verdict": lambda: {"estimate": one(rows()), "allowed": (0.0, 2.0)},
    "report.claim.verdicts": lambda: {"claims": [statement()], "frame": rows()},
    "report.ensemble.ensemble": lambda: {"frame": rows(), "by": ["width"]},
    "report.ensemble.ensemble_error": values(members=MEMBERS, targets=np.array([1.0, -1.0, 1.0])),
    "report.ensemble.outputs": lambda: {"rows": rows()[rows()["status"] == "finished"]},
    "report.ensemble.single_error": values(members=MEMBERS, targets=np.array([1.0, -1.0, 1.0])),
    "report.ensemble.variance": values(members=MEMBERS),
    "report.fit.crossing": values(x=[1.0, 2.0, 3.0], y=[0.1, 0.5, 2.0], level=1.0),
    "report.fit.local_exponents": values(x=[1.0, 2.0, 4.0], y=[1.0, 2.0, 4.0]),
    "report.fit.power_law": values(x=[1.0, 2.0, 4.0, 8.0], y=[1.0, 2.1, 3.9, 8.0], window=(0.5, 9.0)),
    "papers.feature_lazy.tables.frozen.percent_by_seed": lambda: {"rows": rows(), "column": "test_error"},
    "papers.feature_lazy.tables.frozen.networks": FRAME,
    "papers.feature_lazy.tables.frozen.regimes": lambda: {"rows": rows()},
    "report.page.build": lambda: {"store": folder(), "study": study(), "frame": rows()},
    "report.page.draw": lambda: {"entry": ("one", "One", draw, "A figure."), "frame": rows()},
    "report.page.render": lambda: {"study": study(), "found": [], "shown": [], "frame": rows(), "record": {}},
    "report.page.headline": values(found=[{"verdict": "reproduced"}]),
    "papers.feature_lazy.tables.plane.curve_law": lambda: {
        "rows": curves(),
        "column": "dK",
        "window": (0.01, 3.0),
    },
    "papers.feature_lazy.tables.plane.star_law": lambda: {"table": stars()},
    "papers.feature_lazy.tables.plane.variance_law": lambda: {
        "widths": [16, 32, 64],
        "samples": [MEMBERS, MEMBERS / 2, MEMBERS / 4],
    },
    "papers.feature_lazy.tables.plane.ends": FRAME,
    "papers.feature_lazy.tables.plane.ensembles": lambda: {"rows": rows()[rows()["status"] == "finished"]},
    "report.power.power": lambda: {"found": one(rows()), "truth": 1.0, "allowed": (0.0, 2.0)},
    "report.power.units": lambda: {"found": one(rows()), "truth": 1.0, "allowed": (0.0, 2.0)},
    "report.table.by_seed": lambda: {"rows": rows(), "column": "dK", "where": {"width": 16}},
    "report.table.ended": lambda: {"frame": rows(), "columns": ["dK"]},
    "report.table.filled": FRAME,
    "report.table.last": FRAME,
    "report.table.named": values(keys=["a"], values=1.0),
    "report.table.need": lambda: {"frame": rows(), "columns": ["width"]},
    "papers.feature_lazy.tables.plane.panels": FRAME,
    "report.table.select": lambda: {"frame": rows(), "rows": {"width": 16}},
    "report.table.shared": lambda: {"rows": rows(), "columns": ["dataset"]},
    "report.table.rows_of": lambda: {"frame": rows(), "run": FlowRun},
    "report.table.summary": lambda: {"frame": rows(), "by": ["width"], "column": "test_error"},
    "papers.feature_lazy.tables.plane.tidy": FRAME,
    "papers.feature_lazy.tables.plane.transition": FRAME,
    **FIGURES,
}


def layers() -> pd.DataFrame:
    lists = {"layer_change": [[0.1, 0.2]], "layer_moved": [[0.2, 0.8]], "layer_share": [[0.5, 0.5]]}
    return pd.DataFrame({"step": [1], **lists})


@functools.cache
def curves() -> pd.DataFrame:
    from regimes.papers.feature_lazy.tables import plane

    return plane.tidy(rows())


@functools.cache
def stars() -> pd.DataFrame:
    from regimes.papers.feature_lazy.tables import plane

    return plane.transition(rows())


# How often something is done: it is done for as long as that takes.
ENDLESS = {
    ("measure.kappa", "starts"),
    ("measure.layer_costs", "rounds"),
    ("compare.how_many_feature_updates", "epochs"),
    ("compare.how_many_feature_updates", "seeds"),
    ("compare.which_layers", "epochs"),
    ("compare.which_layers", "repeats"),
    ("compare.would_linear_do", "epochs"),
    ("compare.would_sampling_pay", "epochs"),
    ("compare.would_sampling_pay", "seeds"),
    ("measure.reset_test", "draws"),
}
