"""What one step of Gauss-Newton did."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GaussNewtonStep"]


@dataclass(frozen=True)
class GaussNewtonStep:
    """What one step of :class:`GaussNewton` did; from ``step``.

    Attributes:
        loss: of the batch that was solved, before the step.
        predicted: by how much the quadratic model says that the loss falls for the step that was tried last, on the
            batch of ``check`` where there is one.
        actual: by how much it fell; nan where it was not finite.
        ratio: actual over predicted; nan where predicted is rounding, minus infinity where there is no loss, or the
            model itself says that it rises.
        damping: lambda of the step that was solved.
        length: what the solution was multiplied with, the learning rate and the line search together; 0 where the
            parameters stayed as they were.
        kernel: "full", "trace" or "products", as it was solved.
        products: products with K, or with its trace form, that conjugate gradients took.
        residual: of conjugate gradients, relative; 0 where a factorisation was used.
        raised: how often lambda was multiplied by 10 since the factorisation failed.
    """

    loss: float
    predicted: float
    actual: float
    ratio: float
    damping: float
    length: float
    kernel: str
    products: int = 0
    residual: float = 0.0
    raised: int = 0

    @property
    def taken(self) -> bool:
        """Whether the parameters moved."""
        return self.length != 0
