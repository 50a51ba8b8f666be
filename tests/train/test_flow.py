"""Gradient flow: its definition, its end, its members, going on after a stop."""

from __future__ import annotations

import io
import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from regimes import control, models, train
from regimes.core.error import UserError
from regimes.core.loss import LOSSES, Loss, Squared, cross_entropy, hinge, soft_hinge, squared
from regimes.core.state import State
from tests.train.plain import AWKWARD, plain_flow, task


def same(a: State, b: State) -> bool:
    """Bit for bit."""
    assert a.outputs is not None and b.outputs is not None
    numbers = (a.step, a.time, a.status) == (b.step, b.time, b.status)
    tensors = all(torch.equal(a.parameters[n], b.parameters[n]) for n in a.parameters)
    alike = a.loss == b.loss or (math.isnan(a.loss) and math.isnan(b.loss))
    return numbers and alike and tensors and torch.equal(a.outputs, b.outputs)


def of_member(states: Sequence[State], member: int) -> list[State]:
    return [s for s in states if s.member == member]


@pytest.mark.parametrize("tau", [0.0, 0.3])
@pytest.mark.parametrize("loss", ["soft-hinge", "squared", "cross-entropy"])
@pytest.mark.parametrize("alpha", [0.05, 1.0, 50.0])
def test_is_the_pseudo_code(loss: str, tau: float, alpha: float) -> None:
    """The same accepted steps, times, losses and parameters as the slow flow."""
    x, y = task(12, 4)
    network = models.mlp(4, 8, 2, seed=1)
    plain = plain_flow(network, alpha, x, y, LOSSES[loss], tau, max_steps=40)
    states = list(train.flow(control.scale(network, alpha), x, y, loss=LOSSES[loss], tau=tau, max_steps=40))
    assert [s.step for s in states] == [m.step for m in plain] and len(plain) > 3
    for state, moment in zip(states, plain, strict=True):
        assert state.outputs is not None
        assert state.time == pytest.approx(moment.time, rel=1e-10)
        assert state.loss == pytest.approx(moment.loss, rel=1e-9)
        torch.testing.assert_close(state.outputs, moment.outputs, rtol=1e-9, atol=1e-9)
        for mine, theirs in zip(state.parameters.values(), moment.parameters, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


# The plain flow trains every parameter.
UNFROZEN = [name for name in AWKWARD if all(p.requires_grad for p in AWKWARD[name](0).parameters())]


@pytest.mark.parametrize("name", UNFROZEN)
def test_is_the_pseudo_code_on_any_module(name: str) -> None:
    x, y = task(12, 5)
    network = AWKWARD[name](0)
    if name == "custom":
        del network.unused
    states = list(train.flow(control.scale(network, 2.0), x, y, max_steps=15))
    if name == "custom":  # outputs (n,) there, (n, c) here
        network = nn.Sequential(network, nn.Unflatten(0, (12, 1)))
    plain = plain_flow(network, 2.0, x, y, soft_hinge, max_steps=15)
    assert [s.time for s in states] == pytest.approx([m.time for m in plain], rel=1e-10)
    assert [s.loss for s in states] == pytest.approx([m.loss for m in plain], rel=1e-9)


def flow_reference(run: train.Flow, times: Sequence[float]) -> Tensor:
    """F at the given times by an adaptive Runge-Kutta method of high order."""
    program, x, y = run.program, run.inputs, run.targets
    start, everyone, offsets = program.start(), torch.arange(1), program.offsets(x)

    def rate(_time: float, w: np.ndarray) -> np.ndarray:
        return -program.gradient(torch.tensor(w)[None], everyone, x, y, offsets)[2][0].numpy()

    found = solve_ivp(rate, (0, times[-1]), start[0].numpy(), "DOP853", times, rtol=1e-8, atol=1e-10)
    rows = [program.outputs(torch.tensor(w)[None], everyone, x, offsets)[0, :, 0] for w in found.y.T]
    return torch.stack(rows)


@pytest.mark.parametrize("alpha", [0.3, 30.0])
def test_converges_to_the_differential_equation(alpha: float) -> None:
    """Steps are of first order: a tolerance 100 times tighter is an error 10 times smaller."""
    x, y = task(6, 3)
    errors = []
    for limit, steps in ((1e-4, 60), (1e-6, 600)):
        rule = train.Tolerance(gradient=limit, output=math.inf)
        module = control.scale(models.mlp(3, 6, 1), alpha)
        run = train.flow(module, x, y, loss=squared, tolerance=rule, max_steps=steps)
        states = [s for s in run if s.time > 0]
        picked = states[:: len(states) // 15]
        exact = flow_reference(run, [s.time for s in picked])
        mine = torch.stack([s.outputs[:, 0] for s in picked if s.outputs is not None])
        errors.append(float((mine - exact).abs().max()))
    assert errors[0] < 0.05
    assert 5 < errors[0] / errors[1] < 20


@pytest.mark.parametrize("loss", [soft_hinge, cross_entropy, Squared(0.05)], ids=repr)
def test_finishes_when_every_margin_is_met_and_not_before(loss: Loss) -> None:
    x, y = task(20, 5)
    states = list(train.flow(control.scale(models.mlp(5, 32, 1), 5.0), x, y, loss=loss))
    *before, last = states
    assert last.status == "finished" and all(s.status == "running" for s in before)
    assert last.outputs is not None
    assert bool(loss.fits(last.outputs, y).all())
    assert not any(bool(loss.fits(s.outputs, y).all()) for s in before if s.outputs is not None)
    if not isinstance(loss, Squared):
        assert bool((last.outputs[:, 0] * y >= 1).all())


def test_the_hinge_ends_where_its_gradient_vanishes() -> None:
    """Its last step has gradient 0: the test of the gradient divides by 0 and is taken as passed."""
    x, y = task(1, 4)
    states = list(train.flow(control.scale(models.mlp(4, 16, 1), 10.0), x, y, loss=hinge))
    assert states[-1].status == "finished" and states[-1].loss == 0
    x, y = task(20, 5)
    rule = train.Tolerance(gradient=math.inf)
    states = list(train.flow(control.scale(models.mlp(5, 32, 1), 5.0), x, y, loss=hinge, tolerance=rule))
    assert states[-1].status == "finished" and states[-1].loss == 0


def test_a_gradient_of_zero_at_the_start_is_accepted() -> None:
    """A member that fits already ends at step 0; one that cannot move goes on until its limit."""
    x = torch.ones(3, 2, dtype=torch.float64)
    dead = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    for p in dead.parameters():
        p.data.fill_(-1.0)
    dead[2].bias.requires_grad_(False)
    y = torch.ones(3, dtype=torch.float64)
    states = list(train.flow(control.scale(dead, 1.0), x, y, loss=hinge, max_steps=5))
    assert [s.step for s in states] == [0, 1, 2, 3, 4, 5] and states[-1].status == "stopped"
    fitting = list(train.flow(dead, x, -y, loss=hinge))
    assert [(s.step, s.status) for s in fitting] == [(0, "finished")]


def test_alpha_squared_of_the_scaled_loss_is_that_of_the_unscaled_network() -> None:
    """MSE of F against y over alpha^2 is MSE of f_c against y / alpha."""
    x, y = task(15, 4)
    for alpha in (0.1, 7.0):
        network = models.mlp(4, 12, 2)
        rule = train.Tolerance(output=math.inf)
        settings: dict[str, Any] = {"loss": squared, "tolerance": rule, "max_steps": 25}
        scaled = list(train.flow(control.scale(network, alpha), x, y, **settings))
        plain = list(train.flow(control.scale(network, 1.0), x, y / alpha, **settings))
        for a, b in zip(scaled, plain, strict=True):
            assert a.time == pytest.approx(b.time, rel=1e-10)
            assert a.loss == pytest.approx(alpha**2 * b.loss, rel=1e-9)


FAST = [("ntk", lambda alpha, h: alpha / math.sqrt(h)), ("mup", lambda alpha, _: alpha)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("law", "scale"), FAST, ids=["ntk", "mup"])
def test_laws_are_one_flow(law: str, scale: Callable[[float, int], float], bias: bool) -> None:
    """Mean-field and muP coincide in function space, and both are NTK at alpha / sqrt(h), step by step."""
    x, y = task(15, 4)
    test = task(9, 4, seed=1)[0]
    for alpha, h in ((1.0, 16), (8.0, 40)):
        pair = []
        for name, a in (("mean-field", alpha), (law, scale(alpha, h))):
            network = models.mlp(4, h, 2, law=control.law(name), bias=bias, seed=3)
            states = list(train.flow(control.scale(network, a), x, y, max_steps=60))
            pair.append(
                [(s.time, s.loss, s(test)) for s in (states[0], states[len(states) // 2], states[-1])]
            )
        for one, other in zip(*pair, strict=True):
            assert one[0] == pytest.approx(other[0], rel=1e-8)
            assert one[1] == pytest.approx(other[1], rel=1e-8)
            torch.testing.assert_close(one[2], other[2], rtol=1e-8, atol=1e-8)


def test_a_member_that_diverges_is_recorded() -> None:
    x, y = task(15, 4)
    members = [control.scale(models.mlp(4, 8, 1, seed=s), 1.0) for s in range(3)]
    next(members[1].network.parameters()).data[0, 0] = math.nan
    states = list(train.flow(members, x, y, max_steps=5))
    assert [(s.step, s.status) for s in of_member(states, 1)] == [(0, "diverged")]
    for k in (0, 2):
        assert [s.step for s in of_member(states, k)] == [0, 1, 2, 3, 4, 5]
        assert of_member(states, k)[-1].status == "stopped"


def test_no_step_small_enough_is_divergence() -> None:
    class Rough(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return torch.where(self.w == 0, self.w, self.w + 1e6).expand(len(x), 1)

    x, y = task(4, 2)
    states = list(train.flow(Rough(), x, y.abs(), loss=squared))
    assert [s.status for s in states] == ["running", "diverged"]


def test_limits() -> None:
    x, y = task(15, 4)
    run = train.flow(models.mlp(4, 8, 1), x, y, max_steps=3)
    assert [(s.step, s.status) for s in run][-1] == (3, "stopped") and run.running == 0
    assert [s.status for s in train.flow(models.mlp(4, 8, 1), x, y, max_steps=0)] == ["stopped"]
    states = list(train.flow(control.scale(models.mlp(4, 8, 1), 1e-3), x, y, max_seconds=0.05))
    assert states[-1].status == "stopped" and len(states) > 1


def test_each_member_has_one_last_state() -> None:
    x, y = task(15, 4)
    members = [control.scale(models.mlp(4, 32, 1, seed=s), a) for s, a in enumerate((0.5, 5.0, 50.0))]
    states = list(train.flow(members, x, y))
    for k in range(3):
        mine = of_member(states, k)
        assert [s.status for s in mine] == ["running"] * (len(mine) - 1) + ["finished"]
        assert [s.step for s in mine] == list(range(len(mine)))
        assert all(a.time < b.time for a, b in itertools.pairwise(mine))


def make(kind: str, width: int, depth: int, seed: int) -> nn.Module:
    if kind == "cnn":
        return models.cnn(1, width, kernel=3, seed=seed)
    return models.mlp(5, width, depth, seed=seed)


COMPANY = [("mlp", w, n, d) for w in (7, 16, 33, 64) for n in (37, 100) for d in (1, 2, 3)]
COMPANY += [("cnn", w, n, 4) for w in (3, 8) for n in (5, 16)]


@pytest.mark.parametrize(("kind", "width", "n", "depth"), COMPANY)
def test_a_member_does_not_depend_on_its_company(kind: str, width: int, n: int, depth: int) -> None:
    """Alone, in company, in another order, beside members that end: the same states bit for bit."""
    torch.set_num_threads(1)
    x, y = task(n, 5 if kind == "mlp" else 196)
    x = x if kind == "mlp" else x.view(n, 1, 14, 14)
    alphas = [0.02, 1.0, 300.0, 0.3, 5.0]

    def members(order: Sequence[int]) -> Sequence[nn.Module]:
        made = [control.scale(make(kind, width, depth, seed), alphas[seed]) for seed in order]
        for module, seed in zip(made, order, strict=True):
            if seed == 4:
                next(module.network.parameters()).data[0] = math.nan
        return made

    def run(order: Sequence[int]) -> dict[int, list[State]]:
        states = list(train.flow(members(order), x, y, max_steps=8 if kind == "mlp" else 4))
        return {seed: of_member(states, row) for row, seed in enumerate(order)}

    together = run([0, 1, 4, 2, 3])
    reversed_ = run([3, 2, 1, 0])
    for seed in range(4):
        alone = run([seed])[seed]
        for other in (together[seed], reversed_[seed]):
            assert len(alone) == len(other) and all(map(same, alone, other))


def test_company_with_large_numbers() -> None:
    """An activation that treats large entries apart does so entry by entry."""
    torch.set_num_threads(1)
    x, y = task(37, 5)
    calm = control.scale(models.mlp(5, 16, 2, seed=0), 0.01)
    wild = control.scale(models.mlp(5, 16, 2, seed=1), 0.01)
    for factor, module in ((4.0, calm), (30.0, wild)):
        for p in module.network.parameters():
            p.data *= factor
    alone = list(train.flow(calm, x, y, max_steps=10))
    company = of_member(list(train.flow([wild, calm], x, y, max_steps=10)), 1)
    assert len(alone) == len(company) and all(map(same, alone, company))


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """Through a file and back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("tau", [0.0, 0.2])
def test_goes_on_exactly(tau: float) -> None:
    """k states, save, load, the rest: the same sequence as without the break, wherever it falls."""
    x, y = task(20, 5)

    def engine() -> train.Flow:
        members = [control.scale(models.mlp(5, 16, 2, seed=s), a) for s, a in enumerate((0.1, 3.0, 100.0))]
        return train.flow(members, x, y, tau=tau, max_steps=30)

    whole = list(engine())
    for k in random.Random(0).sample(range(len(whole)), 8):
        first = engine()
        head = list(itertools.islice(first, k))
        second = engine()
        second.load_state_dict(saved(first.state_dict()))
        tail = list(second)
        joined = [*head, *tail]
        assert [s.member for s in joined] == [s.member for s in whole]
        assert all(map(same, joined, whole))


def test_what_was_saved_must_fit() -> None:
    x, y = task(20, 5)
    other = train.flow(models.mlp(5, 16, 1), x, y).state_dict()
    with pytest.raises(UserError, match=r"`modules`: '0.weight': got \[17, 5\], expected \[16, 5\]"):
        train.flow(models.mlp(5, 17, 1), x, y).load_state_dict(other)
    members = [models.mlp(5, 16, 1, seed=seed) for seed in range(2)]
    for saved in (other, {name: other[name] for name in ("front", "origin", "pending", "seconds")}):
        with pytest.raises(UserError, match="`saved`: holds"):
            train.flow(members, x, y).load_state_dict(saved)


def test_mistakes_name_the_argument() -> None:
    x, y = task(20, 5)
    net = models.mlp(5, 16, 1)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("`targets`: got shape", {"targets": y[:, None]}),
        ("`targets`: got values from 0 to 1, expected -1 and .1 for SoftHinge", {"targets": (y + 1) / 2}),
        ("`inputs`, `targets`: got 20 and 19", {"targets": y[1:]}),
        ("`inputs`, `targets`: got 0 and 0", {"inputs": x[:0], "targets": y[:0]}),
        ("`inputs`: hold nan", {"inputs": x / 0}),
        ("`targets`: hold nan", {"targets": y / 0}),
        ("`inputs`: the module does not take", {"inputs": x[:, 1:]}),
        ("`targets`: got torch.int64 from -1", {"targets": y.long()}),
        ("`targets`: got floats for 3 outputs", {"modules": models.mlp(5, 16, 1, outputs=3)}),
        ("`max_steps`: got -1", {"max_steps": -1}),
        ("`tau`: got -1", {"tau": -1.0}),
        ("`tau`: got", {"tau": [1.0, 2.0]}),
        ("`modules`: got an empty list", {"modules": []}),
    ]
    for match, change in cases:
        arguments = {"modules": net, "inputs": x, "targets": y, **change}
        with pytest.raises(UserError, match=match):
            train.flow(**arguments)


def test_lazy_members_run_in_float64() -> None:
    x, y = task(10, 5)
    lazy = control.scale(models.mlp(5, 16, 1, dtype=torch.float32), 1e4)
    state = next(iter(train.flow(lazy, x.float(), y.float())))
    assert all(p.dtype == torch.float64 for p in state.parameters.values())
    with pytest.warns(UserWarning, match="alpha above 1000"):
        train.flow(lazy, x, y, dtype=torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_is_the_cpu() -> None:
    x, y = task(20, 5)
    ends = []
    for device in ("cpu", "cuda"):
        members = [control.scale(models.mlp(5, 16, 2, seed=s), 1.0).to(device) for s in range(3)]
        ends.append(list(train.flow(members, x, y, max_steps=30))[-3:])
    for a, b in zip(*ends, strict=True):
        assert a.outputs is not None and b.outputs is not None
        assert a.member == b.member and a.time == pytest.approx(b.time, rel=1e-8)
        torch.testing.assert_close(a.outputs, b.outputs.cpu(), rtol=1e-8, atol=1e-8)
