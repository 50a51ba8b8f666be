"""Plans of layers and of the anchor: the engines against torch.optim, the plain flow and training without plans."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regimes import control, measure, models, train
from regimes.core.error import UserError
from regimes.core.loss import soft_hinge, squared
from regimes.core.state import State
from tests.train.alignment import RoundsByAlignment
from tests.train.plain import AWKWARD, task
from tests.train.planned import flat, planned_flow, stepped

ALPHAS = [0.3, 1.0, 20.0]
EVERY = ("network.0", "network.2.weight", "network.2.bias", "network.4")
ENGINES: dict[str, Callable[..., Any]] = {
    "flow": lambda *a, **k: train.flow(*a, tau=0.2, max_steps=7, **k),
    "descent": lambda *a, **k: train.descent(*a, lr=0.1, momentum=0.9, batch_size=5, steps=7, **k),
    "runge-kutta": lambda *a, **k: train.runge_kutta(*a, dt=0.1, steps=5, **k),
}
# Each engine, one of them where there is time.
SOME = ["flow", "descent", pytest.param("runge-kutta", marks=pytest.mark.slow)]


def turns(step: int) -> Collection[str]:
    """Another layer at each step, one parameter alone among them."""
    return [EVERY[step % 4]] if step % 3 else {EVERY[step % 4], "network.4"}


def every_third(step: int) -> bool:
    return step % 3 == 0


PLANS: dict[str, dict[str, Any]] = {
    "layers": {"layers": turns},
    "lazy": {"anchor": lambda step: False},
    "third": {"anchor": every_third},
    "both": {"layers": turns, "anchor": every_third},
}


def members(kind: str = "softplus", law: str = "ntk", seeds: Sequence[int] = range(3)) -> list[nn.Module]:
    made = [models.mlp(5, 6, 2, activation=kind, bias=True, law=control.law(law), seed=s) for s in seeds]
    return [control.scale(net, ALPHAS[s]) for net, s in zip(made, seeds, strict=True)]


def batches(samples: int, size: int, steps: int) -> list[Tensor]:
    """As documented: a permutation from the pair (seed, epoch)."""
    found: list[Tensor] = []
    for epoch in range(steps):
        mixed = np.random.SeedSequence((0, epoch)).generate_state(1)[0]
        order = torch.randperm(samples, generator=torch.Generator().manual_seed(int(mixed)))
        found += order.split(size)
    return found[:steps]


def of_member(states: Sequence[State], member: int) -> list[State]:
    return [s for s in states if s.member == member]


def joined(state: State) -> Tensor:
    return flat(list(state.parameters.values()))


def same(a: State, b: State) -> bool:
    """Bit for bit."""
    numbers = (a.step, a.time, a.status, a.loss) == (b.step, b.time, b.status, b.loss)
    trees = all(torch.equal(a.parameters[n], b.parameters[n]) for n in a.parameters)
    seen = a.outputs is b.outputs is None or torch.equal(a.outputs, b.outputs)  # pyright: ignore[reportArgumentType]
    return numbers and trees and seen


@pytest.mark.parametrize(
    ("plan", "law"), [("layers", "ntk"), ("lazy", "mup"), ("third", "ntk"), ("both", "mup")]
)
def test_descent_is_that_of_torch(plan: str, law: str) -> None:
    """With momentum, batches, rates per layer and gradients of None; the optimiser is kept when the anchor moves."""
    x, y = task(12, 5)
    states = list(ENGINES["descent"](members(law=law), x, y, **PLANS[plan]))
    for k, module in enumerate(members(law=law)):
        given = {"layers": None, "anchor": None} | PLANS[plan]
        path = stepped(module, x, y, soft_hinge, batches(12, 5, 7), lr=0.1, momentum=0.9, **given)
        for state, w in zip(of_member(states, k), path, strict=True):
            torch.testing.assert_close(joined(state), w, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", AWKWARD)
def test_descent_is_that_of_torch_on_any_module(name: str) -> None:
    """Tied, frozen and unused parameters, without a scale."""
    x, y = task(9, 5)
    named = list(control.rates(AWKWARD[name](0)))
    plans = {"layers": lambda step: [named[step % len(named)]], "anchor": lambda step: step == 2}
    states = list(train.descent(AWKWARD[name](0), x, y, lr=0.1, momentum=0.5, steps=6, **plans))
    whole = [torch.arange(9)] * 6
    path = stepped(AWKWARD[name](0), x, y, soft_hinge, whole, lr=0.1, momentum=0.5, **plans)
    for state, w in zip(states, path, strict=True):
        torch.testing.assert_close(joined(state), w, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("tau", [0.0, 0.2])
@pytest.mark.parametrize("plan", ["layers", "third", "both"])
def test_the_flow_is_the_plain_one(plan: str, tau: float) -> None:
    """The same accepted steps, times, losses and parameters; the rule sees what moves alone."""
    x, y = task(10, 5)
    given = {"layers": lambda _: EVERY, "anchor": None} | PLANS[plan]
    states = list(train.flow(members(), x, y, tau=tau, loss=squared, max_steps=9, **PLANS[plan]))
    assert max(s.time for s in states) > 0
    for k, module in enumerate(members()):
        network = nn.ModuleDict({"network": module.get_submodule("network")})
        network.forward = network["network"].forward  # the names of the scaled module
        plain = planned_flow(network, ALPHAS[k], x, y, squared, tau=tau, steps=9, **given)
        for state, moment in zip(of_member(states, k), plain, strict=True):
            assert state.time == pytest.approx(moment.time, rel=1e-10)
            assert state.loss == pytest.approx(moment.loss, rel=1e-9)
            torch.testing.assert_close(joined(state), moment.w, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", ["softplus", "tanh"])
@pytest.mark.parametrize("engine", SOME)
def test_a_set_that_stays_is_the_others_frozen(engine: str, kind: str) -> None:
    """What does not move stays to the bit, with the sign of its zeros; all of them is no plan, to the bit."""
    x, y = task(10, 5)
    modules = members(kind)
    for module in modules:
        module.get_parameter("network.0.bias").data.fill_(-0.0)
    states = list(ENGINES[engine](modules, x, y, layers=lambda _: {"network.2", "network.4.weight"}))
    still = ("network.0.weight", "network.0.bias", "network.4.bias")
    for state in states:
        for name in still:
            now, then = state.parameters[name], modules[state.member].get_parameter(name)
            assert torch.equal(now, then) and torch.equal(now.signbit(), then.signbit())
            assert state.update is None or not state.update[name].any()
    for module in modules:
        for name in still:
            module.get_parameter(name).requires_grad_(False)
    for a, b in zip(states, ENGINES[engine](modules, x, y), strict=True):
        assert a.time == pytest.approx(b.time, rel=1e-12) and a.loss == pytest.approx(b.loss, rel=1e-9)
        for name, value in b.parameters.items():
            torch.testing.assert_close(a.parameters[name], value, rtol=1e-10, atol=1e-12)
    modules = members(kind)
    for plan in (lambda _: list(EVERY), lambda _: {"network"}, lambda _: [""]):
        everything = list(ENGINES[engine](modules, x, y, layers=plan))
        assert all(map(same, everything, ENGINES[engine](modules, x, y)))


@pytest.mark.parametrize("law", ["ntk", "mup"])
def test_an_anchor_that_always_moves_is_plain_training(law: str) -> None:
    """... by descent; the other engines go along the linearisation within a step."""
    x, y = task(10, 5)
    states = list(ENGINES["descent"](members(law=law), x, y, anchor=lambda step: True))
    plain = list(ENGINES["descent"](members(law=law), x, y))
    for a, b in zip(states, plain, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-12)
        torch.testing.assert_close(joined(a), joined(b), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(a(x), b(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("engine", SOME)
def test_an_anchor_that_never_moves_is_the_linear_module(engine: str) -> None:
    """... which ``control.linearize`` makes, in the same engine; centred, scaled, alone and in company."""
    x, y = task(10, 5)
    nets = [models.mlp(5, 6, 2, seed=s) for s in range(3)]
    lazy = [control.scale(net, a) for net, a in zip(nets, ALPHAS, strict=True)]
    linear = [control.scale(control.linearize(net), a) for net, a in zip(nets, ALPHAS, strict=True)]
    states = list(ENGINES[engine](lazy, x, y, anchor=lambda step: False))
    for a, b in zip(states, ENGINES[engine](linear, x, y), strict=True):
        assert (a.member, a.step, a.status) == (b.member, b.step, b.status)
        assert a.time == pytest.approx(b.time, rel=1e-12) and a.loss == pytest.approx(b.loss, rel=1e-9)
        torch.testing.assert_close(joined(a), joined(b), rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(a(x), b(x), rtol=1e-10, atol=1e-11)


def test_lazy_training_is_the_flow_of_the_kernel() -> None:
    """In closed form, for alpha, a centre and none: Runge-Kutta with an anchor that stays."""
    x, y = task(7, 4)
    other = task(3, 4, seed=1)[0]
    net = models.mlp(4, 8, 2)
    for module in (net, control.scale(net, 3.0), control.scale(net, 0.5, center=False)):
        alpha = control.unscaled(module)[1]
        start, there = (module(points).detach() for points in (x, other))
        path = train.kernel(measure.ntk(module, x, reduce="trace"), y, alpha=alpha, start=start)
        cross = measure.ntk(module, other, x, reduce="trace")
        run = train.runge_kutta(module, x, y, dt=0.01, steps=15, loss=squared, anchor=lambda step: False)
        for state in itertools.islice(run, 0, None, 5):
            exact = path.at(state.time)
            assert state.outputs is not None
            torch.testing.assert_close(state.outputs, exact.outputs, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(state(other), exact.predict(cross, there), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("plan", [pytest.param("layers", marks=pytest.mark.slow), "both"])
@pytest.mark.parametrize("engine", SOME)
def test_a_member_does_not_depend_on_its_company(engine: str, plan: str) -> None:
    """In another order and alone, with data of its own, where products round by alignment."""
    torch.set_num_threads(1)
    sets = [task(7, 5, seed) for seed in range(3)]

    def run(order: Sequence[int]) -> dict[int, list[State]]:
        xs, ys = [sets[s][0] for s in order], [sets[s][1] for s in order]
        states = list(ENGINES[engine](members(seeds=order), xs, ys, **PLANS[plan]))
        return {s: of_member(states, row) for row, s in enumerate(order)}

    with RoundsByAlignment():
        together = run([0, 1, 2])
        for order in ([2, 0], [1]):
            for seed, states in run(order).items():
                assert len(states) == len(together[seed]) > 2
                assert all(map(same, states, together[seed]))


@pytest.mark.parametrize("engine", SOME)
def test_a_member_that_diverges_leaves_the_others_alone(engine: str) -> None:
    x, y = task(10, 5)
    modules = members()
    modules[1].get_parameter("network.0.weight").data[0, 0] = float("nan")
    states = list(ENGINES[engine](modules, x, y, anchor=every_third))
    assert [(s.step, s.status) for s in of_member(states, 1)] == [(0, "diverged")]
    for k in (0, 2):
        alone = list(ENGINES[engine](members(seeds=[k]), x, y, anchor=every_third))
        assert all(map(same, alone, of_member(states, k))) and len(alone) > 3


def test_only_what_moves_is_differentiated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written out and by autograd: below the lowest layer that moves there is no product with its weights."""
    from regimes.core import dense, layer

    x, y = task(10, 5)
    for kind, module in (("softplus", dense), ("tanh", layer)):
        counts: list[int] = []
        known = layer.products

        def noted(*args: Any, known: Any = known, counts: list[int] = counts) -> Tensor:
            counts.append(1)
            return known(*args)

        monkeypatch.setattr(module, "products", noted)
        net = models.mlp(5, 6, 3, activation=kind)
        for names, products in ((["0"], 4 + 4), (["6"], 4 + 1), (["4", "6"], 4 + 3), ([""], 4 + 7)):
            run = iter(train.descent(net, x, y, lr=0.1, steps=3, layers=lambda _, names=names: names))
            counts.clear()
            next(run)
            assert sum(counts) == products
        monkeypatch.undo()


def test_the_name_of_a_tied_parameter_is_each_of_its_names() -> None:
    x, y = task(9, 5)
    ends = [
        [s.loss for s in train.descent(AWKWARD["tied"](0), x, y, lr=0.1, steps=3, layers=lambda _, n=n: [n])]
        for n in ("first.weight", "second.weight", "again.weight")
    ]
    assert ends[0] == ends[1] == ends[2]
    *_, end = train.descent(AWKWARD["tied"](0), x, y, lr=0.1, steps=3, layers=lambda _: ["second"])
    moved = [n for n, p in end.parameters.items() if not torch.equal(p, end.origin[n])]
    assert moved == ["first.weight", "second.bias"]


def test_margins_are_those_of_what_is_trained() -> None:
    """A member ends where its linear function meets every margin, and not before."""
    x, y = task(12, 5)
    net = control.scale(models.mlp(5, 32, 1), 2.0)
    run = train.descent(net, x, y, lr=0.5, epochs=200, margin=True, anchor=lambda step: step % 5 == 0)
    *before, last = run
    assert last.status == "finished" and last.step > 5 and bool(soft_hinge.fits(last(x), y).all())
    assert not any(bool(soft_hinge.fits(s(x), y).all()) for s in before[-3:])


def test_mistakes_name_the_argument() -> None:
    x, y = task(10, 5)
    net = models.mlp(5, 6, 2)
    for given, match in (
        ({"layers": lambda _: ["0.wieght"]}, r"`layers`: gave '0.wieght' at step 0.*did you mean '0.weight'"),
        (
            {"layers": lambda _: ["1"]},
            r"`layers`: gave '1' at step 0, expected names of parameters that train",
        ),
        ({"layers": lambda _: []}, "`layers`: gave no name at step 0"),
        ({"layers": lambda _: "0.weight"}, "`layers`: gave '0.weight' at step 0, expected a set"),
        ({"layers": lambda _: [2]}, "`layers`: gave 2 at step 0"),
        ({"layers": lambda _: None}, "`layers`: gave None at step 0"),
        ({"layers": ["0.weight"]}, "`layers`: got .* expected a function"),
        ({"anchor": True}, "`anchor`: got True, expected a function"),
    ):
        for engine in ENGINES.values():
            with pytest.raises(UserError, match=match):
                engine(net, x, y, **given)
    later = {"layers": lambda step: ["0", "2"] if step < 2 else ["9"], "anchor": lambda step: step or 1}
    for engine in ENGINES.values():
        with pytest.raises(UserError, match="`layers`: gave '9' at step 2"):
            list(engine(net, x, y, layers=later["layers"]))
        with pytest.raises(UserError, match="`anchor`: gave 1 at step 1, expected True or False"):
            list(engine(net, x, y, anchor=later["anchor"]))
        with pytest.raises(UserError, match="`module`: is linearised already"):
            engine(control.linearize(net), x, y, anchor=every_third)
        with pytest.raises(UserError, match=r"`module`: '0' \(Dropout\) is random in train mode"):
            engine(nn.Sequential(nn.Dropout(), net), x, y, anchor=every_third)
