"""Streams of random numbers: far apart for every seed and name, and the same in every process."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regimes.core.error import UserError
from regimes.core.stream import entropy, generator

NAMES = st.lists(st.one_of(st.integers(-(2**63), 2**63 - 1), st.text(max_size=5)), max_size=4)
SEEDS = st.integers(-(2**63), 2**63 - 1)


@given(SEEDS, NAMES)
def test_it_is_its_definition(seed: int, names: list[int | str]) -> None:
    text = "[" + ",".join(json.dumps(each) for each in (seed, *names)) + "]"
    assert entropy(seed, *names) == int(hashlib.sha256(text.encode()).hexdigest(), 16)


@given(SEEDS, NAMES, SEEDS, NAMES)
def test_what_differs_has_a_stream_of_its_own(
    seed: int, names: list[int | str], other: int, others: list[int | str]
) -> None:
    """Lists compare as JSON does: 1 and "1" differ, and nothing runs into its neighbour."""
    same = json.dumps([seed, *names]) == json.dumps([other, *others])
    assert (entropy(seed, *names) == entropy(other, *others)) == same


def test_seeds_are_far_apart() -> None:
    """Neighbours differ in half of their bits, and so do seeds that torch itself takes for one."""
    for seed in range(100):
        for other in (seed + 1, seed + 2**32, -seed - 1):
            assert 80 < (entropy(seed) ^ entropy(other)).bit_count() < 176
    plain = [torch.randn(5, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3 + 2**32)]
    hashed = [torch.randn(5, generator=generator(seed)) for seed in (3, 3 + 2**32)]
    assert torch.equal(*plain) and not torch.equal(*hashed)


def test_streams_are_uncorrelated() -> None:
    draws = torch.stack(
        [torch.randn(2000, generator=generator(seed, "a", h)) for seed in range(8) for h in range(8)]
    )
    off = torch.corrcoef(draws) - torch.eye(64)
    assert float(off.abs().max()) < 6 / 2000**0.5


def test_another_process_draws_the_same() -> None:
    code = "from regimes.core.stream import entropy; print(entropy(7, 'mlp', 4, 12))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "1"},
        capture_output=True,
        check=True,
    )
    assert int(done.stdout) == entropy(7, "mlp", 4, 12)


def test_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    torch.randn(3, generator=generator(0))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", [True, None, 1.5, [1]])
def test_a_bad_name_is_named(name: object) -> None:
    with pytest.raises(UserError, match="`names`: got"):
        entropy(0, name)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="`seed`: got"):
        entropy("a")  # pyright: ignore[reportArgumentType]
