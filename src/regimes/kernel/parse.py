"""From the arguments of an operation to the rule it goes by."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from regimes.kernel.call import Call
from regimes.kernel.use import Draft, Reference

__all__ = ["multiple", "operation", "parse"]

References = Mapping[int, Reference]
Parser = Callable[..., Draft | None]


def _parts(references: References, **tensors: Tensor | None) -> dict[str, Reference]:
    """Those of the named tensors that are references."""
    return {part: references[id(t)] for part, t in tensors.items() if id(t) in references}


def _linear(
    references: References, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Draft | None:
    if id(input) in references or weight.dim() != 2:
        return None
    return Draft("linear", _parts(references, weight=weight, bias=bias), (input,), ("out, in",))


def _matmul(references: References, input: Tensor, other: Tensor) -> Draft | None:
    """x @ W."""
    if id(input) in references or other.dim() != 2 or input.dim() < 2:
        return None
    return Draft("linear", _parts(references, weight=other), (input,), ("in, out",))


def _addmm(
    references: References, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Draft | None:
    """b + x @ W, the linear layer of GPT-2."""
    plain = beta == 1 and alpha == 1 and input.dim() == 1
    if not plain or id(mat1) in references or mat2.dim() != 2:
        return None
    return Draft("linear", _parts(references, weight=mat2, bias=input), (mat1,), ("in, out",))


def _several(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value) * (dims if len(value) == 1 else 1)


def _convolution(dims: int) -> Parser:
    def parser(
        references: References,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Draft | None:
        if id(input) in references or input.dim() != dims + 2:
            return None
        spread = _several(dilation, dims)
        if padding == "same":
            reach = [d * (k - 1) for d, k in zip(spread, weight.shape[2:], strict=True)]
            pads = tuple((r // 2, r - r // 2) for r in reach)
        else:
            pads = tuple((p, p) for p in _several(0 if isinstance(padding, str) else padding, dims))
        options = (tuple(weight.shape), _several(stride, dims), pads, spread, groups)
        return Draft("convolution", _parts(references, weight=weight, bias=bias), (input,), options)

    return parser


def _transposed(dims: int) -> Parser:
    def parser(
        references: References,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        dilation: int | Sequence[int] = 1,
    ) -> Draft | None:
        if id(input) in references or input.dim() != dims + 2:
            return None
        pads = tuple((p, p) for p in _several(padding, dims))
        options = (tuple(weight.shape), _several(stride, dims), pads, _several(dilation, dims), groups)
        return Draft(
            "transposed convolution", _parts(references, weight=weight, bias=bias), (input,), options
        )

    return parser


def _embedding(
    references: References,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Draft | None:
    # The first changes the weights as it goes, the second gives something else than the derivative.
    if max_norm is not None or scale_grad_by_freq:
        return None
    blank = None if padding_idx is None else padding_idx % weight.shape[0]
    return Draft("embedding", _parts(references, weight=weight), (input,), (blank,))


def _norm(function: Callable[..., Tensor], axis: int | None) -> Parser:
    """``axis``: that of the channels, or None where weight and bias have the shape of the last axes."""
    signature = inspect.signature(function)
    plain: dict[str, Any] = {name: None for name in ("weight", "bias") if name in signature.parameters}
    if "momentum" in signature.parameters:
        plain["momentum"] = 0.0  # running statistics stay as they are

    def parser(references: References, *args: Any, **kwargs: Any) -> Draft | None:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        options = given.arguments
        x = options.pop("input")
        if id(x) in references or options.get("training"):
            return None
        found = _parts(references, **{part: options.get(part) for part in ("weight", "bias")})
        return Draft("norm", found, (x,), (axis,), partial(function, **{**options, **plain}))

    return parser


_RULES: dict[Callable[..., Any], Parser] = {
    functional.linear: _linear,
    torch.matmul: _matmul,
    torch.mm: _matmul,
    Tensor.matmul: _matmul,
    Tensor.mm: _matmul,
    Tensor.__matmul__: _matmul,
    torch.addmm: _addmm,
    Tensor.addmm: _addmm,
    torch.conv1d: _convolution(1),
    torch.conv2d: _convolution(2),
    torch.conv3d: _convolution(3),
    torch.conv_transpose1d: _transposed(1),
    torch.conv_transpose2d: _transposed(2),
    torch.conv_transpose3d: _transposed(3),
    functional.embedding: _embedding,
    functional.layer_norm: _norm(functional.layer_norm, None),
    functional.rms_norm: _norm(functional.rms_norm, None),
    functional.group_norm: _norm(functional.group_norm, 1),
    functional.batch_norm: _norm(functional.batch_norm, 1),
    functional.instance_norm: _norm(functional.instance_norm, 1),
}
# A property reaches the mode as the getter behind it.
_GETTERS = (getattr(getattr(Tensor, name), "__get__") for name in ("T", "mT"))  # noqa: B009
_TRANSPOSES = frozenset({torch.t, Tensor.t, *_GETTERS})
_SWAPS = frozenset({torch.transpose, Tensor.transpose})
_PRODUCTS = frozenset(
    {torch.mul, torch.multiply, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, Tensor.multiply}
)
_QUOTIENTS = frozenset({torch.div, torch.true_divide, Tensor.div, Tensor.__truediv__, Tensor.true_divide})


def parse(call: Call, references: References) -> Draft | None:
    """The rule for these arguments, or None."""
    parser = _RULES.get(call.function)
    return None if parser is None else parser(references, *call.args, **call.kwargs)


def operation(call: Call, references: References) -> Draft:
    """Any operation, to be done again sample by sample: what it gives back is found by autograd."""
    every = list(call.tensors())
    named = {str(i): references[id(t)] for i, t in enumerate(every) if id(t) in references}
    inputs = tuple(t for t in every if id(t) not in references)
    of_parameter = [id(t) in references for t in every]

    def again(data: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        left, right = iter(data), iter(parameters)
        values = [next(right) if parameter else next(left) for parameter in of_parameter]
        if call.in_place:
            values[0] = values[0].clone()
        return call.on(values)

    return Draft("operation", named, inputs, (call.name,), again)


def multiple(call: Call, found: Sequence[Reference]) -> tuple[float | None, bool]:
    """Factor and transposition of what comes out of an operation on one parameter, or (None, False)."""
    source = found[0]
    others = [value for value in call.args if not isinstance(value, Tensor)]
    if len(found) != 1 or source.factor is None or source.tensor.dim() != 2 or call.kwargs:
        return None, False
    swap = call.function in _SWAPS and sorted(axis % 2 for axis in others) == [0, 1]
    if call.function in _TRANSPOSES or swap:
        return source.factor, not source.transposed
    number = len(others) == 1 and len(call.args) == 2 and isinstance(others[0], int | float)
    if number and call.function in _PRODUCTS:
        return source.factor * others[0], source.transposed
    if number and call.function in _QUOTIENTS and others[0]:
        return source.factor / others[0], source.transposed
    return None, False
