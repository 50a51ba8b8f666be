"""What holds for the tangent kernel of every network, on random small ones."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from regimes import control, measure, models
from regimes.measure import Reduce
from tests import reference
from tests.kernel.architectures import Network, networks
from tests.kernel.limits import Peak, least_memory
from tests.measure.awkward import CASES, build, samples
from tests.properties import assert_close, assert_psd, assert_symmetric

REDUCTIONS = st.sampled_from(get_args(Reduce))
SIZES = st.integers(1, 5)
quick = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@quick
@given(network=networks(), n=SIZES, m=SIZES)
def test_equals_the_definition(network: Network, n: int, m: int) -> None:
    x1, x2 = network.samples(n), network.samples(m)
    found = measure.ntk(network.module, x1, x2, by_layer=True)
    expected = reference.kernel(network.module, x1, x2)
    assert list(found) == list(expected)
    total = torch.stack(list(expected.values())).sum(0)
    for owner, part in expected.items():
        # A part that cancels, as that of a bias before a norm, is known up to the rounding of the whole.
        assert float((found[owner] - part).norm()) <= 1e-12 * float(total.norm())


@quick
@given(network=networks(), n=SIZES, reduce=REDUCTIONS)
def test_is_symmetric_and_psd(network: Network, n: int, reduce: Reduce) -> None:
    k = measure.ntk(network.module, network.samples(n), reduce=reduce)
    assert_symmetric(k)
    assert_psd(k)


@quick
@given(network=networks(), n=SIZES, reduce=REDUCTIONS)
def test_layers_add_up(network: Network, n: int, reduce: Reduce) -> None:
    x = network.samples(n)
    parts = measure.ntk(network.module, x, reduce=reduce, by_layer=True)
    assert_close(torch.stack(list(parts.values())).sum(0), measure.ntk(network.module, x, reduce=reduce))


@quick
@given(network=networks(), n=SIZES, seed=st.integers(0, 9), reduce=REDUCTIONS)
def test_moves_with_the_samples(network: Network, n: int, seed: int, reduce: Reduce) -> None:
    x = network.samples(n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    k = measure.ntk(network.module, x, reduce=reduce)
    assert_close(measure.ntk(network.module, x[order], reduce=reduce), k[order][:, order])


@quick
@given(network=networks(), n=SIZES, data=st.data(), reduce=REDUCTIONS)
def test_a_block_is_the_kernel_of_its_samples(
    network: Network, n: int, data: st.DataObject, reduce: Reduce
) -> None:
    x = network.samples(n)
    rows, columns = (data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=4)) for _ in range(2))
    k = measure.ntk(network.module, x, reduce=reduce)
    assert_close(measure.ntk(network.module, x[rows], x[columns], reduce=reduce), k[rows][:, columns])


@quick
@given(network=networks(), n=SIZES, m=SIZES)
def test_reductions_are_those_of_the_whole(network: Network, n: int, m: int) -> None:
    x1, x2 = network.samples(n), network.samples(m)
    diagonal = measure.ntk(network.module, x1, x2).diagonal(dim1=2, dim2=3)
    assert_close(measure.ntk(network.module, x1, x2, reduce="diagonal"), diagonal)
    assert_close(measure.ntk(network.module, x1, x2, reduce="trace"), diagonal.mean(-1))


@settings(quick, max_examples=15)
@given(network=networks(), n=SIZES, m=st.none() | SIZES, more=st.floats(1.0, 4.0), reduce=REDUCTIONS)
def test_does_not_depend_on_memory(
    network: Network, n: int, m: int | None, more: float, reduce: Reduce
) -> None:
    x = (network.samples(n),) if m is None else (network.samples(n), network.samples(m))
    memory = int(more * least_memory(network.module, *x, reduce=reduce))
    whole = measure.ntk(network.module, *x, reduce=reduce)
    assert_close(measure.ntk(network.module, *x, reduce=reduce, memory=memory), whole)
    parts = measure.ntk(network.module, *x, reduce=reduce, memory=memory, by_layer=True)
    assert_close(torch.stack(list(parts.values())).sum(0), whole)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(1, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x, x)[0]


def test_a_view_that_is_changed_in_place_for_one_sample_alone() -> None:
    """The layer before the activation gives a view for one sample, and none for two: it leaves the graph."""
    torch.manual_seed(0)
    tail = (nn.Linear(1, 1), nn.ReLU(inplace=True), nn.Flatten(1), nn.Linear(2, 1))
    net = nn.Sequential(nn.Embedding(3, 1), SelfAttention(), *tail).double().requires_grad_(False)
    bias, head = net[2].bias, net[-1].weight
    assert isinstance(bias, Tensor) and isinstance(head, Tensor)
    bias.requires_grad_(True).data.fill_(2.0)
    x = torch.tensor([[0, 0], [2, 0], [1, 2]])
    expected = head.sum().square().expand(3, 1, 3, 1).reshape(measure.ntk(net, x).shape)
    for _ in range(2):
        assert_close(measure.ntk(net, x), expected)
        assert_close(measure.ntk(net, x[:1]), expected[:1, :1])
        assert_close(measure.ntk(net, x, memory=least_memory(net, x)), expected)


class Pooled(nn.Module):
    """A layer whose outcome nobody uses, as the pooler of a network that gives its hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.pooler, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x).tanh()
        self.pooler(hidden)
        return self.head(hidden)


def test_a_layer_that_nobody_uses_costs_the_others_nothing() -> None:
    """Nothing comes back to it, on the probe already: the rules of the others hold."""
    torch.manual_seed(0)
    net = Pooled().double()
    x = torch.randn(5, 3, dtype=torch.float64)
    expected = sum(reference.kernel(net, x, x).values(), torch.zeros(()))
    for _ in range(2):
        assert_close(measure.ntk(net, x), expected)
        assert_close(measure.ntk(net, x, memory=least_memory(net, x)), expected)
    assert not measure.ntk(net, x, by_layer=True)["pooler"].any()
    orders = {each.layer: each.order for each in measure.ntk_forecast(net, x).layers}
    assert orders and "jacobian" not in orders.values()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [1.0, 1e3])
def test_outputs_that_cancel_cost_no_fast_path(dtype: torch.dtype, alpha: float) -> None:
    """A start in mirrored pairs: what is left of the outputs is rounding, and a sample alone has another one."""
    net = models.mlp(7, 32, 1, outputs=3, seed=1, symmetric=True).to(dtype)
    x = torch.randn(33, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    module = control.scale(net, alpha, center=False)
    expected = reference.kernel(module.double(), x.double(), x.double())
    whole, module = sum(expected.values(), torch.zeros(())), module.to(dtype)
    far = torch.linalg.vector_norm(measure.ntk(module, x).double() - whole)
    assert far <= 1e2 * torch.finfo(dtype).eps * torch.linalg.vector_norm(whole)
    for pair in ((x,), (x, x[:5])):
        for reduce in get_args(Reduce):
            layers = measure.ntk_forecast(module, *pair, reduce=reduce).layers
            assert "jacobian" not in {each.order for each in layers}


TILED = [
    "mlp with biases and outputs", "scaled", "images", "depthwise separable", "transposed conv2d",
    "batch norm in eval", "positions", "lstm", "tied", "tied head", "reused in time", "bare parameters",
    "einsum", "partly frozen", "in place", "row by row", "ordered", "force", "own backward",
    "vision transformer", "encoder of two layers", "attention", "routed",
]  # fmt: skip


@pytest.mark.parametrize("name", TILED)
def test_tiles_make_no_difference(name: str) -> None:
    """The least memory that is accepted: a tile at a time."""
    assert CASES[name].output is None
    module = build(name)
    rows, columns = samples(name, 3), samples(name, 2)
    for x in ((rows,), (rows, columns)):
        least = least_memory(module, *x)
        whole = measure.ntk(module, *x)
        assert_close(measure.ntk(module, *x, memory=least), whole)


def test_peak_weighs_what_is_there() -> None:
    with Peak() as peak:
        a = torch.ones(1000)
        b = a + 1
        del a
        view = b[:10]
        del b
        assert peak.now == 4000 and peak.most == 8000
        del view
        assert peak.now == 0


@pytest.mark.parametrize("reduce", ["full", "trace"])
@pytest.mark.parametrize("name", ["mlp with biases and outputs", "images", "lstm", "sequences", "routed"])
def test_the_limit_is_kept(name: str, reduce: Reduce) -> None:
    """Besides the kernel and a copy of the inputs; what an operation takes inside itself is estimated."""
    module, x = build(name), samples(name, 16)
    least = least_memory(module, x, reduce=reduce)
    for memory in (4 * least, 16 * least):
        with Peak() as peak:
            k = measure.ntk(module, x, reduce=reduce, memory=memory)
        assert peak.most <= 1.5 * memory + k.nbytes + x.nbytes
