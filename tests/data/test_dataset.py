"""A data set that is loaded: which points, which targets, in which order, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regimes.core.error import UserError
from regimes.data.dataset import Dataset, choose, load
from regimes.data.image import read
from regimes.data.labelling import targets
from tests.data.published import write_emnist

TASKS = st.one_of(
    st.sampled_from(["classes", "parity"]),
    st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda p: p[0] != p[1]),
)


def tensors(data: Dataset) -> list[torch.Tensor]:
    return [
        getattr(part, name) for part in (data.train, data.test, data.probe) for name in ("x", "y", "labels")
    ]


def test_digits_need_nothing() -> None:
    data = load()
    assert repr(data) == "Dataset(digits, classes: 1347 train, 450 test, 256 probe, x (1, 8, 8))"
    assert repr(data.train) == "Split(x (1347, 1, 8, 8) float64, y (1347,) int64)"
    assert data.classes == tuple("0123456789")


@given(TASKS, st.integers(1, 150), st.integers(1, 150), st.booleans())
@settings(max_examples=25, deadline=None)
def test_prefixes_are_balanced_and_norms_exact(task: Any, train: int, test: int, flat: bool) -> None:
    data = load(task=task, train=train, test=test, flat=flat, dtype=torch.float64)
    for part, size in ((data.train, train), (data.test, test)):
        assert len(part) == size
        norms = part.x.flatten(1).norm(dim=1)
        torch.testing.assert_close(norms, torch.full_like(norms, 8.0), rtol=1e-14, atol=0)
    assert data.train.x.shape[1:] == ((64,) if flat else (1, 8, 8))
    for value in data.train.y.unique():
        share = (data.train.y == value).cumsum(0) - torch.arange(1, train + 1) / (
            2 if task != "classes" else 10
        )
        assert share.abs().max() < 1


@given(TASKS)
@settings(max_examples=15, deadline=None)
def test_targets_follow_from_the_labels(task: Any) -> None:
    data = load(task=task, train=60, test=60)
    labels, y = data.train.labels, data.train.y
    if task == "classes":
        assert torch.equal(y, labels)
    elif task == "parity":
        assert torch.equal(y, (2 * (labels % 2) - 1).double())
    else:
        assert set(labels.tolist()) == set(task)
        assert torch.equal(y, torch.where(labels == task[1], 1.0, -1.0).double())


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("sizes", [(None, None), (500, None), (None, 300), (700, 1000)])
@pytest.mark.parametrize("pair", [None, (3, 8)])
def test_no_point_is_in_both_parts(
    pair: tuple[int, int] | None, sizes: tuple[int | None, int | None], merge: bool
) -> None:
    images = read("digits")
    goals = targets(images.labels, "parity", pair)
    train, test = (size and size // (1 if pair is None else 10) for size in sizes)
    sizes = (train, test if merge or test is None else min(test, 80))
    rows = choose(images, goals, pair, merge, sizes)
    both = np.concatenate([rows.train, rows.test])
    assert len(np.unique(both)) == len(both)
    assert sizes[0] in (None, len(rows.train))
    assert sizes[1] in (None, len(rows.test))
    if not merge:
        assert (rows.train < images.train).all()
        assert (rows.test >= images.train).all()
        assert (rows.fit < images.train).all()
    elif sizes == (None, None):
        assert len(both) == len(rows.fit)


def test_the_same_arguments_give_the_same_bytes() -> None:
    first, second = (load(task="parity", train=100, test=200, pca=5) for _ in range(2))
    assert json.dumps(first.provenance) == json.dumps(second.provenance)
    for one, other in zip(tensors(first), tensors(second), strict=True):
        assert one.numpy().tobytes() == other.numpy().tobytes()


def test_provenance_tells_the_choice_of_points() -> None:
    prints = {str(load(train=train, test=50).provenance["train_indices"]) for train in (10, 11, 10)}
    assert len(prints) == 2


@pytest.mark.parametrize("pca", [None, 10])
def test_a_smaller_training_set_is_the_beginning_of_a_larger_one(pca: int | None) -> None:
    small, large = (load(task="parity", train=train, test=100, pca=pca) for train in (50, 200))
    torch.testing.assert_close(small.train.x, large.train.x[:50], rtol=1e-13, atol=1e-13)
    assert torch.equal(small.train.y, large.train.y[:50])


def test_the_probe_is_the_beginning_of_the_test_points() -> None:
    data = load(train=10, test=100, probe=30)
    for one, other in zip(tensors(data)[3:6], tensors(data)[6:], strict=True):
        assert torch.equal(one[:30], other)
    assert len(load(train=10, test=100).probe) == 100


def test_components_of_all_points_have_variance_one() -> None:
    data = load(task="parity", pca=10)
    x = torch.cat([data.train.x, data.test.x])
    assert x.shape == (1797, 10)
    torch.testing.assert_close(x.T @ x / 1797, torch.eye(10).double(), atol=1e-12, rtol=0)
    assert 0 < float(str(data.provenance["explained"])) < 1


def test_without_centre_and_norm_the_pixels_come_from_zero_to_one() -> None:
    x = load(center=False, norm=False).train.x
    assert (x.min(), x.max()) == (0, 1)
    assert torch.equal((x * 16).round(), x * 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype(dtype: torch.dtype) -> None:
    data = load(task=(0, 1), train=10, test=10, dtype=dtype)
    assert {data.train.x.dtype, data.train.y.dtype} == {dtype}
    assert data.train.labels.dtype == load(train=5).train.y.dtype == torch.int64


def test_names_of_classes_do_as_well_as_numbers(real_data: Path) -> None:
    named = load("cifar-10", task=("cat", "dog"), train=20, test=20, directory=real_data)
    numbered = load("cifar-10", task=(3, 5), train=20, test=20, directory=real_data)
    assert named.task == numbered.task == "cat|dog"
    assert torch.equal(named.train.x, numbered.train.x)
    assert named.train.x.shape == (20, 3, 32, 32)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_protocol_of_the_paper(name: str, real_data: Path) -> None:
    data = load(name, task="parity", train=1000, test=50000, merge=True, pca=10, directory=real_data)
    assert (len(data.train), len(data.test), data.train.x.shape[1]) == (1000, 50000, 10)
    assert data.train.y.sum() == data.test.y.sum() == 0
    assert data.provenance["fitted_on"] == 70000
    everything = load(name, task="parity", train=60000, merge=True, pca=10, directory=real_data)
    x = torch.cat([everything.train.x, everything.test.x])
    torch.testing.assert_close(x.T @ x / 70000, torch.eye(10).double(), atol=1e-10, rtol=0)


@pytest.mark.parametrize("size", [14, 16])
def test_smaller_images(size: int, real_data: Path) -> None:
    x = load("mnist", size=size, center=False, norm=False, train=50, test=50, directory=real_data).train.x
    whole = load("mnist", center=False, norm=False, train=50, test=50, directory=real_data).train.x
    assert x.shape == (50, 1, size, size)
    torch.testing.assert_close(x.mean((1, 2, 3)), whole.mean((1, 2, 3)))
    if size == 14:
        torch.testing.assert_close(x, torch.nn.functional.avg_pool2d(whole, 2))


def test_without_merge_the_published_parts_are_kept(real_data: Path) -> None:
    data = load("mnist", directory=real_data, flat=True, dtype=torch.float32)
    assert (len(data.train), len(data.test)) == (60000, 10000)
    assert data.train.labels.bincount().tolist()[:3] == [5923, 6742, 5958]
    assert data.test.labels.bincount().tolist()[:3] == [980, 1135, 1032]
    assert data.provenance["balanced_prefix"] == 5421 * 10 + 9


def test_emnist_with_an_odd_number_of_classes_is_balanced_by_parity(tmp_path: Path) -> None:
    write_emnist(tmp_path, "balanced", np.tile(np.arange(47), 6), 47 * 4)
    data = load("emnist", task="parity", train=150, test=40, directory=tmp_path)
    assert data.train.y.cumsum(0).abs().max() == 1
    assert (data.provenance["split"], data.provenance["verified"]) == ("balanced", "none")


def test_a_class_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_emnist(tmp_path, "letters", np.array([1, 2, 1, 2]), 2)
    with pytest.raises(UserError, match="`task`: the training images hold no points of one of the classes"):
        load("emnist", task=("A", "C"), split="letters", directory=tmp_path)


BAD_ARGUMENTS = [
    ({"name": "digit"}, r"`name`: 'digit' is no data set .*did you mean 'digits'\?"),
    ({"split": "letters"}, "`split`: 'letters' came, but 'digits' has only one split"),
    ({"task": (3, 3)}, "`task`: the pair .* is one class twice"),
    ({"task": (3, 10)}, r"`task`: class 10 came, expected 0\.\.9"),
    ({"task": "even"}, "`task`: 'even' came, expected 'classes', 'parity' or a pair"),
    ({"train": 0}, "`train`: 0 came, expected a whole number from 1 on"),
    ({"train": -5}, "`train`: -5 came"),
    ({"train": True}, "`train`: got True, expected a whole number"),
    ({"test": 0}, "`test`: 0 came"),
    ({"probe": 0}, "`probe`: 0 came"),
    ({"pca": 0}, "`pca`: 0 came"),
    ({"pca": 65}, "`pca`: 65 came, but an image has 64 values; use at most 64"),
    ({"pca": 64}, "`pca`: 64 came, but the points vary along 61 directions only"),
    ({"size": 14}, "`size`: 14 came, but the images of 'digits' are 8 x 8; leave it out"),
    ({"size": 8}, "`size`: 8 came, expected 14 or 16"),
    ({"train": 1797}, "`train` and `test`: 1797 and None came, but there are 1797 points .* ask for fewer"),
    ({"train": 1000, "test": 1000}, "`train` and `test`: 1000 and 1000 came, but there are 1797 points"),
    ({"test": 1797}, "`train` and `test`: None and 1797 came"),
    ({"task": (3, 8), "train": 400}, "there are 357 points of these classes"),
    ({"dtype": torch.int64}, r"`dtype`: torch\.int64 came, expected a floating type"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS)
def test_a_bad_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(**arguments)


@pytest.mark.parametrize(("argument", "held"), [("train", 60000), ("test", 10000)])
def test_more_points_than_the_file_holds_are_refused(argument: str, held: int, real_data: Path) -> None:
    sizes: dict[str, Any] = {argument: 65000}
    with pytest.raises(
        UserError, match=f"`{argument}`: 65000 came, but its file holds {held} points.*merge=True"
    ):
        load("mnist", directory=real_data, **sizes)


def test_a_bad_argument_is_found_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`task`"):
        load("mnist", task=(3, 3), directory=tmp_path)
    with pytest.raises(UserError, match="`size`: 15 came, expected 14 or 16, or None to keep 28 x 28"):
        load("mnist", size=15, directory=tmp_path)


def test_the_environment_names_the_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REGIMES_DATA", str(tmp_path))
    with pytest.raises(UserError, match=f"regimes fetch mnist --to {tmp_path}"):
        load("mnist")
