"""Xavier-normal starts."""

from __future__ import annotations

import math

import pytest
import torch

from regimes.core.stream import generator
from regimes.models.xavier import Start


@pytest.mark.parametrize("gain", [1.0, 1.3])
def test_weights_have_the_variance_of_their_fans_and_biases_are_zero(gain: float) -> None:
    start = Start(generator(0), gain, torch.float64)
    for layer, fans in (
        (start.conv(20, 60), 9 * 80),
        (start.conv(300, 60, 1), 360),
        (start.linear(200, 50), 250),
    ):
        spread = gain * math.sqrt(2 / fans)
        assert layer.weight.std().item() == pytest.approx(spread, rel=5 / math.sqrt(2 * layer.weight.numel()))
        assert layer.bias is not None and bool((layer.bias == 0).all())
        assert layer.weight.dtype == layer.bias.dtype == torch.float64


def test_draws_follow_from_the_seed_and_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (Start(generator(seed), 1.0, torch.float32) for seed in (0, 0, 1))
    one, two = first.conv(2, 3), first.conv(2, 3)
    assert torch.equal(one.weight, again.conv(2, 3).weight) and not torch.equal(one.weight, two.weight)
    assert not torch.equal(one.weight, other.conv(2, 3).weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_stride_one_keeps_the_size() -> None:
    start = Start(generator(0), 1.0, torch.float32)
    for kernel in (1, 3, 5):
        assert start.conv(1, 1, kernel)(torch.zeros(1, 1, 7, 6)).shape == (1, 1, 7, 6)
    assert start.conv(1, 1, bias=False).bias is None
