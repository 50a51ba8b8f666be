"""Renewals that each member decides for itself: by its own numbers, alone as in company, and the same after a break."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from regimes import control, models, train
from regimes.control.anchor.look import Look, probed
from regimes.core.error import UserError
from regimes.core.loss import cross_entropy, soft_hinge, squared
from regimes.core.state import State
from tests.train.plain import AWKWARD, task

X, Y = task(12, 5)
ALPHAS = [0.3, 1.0, 4.0]
RULE = control.Adaptive(trust=0.95, gap=0.2, drift=0.3, every=2, least=2, most=7, samples=9)
ENGINES: Mapping[str, Callable[..., Any]] = {
    "flow": lambda *a, **k: train.flow(*a, tau=0.2, max_steps=9, **k),
    "descent": lambda *a, **k: train.descent(*a, lr=0.5, momentum=0.5, batch_size=5, steps=12, **k),
    "runge-kutta": lambda *a, **k: train.runge_kutta(*a, dt=0.4, steps=8, **k),
}
STABLE: Mapping[str, dict[str, Any]] = {
    "adaptive": {"anchor": RULE},
    "reset": {"anchor": control.Every(3, reset=True)},
    "lowered": {
        "anchor": control.Every(4),
        "stable": "lower",
        "loss": squared,
        "lr": lambda step: 9.0 / (1 + step),
        "batch_size": 12,
    },
    "shortened": {"anchor": control.AtSteps([]), "stable": "shorten", "loss": squared, "lr": 1.0},
}


def members(seeds: Any = range(3)) -> list[nn.Module]:
    made = [models.mlp(5, 6, 2, bias=True, seed=s) for s in seeds]
    return [control.scale(net, ALPHAS[s]) for net, s in zip(made, seeds, strict=True)]


def same(a: State, b: State) -> bool:
    """Bit for bit."""
    numbers = (a.step, a.time, a.status, a.loss, a.updates) == (b.step, b.time, b.status, b.loss, b.updates)
    return numbers and all(torch.equal(a.parameters[n], b.parameters[n]) for n in a.parameters)


@pytest.mark.parametrize(
    "engine", ["descent", *(pytest.param(e, marks=pytest.mark.slow) for e in ("flow", "runge-kutta"))]
)
def test_each_member_decides_for_itself(engine: str) -> None:
    """... and as it does alone; they do not agree, and no block is longer than ``most``."""
    run = ENGINES[engine](members(), X, Y, anchor=RULE)
    states = list(run)
    found = [[block.step for block in run.blocks(k)] for k in range(3)]
    assert len({tuple(each) for each in found}) > 1 and all(len(each) > 1 for each in found)
    for k, steps in enumerate(found):
        last = max(s.step for s in states if s.member == k)
        gaps = [b - a for a, b in itertools.pairwise([*steps, last])]
        assert max(gaps) <= 7 and min(gaps[:-1]) >= 2
        alone = ENGINES[engine](members([k]), X, Y, anchor=RULE)
        mine = [s for s in states if s.member == k]
        assert all(same(a, b) for a, b in zip(alone, mine, strict=True))
        assert alone.blocks() == run.blocks(k)


@pytest.mark.parametrize("kind", ["plain", "tied"])
def test_what_ends_a_block_is_what_is_seen_at_its_states(kind: str) -> None:
    """At every look of the rule, on its samples: the block ends at the first that passes a threshold."""
    net = models.mlp(5, 6, 2) if kind == "plain" else AWKWARD["tied"](0)
    rule = control.Adaptive(trust=0.97, gap=0.15, every=3, least=2, most=20, samples=8)
    run = train.descent(net, X, Y, lr=0.4, steps=30, anchor=rule)
    states = list(run)
    index, anchor, expected = probed(12, rule), 0, [(0, "start")]
    x, y = X[index], Y[index]
    look = Look(net, x, lambda out: soft_hinge.per_sample(out.reshape(len(x), -1), y).mean(), rule)
    for state in states[1:]:
        since = state.step - anchor
        if since < 2 or (since - 2) % 3:
            continue
        found = look.reading(states[anchor].parameters, state.parameters)
        why = "trust" if found.trust < 0.97 else "gap" if found.gap > 0.15 else None
        if why is not None:
            anchor = state.step
            expected.append((anchor, why))
            block = next(b for b in run.blocks() if b.step == anchor)
            assert (block.trust, block.gap, block.drift) == (found.trust, found.gap, None)
    assert [(b.step, b.why) for b in run.blocks()] == expected and len(expected) > 2


def test_feature_updates_are_the_anchors_that_steps_were_taken_from() -> None:
    for anchor, expected in (
        (None, range(7)),
        (control.Every(1), range(7)),
        (control.Every(3), [0, 1, 1, 1, 2, 2, 2]),
        (control.AtSteps([5]), [0, 1, 1, 1, 1, 1, 2]),
        (lambda step: step == 6, [0, 1, 1, 1, 1, 1, 1]),
    ):
        run = train.descent(members([1]), X, Y, lr=0.1, steps=6, anchor=anchor)
        assert [s.updates for s in run] == list(expected)


@pytest.mark.parametrize("tau", [0.0, 0.3])
def test_a_reset_leaves_no_velocity(tau: float) -> None:
    """Renewed at every step it leaves descent without momentum; of the flow nothing but its own first moments."""
    plain = train.descent(members(), X, Y, lr=0.1, steps=6, anchor=control.Every(1))
    run = train.descent(members(), X, Y, lr=0.1, momentum=0.9, steps=6, anchor=control.Every(1, reset=True))
    assert all(same(a, b) for a, b in zip(run, plain, strict=True))
    kept, reset = (
        list(train.flow(members([1]), X, Y, tau=tau, max_steps=6, anchor=control.AtSteps([4], reset=r)))
        for r in (False, True)
    )
    assert all(same(a, b) for a, b in zip(kept[:5], reset[:5], strict=True))
    assert same(kept[5], reset[5]) == (tau == 0)


def made(engine: str, kind: str) -> Any:
    given = STABLE[kind]
    if engine != "descent":
        return ENGINES[engine](members([0, 2]), X, Y, **given)
    more = {"lr": 0.5, "momentum": 0.5, "batch_size": 5, "steps": 9, **given}
    return train.descent(members([0, 2]), X, Y, **more)


LATER = [
    pytest.param(*each, marks=pytest.mark.slow)
    for each in (("runge-kutta", "adaptive"), ("descent", "reset"))
]
CASES = [*(("descent", kind) for kind in ("adaptive", "lowered", "reset")), ("flow", "adaptive"), *LATER]


@pytest.mark.parametrize(("engine", "kind"), CASES)
def test_goes_on_exactly_inside_a_block(engine: str, kind: str) -> None:
    """Before and after an anchor has moved; nothing that was decided is asked for again, and it is in the blocks."""
    run = made(engine, kind)
    whole = list(run)
    for k in (5, 12) if kind in ("adaptive", "reset") else (9,):
        file, first = io.BytesIO(), made(engine, kind)
        head = list(itertools.islice(first, k))
        torch.save(first.state_dict(), file)
        file.seek(0)
        again = made(engine, kind)
        again.load_state_dict(torch.load(file, weights_only=True))
        tail = list(again)
        assert len(head) + len(tail) == len(whole)
        assert all(same(a, b) for a, b in zip(tail, whole[k:], strict=True))
        assert all(torch.equal(a(X), b(X)) for a, b in zip(tail[:2], whole[k : k + 2], strict=True))
        assert [again.blocks(m) for m in range(2)] == [run.blocks(m) for m in range(2)]
    if kind == "lowered":
        assert any(b.lowered for b in run.blocks(0))
    if kind == "shortened":
        assert {"stable"} < {b.why for b in run.blocks(0)}


def test_another_rule_is_refused_and_a_state_without_blocks_is_read() -> None:
    def run(anchor: Any) -> train.Descent:
        return train.descent(members([0, 2]), X, Y, lr=0.5, steps=9, anchor=anchor)

    saved = {}
    for name, anchor in (("adaptive", RULE), ("every", control.Every(4))):
        first = run(anchor)
        list(itertools.islice(first, 11))
        saved[name] = first.state_dict()
    with pytest.raises(UserError, match=r"`anchor`: got Adaptive\(trust=0.5,.*expected Adaptive\(trust=0.95"):
        run(control.Adaptive(trust=0.5)).load_state_dict(saved["adaptive"])
    with pytest.raises(UserError, match=r"`anchor`: got a function of the step, expected Adaptive"):
        run(control.Every(4)).load_state_dict(saved["adaptive"])
    with pytest.raises(UserError, match=r"`anchor`: got Adaptive.* expected a function of the step"):
        run(RULE).load_state_dict(saved["every"])
    del saved["every"]["renewals"]
    again, whole = run(lambda step: step % 4 == 0), run(control.Every(4))
    again.load_state_dict(saved["every"])
    assert all(same(a, b) for a, b in zip(again, list(whole)[11:], strict=True))
    assert again.blocks(1) == whole.blocks(1)
    with pytest.raises(UserError, match="`member`: got 2, expected 0 to 1"):
        again.blocks(2)


def test_nothing_waits_for_ever() -> None:
    """A block of the cross-entropy on separable data has no end of its own: ``most`` ends it."""
    net = models.mlp(5, 40, 1, outputs=2)
    rule = control.Adaptive(gap=1e9, most=6)
    run = train.descent(net, X, (Y > 0).long(), lr=0.1, steps=20, loss=cross_entropy, anchor=rule)
    list(run)
    assert [(b.step, b.why) for b in run.blocks()] == [(0, "start"), (6, "most"), (12, "most"), (18, "most")]
