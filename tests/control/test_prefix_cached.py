"""A cached prefix changes nothing but the time: equal to a run without it, and never stale."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regimes import control
from regimes.core.error import UserError
from tests.control.prefixes import NETWORKS, Loop, N, X, loop_of, orders
from tests.control.sparse import assert_same, loss_of


@pytest.mark.parametrize("where", ["memory", "file"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_run_is_the_same_with_it(name: str, where: str, tmp_path: Path) -> None:
    """In batches of other samples and of other sizes than those that a sample was computed in."""
    more: dict[str, Any] = {"path": tmp_path / "kept"} if where == "file" else {}
    plain, cached = Loop(name, False), Loop(name, True, recheck=4, **more)
    for size in (4, 5, N):
        for loop in (plain, cached):
            loop.run(orders(3, size, seed=size))
    assert_same(cached.module, plain.module)
    assert cached.cache.passes == 18 and 3 <= cached.cache.fills <= 3 + 18 // 4
    assert cached.cache.skipped
    if where == "file":
        assert more["path"].stat().st_size >= cached.cache.bytes > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_the_bits_are_the_same_in_the_same_batches(name: str) -> None:
    plain, cached = Loop(name, False, kind="momentum"), Loop(name, True, kind="momentum")
    for _ in range(3):
        for loop in (plain, cached):
            loop.run(orders(1, 5))
    assert cached.cache.fills == 2
    assert_same(cached.module, plain.module, 0.0)


def calls_of(module: nn.Module) -> list[str]:
    """The modules that a pass runs, by hooks that the policy does not know: a patched method."""
    ran: list[str] = []
    for name, each in module.named_modules():
        if name and not [*each.children()]:
            forward = type(each).forward
            each.__dict__["forward"] = lambda *args, each=each, name=name, forward=forward, **named: (
                ran.append(name),
                forward(each, *args, **named),
            )[1]
    return ran


def test_the_prefix_does_not_run() -> None:
    loop = Loop("mlp", True)
    ran = calls_of(loop.module)
    loop.run(orders(1, N))
    ran.clear()
    loop.run(orders(2))
    assert set(ran) == {"6"}
    with torch.no_grad():
        loop.module(X)
    assert ran[-7:] == [str(place) for place in range(7)]


# What a change does to a module and its loop, and to the inputs.
CHANGES: dict[str, Callable[[Any], Any]] = {
    "weights in place": lambda net: net.body[0].weight.data.add_(0.1),
    "one weight behind torch's back": lambda net: net.body[3].weight.data.view(-1)[3:4].mul_(1.5),
    "rows that change places": lambda net: net.body[0].weight.data.copy_(net.body[0].weight.data.flip(0)),
    "a checkpoint": lambda net: net.load_state_dict(
        {name: 1.2 * value for name, value in net.state_dict().items()}
    ),
    "a buffer": lambda net: net.body[1].running_mean.add_(0.3),
    "an attribute": lambda net: setattr(net.body[1], "eps", 0.3),
    "another module": lambda net: net.body.__setitem__(2, nn.Tanh()),
    "another forward": lambda net: setattr(net.body[2], "forward", torch.sigmoid),
    "an attribute of the whole": lambda net: setattr(net, "scale", 2.0),
}


class Whole(nn.Module):
    """A prefix with all that may change."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 2)
        ).eval()
        self.out = nn.Linear(8, 2)
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.out((self.scale * self.body(x.view(len(x), 1, 2, 3))).flatten(1))


def pair(monkeypatch: pytest.MonkeyPatch, **more: Any) -> tuple[Loop, Loop]:
    monkeypatch.setitem(NETWORKS, "whole", (Whole, 2))  # pyright: ignore[reportArgumentType]
    fixed = control.Fixed(top=1)
    return Loop("whole", False, fixed), Loop("whole", True, fixed, **more)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, cached = pair(monkeypatch)
    for loop in (plain, cached):
        loop.run(orders(2))
        CHANGES[change](loop.module)
        loop.run(orders(2, seed=7))
    assert_same(cached.module, plain.module)
    assert cached.cache.fills == 6  # three batches, before and after


def test_other_inputs_are_other_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one place, of another dtype, and under another precision."""
    for change in ("one entry", "dtype", "autocast"):
        plain, cached = pair(monkeypatch)
        other = X.clone()
        other[2, 3] += 1e-9
        for loop in (plain, cached):
            loop.run(orders(2))
            if change == "one entry":
                loop.prefix = loop.prefix and enlarged(loop)
                loop.run(orders(2), x=X).run(orders(2), x=other)
            elif change == "dtype":
                loop.module.float()
                loop.optimizer.state.clear()
                loop.run(orders(2), x=X.float())
            else:
                loop.module.float()
                loop.optimizer.state.clear()
                loop.run(orders(2), x=X.float())
                with torch.autocast("cpu", torch.bfloat16):
                    loop.run(orders(2), x=X.float())
        assert_same(cached.module, plain.module, 1e-12 if change == "one entry" else 1e-5)
        assert cached.cache.fills == 6 if change == "dtype" else 3


def enlarged(loop: Loop) -> control.CachedPrefix:
    loop.cache.remove()
    return control.CachedPrefix(loop.policy, samples=N + 1)


def test_what_no_fingerprint_sees_is_found_by_comparison() -> None:
    factor = [1.0]

    class Global(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.a(x) * factor[0])

    torch.manual_seed(0)
    module = Global().double()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    policy = control.LayerwiseSparse(module, optimizer, control.Fixed(top=1), example=X)
    prefix = control.CachedPrefix(policy, samples=N, recheck=4)
    module(X)
    factor[0] = 2.0
    for _ in range(2):
        module(X)
    with pytest.raises(
        UserError, match=r"`policy`: what its prefix computes, which 'linear' takes, is another thing"
    ):
        module(X)
    prefix.clear()
    torch.testing.assert_close(module(X), module.eval()(X.clone().requires_grad_()))


def test_a_run_that_goes_on_fills_it_again(tmp_path: Path) -> None:
    batches = [*orders(4, 5)]
    whole = Loop("residual", True).run(iter(batches))
    for k in range(len(batches)):
        first = Loop("residual", True).run(iter(batches[:k]))
        file = io.BytesIO()
        torch.save([each.state_dict() for each in (first.module, first.optimizer, first.policy)], file)
        file.seek(0)
        second = Loop("residual", True)
        parts = (second.module, second.optimizer, second.policy)
        for each, state in zip(parts, torch.load(file, weights_only=True), strict=True):
            each.load_state_dict(state)
        second.run(iter(batches[k:]))
        assert_same(second.module, whole.module)


def test_accumulated_batches_of_several_passes() -> None:
    """Two passes before the backward passes, of checkpoints too, which compute again then."""
    for name in ("residual", "checkpointed", "images"):
        loops = Loop(name, False), Loop(name, True)
        for loop in loops:
            for rows in orders(3, 5):
                loop.optimizer.zero_grad()
                losses = [
                    loss_of(loop.module(X[part]))
                    for part in (rows, rows.flip(0), X.new_tensor([0, 1]).long())
                ]
                torch.stack(losses).sum().backward()
                loop.optimizer.step()
        assert_same(loops[1].module, loops[0].module)


def test_passes_that_are_computed_in_full() -> None:
    loop = Loop("residual", True).run(orders(2))
    full, passes = copy.deepcopy(loop.module), loop.cache.passes
    x = X.clone().requires_grad_()
    loss_of(loop.module(x)).backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    with torch.no_grad():
        torch.testing.assert_close(loop.module(X), full(X), rtol=0, atol=0)
    with loop.policy.free():
        loss_of(loop.module(X)).backward()
        assert all(p.grad is not None for p in loop.module.parameters())
    assert loop.cache.passes == passes and full._compiled_call_impl is None
    loop.policy.remove()
    loss_of(loop.module(X)).backward()
    assert loop.cache.passes == passes and all(p.grad is not None for p in loop.module.parameters())


def test_without_it_all_is_computed() -> None:
    loop = Loop("residual", True).run(orders(2))
    passes = loop.cache.passes
    loop.cache.remove()
    loop.run(orders(1))
    assert loop.cache.passes == passes and not loop.cache.skipped


def test_an_error_in_the_pass_leaves_the_module_as_it_is() -> None:
    loop = Loop("mlp", True).run(orders(2))
    last = loop.module.get_submodule("6")

    def fail(*_: Any) -> Any:
        raise KeyError("mine")

    last.__dict__["forward"] = fail
    with pytest.raises(KeyError, match="mine"):
        loop.module(X)
    del last.__dict__["forward"]
    assert all(each._compiled_call_impl is None for each in loop.module.modules())
    twin = Loop("mlp", False).run(orders(2)).run(orders(1, seed=5))
    loop.run(orders(1, seed=5))
    assert_same(loop.module, twin.module)


@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_compiled_blocks_are_left_out_and_the_others_run_as_compiled() -> None:
    def deep() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4)), nn.Linear(6, 2)
        ).double()

    graphs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(1)
        return graph

    torch._dynamo.reset()
    module, plain = deep(), deep()
    for place in range(4):
        module[place].compile(backend=backend)
    fixed = control.Fixed(top=2)
    policies = [loop_of(net, fixed) for net in (module, plain)]
    prefix = control.CachedPrefix(policies[0], samples=N)
    for net in (module, plain):
        for rows in orders(4, 5):
            loss_of(net(X[rows])).backward()
    for p, other in zip(module.parameters(), plain.parameters(), strict=True):
        assert (p.grad is None) == (other.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, other.grad, rtol=1e-12, atol=1e-12)
    assert prefix.skipped == ("0", "1", "2") and prefix.fills == 2
    assert (torch.__version__ >= "2.13") <= len(graphs) <= 4  # older ones run them as written beside a prefix
    prefix.remove()
    module.compile(backend=backend)
    with pytest.raises(
        UserError, match="`policy`: its module is compiled as one function; compile it block by block"
    ):
        control.CachedPrefix(policies[0], samples=N)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_models_of_hugging_face(name: str) -> None:
    """With a head on top that moves; the cache of keys and values is looked into."""
    from tests.control.test_layers_transformers import build

    nets = []
    for cached in (False, True):
        module, inputs = build(name)
        layers = control.layer_plan(module, control.UniformCut(), example=inputs).layers
        policy = loop_of(module, control.Cut(p=[0.0] * (len(layers) - 3) + [0.5, 0.5, 1.0]), inputs)
        prefix = control.CachedPrefix(policy, samples=3) if cached else None
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
        for step in range(6):
            rows = torch.randperm(3, generator=torch.Generator().manual_seed(step))[: 2 + step % 2]
            loss_of(
                module(
                    **{key: value[rows] for key, value in inputs.items()},
                    use_cache=False if name == "t5" else None,
                )["logits"]
            ).backward()
            optimizer.step()
            optimizer.zero_grad()
        if prefix is not None:
            assert prefix.fills <= 2 and len(prefix.skipped) > 2
        nets.append(module)
    assert_same(nets[1], nets[0])


def test_another_precision_of_products_is_another_computation() -> None:
    """By the names of newer versions of torch too, after which the older ones raise."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("an older torch")
    loop = Loop("residual", True).run(orders(2))
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        loop.run(orders(2))
        assert loop.cache.fills == 6
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    with torch.no_grad():
        assert torch.isfinite(loop.module(X)).all()
