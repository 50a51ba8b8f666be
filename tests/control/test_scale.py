"""F = alpha (f - f0): zero at the start, an ordinary module, wherever a module can go."""

from __future__ import annotations

import copy
import inspect
import io
import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from regimes import control, models, train
from regimes.control.scale import unscaled
from regimes.core.error import UserError
from regimes.core.loss import squared
from tests.train.plain import AWKWARD

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def dropout_network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 64), nn.Dropout(0.5), nn.Linear(64, 1)).double()


NETWORKS = {**AWKWARD, "mlp": lambda seed: models.mlp(5, 8, 2, seed=seed)}


def move(module: nn.Module) -> None:
    for p in module.parameters():
        if p.requires_grad:
            p.data += 0.1


@pytest.mark.parametrize("name", NETWORKS)
def test_is_the_formula_on_any_module(name: str) -> None:
    net = NETWORKS[name](0)
    scaled = control.scale(net, 30.0)
    assert bool((scaled(X) == 0).all()) and scaled.network is net
    before = net(X).detach()
    move(scaled)
    torch.testing.assert_close(scaled(X), 30 * (net(X) - before))


def test_without_centring_it_is_a_factor() -> None:
    net = models.mlp(5, 8, 2)
    scaled = control.scale(net, 4.0, center=False)
    torch.testing.assert_close(scaled(X), 4 * net(X))
    assert scaled.origin is None


def test_only_the_network_trains() -> None:
    scaled = control.scale(models.mlp(5, 8, 2), 2.0)
    assert all(name.startswith("network.") for name, p in scaled.named_parameters() if p.requires_grad)
    origin = scaled.origin
    assert origin is not None
    start = {name: p.clone() for name, p in origin.named_parameters()}
    optimizer = torch.optim.Adam([p for p in scaled.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        scaled.loss((scaled(X) - 1).square().mean()).backward()
        optimizer.step()
    assert bool((scaled(X) != 0).all())
    assert all(torch.equal(p, start[name]) and p.grad is None for name, p in origin.named_parameters())


def test_the_origin_stays_in_eval_mode() -> None:
    """With dropout and batch norm in the network, f(w0, x) is a number and does not move."""
    for make in (dropout_network, AWKWARD["batch-norm"]):
        scaled = control.scale(make(0).train(), 2.0)
        origin = scaled.origin
        assert origin is not None
        start = origin(X)
        for mode in (True, False, True):
            scaled.train(mode)
            assert scaled.network.training is mode and not any(m.training for m in origin.modules())
            scaled(X)
            assert torch.equal(origin(X), start)
        assert bool((scaled.eval()(X) == 0).all()) or make is not dropout_network


def test_state_dict_round_trip() -> None:
    scaled = control.scale(models.mlp(5, 8, 2), 7.0)
    move(scaled)
    other = control.scale(models.mlp(5, 8, 2, seed=9), 1.0)
    other.load_state_dict(scaled.state_dict())
    torch.testing.assert_close(other(X), scaled(X), rtol=0, atol=0)
    assert float(other.alpha) == 7.0


@pytest.mark.parametrize("name", NETWORKS)
def test_copies_and_files(name: str) -> None:
    scaled = control.scale(NETWORKS[name](0), 7.0)
    move(scaled)
    file = io.BytesIO()
    torch.save(scaled, file)
    file.seek(0)
    for other in (copy.deepcopy(scaled), torch.load(file, weights_only=False)):
        assert torch.equal(other(X), scaled(X))
        move(other)
        assert not torch.equal(other(X), scaled(X))


def test_dtype_and_device_move_all_of_it() -> None:
    scaled = control.scale(models.mlp(5, 8, 2), 7.0).float()
    assert scaled.alpha.dtype == scaled(X.float()).dtype == torch.float32
    assert scaled.to("meta").alpha.device.type == "meta"


def test_runs_under_distributed_data_parallel(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        scaled = control.scale(models.mlp(5, 8, 2), 3.0)
        plain = copy.deepcopy(scaled)
        parallel = DistributedDataParallel(scaled)
        for module in (parallel, plain):
            (module(X) - 1).square().mean().backward()
        for mine, theirs in zip(scaled.network.parameters(), plain.network.parameters(), strict=True):
            assert mine.grad is not None and theirs.grad is not None
            torch.testing.assert_close(mine.grad, theirs.grad)
    finally:
        torch.distributed.destroy_process_group()


def test_the_scaled_loss_is_that_of_the_unscaled_network() -> None:
    """MSE of F over alpha^2 is MSE of f_c against y / alpha, value and gradient (Chizat et al. 2019)."""
    y = torch.randn(6, dtype=torch.float64)
    net = models.mlp(5, 8, 2)
    for alpha in (1e-3, 1.0, 1e4):
        scaled = control.scale(net, alpha)
        centred = control.scale(net, 1.0)
        pair = (
            scaled.loss(squared.per_sample(scaled(X), y).mean()),
            squared.per_sample(centred(X), y / alpha).mean(),
        )
        torch.testing.assert_close(*pair)
        gradients = [torch.autograd.grad(value, list(net.parameters())) for value in pair]
        for mine, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, theirs)


def test_what_is_inside() -> None:
    net = models.mlp(5, 8, 2)
    scaled = control.scale(net, 7)
    assert unscaled(scaled) == (net, 7.0, scaled.origin)
    assert unscaled(net) == (net, 1.0, None)
    assert "7 * (f(w, x) - f(w0, x))" in repr(scaled)
    assert "7 * f(w, x)" in repr(control.scale(net, 7, center=False))


@pytest.mark.parametrize("alpha", [math.nan, math.inf, 0, 0.0, -1.0, "x", True, None, np.float32(0)])
def test_a_bad_alpha_is_named(alpha: object) -> None:
    scale = inspect.unwrap(control.scale)  # the types are checked while the tests run, before the function is
    with pytest.raises(
        UserError, match=f"`alpha`: got {re.escape(repr(alpha))}, expected a positive finite number"
    ):
        scale(models.mlp(5, 8, 2), alpha)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("alpha", [7, np.float32(7), np.int64(7), torch.tensor(7.0), torch.tensor(7)])
def test_any_kind_of_number_is_an_alpha(alpha: Any) -> None:
    scaled = control.scale(models.mlp(5, 8, 2), alpha)
    assert (
        float(scaled.alpha) == 7.0 and scaled.alpha.dtype == torch.float64 and not scaled.alpha.requires_grad
    )


def test_an_alpha_that_the_precision_does_not_hold_is_named() -> None:
    for alpha, value in ((1e5, "inf"), (1e-9, "0")):
        with pytest.raises(UserError, match=rf"`alpha`: got {alpha:g}, which is {value} in torch\.float16"):
            control.scale(models.mlp(5, 8, 2).half(), alpha)


class Both(nn.Module):
    """More than a tensor."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_what_is_no_module_or_gives_no_tensor_is_named() -> None:
    with pytest.raises(UserError, match=r"`module`: got <built-in .* relu.*>, expected a torch\.nn\.Module"):
        control.scale(torch.relu, 2.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="`module`: gave outputs of type tuple, expected a tensor"):
        control.scale(Both(), 2.0)(X)


def test_a_module_that_keeps_a_result_of_its_last_call() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        network = nn.utils.weight_norm(nn.Linear(5, 2)).double()
    network(X)
    assert bool((control.scale(network, 2.0)(X) == 0).all())


def test_scaling_twice_is_a_mistake() -> None:
    with pytest.raises(UserError, match="`module`: got a module that is scaled already"):
        control.scale(control.scale(models.mlp(5, 8, 2), 2.0), 2.0)


def test_an_origin_that_is_not_finite_is_found_at_the_first_call() -> None:
    net = models.mlp(5, 8, 2)
    scaled = control.scale(net, 2.0)
    with pytest.raises(UserError, match=r"`module`: its output at the origin: \[2, 0\] is nan"):
        scaled(torch.where(torch.arange(6)[:, None] == 2, math.nan, X))
    scaled(X)
    next(net.parameters()).data[0, 0] = math.nan  # later it is for the training to say
    assert bool(scaled(X).isnan().all())
    broken = control.scale(net, 2.0)
    with pytest.raises(UserError, match=r"`module`: its output at the origin: \[0, 0\] is nan"):
        broken(X)
    assert bool(control.scale(net, 2.0, center=False)(X).isnan().all())  # nothing is subtracted


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_too_few_digits_for_alpha_are_said_once(dtype: torch.dtype, center: bool) -> None:
    scaled = control.scale(models.mlp(5, 8, 2).to(dtype), 2e3, center)
    with pytest.warns(UserWarning, match=r"`alpha` above 1000 .* call \.double\(\)") as caught:
        scaled(X.to(dtype))
    scaled(X.to(dtype))
    assert len(caught) == 1
    control.scale(models.mlp(5, 8, 2).to(dtype), 1000.0, center)(X.to(dtype))
    scaled.double()(X)
    control.scale(models.mlp(5, 8, 2), 1e6, center)(X)


def test_a_lazy_float32_module_is_no_trouble_for_an_engine() -> None:
    """It runs in float64."""
    scaled = control.scale(models.mlp(5, 8, 2).float(), 1e5)
    *_, end = train.flow(scaled, X.float(), X[:, 0].sign(), max_steps=2)
    assert end(X).dtype == torch.float64


def test_what_is_looked_at_once_does_not_disturb_vmap() -> None:
    scaled = control.scale(models.mlp(5, 8, 2, activation="tanh"), 2.0)
    move(scaled.network)
    torch.testing.assert_close(torch.func.vmap(scaled)(X), scaled(X))
