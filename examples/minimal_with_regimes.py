"""The numbers of ``minimal.py`` with the library: all alphas are trained together, as members of one program.

python examples/minimal_with_regimes.py
"""

from __future__ import annotations

import torch

from regimes import control, data, measure, models, train

torch.set_num_threads(1)
alphas = (0.03, 0.3, 3.0, 30.0, 300.0)
digits = data.load("digits", task="parity", train=60, test=500, probe=32, flat=True)
members = [control.scale(models.mlp(64, width=32, depth=2, seed=0), alpha) for alpha in alphas]
states = train.flow(members, digits.train.x, digits.train.y)
probes = [measure.KernelDrift(digits.probe.x), measure.Error(digits.test.x, digits.test.y)]
ends = [row for row in measure.observe(states, probes) if row.status == "finished"]

print(f"{'alpha':>6}  {'steps':>6}  {'t':>14}  {'dK':>14}  {'test error':>10}")
for row in sorted(ends, key=lambda row: row.member):
    drift, error = row.values["dK"], row.values["test_error"]
    print(f"{alphas[row.member]:6g}  {row.step:6d}  {row.time:14.8g}  {drift:14.8g}  {error:10.4f}")
