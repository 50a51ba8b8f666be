"""The tangent kernel through products with it: against the formed kernel, and its spectrum by random probes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator, cg
from torch import Tensor, nn

from regimes import control, measure, models
from regimes.core.batch import tensors
from regimes.core.error import UserError
from regimes.kernel.operator import ntk_operator
from tests import reference
from tests.kernel.limits import Peak
from tests.measure.awkward import CASES, F64, Case, D, build, samples
from tests.measure.awkward_case import Net
from tests.measure.awkward_forward import Cube
from tests.measure.awkward_refused import BRANCHING, COUPLED, UNSEPARABLE
from tests.properties import assert_close

# Taken by no product: there is neither a forward mode nor a second derivative, or J^T is no transpose.
REFUSED = (
    "embedding scaled by frequency",
    "embedding bag",
    "embedding bag of largest",
    "embedding bag with weights",
)
# Taken a sample at a time, too.
SMALL = ("mlp", "images", "tied", "attention with heads", "bert", "lstm", "checkpoint", "partly frozen")


def inputs(n: int = 5) -> Tensor:
    return torch.randn(n, D, dtype=F64, generator=torch.Generator().manual_seed(n))


def square(k: Tensor) -> Tensor:
    """(n, n, c, c) as the matrix with index i c + a."""
    n, _, c, _ = k.shape
    return k.permute(0, 2, 1, 3).reshape(n * c, n * c).detach()


def formed(module: nn.Module, x: Any, output: Callable[[Any], Tensor] | None = None) -> Tensor:
    return square(sum(reference.kernel(module, x, x, output=output).values(), torch.zeros(())))


def dense(operator: Any) -> Tensor:
    return torch.from_numpy(operator @ np.eye(operator.shape[0]))


def built(case: Case) -> nn.Module:
    torch.manual_seed(1)
    return case.module().to(F64)


class Cubed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(D, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = Cube.apply(self.a(x))
        assert isinstance(h, Tensor)
        return self.out(h)


@pytest.mark.parametrize("name", [name for name in CASES if name not in REFUSED])
def test_equals_the_formed_kernel(name: str) -> None:
    module, x, output = build(name), samples(name, 3), CASES[name].output
    expected = formed(module, x, output)
    # What agrees on a vector drawn at random differs nowhere.
    v = np.random.default_rng(0).standard_normal(len(expected))
    for memory in (None, 1) if name in SMALL else (None,):
        operator = ntk_operator(module, x, output=output, memory=memory)
        assert operator.dtype == np.float64
        assert operator.shape == tuple(expected.shape)
        assert operator.samples * operator.outputs == len(expected) and operator.samples == 3
        assert_close(torch.from_numpy(operator.matvec(v)), expected @ torch.from_numpy(v), 1e-10)


@pytest.mark.parametrize(
    "name", ["tied", "scaled", "inputs in place", "checkpoint", "bert", "batch norm in eval"]
)
def test_leaves_no_trace(name: str) -> None:
    module, x = build(name), samples(name, 5)
    before = {key: id(p) for key, p in module.named_parameters(remove_duplicate=False)}
    values = {key: value.detach().clone() for key, value in module.state_dict().items()}
    dense(ntk_operator(module, x, output=CASES[name].output))
    assert before == {key: id(p) for key, p in module.named_parameters(remove_duplicate=False)}
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(value, values[key]) for key, value in module.state_dict().items())
    after = tensors(samples(name, 5))
    assert all(torch.equal(one, after[key]) for key, one in tensors(x).items()), "the inputs have changed"


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_has_no_products(name: str) -> None:
    with pytest.raises(UserError, match=r"^`module`.*measure\.ntk"):
        ntk_operator(build(name), samples(name, 5), output=CASES[name].output)


@pytest.mark.parametrize("name", [*COUPLED, *BRANCHING])
def test_is_exact_or_refused_where_samples_meet(name: str) -> None:
    """Where a sample gives something else in a batch than alone: the kernel of each alone, or none."""
    case = {**COUPLED, **BRANCHING}[name]
    module, x = built(case), case.samples(5)
    expected = formed(module, x, case.output)
    try:
        operator = ntk_operator(module, x, output=case.output)
    except UserError as error:
        assert str(error).startswith("`module`")
    else:
        assert_close(dense(operator), expected, 1e-10)


def by_sign(net: Any, x: Tensor) -> Tensor:
    return net.out(net.a(x) if (x > 0).all() else net.a(x).tanh())


def test_a_branch_that_few_samples_take() -> None:
    module = built(Case(lambda: Net(by_sign, a=nn.Linear(D, 3), out=nn.Linear(3, 1))))
    x = inputs(12)
    x[-1] = x[-1].abs()
    assert_close(dense(ntk_operator(module, x)), formed(module, x), 1e-10)


@pytest.mark.parametrize("name", UNSEPARABLE)
def test_refuses_what_couples_samples_or_is_random(name: str) -> None:
    case, said = UNSEPARABLE[name]
    with pytest.raises(UserError, match=f"^`module`: .*{said}"):
        ntk_operator(built(case), case.samples(5))


@pytest.mark.parametrize("name", ["mlp with biases and outputs", "scaled", "bare parameters"])
def test_has_the_order_of_the_kernel_function(name: str) -> None:
    assert_close(
        dense(ntk_operator(build(name), inputs())), square(measure.ntk(build(name), inputs())), 1e-10
    )


def largest_batch(module: nn.Module, x: Tensor, memory: int | None) -> int:
    """How many samples a pass of a product takes at most."""
    operator: Any = ntk_operator(module, x, memory=memory)
    sizes: list[int] = []
    with module.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0]))):
        operator.matvec(np.ones(operator.shape[0]))
    return max(sizes)


@pytest.mark.parametrize("build_net", [lambda: build("images"), lambda: models.mlp(D, 20, 2), Cubed])
def test_memory_bounds_the_samples_of_a_pass_and_nothing_else(build_net: Callable[[], nn.Module]) -> None:
    module, x = build_net().to(F64), inputs(13)
    assert largest_batch(module, x, None) == 13
    assert largest_batch(module, x, 1) == 1
    sizes = [largest_batch(module, x, memory) for memory in (1_000, 4_000, 32_000)]
    assert sizes == sorted(sizes) and 1 <= sizes[0] < sizes[-1]
    whole = ntk_operator(module, x)
    v = np.random.default_rng(0).standard_normal(whole.shape[0])
    for memory in (1, 4_000):
        found = torch.from_numpy(ntk_operator(module, x, memory=memory).matvec(v))
        assert_close(found, torch.from_numpy(whole.matvec(v)))


@pytest.mark.parametrize("name", ["attention with heads", "images", "without gradient", "gpt"])
def test_memory_bounds_what_a_product_takes(name: str) -> None:
    module, x = build(name), samples(name, 200)
    # Copies of the parameters, and vectors of outputs.
    fixed = 8 * (10 * sum(p.numel() for p in module.parameters()) + 2 * 200 * 3)

    def taken(memory: int) -> int:
        k = ntk_operator(module, x, output=CASES[name].output, memory=memory)
        with Peak() as peak:
            k.matvec(np.ones(k.shape[0]))
        return peak.most

    whole = taken(1 << 30)
    for part in (3, 10):
        assert taken(whole // part) <= whole // part + fixed < 0.9 * whole


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 6), width=st.integers(1, 6), depth=st.integers(1, 3), outputs=st.integers(1, 3),
    bias=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_is_linear_symmetric_and_positive(
    n: int, width: int, depth: int, outputs: int, bias: bool, seed: int
) -> None:
    module = models.mlp(D, width, depth, outputs, bias=bias, seed=seed)
    x = torch.randn(n, D, dtype=F64, generator=torch.Generator().manual_seed(seed))
    k: Any = ntk_operator(module, x)
    u, v = np.random.default_rng(seed).standard_normal((2, k.shape[0]))
    size = np.linalg.norm(u) * np.linalg.norm(v) * np.linalg.norm(k @ np.eye(k.shape[0]))
    assert abs(u @ (k @ v) - v @ (k @ u)) <= 1e-12 * size
    assert v @ (k @ v) >= -1e-12 * size
    assert np.abs(k @ (2 * u + v) - 2 * (k @ u) - k @ v).max() <= 1e-11 * max(size, 1)


def test_takes_vectors_as_scipy_does() -> None:
    k: Any = ntk_operator(build("tied"), inputs())
    full = (k @ np.eye(10)).copy()
    v = np.arange(10)
    for found in (k @ v, k.matvec(v), k.rmatvec(v), k.T @ v, k.H @ v, v @ k, k @ np.arange(20)[::2] / 2):
        np.testing.assert_allclose(found, full @ v, rtol=1e-10)
    np.testing.assert_allclose(k @ v[::-1], full @ v[::-1], rtol=1e-10)
    np.testing.assert_allclose(k @ v[:, None], (full @ v)[:, None], rtol=1e-10)
    np.testing.assert_allclose(k @ (v + 2j), full @ (v + 2j), rtol=1e-10)
    np.testing.assert_allclose(k.rmatmat(np.eye(10)[:, :3]), full[:, :3], atol=1e-12)
    fixed = v.astype(float)
    fixed.setflags(write=False)
    np.testing.assert_allclose((2 * k + k) @ fixed, 3 * full @ v, rtol=1e-10)


def test_conjugate_gradients_solve_with_it() -> None:
    k: Any = ntk_operator(build("mlp with biases and outputs"), inputs())
    y = np.random.default_rng(0).standard_normal(15)
    ridge = aslinearoperator(0.1 * np.eye(15))
    found, stopped = cg(k + ridge, y, rtol=1e-12, atol=0.0)
    assert stopped == 0
    np.testing.assert_allclose(found, np.linalg.solve(k @ np.eye(15) + 0.1 * np.eye(15), y), rtol=1e-8)


@pytest.mark.parametrize("memory", [None, 1])
def test_a_layer_without_forward_mode(memory: int | None) -> None:
    module = Cubed().to(F64)
    assert_close(dense(ntk_operator(module, inputs(), memory=memory)), formed(module, inputs()), 1e-10)


def test_scales_with_alpha_squared() -> None:
    network = models.mlp(D, 5, 2, 2)
    k = dense(ntk_operator(network, inputs()))
    for center in (True, False):
        scaled = control.scale(network, 100.0, center)
        assert_close(dense(ntk_operator(scaled, inputs())), 1e4 * k)
        picked = ntk_operator(scaled, inputs(), output=lambda out: out.square())
        by_hand = 2 * scaled(inputs()).detach().flatten()
        assert_close(dense(picked), 1e4 * by_hand[:, None] * k * by_hand, 1e-10)


@pytest.mark.parametrize("name", ["mlp", "scaled", "tied", "two paths", "partly frozen", "checkpoint"])
def test_takes_the_parameters_of_a_state(name: str) -> None:
    module = build(name)
    before = {key: id(p) for key, p in module.named_parameters(remove_duplicate=False)}
    moved = {key: p.detach() + 1 for key, p in module.named_parameters() if p.requires_grad}
    found = dense(ntk_operator(module, inputs(), parameters=moved))
    assert before == {key: id(p) for key, p in module.named_parameters(remove_duplicate=False)}
    assert all(p.grad is None for p in module.parameters())
    for key, p in module.named_parameters():
        if p.requires_grad:
            p.data.copy_(moved[key])
    assert_close(found, formed(module, inputs()), 1e-10)


@pytest.mark.parametrize("name", ["mlp", "scaled", "partly frozen", "checkpoint"])
def test_stays_what_it_is_while_training_goes_on(name: str) -> None:
    module = build(name)
    k = ntk_operator(module, inputs())
    expected = dense(k)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(1)
    assert_close(dense(k), expected)
    assert float((dense(ntk_operator(module, inputs())) - expected).norm()) > 1e-3


def test_works_where_gradients_are_off() -> None:
    module, expected = build("images"), formed(build("images"), inputs())
    with torch.no_grad():
        assert_close(dense(ntk_operator(module, inputs())), expected, 1e-10)
    with torch.inference_mode():
        assert_close(dense(ntk_operator(module, inputs())), expected, 1e-10)


def test_keeps_the_precision_of_the_module() -> None:
    module = models.mlp(D, 5, 2, dtype=torch.float32)
    k: Any = ntk_operator(module, inputs().float())
    found = k @ np.ones(5)
    assert k.dtype == found.dtype == np.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert np.array_equal(ntk_operator(module, inputs().float()).matvec(np.ones(5)), found)
    pairs = k.eigenpairs(2)
    assert pairs.vectors.dtype == np.float32
    assert (pairs.residuals <= 1e-5 * pairs.values[0]).all()
    assert k.trace().value == pytest.approx(float(np.trace(k @ np.eye(5))), rel=1e-5)


def test_on_each_device(device: torch.device) -> None:
    for name in ("mlp with biases and outputs", "images", "scaled", "attention"):
        expected = formed(build(name), inputs())
        k = ntk_operator(build(name).to(device), inputs().to(device))
        assert_close(dense(k), expected, 1e-10)
        assert k.eigenpairs(1).values[0] == pytest.approx(float(torch.linalg.eigvalsh(expected)[-1]))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(D, 1).requires_grad_(False), "nothing requires grad"),
        (nn.Sequential(nn.Linear(D, 6), nn.Unflatten(1, (2, 3))), r"expected \(n,\) or \(n, c\)"),
        (nn.Linear(D, 1).bfloat16(), "expected float32 or float64"),
    ],
)
def test_refuses_a_module_without_a_kernel(module: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ntk_operator(module, inputs().to(next(module.parameters()).dtype))


def test_refuses_outputs_that_are_too_coarse() -> None:
    with pytest.raises(UserError, match=r"outputs of type torch\.bfloat16, expected torch\.float32 or"):
        ntk_operator(nn.Linear(D, 1).to(F64), inputs(), output=lambda out: out.bfloat16())


def test_refuses_what_is_random_and_no_layer_says_so() -> None:
    module = nn.Linear(D, 1).to(F64)
    with pytest.raises(UserError, match="`module`: draws random numbers"):
        ntk_operator(module, inputs(), output=lambda out: nn.functional.dropout(out, 0.1))


def test_refuses_a_module_that_was_put_in_train_mode_since() -> None:
    module = build("batch norm in eval")
    k = ntk_operator(module, inputs())
    module.train()
    with pytest.raises(UserError, match=r"call \.eval\(\)"):
        k.matvec(np.ones(5))


def test_names_the_mistake() -> None:
    module, x = models.mlp(D, 3, 1), inputs()
    with pytest.raises(UserError, match=r"`x`: \[0, 0\] is nan"):
        ntk_operator(module, x * math.nan)
    with pytest.raises(UserError, match=r"`x`.*at least one sample"):
        ntk_operator(module, x[:0])
    with pytest.raises(UserError, match=r"`memory`"):
        ntk_operator(module, x, memory=-1)
    with pytest.raises(UserError, match=r"`parameters`.*did you mean '0.weight'"):
        ntk_operator(module, x, parameters={"0.weigth": torch.zeros(())})
    with pytest.raises(UserError, match=r"`parameters`: '0.weight' is missing"):
        ntk_operator(module, x, parameters={})


def test_outputs_that_cancel_go_together() -> None:
    """What is left of them is rounding, which differs in company: no reason to take the samples one by one."""
    net = models.mlp(7, 32, 1, outputs=3, seed=1, symmetric=True).double()
    x = torch.randn(33, 7, generator=torch.Generator().manual_seed(0), dtype=F64)
    v = torch.randn(33, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    expected = torch.einsum("ijab,jb->ia", sum(reference.kernel(net, x, x).values(), torch.zeros(())), v)
    operator, sizes = measure.ntk_operator(net, x), list[int]()
    net.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    for _ in range(2):
        torch.testing.assert_close(torch.from_numpy(operator @ v.flatten().numpy()), expected.flatten())
    assert set(sizes) == {33}
