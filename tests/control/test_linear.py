"""f(a, x) + J(a, x)(w - a): the formula, its gradient, and an ordinary module around them."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from regimes import control, measure, models, train
from regimes.control import Linearized, linearize
from regimes.core.batch import Inputs, feed
from regimes.core.derivative import call, hvp, jvp, vjp
from regimes.core.error import UserError
from regimes.core.jacobian import jacobian
from regimes.core.loss import squared
from regimes.core.tree import sub, trainable
from tests.control.networks import F64, NETWORKS, TOKENS, Pair, X
from tests.measure.awkward import D, build
from tests.train.plain import task


def case(name: str) -> tuple[nn.Module, Linearized, Inputs, Any]:
    """A network, its linearisation with w moved away from the anchor, inputs, what picks the outputs."""
    make, x, output = NETWORKS[name]
    torch.manual_seed(1)
    network = make().to(F64)
    linear = linearize(network, output=output)
    move(linear)
    return network, linear, x, output


def move(module: nn.Module, size: float = 0.3) -> None:
    for p in module.parameters():
        if p.requires_grad:
            p.data += size * torch.randn_like(p)


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainable(module).items()}


def formula(network: nn.Module, w: dict[str, Tensor], x: Inputs, output: Any) -> Tensor:
    start, along = jvp(network, values(network), x, sub(w, values(network)), output=output)
    return start + along


@pytest.mark.parametrize("name", NETWORKS)
def test_is_the_formula(name: str) -> None:
    network, linear, x, output = case(name)
    expected = formula(network, values(linear), x, output)
    torch.testing.assert_close(feed(linear, x).reshape(expected.shape), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradient_is_that_of_the_network_at_the_anchor(name: str) -> None:
    network, linear, x, output = case(name)
    out = feed(linear, x)
    u = torch.randn_like(out)
    out.backward(u)
    _, expected = vjp(network, values(network), x, u.reshape(len(u), -1), output=output)
    for key, p in linear.named_parameters():
        if key not in expected:
            assert p.grad is None
        elif p.grad is not None or bool(expected[key].any()):
            torch.testing.assert_close(p.grad, expected[key])


@pytest.mark.parametrize("name", NETWORKS)
def test_starts_as_the_network_and_has_its_names(name: str) -> None:
    make, x, output = NETWORKS[name]
    network = make().to(F64)
    linear = linearize(network, output=output)
    out = feed(network, x)
    torch.testing.assert_close(feed(linear, x), out if output is None else output(out))
    kinds = [
        [(key, p.shape, p.requires_grad) for key, p in module.named_parameters()]
        for module in (network, linear)
    ]
    assert kinds[0] == kinds[1]
    assert all(
        torch.equal(p, q) and p is not q
        for p, q in zip(network.parameters(), linear.parameters(), strict=True)
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_relinearizing_moves_the_anchor(name: str) -> None:
    """F(w) becomes f(w), as a value and as a tangent."""
    _, linear, x, output = case(name)
    there = copy.deepcopy(linear.nonlinear)
    before = values(linear)
    linear.relinearize()
    assert all(torch.equal(value, before[key]) for key, value in values(linear).items())
    out = feed(there, x)
    torch.testing.assert_close(feed(linear, x), out if output is None else output(out))
    move(linear)
    expected = formula(there, values(linear), x, output)
    torch.testing.assert_close(feed(linear, x).reshape(expected.shape), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_copies_and_files(name: str) -> None:
    _, linear, x, output = case(name)
    moved = copy.deepcopy(linear)
    torch.testing.assert_close(feed(moved, x), feed(linear, x), rtol=0, atol=0)
    fresh = linearize(NETWORKS[name][0]().to(F64), output=output)
    fresh.load_state_dict(linear.state_dict())
    torch.testing.assert_close(feed(fresh, x), feed(linear, x), rtol=0, atol=0)
    before = feed(linear, x).detach()
    move(moved)
    moved.relinearize()
    assert torch.equal(feed(linear, x), before) and not torch.equal(feed(moved, x), before)


def test_goes_into_a_file_as_it_is() -> None:
    linear = linearize(models.mlp(D, 5, 2))
    move(linear)
    file = io.BytesIO()
    torch.save(linear, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(X), linear(X))
    loaded.relinearize()
    assert torch.equal(loaded(X), loaded.nonlinear(X)) and not torch.equal(loaded(X), linear(X))


def test_dtype_and_device_move_all_of_it() -> None:
    linear = linearize(build("bare parameters"))
    move(linear)
    out = linear(X)
    linear.float()
    assert all(value.dtype == torch.float32 for value in (*linear.parameters(), *linear.buffers()))
    torch.testing.assert_close(linear(X.float()), out.float(), rtol=1e-4, atol=1e-5)
    assert {value.device.type for value in linear.to("meta").state_dict().values()} == {"meta"}


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_any_optimiser_moves_w_and_leaves_the_anchor(make: Callable[..., torch.optim.Optimizer]) -> None:
    linear = linearize(models.mlp(D, 16, 2, bias=True))
    start = {name: value.clone() for name, value in linear.named_buffers()}
    optimizer = make(linear.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (linear(X) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]
    assert all(torch.equal(value, start[name]) for name, value in linear.named_buffers())
    assert all(not torch.equal(p, start[f"anchor.{name}"]) for name, p in linear.named_parameters())


def test_is_affine_in_w_to_all_orders() -> None:
    for name in ("mlp with biases and outputs", "cubic", "tied"):
        network, linear, x, _ = case(name)
        w = values(linear)
        direction = {key: torch.randn_like(value) for key, value in w.items()}
        curved = hvp(lambda p, m=linear, x=x: call(m, p, x).square().sum(), w, direction)
        along = jvp(network, values(network), x, direction)[1]
        _, expected = vjp(network, values(network), x, 2 * along)  # that of a square of an affine function
        for key, value in curved.items():
            torch.testing.assert_close(value, expected[key])


@pytest.mark.parametrize("name", ["mlp", "tied", "images", "attention", "partly frozen"])
def test_its_jacobian_and_its_kernel_do_not_move(name: str) -> None:
    network, linear, _, _ = case(name)
    rows, start = jacobian(linear, values(linear), X), jacobian(network, values(network), X)
    for key, value in rows.items():
        torch.testing.assert_close(value, start[key])
    torch.testing.assert_close(measure.ntk(linear, X), measure.ntk(network, X))


@pytest.mark.parametrize("name", ["mlp", "tied", "images", "attention"])
def test_a_second_forward_mode_is_never_lost(name: str) -> None:
    """The gap of a linear function is 0, by derivatives of what is a derivative itself."""
    network, linear, _, _ = case(name)
    assert measure.gap(linear, X, origin=values(network)) < 1e-12
    direction = {key: torch.randn_like(value) for key, value in values(network).items()}
    expected = jvp(network, values(network), X, direction)[1]
    torch.testing.assert_close(jvp(linear, values(linear), X, direction)[1], expected)


def test_gradients_by_the_inputs() -> None:
    """By finite differences, through the derivative of the Jacobian as well."""
    _, linear, _, _ = case("mlp with biases and outputs")
    assert torch.autograd.gradcheck(linear, X.clone().requires_grad_())
    _, linear, _, _ = case("cubic")
    with pytest.raises(UserError, match="`module`: has an operation without forward mode"):
        linear(X.clone().requires_grad_())


def test_scaling_and_linearising_commute() -> None:
    network = models.mlp(D, 5, 2)
    one, other = control.scale(linearize(network), 30.0), linearize(control.scale(network, 30.0))
    for p, q in zip(trainable(one).values(), other.parameters(), strict=False):
        p.data += 0.1
        q.data += 0.1
    assert bool((one(X) != 0).all())
    torch.testing.assert_close(one(X), other(X))
    torch.testing.assert_close(one(X) / 30, linearize(network)(X) * 0 + one.network(X) - network(X))
    with pytest.raises(UserError, match="`module`: is linearised already"):
        linearize(one)


def test_the_linear_path_does_not_depend_on_alpha() -> None:
    """F of the same flow at each alpha; and w - w0 is 1 / alpha of what it is at alpha = 1."""
    x, y = task(12, D)
    runs = []
    for alpha in (1.0, 100.0):
        module = control.scale(linearize(models.mlp(D, 16, 1)), alpha)
        *_, end = train.flow(module, x, y, loss=squared, max_steps=60)
        runs.append((end, alpha * (end.parameters["network.0.weight"] - end.origin["network.0.weight"])))
    (one, near), (other, far) = runs
    assert one.time == other.time and one.step == other.step
    torch.testing.assert_close(one.outputs, other.outputs)
    torch.testing.assert_close(near, far)


def test_layers_stay_in_their_mode() -> None:
    linear = linearize(build("batch norm in eval"))
    out = linear(X)
    mean = linear.get_buffer("1.running_mean").clone()
    linear.train()
    assert linear.training and torch.equal(linear(X), out)
    assert torch.equal(linear.get_buffer("1.running_mean"), mean)
    assert not linear.eval().training


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(3), nn.Dropout(0.5), nn.BatchNorm1d(3, track_running_stats=False)]
)
def test_what_couples_samples_or_draws_is_refused(layer: nn.Module) -> None:
    with pytest.raises(UserError, match=r"`module`: '1' \((BatchNorm1d|Dropout)\)"):
        linearize(nn.Sequential(nn.Linear(D, 3), layer).train())


def test_without_gradients() -> None:
    _, linear, _, _ = case("mlp")
    out = linear(X)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            plain = linear(X)
        assert torch.equal(plain, out) and not plain.requires_grad and out.requires_grad


def test_frozen_parameters() -> None:
    linear = linearize(build("partly frozen"))
    assert "anchor.0.weight" not in dict(linear.named_buffers())
    linear.get_parameter("2.weight").requires_grad_(False)  # later: w stays where it is
    linear(X).sum().backward()
    assert linear.get_parameter("2.weight").grad is None
    linear.get_parameter("0.weight").requires_grad_(True)
    with pytest.raises(UserError, match=r"`module`: '0\.weight' requires grad, but was frozen"):
        linear(X)


def test_a_parameter_that_cannot_be_replaced_is_found() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(D, 1)
            self.kept = [self.a.weight]

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + x @ self.kept[0].T

    with pytest.raises(UserError, match="`module`: keeps a parameter outside `named_parameters`"):
        linearize(Hidden().double())(X)


@pytest.mark.parametrize("name", ["mlp", "cubic"])
def test_checkpoints_that_would_run_at_w_are_refused(name: str) -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = NETWORKS[name][0]().double()

        def forward(self, x: Tensor) -> Any:
            return checkpoint(self.inner, x, use_reentrant=False)

    linear = linearize(Again())
    for call_it in (linear, torch.no_grad()(linear)):
        with pytest.raises(UserError, match="`module`: activations are saved in a way of their own"):
            call_it(X)


def test_runs_where_forward_mode_is_off() -> None:
    """Inside the forward of an autograd.Function, here that of a checkpoint, torch computes no tangents."""
    _, linear, _, _ = case("mlp")
    runs = []
    for forward in (linear, lambda z: checkpoint(linear, z, use_reentrant=True)):
        x = X.clone().requires_grad_()
        linear.zero_grad()
        out = forward(x)
        out.sum().backward()
        runs.append((out, x.grad, *(p.grad for p in linear.parameters())))
    for plain, again in zip(*runs, strict=True):
        torch.testing.assert_close(again, plain)


def test_other_bad_modules() -> None:
    with pytest.raises(UserError, match=r"`module`: got .*, expected a torch\.nn\.Module"):
        linearize(torch.relu)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="`output`: got 'logits', expected a function"):
        linearize(Pair(), output="logits")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="`module`: nothing requires grad"):
        linearize(nn.Linear(D, 1).requires_grad_(False))
    with pytest.raises(UserError, match="`module`: is linearised already"):
        linearize(linearize(nn.Linear(D, 1)))
    with pytest.raises(UserError, match="`module`: has an attribute 'anchor'"):
        linearize(nn.ModuleDict({"anchor": nn.Linear(D, 1)}))
    with pytest.raises(UserError, match=r"`module`: gave outputs of type dict, .*output=lambda"):
        linearize(Pair().double())(X, X)
    broken = nn.Linear(D, 1).double()
    broken.weight.data[0, 1] = torch.inf
    with pytest.raises(UserError, match=r"`module`: its output at the anchor: \[0, 0\] is (-)?inf"):
        linearize(broken)(X)
    with pytest.raises(UserError, match="`module`: has an operation with neither forward mode nor a second"):
        linearize(nn.EmbeddingBag(7, 4))(TOKENS)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linearize(models.mlp(D, 5, 1))(X[:, 1:])


def test_a_constant_has_no_gradient() -> None:
    linear = linearize(build("constant"))
    assert torch.equal(linear(X), 2 * X[:, :1]) and not linear(X).requires_grad


def test_runs_under_distributed_data_parallel(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        linear = linearize(models.mlp(D, 8, 2))
        plain = copy.deepcopy(linear)
        for module in (DistributedDataParallel(linear), plain):
            (module(X) - 1).square().mean().backward()
        for mine, theirs in zip(linear.parameters(), plain.parameters(), strict=True):
            assert mine.grad is not None and theirs.grad is not None
            torch.testing.assert_close(mine.grad, theirs.grad)
    finally:
        torch.distributed.destroy_process_group()


def test_says_what_it_is() -> None:
    linear = linearize(models.mlp(D, 8, 2))
    assert "f(a, x) + J(a, x)(w - a)" in repr(linear)
    assert linear.nonlinear(X).shape == (5, 1)
    assert control.rates(linearize(models.mlp(D, 8, 2, law=control.MUP))) == control.rates(
        models.mlp(D, 8, 2, law=control.MUP)
    )
