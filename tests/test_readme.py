"""What README shows is what the library does."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from regimes import control, data, measure, models

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_loop_of_the_readme_runs_and_its_alpha_matters() -> None:
    block = re.search(r"```diff\n(.*?)```", README, re.S)
    assert block is not None
    code = "\n".join(line[2:] for line in block.group(1).splitlines())
    digits = data.load("digits", task="parity", train=64, test=64, pca=10)
    batches = [(digits.train.x, digits.train.y)] * 20
    moved = {}
    for alpha in ("100.0", "1.0"):
        said: list[object] = []
        names = {
            "torch": torch,
            "control": control,
            "measure": measure,
            "models": models,
            "probe": digits.probe.x[:16],
            "batches": batches,
            "squared": lambda out, y: (out[:, 0] - y).square().mean() / 2,
            "print": lambda *parts, said=said: said.extend(parts),
        }
        exec(code.replace("alpha=100.0", f"alpha={alpha}").replace("lr=1.0", "lr=0.1"), names)
        moved[alpha] = said[-1]
    assert 0 < moved["100.0"] < 0.1 * moved["1.0"]


def test_every_file_the_readme_links_to_is_there() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
