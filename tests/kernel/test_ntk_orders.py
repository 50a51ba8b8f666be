"""The tangent kernel in each order of contraction, which of them is chosen, and its estimate by random outputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from regimes import measure, models
from regimes.core.error import UserError
from regimes.kernel import machine
from regimes.kernel.confirm import survey
from regimes.kernel.cost import Order, Shape
from regimes.kernel.factor import Sequences, block_shape
from regimes.kernel.machine import Speeds
from regimes.kernel.plan import Plan, make_plan
from regimes.kernel.request import request
from regimes.measure import Reduce
from tests import reference
from tests.measure.awkward import CASES, F64, D, build, samples
from tests.properties import assert_close, assert_psd

REDUCTIONS: tuple[Reduce, ...] = get_args(Reduce)
ORDERS: tuple[Order, ...] = ("explicit", "gram", "one-sided")


class Twice(nn.Module):
    """A layer that is used on two sequences of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x).tanh()
        return torch.cat([h, self.layer(h[:, 1:])], 1)


def on_sequences() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (4, 3)), nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2, bias=False), nn.Flatten()
    )


def used_twice() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (4, 3)), Twice(), nn.Flatten(), nn.Linear(21, 8), nn.Tanh())


def on_images() -> nn.Module:
    first = nn.Conv2d(1, 3, (2, 3), padding=1, stride=(1, 2))
    return nn.Sequential(
        nn.Unflatten(1, (1, 3, 4)), first, nn.GELU(), nn.Conv2d(3, 2, (2, 1), dilation=2), nn.Flatten()
    )


def on_words() -> nn.Module:
    return nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(20, 8))


BODIES: dict[str, Callable[[], nn.Module]] = {
    "linear on sequences": on_sequences,
    "used twice": used_twice,
    "convolutions": on_images,
    "embedding": on_words,
}


def given(body: str, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    if body == "embedding":  # five words of four: some come twice
        return torch.randint(0, 4, (n, 5), generator=generator)
    return torch.randn(n, 12, dtype=F64, generator=generator)


def with_head(body: str, hidden: int | None, outputs: int) -> nn.Module:
    """The body and a head; through ``hidden`` inputs of the head, if that is not None."""
    torch.manual_seed(1)
    below = BODIES[body]()
    narrow = () if hidden is None else (nn.LazyLinear(hidden), nn.Tanh())
    net = nn.Sequential(below, *narrow, nn.Tanh(), nn.LazyLinear(outputs))
    net = net.to(F64)
    net(given(body, 1))
    return net


def plan_of(module: nn.Module, x: Any, reduce: Reduce = "full", body: Any = None) -> Plan:
    with torch.no_grad():
        asked = request(module, x, None, reduce, body, None, None)
        return make_plan(asked.network, survey(asked.network, asked.probe), reduce)


def orders(plan: Plan) -> dict[str, Order]:
    """The order of each parameter."""
    return {name: term.order for term in plan.terms for name in term.names}


@pytest.fixture
def force(monkeypatch: pytest.MonkeyPatch) -> Callable[[Order], None]:
    """Every parameter for which an order is open takes it."""

    def forced(order: Order) -> None:
        def cheapest(shape: Shape, reduce: Reduce, r: int) -> Order:
            open_ = shape.tokens > 0 and (order != "one-sided" or (shape.taken > 0 and reduce == "full"))
            if open_ and (order != "one-sided" or shape.tokens > 1):
                return order
            return "gram" if shape.tokens == 1 else "explicit"

        monkeypatch.setattr("regimes.kernel.plan.cheapest", cheapest)

    return forced


# Inputs of the head (None: those of the body), outputs: fewer outputs, and more by enough for each reduction.
HEADS = [(None, 2), (2, 5), (1, 3)]


@pytest.mark.parametrize(("hidden", "outputs"), HEADS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("body", BODIES)
def test_each_order_gives_the_kernel(
    body: str, order: Order, hidden: int | None, outputs: int, force: Callable[[Order], None]
) -> None:
    module, x1, x2 = with_head(body, hidden, outputs), given(body, 4), given(body, 3)
    rows, columns = reference.jacobian(module, x1), reference.jacobian(module, x2)
    force(order)
    for reduce in REDUCTIONS if order != "one-sided" else ("full",):
        plan = plan_of(module, x1, reduce)
        assert order in orders(plan).values() and "jacobian" not in orders(plan).values()
        assert list(orders(plan).values())[-2:] == ["head", "head"]
        assert (plan.begin is not None) == (hidden is not None)
        assert (plan.lift is not None) == (hidden is not None and reduce != "trace")
        for other, right in ((None, rows), (x2, columns)):
            expected = reference.products(rows, right, reduce)
            whole = torch.stack(list(expected.values())).sum(0)
            assert_close(measure.ntk(module, x1, other, reduce=reduce), whole)
            found = measure.ntk(module, x1, other, reduce=reduce, by_layer=True)
            assert list(found) == list(expected)
            for owner, part in expected.items():
                assert_close(found[owner], part)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("body", BODIES)
def test_each_order_gives_the_kernel_where_there_is_no_head(
    body: str, order: Order, force: Callable[[Order], None]
) -> None:
    torch.manual_seed(1)
    module, x = nn.Sequential(BODIES[body](), nn.Tanh()).to(F64), given(body, 3)
    rows = reference.jacobian(module, x)
    force(order)
    for reduce in REDUCTIONS if order != "one-sided" else ("full",):
        found = orders(plan_of(module, x, reduce)).values()
        assert order in found and "head" not in found
        expected = torch.stack(list(reference.products(rows, rows, reduce).values())).sum(0)
        assert_close(measure.ntk(module, x, reduce=reduce), expected)


def sequences(n: int, words: bool, seed: int) -> tuple[Tensor, Tensor]:
    """What 3 uses were given, and what came back to them in 2 directions."""
    generator = torch.Generator().manual_seed(seed)
    grads = torch.randn(n, 2, 3, 4, dtype=F64, generator=generator)
    if words:
        return torch.randint(0, 3, (n, 3), generator=generator), grads
    return torch.randn(n, 3, 5, dtype=F64, generator=generator), grads


def weight_gradients(inputs: Tensor, grads: Tensor) -> Tensor:
    """sum_t B[t] A[t]^T, (n, r, e d)."""
    table = inputs if inputs.is_floating_point() else nn.functional.one_hot(inputs, 3).to(F64)
    return torch.einsum("nrte,ntd->nred", grads, table).flatten(2)


@pytest.mark.parametrize("room", [1, 10, 17, 40, 100, 300, 1000, 10**9])
@pytest.mark.parametrize("kind", ["gram", "one-sided", "words"])
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_sequences_meet_in_pieces_of_any_size(reduce: Reduce, kind: str, room: int) -> None:
    (a1, b1), (a2, b2) = sequences(7, kind == "words", 0), sequences(5, kind == "words", 1)
    left, right = (Sequences(a, b, 0.5, kind == "one-sided", room) for a, b in ((a1, b1), (a2, b2)))
    j1, j2 = 0.5 * weight_gradients(a1, b1), 0.5 * weight_gradients(a2, b2)
    for rows, columns in ((slice(0, 7), slice(0, 5)), (slice(2, 6), slice(1, 2)), (slice(6, 7), slice(0, 4))):
        full = torch.einsum("iap,jbp->iajb", j1[rows], j2[columns])
        each = torch.stack([full[:, a, :, a] for a in range(2)])
        part = {"full": full.flatten(2).flatten(0, 1), "diagonal": each, "trace": each.sum(0)}[reduce]
        there = torch.randn(block_shape(reduce, full.shape[0], full.shape[2], 2, 2), dtype=F64)
        block = there.clone()
        left.add(block, right, rows, columns, reduce)
        assert_close(block, there + part)


def test_layers_used_once_meet_by_two_products() -> None:
    x = torch.randn(4, D, dtype=F64)
    scaled = orders(plan_of(models.mlp(D, 9, 3, 2), x))
    assert len(scaled) == 4 and set(scaled.values()) <= {"gram", "head"}
    net = nn.Sequential(nn.Linear(D, 9), nn.Tanh(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 2)).to(F64)
    plan = plan_of(net, x)
    assert [(term.names, term.order) for term in plan.terms] == [
        (("0.weight", "0.bias"), "gram"),
        (("2.weight", "2.bias"), "gram"),
        (("4.weight", "4.bias"), "head"),
    ]


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_a_wide_convolution_with_many_positions_goes_by_its_gradients(reduce: Reduce) -> None:
    wide = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    net = nn.Sequential(nn.Unflatten(1, (16, 20, 20)), wide, nn.Tanh(), nn.Flatten(), nn.Linear(6400, 2))
    found = orders(plan_of(net, torch.randn(2, 6400), reduce))
    assert found == {"1.weight": "explicit", "4.weight": "head", "4.bias": "head"}


def test_only_what_no_rule_describes_goes_by_rows_of_the_jacobian() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.lstm, self.last = nn.Linear(3, 4), nn.LSTM(4, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.lstm(self.first(x).transpose(0, 1))[0]
            return self.last(h[-1])

    found = orders(plan_of(Net(), torch.randn(4, 6, 3)))
    assert {name for name, order in found.items() if order == "jacobian"} == {
        f"lstm.{kind}_{side}_l0" for kind in ("weight", "bias") for side in ("ih", "hh")
    }
    assert len(found) == 8


@pytest.mark.parametrize(
    "name", ["mlp", "images", "tied", "sequences", "bert", "gpt", "vision transformer", "encoder layer"]
)
def test_common_networks_need_no_rows_of_the_jacobian(name: str) -> None:
    found = orders(plan_of(build(name), samples(name, 4), body=CASES[name].output))
    assert found and "jacobian" not in found.values()


class Backward(TorchDispatchMode):
    """Notes of each backward pass of a convolution the samples in it, and whether it forms the weight gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, bool]] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.found.append((len(args[0]), args[-1][1]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("order", ["explicit", "gram"])
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_forms_no_weight_gradients_by_autograd(
    reduce: Reduce, order: Order, force: Callable[[Order], None]
) -> None:
    """But for the two samples, one by one, on which the rules are confirmed."""
    force(order)
    confirming = set()
    for n in (5, 11):
        module = with_head("convolutions", None, 3)
        with Backward() as seen:
            measure.ntk(module, given("convolutions", n), reduce=reduce)
        assert (n, False) in seen.found
        with_weights = [size for size, weights in seen.found if weights]
        assert set(with_weights) <= {1}
        confirming.add(len(with_weights))
    assert len(confirming) == 1, "their number grows with the samples"


@pytest.mark.parametrize(("hidden", "outputs"), [(None, 3), (2, 5)])
def test_the_sketch_is_unbiased(hidden: int | None, outputs: int) -> None:
    module = with_head("linear on sequences", hidden, outputs)
    x1, x2 = given("linear on sequences", 3), given("linear on sequences", 2)
    for other in (None, x2):
        exact = measure.ntk(module, x1, other, reduce="trace")
        found = torch.stack([measure.ntk_sketch(module, x1, other, probes=10, seed=s) for s in range(60)])
        z = (found.mean(0) - exact) / (found.std(0) / len(found) ** 0.5)
        assert bool((found.std(0) > 1e-3 * exact.abs().max()).any()), "all seeds give the same"
        assert float(z.abs().max()) < 4


def test_the_sketch_is_positive_and_repeats() -> None:
    module, x = with_head("convolutions", None, 3), given("convolutions", 6)
    for seed in range(3):
        found = measure.ntk_sketch(module, x, probes=1, seed=seed)
        assert found.shape == (6, 6)
        assert_psd(found)
        assert torch.equal(measure.ntk_sketch(module, x, probes=1, seed=seed), found)
        other = given("convolutions", 2)
        whole = measure.ntk_sketch(module, torch.cat([x, other]), probes=1, seed=seed)
        assert_close(measure.ntk_sketch(module, x, other, probes=1, seed=seed), whole[:6, 6:])


@pytest.mark.parametrize("probes", [1, 3])
@pytest.mark.parametrize("body", BODIES)
def test_the_sketch_of_one_output_is_the_kernel(body: str, probes: int) -> None:
    module, x = with_head(body, None, 1), given(body, 4)
    assert_close(measure.ntk_sketch(module, x, probes=probes), measure.ntk(module, x, reduce="trace"))


@pytest.mark.parametrize("probes", [0, -1, True])
def test_the_sketch_takes_a_whole_number_of_probes(probes: int) -> None:
    with pytest.raises(UserError, match=rf"^`probes`: got {probes!r}, expected a whole number of at "):
        measure.ntk_sketch(models.mlp(D, 3, 1), torch.ones(2, D, dtype=F64), probes=probes)


CPU = torch.device("cpu")


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Speeds]]:
    """Speeds that were measured in this test, each time others; a fresh cache, on disk and in memory."""
    found: list[Speeds] = []

    def once_more(device: torch.device, dtype: torch.dtype) -> Speeds:
        found.append(Speeds(1.0 + len(found), 2.0, 3.0, 4.0))
        return found[-1]

    monkeypatch.setattr(machine, "_measure", once_more)
    monkeypatch.setenv("REGIMES_CACHE", str(tmp_path / "cache"))
    machine.speeds.cache_clear()
    yield found
    machine.speeds.cache_clear()


def read_again(dtype: torch.dtype = torch.float32) -> Speeds:
    """What the next process finds."""
    machine.speeds.cache_clear()
    return machine.speeds(CPU, dtype)


def test_speeds_are_measured_once_and_kept(measured: list[Speeds], tmp_path: Path) -> None:
    first = machine.speeds(CPU, torch.float32)
    assert measured == [first] and machine.speeds(CPU, torch.float32) is first
    (path,) = (tmp_path / "cache").iterdir()
    assert path.suffix == ".json" and Speeds(**json.loads(path.read_text())) == first
    assert read_again() == first and len(measured) == 1
    assert read_again(F64) != first and len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("keep", [0, 1, 20, -1])
def test_torn_speeds_are_measured_anew(measured: list[Speeds], tmp_path: Path, keep: int) -> None:
    first = read_again()
    (path,) = (tmp_path / "cache").iterdir()
    path.write_text(path.read_text()[:keep])
    second = read_again()
    assert second != first and measured == [first, second]
    assert read_again() == second and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("text", ["null", "3", "[]", "{}", '{"product": 1.0}', '{"other": 1.0}', "\x00"])
def test_other_things_in_place_of_speeds_are_measured_anew(
    measured: list[Speeds], tmp_path: Path, text: str
) -> None:
    read_again()
    (path,) = (tmp_path / "cache").iterdir()
    path.write_text(text)
    assert read_again() == measured[1] and read_again() == measured[1]


def test_speeds_need_no_folder(
    measured: list[Speeds], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REGIMES_CACHE", str(tmp_path / "file" / "cache"))
    assert read_again() != read_again() and len(measured) == 2


def test_speeds_of_this_machine_are_numbers() -> None:
    found = machine._measure(CPU, F64)
    assert all(1e6 < rate < 1e18 for rate in asdict(found).values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_residual_network_goes_by_rule(dtype: torch.dtype) -> None:
    # An addition hands one gradient to both its sides: looking at it must not change it.
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dtype=dtype).eval()
    network = nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 3, dtype=dtype))
    x = torch.randn(6, 3, 8, dtype=dtype)
    orders = {each.order for each in measure.ntk_forecast(network, x).layers}
    assert "jacobian" not in orders
