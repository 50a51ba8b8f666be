"""Compiled block by block, a few functions serve all cuts; what torch would run uncompiled in silence is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from regimes import control
from regimes.core.error import UserError
from tests.control.sparse import assert_same, batches, train

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


guarded = pytest.mark.skipif(
    torch.__version__ < "2.13", reason="older versions of torch are refused, as below"
)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x).tanh())


def deep(blocks: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(blocks)), nn.Linear(4, 1)).double()


class Counting:
    """A back end that counts the functions it is given, and runs them by autograd as it is."""

    def __init__(self) -> None:
        self.functions = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        from torch._dynamo.backends.common import aot_autograd

        self.functions += 1
        return aot_autograd(fw_compiler=lambda g, _: g.forward)(graph, inputs)


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


@guarded
@pytest.mark.slow
@pytest.mark.parametrize("in_place", [True, False])
def test_a_few_functions_serve_all_cuts(in_place: bool) -> None:
    module = deep(12)
    plain = copy.deepcopy(module)
    backend = Counting()
    for place in range(12):
        if in_place:
            module[place].compile(backend=backend)
        else:
            compiled: Any = torch.compile(module[place], backend=backend)
            module[place] = compiled
    seen = set()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for net in (module, plain):
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            policy = control.LayerwiseSparse(
                net, optimizer, control.UniformCut(), example=X, layers=["??", "?"]
            )
            for data in batches(X, 40):
                seen.add(policy.moving[0])
                train(net, optimizer, [data])
    assert len(seen) >= 11 and backend.functions <= 4
    for p, other in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, other, rtol=1e-12, atol=1e-12)


@guarded
@pytest.mark.slow
def test_the_back_end_that_torch_takes_by_itself() -> None:
    module = deep(4)
    plain = copy.deepcopy(module)
    for place in range(4):
        module[place].compile()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for net in (module, plain):
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            control.LayerwiseSparse(net, optimizer, control.RandomLayers(2), example=X, layers=["?"])
            train(net, optimizer, list(batches(X, 12)))
    assert_same(module, plain, 1e-10)


@guarded
def test_compiled_blocks_train_as_written() -> None:
    module = deep(3)
    plain = copy.deepcopy(module)
    backend = Counting()
    for place in range(3):
        module[place].compile(backend=backend)
    for net in (module, plain):
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        control.LayerwiseSparse(net, optimizer, control.UniformCut(), example=X, layers=["?"])
        train(net, optimizer, list(batches(X, 8)))
    assert 1 <= backend.functions <= 4
    assert_same(module, plain)


@guarded
def test_more_sets_than_torch_compiles_are_refused() -> None:
    module = deep(12)
    whole: Any = torch.compile(module, backend="eager")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    policy = control.LayerwiseSparse(
        whole,
        optimizer,
        control.CyclicBlocks(),
        example=X,
        layers=["?", "??"],
    )
    assert policy.plan.layers == tuple(str(place) for place in range(13))
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for _ in range(8):
            train(whole, optimizer, [[X]])
        with pytest.raises(
            UserError, match=r"`module`: '' is compiled as one function and meets set number 9"
        ):
            whole(X)


@guarded
def test_a_whole_module_is_compiled_for_two_sets() -> None:
    module = deep(3)
    plain = copy.deepcopy(module)
    whole: Any = torch.compile(module, backend="eager")
    for net in (whole, plain):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        control.LayerwiseSparse(net, optimizer, control.Cut(p=0.5), example=X)
        train(net, optimizer, list(batches(X, 8)))
    assert_same(module, plain)


def test_a_module_that_is_compiled_behind_the_policy_is_named() -> None:
    """Hooks inside of a compiled function are not run; begin() before the pass helps."""
    module = deep(2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    policy = control.LayerwiseSparse(module, optimizer, control.Fixed(top=1), example=X)
    module.compile(backend="eager")
    module(X).sum().backward()
    with pytest.raises(UserError, match=r"call begin\(\) first"):
        optimizer.step()
    policy.begin()
    module(X).sum().backward()
    optimizer.step()
    assert policy.step == 1


def test_a_torch_that_mixes_up_the_sets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = deep(3)
    module[1].compile(backend="eager")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    policy = control.LayerwiseSparse(module, optimizer, control.CyclicBlocks(), example=X, layers=["?"])
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.12.1"))
    train(module, optimizer, [[X]])
    with pytest.raises(UserError, match=r"`module`: '1' is compiled and meets a second set .* torch 2.12.1"):
        module(X)
    policy.remove()
    control.LayerwiseSparse(module, optimizer, control.Fixed(top=1), example=X, layers=["?"])
    train(module, optimizer, [[X], [X]])
