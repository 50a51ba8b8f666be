"""Every measurement of one network by its derivatives, against loops of autograd, twice each."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from regimes import control, measure
from tests import reference
from tests.properties import assert_close

__all__ = ["has_its_gap", "holds_as_operator", "holds_in_all_forms", "holds_linearised"]


def holds_in_all_forms(module: nn.Module, x: Tensor) -> None:
    """The kernel in all its forms, its sketch and its forecast."""
    parts = reference.kernel(module, x, x)
    k = sum(parts.values(), torch.zeros(()))
    diagonal = torch.einsum("ijaa->ija", k)
    c = k.shape[2]
    signs = torch.randint(0, 2, (3, c), generator=torch.Generator().manual_seed(1)) * 2.0 - 1
    sketched = torch.einsum("ra,ijab,rb->ij", signs.to(k), k, signs.to(k)) / (3 * c)
    for _ in range(2):
        assert_close(measure.ntk(module, x), k)
        assert_close(measure.ntk(module, x, reduce="diagonal"), diagonal)
        assert_close(measure.ntk(module, x, reduce="trace"), diagonal.mean(-1))
        by_layer = measure.ntk(module, x, by_layer=True)
        assert set(by_layer) == set(parts)
        for owner, part in parts.items():
            assert_close(by_layer[owner], part)
        assert_close(measure.ntk_sketch(module, x, probes=3, seed=1), sketched)
        assert measure.ntk_forecast(module, x).result_bytes == k.numel() * k.element_size()


def holds_as_operator(module: nn.Module, x: Tensor) -> None:
    """A product with the kernel."""
    k = sum(reference.kernel(module, x, x).values(), torch.zeros(()))
    square = k.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    v = torch.randn(len(square), generator=torch.Generator().manual_seed(0), dtype=k.dtype)
    for _ in range(2):
        found = measure.ntk_operator(module, x).matvec(v.numpy())
        assert_close(torch.from_numpy(found), square @ v)


def holds_linearised(module: nn.Module, x: Tensor) -> None:
    """The linearised module with its gradients."""
    generator = torch.Generator().manual_seed(0)
    own = {name: p for name, p in module.named_parameters() if p.requires_grad}
    step = {name: 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in own.items()}
    rows, outputs = reference.jacobian(module, x), module(x).detach()
    u = torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype)
    products = [torch.einsum("iap,p->ia", rows[k].reshape(*u.shape, -1), step[k].flatten()) for k in step]
    linear = control.linearize(module)
    moved(linear, step)
    weights = [p for p in linear.parameters() if p.requires_grad]
    for _ in range(2):
        found = linear(x)
        assert_close(found, outputs + sum(products))
        slopes = torch.autograd.grad((u * found).sum(), weights)
        for slope, name in zip(slopes, own, strict=True):
            assert_close(slope, torch.einsum("ia,ia...->...", u, rows[name]))


def has_its_gap(module: nn.Module, x: Tensor) -> None:
    """The gap to the linearisation at the start; the module is moved."""
    generator = torch.Generator().manual_seed(0)
    own = {name: p for name, p in module.named_parameters() if p.requires_grad}
    start = {name: p.detach().clone() for name, p in own.items()}
    moved(module, {k: 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype) for k, p in own.items()})
    expected = reference.linear_gap(module, x, start)
    for _ in range(2):
        assert measure.gap(module, x, origin=start) == pytest.approx(expected, rel=1e-9)


def moved(module: nn.Module, step: dict[str, Tensor]) -> None:
    """Take a step."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name in step:
                p.add_(step[name])
