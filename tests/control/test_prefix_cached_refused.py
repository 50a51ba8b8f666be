"""What a cached prefix refuses, and what it leaves to be computed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regimes import control
from regimes.core.error import UserError
from tests.control.prefixes import Inner, N, X, loop_of


def detached(net: Inner, h: Tensor) -> Tensor:
    return h * net.out(h).detach().mean(1, keepdim=True)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "dropout": (
        lambda: nn.Dropout(0.5),
        "'b' is below all that moves, but is not the same.*'between' draws random",
    ),
    "a draw": (lambda: lambda net, h: h + torch.randn(6, dtype=h.dtype), "'randn' draws random numbers"),
    "batch norm": (lambda: nn.BatchNorm1d(6), "'between' changes what the module keeps.*call .eval()"),
    "batch norm that keeps nothing": (
        lambda: nn.BatchNorm1d(6, track_running_stats=False),
        "what 'linear' takes from the layers below hangs on other samples",
    ),
    "other samples": (lambda: lambda net, h: h - h.mean(0), "hangs on other samples of the batch"),
    "all pairs": (
        lambda: lambda net, h: (h @ h.T)[:, :6].contiguous(),
        "hangs on other samples|takes another way",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_the_same_each_time_is_refused(what: str) -> None:
    make, words = REFUSED[what]
    module = Inner(make())
    moves = control.Fixed(names=["out"])
    control.CachedPrefix(loop_of(module, moves), samples=N)
    with pytest.raises(UserError, match=f"`policy`: .*{words}"):
        module(X)
    assert all(each._compiled_call_impl is None for each in module.modules())


def test_what_comes_from_layers_that_move_is_computed() -> None:
    """In a detour that no gradient takes: what is above it is not the prefix."""
    module = Inner(detached)
    twin = copy.deepcopy(module).double()
    prefix = control.CachedPrefix(loop_of(module, control.Fixed(names=["out"])), samples=N)
    for _ in range(3):
        torch.testing.assert_close(module(X), twin(X))
        with torch.no_grad():
            for net in (module, twin):
                net.out.weight.mul_(0.7)
    assert prefix.skipped == ("a",) and prefix.fills == 1


def test_hooks_in_the_prefix_are_refused_and_those_above_run() -> None:
    module = Inner(nn.Tanh())
    seen: list[torch.Size] = []
    module.out.register_forward_hook(lambda _, args, out: seen.append(args[0].shape))
    control.CachedPrefix(loop_of(module), samples=N)
    for _ in range(3):
        module(X)
    assert seen[-2:] == [X.shape] * 2 and len(seen) >= 3
    module.b.register_forward_hook(lambda _, args, out: None)
    with pytest.raises(UserError, match="`policy`: 'b' has a hook, which would not be called"):
        module(X)


def test_more_samples_than_were_said_are_refused() -> None:
    module = Inner(nn.Tanh())
    control.CachedPrefix(loop_of(module), samples=N)
    for _ in range(2):
        module(X)
    with pytest.raises(UserError, match=r"`samples`: got 10, and more different samples.*augmented"):
        module(X + 1e-12)


def test_a_module_that_changes_from_pass_to_pass_is_refused() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out, self.count = nn.Linear(6, 6), nn.Linear(6, 2), 0

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return self.out(self.a(x))

    module = Counts()
    control.CachedPrefix(loop_of(module), samples=N)
    with pytest.raises(UserError, match=r"`policy`: its module changes from pass to pass \(.count\)"):
        for _ in range(5):
            module(X)


def test_bad_settings_are_refused() -> None:
    module = Inner(nn.Tanh())
    policy = loop_of(module, control.Cut(p=0.1))
    with pytest.raises(UserError, match=r"`policy`: its lowest layer 'a' moves at a share 0.1 of the steps"):
        control.CachedPrefix(policy, samples=N)
    policy.remove()
    policy = loop_of(module)
    for name in ("samples", "recheck"):
        with pytest.raises(UserError, match=f"`{name}`: got 0, expected a whole number of at least 1"):
            control.CachedPrefix(policy, **{"samples": N, name: 0})  # pyright: ignore[reportArgumentType]
    control.CachedPrefix(policy, samples=N)
    with pytest.raises(UserError, match="`policy`: has a CachedPrefix already"):
        control.CachedPrefix(policy, samples=N)


def test_layers_that_were_frozen_before_are_a_prefix_too() -> None:
    module = Inner(nn.Tanh())
    module.requires_grad_(False)
    module.out.requires_grad_(True)
    prefix = control.CachedPrefix(loop_of(module), samples=N)
    for _ in range(2):
        module(X)
    assert prefix.skipped == ("a", "between", "b") and prefix.fills == 1


def test_samples_in_front_are_counted() -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor, shift: Tensor | None = None, *, times: float = 1.0) -> Tensor:
            h = self.a(x) * times
            return self.out(h if shift is None else h + shift)

    module = Graph()
    prefix = control.CachedPrefix(loop_of(module), samples=2 * N)
    with pytest.raises(UserError, match="`module`: got tensors with 6, 10 entries in front"):
        module(X, X[0])
    for inputs, named in (
        ((X, X), {}),
        ((X, X), {"times": 2.0}),
        ((X[:1],), {}),
        ((X,), {}),
        ((X, X + 1), {}),
    ):
        for _ in range(2):
            expected = copy.deepcopy(module)(*inputs, **named)
            torch.testing.assert_close(module(*inputs, **named), expected)
    assert prefix.fills == 4


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_bytes(b"a data set")
    policy = loop_of(Inner(nn.Tanh()))
    for path, words in (
        (mine, "holds something else"),
        (tmp_path, "a folder; expected a file in it"),
        (tmp_path / "no" / "file", "there is no folder"),
    ):
        with pytest.raises(UserError, match=f"`path`: .*{words}"):
            control.CachedPrefix(policy, samples=N, path=path)
    assert mine.read_bytes() == b"a data set"
    for _ in range(2):  # its own file is written again
        prefix = control.CachedPrefix(policy, samples=N, path=tmp_path / "kept")
        policy.network(X)
        prefix.remove()
    huge = control.CachedPrefix(policy, samples=2**60, path=tmp_path / "kept")
    with pytest.raises(UserError, match=r"`path`: .* cannot take .* bytes"):
        policy.network(X)
    huge.remove()
    control.CachedPrefix(policy, samples=2**60)
    with pytest.raises(UserError, match=r"`samples`: the values of .* more than there is memory"):
        policy.network(X)
