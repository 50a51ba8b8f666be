"""What cannot be right is refused in one line: a wrong order, optimiser or loss, and what others do to the flags."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regimes import control, models
from regimes.core.error import UserError
from tests.control.sparse import X, loss_of, train

TOP = control.Fixed(top=1)


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.1)


class Turning(nn.Module):
    """Two layers whose order is a matter of a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)
        self.turned = self.short = False

    def forward(self, x: Tensor) -> Tensor:
        layers = [self.b, self.a] if self.turned else [self.a, self.b]
        for layer in layers[: 1 if self.short else 2]:
            x = layer(x).tanh()
        return self.out(x)


def test_layers_that_run_in_another_order_are_named() -> None:
    module, x = Turning(), X.float()
    optimizer = sgd(module)
    policy = control.LayerwiseSparse(module, optimizer, control.UniformCut(), example=x)
    train(module, optimizer, [[x]] * 3)
    module.short = True  # a layer that is left out is none that runs in another order
    train(module, optimizer, [[x]])
    module.short, module.turned = False, True
    for _ in range(2):
        with pytest.raises(
            UserError, match="`module`: 'b' ran before 'a', and after it in `example`; make one layer"
        ):
            module(x)
    with torch.no_grad():
        module(x)
    module.turned = False
    train(module, optimizer, [[x]])
    assert policy.step == 5


def test_layers_whose_order_changes_can_be_one_layer() -> None:
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.out = Turning(), nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.body(x))

    module, x = Held(), X.float()
    optimizer = sgd(module)
    policy = control.LayerwiseSparse(module, optimizer, control.UniformCut(), example=x, layers=["body"])
    for turned in (True, False, True):
        module.body.turned = turned
        train(module, optimizer, [[x]])
    assert policy.step == 3 and policy.plan.layers == ("body", "out")


def test_layers_may_be_used_several_times() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(self.b(self.a(x).tanh()).tanh())

    module = Again()
    optimizer = sgd(module)
    policy = control.LayerwiseSparse(module, optimizer, control.UniformCut(), example=X.float())
    train(module, optimizer, [[X.float()]] * 6)
    assert policy.step == 6


class Leaves(nn.Module):
    """An output that leaves the last layer out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.whole = True

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = self.a(x).tanh()
        return (h, self.b(h)) if self.whole else (h,)


def test_outputs_that_do_not_depend_on_what_moves_are_named() -> None:
    module = Leaves()
    optimizer = sgd(module)
    control.LayerwiseSparse(module, optimizer, TOP, example=X.float())
    train(module, optimizer, [[X.float()]])
    module.whole = False
    with pytest.raises(UserError, match=r"`module`: its outputs do not depend on what moves at step 1 \(b\)"):
        module(X.float())
    with torch.no_grad():
        module(X.float())


def test_a_loss_that_does_not_depend_on_what_moves_is_named() -> None:
    """Here it depends on another parameter besides, so that torch finds nothing wrong."""
    module, factor = Leaves(), torch.ones((), requires_grad=True)
    optimizer = sgd(module)
    policy = control.LayerwiseSparse(module, optimizer, TOP, example=X.float())
    optimizer.zero_grad()
    (module(X.float())[0].sum() * factor).backward()
    with pytest.raises(UserError, match=r"`module`: the loss does not depend on what moves at step 0 \(b\)"):
        optimizer.step()
    assert policy.step == 0


def test_an_optimiser_without_what_moves_is_named() -> None:
    module = models.mlp(3, 5, 2)
    last = list(module.parameters())[-1:]
    with pytest.raises(UserError, match=r"`optimizer`: does not hold '0.weight', which moves at some steps"):
        control.LayerwiseSparse(module, torch.optim.SGD(last), control.Cut(p=0.1), example=X)
    with pytest.raises(UserError, match="`optimizer`: got none"):
        control.LayerwiseSparse(module, [], control.Cut(p=0.1), example=X)
    assert not module._forward_pre_hooks and all(p.requires_grad for p in module.parameters())
    optimizer = torch.optim.SGD(last, lr=0.1)
    policy = control.LayerwiseSparse(module, optimizer, TOP, example=X)  # the rest never moves
    train(module, optimizer, [[X]])
    assert policy.step == 1


class Stirring(torch.optim.SGD):
    """Adds noise to all it holds, with a gradient or without."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1.01)


@pytest.mark.parametrize("kind", ["LBFGS", "Stirring"])
def test_an_optimiser_that_moves_all_it_holds_is_named(kind: str) -> None:
    module = models.mlp(3, 5, 2, seed=1)
    made = (
        torch.optim.LBFGS(module.parameters(), max_iter=2)
        if kind == "LBFGS"
        else Stirring(module.parameters())
    )
    control.LayerwiseSparse(module, made, TOP, example=X)

    def closure() -> Any:
        made.zero_grad()
        loss = loss_of(module(X))
        loss.backward()
        return loss.detach()

    with pytest.raises(
        UserError, match=f"`optimizer`: {kind} moved '0.weight', without a gradient at step 0; take one"
    ):
        made.step(closure)


def test_flags_that_somebody_else_changes_are_named() -> None:
    module = models.mlp(3, 5, 2)
    optimizer = sgd(module)
    control.LayerwiseSparse(module, optimizer, TOP, example=X)
    loss_of(module(X)).backward()
    module.requires_grad_(True)
    with pytest.raises(
        UserError, match=r"`module`: '0.weight' requires grad at step 0, where it should not move: .* else"
    ):
        optimizer.step()
    loss_of(module(X)).backward()
    optimizer.step()


def test_a_module_that_is_not_called_as_a_whole_is_named() -> None:
    """Without the frozen flags a step would be right, but save nothing."""
    module = models.mlp(3, 5, 2)
    optimizer = sgd(module)
    policy = control.LayerwiseSparse(module, optimizer, TOP, example=X)
    x = X
    for layer in module.children():
        x = layer(x)
    loss_of(x).backward()
    with pytest.raises(
        UserError, match=r"or the module was not called as a whole .* \(then call begin\(\) first\)"
    ):
        optimizer.step()
    assert policy.step == 0


def test_a_module_that_changes_after_the_policy_was_made_is_named() -> None:
    """An adapter, a layer that is unfrozen by hand, a weight that is computed from now on, a wrapper made too late."""

    def unfreeze(net: Any) -> None:
        net[0].requires_grad_(True)

    def adapt(net: Any) -> None:
        net[1] = nn.Linear(4, 4)

    def normalise(net: Any) -> None:
        nn.utils.parametrizations.weight_norm(net[2])

    def replace(net: Any) -> None:
        net[2].weight = nn.Parameter(torch.zeros(1, 4))
        net[2].weight.requires_grad_(False)

    cases = (
        (unfreeze, "0.weight"),
        (adapt, "1.weight"),
        (normalise, "2.parametrizations"),
        (replace, "2.weight"),
    )
    for change, name in cases:
        module = nn.Sequential(nn.Linear(3, 4).requires_grad_(False), nn.Tanh(), nn.Linear(4, 1))
        optimizer = sgd(module)
        control.LayerwiseSparse(module, optimizer, TOP, example=X.float())
        train(module, optimizer, [[X.float()]])
        change(module)
        with pytest.raises(UserError, match=rf"`module`: '{name}.* remove\(\) the policy"):
            module(X.float())


def make(**more: Any) -> control.LayerwiseSparse:
    module = models.mlp(3, 5, 2)
    given: dict[str, Any] = {"moves": TOP, "example": X} | more
    return control.LayerwiseSparse(module, sgd(module), given.pop("moves"), **given)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: make(moves=control.Fixed(names=["5"])), "`names`: got '5', expected names of layers: '0', '2', '4'"),
        (lambda: make(moves=control.Fixed(top=4)), "`top`: got 4, expected at most 3"),
        (lambda: make(moves=control.Cut(p=[0.1, 1.0])), "`p`: got 2 probabilities, expected 3"),
        (lambda: make(largest_factor=0.5), r"`largest_factor`: got 0.5, expected 1 \(none\) or more"),
        (lambda: make(warmup=-1), "`warmup`: got -1"),
        (lambda: make(warmup=2), "`warmup`: got 2 with `state` \"keep\", expected 0; it is for state=\"drop\""),
        (lambda: make(state="forget"), "`state`: got 'forget', expected one of keep, drop, offload"),
        (lambda: make(layers=["9"]), "`layers`: got '9', expected names of modules"),
        (lambda: make(example=X[:, :2]), "`example`: got .*which the module does not take"),
        (lambda: make(example=X[:0]), "`example`: got shape"),
        (lambda: make(moves=0.2), "`moves`: got 0.2, expected a regimes.control.layers.moves.Moves"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call: Callable[[], object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        call()
