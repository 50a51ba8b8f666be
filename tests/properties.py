"""Properties as assertions, to be read as sentences."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["assert_close", "assert_psd", "assert_symmetric"]


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    """Equal shapes, and a difference of at most ``tolerance`` in relative Frobenius norm."""
    assert found.shape == expected.shape, f"{tuple(found.shape)} is not {tuple(expected.shape)}"
    found, expected = found.detach(), expected.detach()
    apart = float((found - expected).norm())
    assert apart <= tolerance * max(float(expected.norm()), 1e-300), f"differ by {apart:.3g}"


def _matrix(k: Tensor) -> Tensor:
    """A kernel (n, n), (n, n, c) or (n, n, c, c) as one or several square matrices."""
    if k.dim() == 4:
        n, _, c, _ = k.shape
        return k.transpose(1, 2).reshape(n * c, n * c)
    return k if k.dim() == 2 else k.permute(2, 0, 1)


def assert_symmetric(k: Tensor) -> None:
    """K[i, j, a, b] = K[j, i, b, a]."""
    square = _matrix(k)
    assert_close(square, square.mT)


def assert_psd(k: Tensor) -> None:
    """No eigenvalue below 0, up to rounding."""
    eigenvalues = torch.linalg.eigvalsh(_matrix(k))
    assert float(eigenvalues.min()) >= -1e-10 * max(float(eigenvalues.max()), 1e-300)
