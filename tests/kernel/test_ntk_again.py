"""A second call gives what the first call of a fresh process gives: whatever changed since, and to the last bit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from regimes import control, measure, models
from regimes.core.layer import Scaling
from regimes.kernel.ntk import planned
from regimes.kernel.plan import Plan
from regimes.kernel.request import request
from regimes.measure import Reduce
from tests import reference
from tests.measure.awkward_case import F64, D, Net, matrix, normal
from tests.properties import assert_close

REDUCTIONS: tuple[Reduce, ...] = get_args(Reduce)
Output = Callable[[Any], Tensor]


def mlp(outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, outputs)).to(
        F64
    )


def with_parts(run: Callable[..., Tensor], **parts: Any) -> nn.Module:
    """A network of two layers and some parts, as ``run`` says."""
    torch.manual_seed(0)
    return Net(run, first=nn.Linear(D, 4), head=nn.Linear(4, 3), **parts).to(F64)


class LowRank(nn.Module):
    """W + s B A, merged at each call."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = matrix(outputs, inputs), matrix(outputs)
        self.a, self.b, self.s = matrix(2, inputs), matrix(outputs, 2), 0.5

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight + self.s * (self.b @ self.a), self.bias)


class Centred(nn.Module):
    """A parametrisation that takes the mean of each row off."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)


def low_rank() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(LowRank(D, 4), nn.Tanh(), LowRank(4, 4), nn.Tanh(), LowRank(4, 3)).to(F64)


def weight_normed() -> nn.Module:
    net = mlp()
    for layer in (net[0], net[2], net[4]):
        parametrizations.weight_norm(layer)
    return net


def parametrised() -> nn.Module:
    net = mlp()
    for layer in (net[0], net[2]):
        parametrize.register_parametrization(layer, "weight", Centred())
    return net


@dataclass(frozen=True)
class Change:
    """A module, what is done to it between two calls, and what the outputs are before and after."""

    module: Callable[[], nn.Module]
    change: Callable[[Any], Any] = lambda net: None
    outputs: tuple[Output | None, Output | None] = (None, None)


def times(out: Tensor, factor: float) -> Tensor:
    """Where the factor is 1, the very outcome of the last layer."""
    return out if factor == 1 else out * factor


def by_default(out: Tensor, factor: list[float] = [1.0]) -> Tensor:  # noqa: B006
    return times(out, factor[0])


def scaled_by(factor: float) -> Output:
    return lambda out: times(out, factor)


def curved(degree: int) -> Output:
    return lambda out: out.sin() if degree else out


FACTOR = {"of outputs": 1.0}
DEFAULT: list[float] = by_default.__defaults__[0]  # pyright: ignore[reportOptionalSubscript]


def by_global(out: Tensor) -> Tensor:
    return times(out, FACTOR["of outputs"])


def by_hook(place: int) -> Callable[[Any], None]:
    return lambda net: net[place].register_forward_hook(lambda layer, given, out: out.sin() + out)


def by_hook_before(place: int) -> Callable[[Any], None]:
    return lambda net: net[place].register_forward_pre_hook(lambda layer, given: (given[0].square(),))


def on_gradients(net: Any) -> None:
    net[2].register_full_backward_hook(lambda layer, grads, backs: (2 * grads[0],))


def set_to(**values: Any) -> Callable[[Any], None]:
    def change(net: Any) -> None:
        for name, value in values.items():
            setattr(net, name, value)

    return change


def rescaled(net: Any) -> None:
    net[0].scaling = Scaling(multiplier=3.0)


def closure() -> nn.Module:
    degrees = [1]
    net = with_parts(lambda net, x: net.head(net.first(x) ** degrees[0]))
    object.__setattr__(net, "degrees", degrees)
    return net


def closing() -> nn.Module:
    net, factor = mlp(), [1.0]
    object.__setattr__(net, "factor", factor)

    def hook(layer: nn.Module, given: Any, out: Tensor) -> Tensor:
        return times(out, factor[0])

    net[4].register_forward_hook(hook)
    return net


def replaced(net: Any) -> None:
    net.forward = lambda x: nn.Sequential.forward(net, x).tanh()


CHANGES: dict[str, Change] = {
    "temperature": Change(
        lambda: with_parts(lambda net, x: times(net.head(net.first(x).tanh()), net.t), t=1.0), set_to(t=0.5)
    ),
    "attribute inside": Change(
        lambda: with_parts(lambda net, x: net.head((net.first(x) / net.t).tanh()), t=1.0), set_to(t=3.0)
    ),
    "buffer": Change(
        lambda: with_parts(lambda net, x: net.head(net.first(x).tanh()) * net.t, t=torch.tensor([1.0])),
        lambda net: net.t.fill_(2.0),
    ),
    "multiplier of a weight": Change(
        lambda: with_parts(lambda net, x: functional.linear(net.first(x).tanh(), net.m * net.w), w=matrix(3, 4), m=1.0),
        set_to(m=-2.0),
    ),
    "multiplier of our own layer": Change(lambda: models.mlp(D, 5, 2, 3), rescaled),
    "low-rank scaling": Change(low_rank, lambda net: set_to(s=-2.0)(net[2])),
    "low rank switched on": Change(
        lambda: set_first(low_rank(), s=0.0), lambda net: set_to(s=1.5)(net[0])
    ),
    "activation after the head": Change(mlp, lambda net: net.append(nn.Tanh())),
    "layer replaced": Change(mlp, lambda net: net.__setitem__(3, nn.Sigmoid())),
    "slope of an activation": Change(
        lambda: nn.Sequential(nn.Linear(D, 4), nn.LeakyReLU(0.1), nn.Linear(4, 3)).to(F64),
        lambda net: set_to(negative_slope=2.0)(net[1]),
    ),
    "stride": Change(
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool1d(1), nn.Flatten()
        ).to(F64),
        lambda net: set_to(stride=(2,))(net[1]),
    ),
    "hook on a layer": Change(mlp, by_hook(2)),
    "hook on the head": Change(mlp, by_hook(4)),
    "hook before a layer": Change(mlp, by_hook_before(2)),
    "activation after the head, by an attribute": Change(
        lambda: with_parts(lambda net, x: net.end(net.head(net.first(x).tanh())), end=nn.Identity().forward),
        set_to(end=torch.tanh),
    ),
    "hook that reads a closure": Change(closing, lambda net: net.factor.__setitem__(0, 3.0)),
    "hook on the module": Change(mlp, lambda net: net.register_forward_hook(lambda m, given, out: out.exp())),
    "hook on gradients": Change(mlp, on_gradients),
    "hook of our own layers": Change(lambda: models.mlp(D, 5, 2, 3), by_hook(1)),
    "closure": Change(closure, lambda net: net.degrees.__setitem__(0, 3)),
    "forward of an instance": Change(mlp, replaced),
    "output of a factory": Change(mlp, outputs=(scaled_by(1.0), scaled_by(3.0))),
    "output that is no longer linear": Change(mlp, outputs=(curved(0), curved(1))),
    "output reads a global": Change(
        mlp, lambda net: FACTOR.__setitem__("of outputs", 3.0), outputs=(by_global, by_global)
    ),
    "output with a mutable default": Change(
        mlp, lambda net: DEFAULT.__setitem__(0, 3.0), outputs=(by_default, by_default)
    ),
    "frozen": Change(mlp, lambda net: net[2].requires_grad_(False)),
    "thawed": Change(lambda: set_first(mlp(), None), lambda net: net.requires_grad_(True)),
    "train mode": Change(
        lambda: with_parts(lambda net, x: net.head(net.first(x).tanh() if net.training else net.first(x))),
        lambda net: net.eval(),
    ),
    "normalised or not": Change(
        lambda: with_parts(lambda net, x: net.head(net.norm(net.first(x)) if net.on else net.first(x)),
                           norm=nn.LayerNorm(4), on=True),
        set_to(on=False),
    ),
    "another use of a layer": Change(
        lambda: with_parts(lambda net, x: net.head(twice(net.first, x) if net.on else net.first(x)), on=False),
        set_to(on=True),
    ),
    "weight norm": Change(mlp, lambda net: parametrizations.weight_norm(net[2])),
    "tied": Change(mlp, lambda net: set_to(weight=net[0].weight)(net[2])),
    "scaled": Change(lambda: control.scale(mlp(), 2.0), lambda net: net.alpha.fill_(5.0)),
}  # fmt: skip


def twice(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(layer(x).tanh())


def set_first(net: Any, frozen: None = None, **values: Any) -> nn.Module:
    """The same network with attributes of its first layer, or that layer frozen."""
    if values:
        set_to(**values)(net[0])
    else:
        net[0].requires_grad_(False)
    return net


def assert_is_the_kernel(module: nn.Module, output: Output | None, n: int = 3) -> None:
    """All forms, square and not, of as many samples as outputs."""
    x1, x2 = normal(D)(n), normal(D)(2)
    rows, columns = reference.jacobian(module, x1, output), reference.jacobian(module, x2, output)
    for reduce in REDUCTIONS:
        for other, right in ((None, rows), (x2, columns)):
            expected = torch.stack(list(reference.products(rows, right, reduce).values())).sum(0)
            assert_close(measure.ntk(module, x1, other, reduce=reduce, output=output), expected)


@pytest.fixture
def untouched() -> Any:
    """What the changes do outside of a module is undone."""
    yield
    FACTOR["of outputs"] = DEFAULT[0] = 1.0


@pytest.mark.parametrize("name", CHANGES)
def test_sees_what_has_changed_since_the_last_call(name: str, untouched: None) -> None:
    case = CHANGES[name]
    module = case.module()
    torch.manual_seed(0)
    fresh = case.module()
    before, after = case.outputs
    assert_is_the_kernel(module, before)
    for each in (module, fresh):
        case.change(each)
    assert_is_the_kernel(module, after)
    x = normal(D)(3)
    assert torch.equal(measure.ntk(module, x, output=after), measure.ntk(fresh, x, output=after))


@pytest.mark.parametrize("name", ["linear", "scaled_dot_product_attention"])
def test_sees_a_function_of_torch_that_was_replaced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention calls them inside of one function of torch.nn.functional."""
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(2, 1, batch_first=True)
    module = Net(lambda net, x: net.layer(x, x, x, need_weights=False)[0].flatten(1), layer=layer).to(F64)
    x = torch.randn(3, 2, 2, dtype=F64)

    def check() -> None:
        expected = reference.kernel(module, x, x)
        assert_close(measure.ntk(module, x), torch.stack(list(expected.values())).sum(0))

    check()
    original = getattr(functional, name)
    monkeypatch.setattr(functional, name, lambda *args, **named: original(*args, **named) * 3)
    check()


MERGED = {"low rank": low_rank, "weight norm": weight_normed, "parametrised": parametrised}


def plan_of(module: nn.Module, x: Tensor) -> Plan:
    with torch.no_grad():
        return planned(request(module, x, None, "full", None, None, None))


def assert_the_same_each_time(make: Callable[[], nn.Module], repetitions: int) -> None:
    """Equal bits, equal plans, nothing by rows of the Jacobian, wherever things lie in memory."""
    x = normal(D)(3)
    first, garbage = measure.ntk(make(), x), []
    plan = plan_of(make(), x)
    assert all(term.order != "jacobian" for term in plan.terms)
    for i in range(repetitions):
        garbage = [torch.empty(j % 7 + 1) for j in range(i % 13)] + garbage[:: i % 3 + 1]
        module = make()
        assert torch.equal(measure.ntk(module, x), first)
        again = plan_of(module, x)
        assert again.terms == plan.terms and again.survey == plan.survey


@pytest.mark.parametrize("name", MERGED)
def test_equal_calls_give_equal_bits(name: str) -> None:
    assert_the_same_each_time(MERGED[name], 12)


@pytest.mark.slow
@pytest.mark.parametrize("name", MERGED)
def test_a_hundred_equal_calls_give_equal_bits(name: str) -> None:
    assert_the_same_each_time(MERGED[name], 100)


IN_A_PROCESS = """
import hashlib, sys, torch
from regimes import measure
from regimes.kernel import machine
from tests.measure.awkward_case import D, normal
from tests.kernel.test_ntk_again import MERGED, mlp
slow = float(sys.argv[1])
machine._measure = lambda *_: machine.Speeds(1e11, slow * 5e10, 1e10 / slow, 3e9)
garbage = [torch.empty(i % 9 + 1) for i in range(int(sys.argv[2]))]
digest = hashlib.sha256()
images = torch.nn.Sequential(torch.nn.Unflatten(1, (1, 2, 2)), torch.nn.Conv2d(1, 3, 2, padding=1),
                             torch.nn.Tanh(), torch.nn.Conv2d(3, 4, 2, padding=1), torch.nn.Flatten())
for module in (*(make() for make in MERGED.values()), mlp(), images.double()):
    torch.nn.init.constant_(next(module.parameters()), 0.3)
    for reduce in ("full", "diagonal", "trace"):
        digest.update(measure.ntk(module, normal(D)(5), reduce=reduce).contiguous().numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_two_processes_give_equal_bits(tmp_path: Any) -> None:
    """Other seeds of hashes, other speeds of the machine, other things in memory."""
    found = set()
    for seed, slow in ((0, 1.0), (1, 0.001), (2, 1000.0)):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed), "REGIMES_CACHE": str(tmp_path / str(seed))}
        command = [
            sys.executable,
            "-c",
            "import torch; torch.manual_seed(0)\n" + IN_A_PROCESS,
            str(slow),
            str(99 * seed),
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found.add(done.stdout)
    assert len(found) == 1
