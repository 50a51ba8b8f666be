"""Teacher and student: points on the sphere, targets, and what they follow from."""

from __future__ import annotations

import inspect
import json
import math
import subprocess
import sys
from typing import Any

import pytest
import torch

from regimes import data, models
from regimes.core.error import UserError
from regimes.data.teacher_student import Teacher


def test_points_lie_on_the_sphere_and_neurons_have_product_one() -> None:
    task = data.teacher(6, units=4, train=50, test=30, probe=10)
    for part, size in ((task.dataset.train, 50), (task.dataset.test, 30), (task.sample(20, seed=0), 20)):
        torch.testing.assert_close(part.x.norm(dim=1), torch.ones(size).double())
    torch.testing.assert_close(task.a.abs() * task.b.norm(dim=1), torch.ones(4).double())
    assert torch.equal(task.dataset.probe.x, task.dataset.test.x[:10])


def test_targets_are_the_sum_over_neurons() -> None:
    task = data.teacher(6, units=4)
    for part in (task.dataset.train, task.dataset.test, task.dataset.probe, task.sample(20, seed=0)):
        wanted = sum(task.a[k] * (part.x @ task.b[k]).clamp(min=0) for k in range(4))
        torch.testing.assert_close(part.y, wanted)
        torch.testing.assert_close(task(part.x), part.y)
        assert (part.labels == -1).all()


def test_a_student_with_the_weights_of_the_teacher_is_perfect() -> None:
    task = data.teacher(6)
    student = models.two_layer(6, 3, scaling="1")
    with torch.no_grad():
        for own, wanted in zip(student.parameters(), (task.b, task.a[None]), strict=True):
            own.copy_(wanted)
    torch.testing.assert_close(student(task.dataset.test.x)[:, 0].detach(), task.dataset.test.y)


@pytest.mark.parametrize("inputs", [2, 10])
def test_points_are_uniform(inputs: int) -> None:
    """E relu(u_1) = Gamma(d/2) / (2 sqrt(pi) Gamma((d + 1)/2)) for u uniform on the sphere."""
    task = data.teacher(inputs)
    y = task.sample(20000, seed=0).y
    mean = math.exp(math.lgamma(inputs / 2) - math.lgamma((inputs + 1) / 2)) / (2 * math.sqrt(math.pi))
    assert y.mean().item() == pytest.approx(
        mean * task.a.sum().item(), abs=5 * y.std().item() / math.sqrt(len(y))
    )


def test_signs_are_fair_and_directions_differ_from_seed_to_seed() -> None:
    tasks = [data.teacher(3, train=1, test=1, seed=seed) for seed in range(200)]
    signs = torch.stack([task.a for task in tasks])
    assert abs(signs.mean().item()) < 5 / math.sqrt(signs.numel())
    assert len({task.b[0, 0].item() for task in tasks}) == 200


def test_more_points_of_one_kind_change_none_of_another() -> None:
    small, large = data.teacher(6, train=20, test=30), data.teacher(6, train=200, test=10)
    assert torch.equal(small.dataset.train.x, large.dataset.train.x[:20])
    assert torch.equal(small.dataset.test.x[:10], large.dataset.test.x)
    assert torch.equal(small.b, large.b)
    assert torch.equal(small.sample(5, seed=2).x, large.sample(9, seed=2).x[:5])


def test_no_point_comes_twice() -> None:
    task = data.teacher(3, train=200, test=200)
    x = torch.cat(
        [task.dataset.train.x, task.dataset.test.x, *(task.sample(200, seed=s).x for s in range(3))]
    )
    assert len(x.unique(dim=0)) == 1000


def test_the_seed_is_all_that_counts() -> None:
    torch_state = torch.get_rng_state()
    one, same, other = data.teacher(4), data.teacher(4), data.teacher(4, seed=1)
    assert torch.equal(one.dataset.train.y, same.dataset.train.y)
    assert not torch.equal(one.dataset.train.y, other.dataset.train.y)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert json.dumps(one.dataset.provenance) == json.dumps(same.dataset.provenance)
    assert one.dataset.provenance["seed"] == 0


def test_dtype() -> None:
    task, double = data.teacher(4, dtype=torch.float32), data.teacher(4)
    for part in (task.dataset.train, task.sample(5, seed=0)):
        assert part.x.dtype == part.y.dtype == torch.float32
    torch.testing.assert_close(task.dataset.train.x.double(), double.dataset.train.x, rtol=1e-6, atol=1e-7)
    assert task(double.dataset.train.x).dtype == torch.float64


def test_the_name_is_that_of_the_function() -> None:
    assert callable(data.teacher) and data.Teacher is Teacher
    code = "from regimes import data; import sys; data.DATASETS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


BAD: list[tuple[dict[str, Any], str]] = [
    *(({name: 0}, f"`{name}`: 0 came, expected a whole number") for name in ("inputs", "units", "train", "test")),
    ({"probe": 0}, "`probe`: 0 came"),
    ({"seed": -1}, "`seed`: -1 came, expected a whole number from 0 on"),
    ({"seed": True}, "`seed`: True came"),
    ({"dtype": torch.int64}, r"`dtype`: torch\.int64 came"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_a_bad_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        inspect.unwrap(data.teacher)(**{"inputs": 3, **arguments})


@pytest.mark.parametrize(("points", "seed", "name"), [(0, 0, "points"), (5, -1, "seed")])
def test_a_bad_sample_is_named(points: int, seed: int, name: str) -> None:
    with pytest.raises(UserError, match=f"`{name}`"):
        data.teacher(3).sample(points, seed=seed)


def test_points_of_another_dimension_are_named() -> None:
    with pytest.raises(UserError, match=r"`x`: got shape \(5, 4\), expected \(n, 3\)"):
        data.teacher(3)(torch.zeros(5, 4))
