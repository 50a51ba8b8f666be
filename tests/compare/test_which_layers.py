"""Which layers to train: where only one answer can be right, what must not matter, and mistakes."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regimes import compare, control, measure, models
from regimes.compare.layers.race import splits_of
from regimes.core.error import UserError
from regimes.core.loss import cross_entropy
from regimes.train.descent import order

F64 = torch.float64
EPOCHS, BATCH, N = 4, 10, 36


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


X = draw(N, 4)
Y = X[:, :3].argmax(1)


def network(outputs: int = 3, seed: int = 0) -> nn.Module:
    return models.mlp(4, 8, 2, outputs, seed=seed, bias=True)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1.0, momentum=0.9)


def asked(module: nn.Module | None = None, x: Any = X, y: Tensor = Y, **settings: Any) -> compare.LayerChoice:
    settings = {
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "rates": [0.01, 0.1],
        "folds": 3,
        "optimizer": sgd,
        **settings,
    }
    return compare.which_layers(network() if module is None else module, x, y, **settings)


def rows(found: compare.LayerChoice, **wanted: Any) -> list[dict[str, Any]]:
    """The rows of the table with these values."""
    every = [{str(name): value for name, value in row.items()} for row in found.table.to_dict("records")]
    return [row for row in every if all(row[name] == value for name, value in wanted.items())]


def same(one: compare.LayerChoice, other: compare.LayerChoice) -> bool:
    tables = one.table.equals(other.table) and one.costs.equals(other.costs)
    return tables and one.sentence == other.sentence and one.moves == other.moves and one.lr == other.lr


def test_where_only_the_head_can_matter() -> None:
    """All below the last layer is as it should be, and the last layer is gone."""
    torch.manual_seed(0)
    head = nn.Linear(32, 2)
    module = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), head).double()
    x = draw(80, 6, seed=1)
    with torch.no_grad():
        nn.init.orthogonal_(head.weight, gain=10.0)
        y = module(x).argmax(1)
        head.weight.zero_()
        head.bias.zero_()
    found = asked(module, x, y, epochs=10, batch_size=20, rates=[0.3], budget=40)
    assert found.answer in ("head", "open")
    assert "4" in found.layers
    (bottom,) = rows(found, candidate="layer 1 of 3")
    assert bottom["error"] > min(row["error"] for row in rows(found)) + 0.2


def test_an_error_is_that_of_plain_training() -> None:
    """Of each set at each rate, on the same splits and batches, with a loop of PyTorch."""
    given = {"head": control.Fixed(top=1), "ends": control.Fixed(top=1, bottom=1)}
    found = asked(candidates=given, seed=3, budget=100)
    moving = {"all": ("0", "2", "4"), "head": ("4",), "ends": ("0", "4")}
    for row in rows(found):
        assert row["status"] == "finished" and row["epochs"] == EPOCHS
        errors = []
        for split in splits_of(N, 3, 1, 3):
            module = network()
            own = [p for name, p in module.named_parameters() if name[0] in moving[row["candidate"]]]
            optimizer = torch.optim.SGD(own, lr=row["lr"], momentum=0.9)
            for epoch in range(EPOCHS):
                for index in order(split.seed, epoch, len(split.train)).split(BATCH):
                    optimizer.zero_grad()
                    batch = split.train[index]
                    nn.functional.cross_entropy(module(X[batch]), Y[batch]).backward()
                    optimizer.step()
            with torch.no_grad():
                errors.append(float((module(X[split.held]).argmax(1) != Y[split.held]).double().mean()))
        assert row["error"] == pytest.approx(sum(errors) / 3, abs=1e-12)


def test_the_order_of_candidates_and_rates_does_not_matter() -> None:
    given = {"head": control.Fixed(top=1), "first": control.Fixed(bottom=1), "again": control.Fixed(top=1)}
    one = asked(candidates=given)
    other = asked(candidates=dict(reversed(given.items())), rates=[0.1, 0.01])
    assert same(one, other)
    assert {row["candidate"] for row in rows(one)} == {"all", "again", "first"}  # one name for one set


def test_the_budget_is_kept_to_the_step() -> None:
    taken = 0

    class Counting(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            nonlocal taken
            taken += 1
            return super().step(closure)

    run = EPOCHS * math.ceil(N / BATCH)
    for budget in (9.5, 12, 1000):
        taken = 0
        found = asked(optimizer=lambda p: Counting(p, lr=1.0), budget=budget, rates=[0.1])
        assert taken == found.steps <= budget * run
        assert found.runs == taken / run
        assert bool(rows(found, status="left behind")) == (budget < 1000)
        assert rows(found, status="finished", candidate="all")


def test_the_module_and_the_generators_are_left_alone_and_calls_repeat() -> None:
    module = network()
    first = next(module.parameters())
    first.grad = torch.ones_like(first)
    before, random = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    one = asked(module, rates=[0.1])
    assert torch.equal(torch.get_rng_state(), random)
    torch.rand(3)
    other, third = asked(module, rates=[0.1]), asked(module, rates=[0.1], seed=1)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.training and torch.equal(first.grad, torch.ones_like(first))
    assert all(p.requires_grad for p in module.parameters())
    assert same(one, other) and not same(one, third)


def test_equal_sets_tie_to_all() -> None:
    """Nothing moves at such a rate."""
    found = asked(rates=[1e-300])
    assert found.answer == found.candidate == "all"
    assert "no other set scores better" in found.sentence and "Mind that" in found.sentence


def test_what_is_chosen_is_what_the_policy_and_the_plan_take() -> None:
    for given in (None, {"middle": control.Fixed(names=["2"])}):
        found = asked(candidates=given, rates=[0.05])
        plan = control.layer_plan(network(), found.moves, example=X[:2])
        assert plan.names(0) == found.layers
        assert found.candidate in found.costs.index
        assert found.costs.loc[found.candidate, "layers"] == ", ".join(found.layers)


def test_a_set_costs_what_its_layers_cost() -> None:
    """All is all; a set at the top keeps and computes less, and one that reaches the bottom keeps no less."""
    costs = asked(candidates={"top": control.Fixed(top=1), "bottom": control.Fixed(bottom=1)}).costs
    numbers = costs.drop(columns="layers").astype(float)
    assert (numbers.loc["all"] == 1).all()
    assert (numbers.loc["top"] < 0.6).all() and numbers.loc["bottom", "kept"] == 1
    # Two products for each layer but the lowest, which needs none by its inputs: weights 4 x 8, 8 x 8, 8 x 3.
    everything = 32 + 2 * 64 + 2 * 24
    assert numbers.loc["top", "backward"] == pytest.approx(24 / everything)
    assert numbers.loc["bottom", "backward"] == pytest.approx((32 + 64 + 24) / everything)
    assert numbers.loc["bottom", "moving"] == pytest.approx((32 + 8) / (32 + 64 + 24 + 8 + 8 + 3))


def test_what_a_set_keeps_is_what_the_cost_model_says_and_hooks_see() -> None:
    """Buffers are there in any case; that of a batch norm is needed by all layers but those above it."""
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double().eval()
    moves = {"top": control.Fixed(top=1), "middle": control.Fixed(names=["1"]), "all": control.Fixed(top=3)}
    share = asked(module, candidates={name: each for name, each in moves.items() if name != "all"}).costs

    def mean_loss(outputs: Tensor, y: Tensor) -> Tensor:
        return cross_entropy.per_sample(outputs, y).mean()

    costs = measure.layer_costs(module, [(X[:BATCH], Y[:BATCH])], mean_loss, rounds=1)
    buffers = {each.untyped_storage().data_ptr() for each in (*module.parameters(), *module.buffers())}
    seen = {}
    for name, each in moves.items():
        kept: dict[int, int] = {}

        def note(value: Tensor, kept: dict[int, int] = kept) -> Tensor:
            storage = value.untyped_storage()
            # Of the inputs a batch is a part.
            kept[storage.data_ptr()] = min(storage.nbytes(), value.nbytes)
            return value

        moving = control.layer_plan(module, each, example=X[:2])(0)
        for parameter, p in module.named_parameters():
            p.requires_grad_(parameter in moving)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
            loss = mean_loss(module(X[:BATCH]), Y[:BATCH])
        seen[name] = sum(size for place, size in kept.items() if place not in buffers)
        module.requires_grad_(True)
        assert loss.requires_grad and seen[name] == costs.predict(each).kept_most
    for name in moves:
        assert share.loc[name, "kept"] == seen[name] / seen["all"]


class Pair(nn.Module):
    """Two inputs, a mapping for an output, and a part that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.b.requires_grad_(False)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"logits": self.c(self.b((self.a(left) * right).tanh()))}


def test_inputs_of_all_kinds() -> None:
    """float32, on inputs of float64; what is frozen is in no set."""
    torch.manual_seed(0)
    module, right = Pair(), draw(N, 8, seed=1)
    found = [
        asked(module, x, output=lambda out: out["logits"], repeats=2)
        for x in ((X, right), {"right": right, "left": X})
    ]
    assert same(*found)
    assert set(found[0].costs["layers"]) == {"a, c", "a", "c"}


@pytest.mark.parametrize("kind", ["signs", "numbers", "several numbers"])
def test_targets_of_all_kinds(kind: str) -> None:
    y = {"signs": X[:, 0].sign(), "numbers": X[:, 0], "several numbers": X[:, :2]}[kind]
    found = asked(network(2 if kind == "several numbers" else 1), y=y, rates=[0.02])
    finished = found.table.loc[found.table["status"] == "finished"]
    assert (
        finished["score"].is_monotonic_increasing and finished["score_low"].le(finished["score_high"]).all()
    )
    assert (finished["score"] == finished["error"]).all() == (kind != "signs")


def test_a_rate_that_diverges_is_left_behind() -> None:
    found = asked(network(1), y=X[:, 0], rates=[0.02, 1e250])
    assert {row["status"] for row in rows(found, lr=1e250)} == {"diverged"}
    assert found.lr == 0.02 and "score" in str(found)
    nothing = asked(network(1), y=X[:, 0], rates=[1e250])
    assert nothing.answer == "open" and "every training diverged" in nothing.sentence


def test_layers_may_be_grouped_and_few_are_enough() -> None:
    module = nn.Sequential(
        nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8)), nn.Linear(8, 3)
    ).double()
    found = asked(module, layers=["0"])
    assert set(found.costs["layers"]) == {"0, 1", "0", "1"}
    one = asked(nn.Linear(4, 3, dtype=F64))
    assert one.answer == "all" and one.layers == ("",)


WRONG: Mapping[str, tuple[dict[str, Any], str]] = {
    "module": ({"module": torch.ones(2)}, "`module`: got a tensor .*, expected a torch.nn.Module"),
    "batch norm": ({"module": nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).double()}, "call .eval()"),
    "frozen": ({"module": network().requires_grad_(False)}, "no parameter that requires grad"),
    "law": (
        {"module": models.mlp(4, 8, 1, 3, law=control.MUP)},
        "`optimizer`: got one for a network whose law",
    ),
    "inputs": ({"x": draw(N, 5)}, r"`x`: the module does not take two samples of x \(36, 5\)"),
    "count": ({"y": Y[:5]}, r"`y`: got torch.int64 \(5,\) for 36 samples and 3 outputs"),
    "constant": ({"y": Y * 0}, "`y`: all targets are the same"),
    "rates": ({"rates": []}, r"`rates`: got \[\], expected learning rates above 0"),
    "rate": ({"rates": [0.1, -1.0]}, r"`rates`: got \[0.1, -1.0\], expected learning rates above 0"),
    "twice": ({"rates": [0.1, 0.1]}, r"`rates`: got \[0.1, 0.1\], expected .* none twice"),
    "no rate": (
        {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0)},
        "`optimizer`: SGD has `lr` 0, expected a rate",
    ),
    "optimizer": ({"optimizer": lambda p: None}, "`optimizer`: gave NoneType, expected a function"),
    "budget": ({"budget": 2}, r"`budget`: got 2 trainings, expected at least [\d.]+ for \d+ pairs"),
    "no budget": ({"budget": 0}, "`budget`: got 0.*, expected a number of trainings above 0"),
    "folds": ({"folds": 1}, "`folds`: got 1, expected a whole number of at least 2"),
    "many folds": ({"folds": N + 1}, "`folds`: got 37 for 36 samples, expected at most 36"),
    "repeats": ({"repeats": 0}, "`repeats`: got 0, expected a whole number of at least 1"),
    "epochs": ({"epochs": 0}, "`epochs`: got 0, expected a whole number of at least 1"),
    "batch": ({"batch_size": 0}, "`batch_size`: got 0"),
    "level": ({"level": 1.0}, "`level`: got 1.0, expected a number between 0 and 1"),
    "layers": ({"layers": ["layr.*"]}, r"`layers`: got 'layr.\*', expected names of modules"),
    "drawn": ({"candidates": {"cut": control.Cut(0.5)}}, "`candidates`: 'cut' is Cut.*, which draws layers"),
    "none": ({"candidates": {}}, "`candidates`: got none, expected at least one"),
    "unknown": ({"candidates": {"a": control.Fixed(names=["b"])}}, "`candidates`: 'a': `names`: got 'b'"),
    "name": (
        {"candidates": {"all": control.Fixed(top=1)}},
        "`candidates`: 'all' is Fixed.*, expected all layers",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_named_before_anything_is_trained(name: str) -> None:
    change, message = WRONG[name]
    change = dict(change)
    with pytest.raises(UserError, match=message):
        asked(change.pop("module", None), change.pop("x", X), change.pop("y", Y), **change)


@pytest.mark.slow
def test_a_model_of_hugging_face() -> None:
    """Inputs by name, logits from its outputs, blocks as layers; the policy takes what is chosen."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=20, num_labels=3, attn_implementation="eager", **sizes)
    model = transformers.BertForSequenceClassification(config).eval()
    tokens = torch.randint(0, 20, (N, 6), generator=torch.Generator().manual_seed(0))
    x = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    blocks = ["bert.embeddings", "bert.encoder.layer.*"]
    settings = {
        "layers": blocks,
        "output": lambda out: out.logits,
        "rates": [0.01],
        "optimizer": torch.optim.AdamW,
    }
    found = asked(model, x, tokens[:, 0] % 3, **settings)
    assert set(found.layers) <= {
        "bert.embeddings",
        *(f"bert.encoder.layer.{i}" for i in (0, 1)),
        "bert.pooler.dense",
        "classifier",
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=found.lr)
    example = {name: value[:2] for name, value in x.items()}
    policy = control.LayerwiseSparse(model, optimizer, found.moves, example=example, layers=blocks)
    assert policy.moving == found.layers
