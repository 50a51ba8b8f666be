"""The kernel by this library and by its peers on PyTorch: one of them per process, named on the command line.

    regimes      measure.ntk
    contraction  the recipe of PyTorch's tutorial "Neural Tangent Kernels", Jacobians by vmap(jacrev(functional_call))
                 and an einsum for each parameter; the square kernel from one Jacobian, where the tutorial takes two
    products     the same tutorial's NTK-vector products
    nngeometry   its Gram matrix, all samples in one batch (which is fastest: the passes are not repeated)
    product      no kernel, but one large float32 product: the rate of the machine

Attention and encoder layers run written out for the peers: torch.func has no rules for the fused kernels.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from typing import Any

import torch
from _kernel_models import build, inputs
from _kernel_protocol import Task, serve
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

PRODUCT = 3072


def regimes(module: nn.Module, x: Tensor, task: Task) -> Tensor:
    """This library."""
    from regimes import measure

    extra: dict[str, Any] = {} if task.memory is None else {"memory": task.memory}
    if task.out is not None:
        extra["out"] = task.out
    return measure.ntk(module, x, reduce=task.reduce, **extra)  # pyright: ignore[reportArgumentType, reportCallIssue]


def network(module: nn.Module) -> tuple[Callable[[dict[str, Tensor], Tensor], Tensor], dict[str, Tensor]]:
    """(w, one sample) -> (c,), and w."""

    def one(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(module, weights, (sample[None],))[0]

    return one, {name: value.detach() for name, value in module.named_parameters()}


def contraction(module: nn.Module, x: Tensor, task: Task) -> Tensor:
    """Rows of the Jacobian, and their products parameter by parameter."""
    one, weights = network(module)
    rows = vmap(jacrev(one), (None, 0))(weights, x)
    pattern = "naf,mbf->nmab" if task.reduce == "full" else "naf,maf->nm"
    total: Any = sum(torch.einsum(pattern, j, j) for j in (row.flatten(2) for row in rows.values()))
    return total if task.reduce == "full" else total / task.outputs


def products(module: nn.Module, x: Tensor, task: Task) -> Tensor:
    """J(x_i) applied to J(x_j)^T e_a, for all i, j and a."""
    one, weights = network(module)

    def pair(left: Tensor, right: Tensor) -> Tensor:
        out, pull = vjp(lambda w: one(w, left), weights)[:2]

        def column(unit: Tensor) -> Tensor:
            return jvp(lambda w: one(w, right), (weights,), pull(unit))[1]

        return vmap(column)(torch.eye(out.numel()))

    full = vmap(vmap(pair, (None, 0)), (0, None))(x, x)
    return full if task.reduce == "full" else torch.einsum("nmaa->nm", full) / task.outputs


def nngeometry(module: nn.Module, x: Tensor, task: Task) -> Tensor:
    """The Gram matrix (c, n, c, n) of nngeometry, 0.3 or later, seen as (n, n, c, c)."""
    from torch.utils.data import DataLoader, TensorDataset

    def function(*batch: Tensor) -> Tensor:
        return module(batch[0])

    loader = DataLoader(TensorDataset(x), batch_size=len(x))
    try:
        from nngeometry.gram import GramMatrix  # pyright: ignore[reportMissingImports]
    except ImportError:
        from nngeometry.generator import Jacobian
        from nngeometry.object import FMatDense

        generator = Jacobian(model=module, function=function, n_output=task.outputs)
        gram = FMatDense(generator=generator, examples=loader).get_dense_tensor()
    else:
        gram = GramMatrix(module, loader, function=function).to_torch()
    return gram.permute(1, 3, 0, 2)


PEERS = {"regimes": regimes, "contraction": contraction, "products": products, "nngeometry": nngeometry}


def prepare(task: Task) -> Callable[[], Any]:
    """The call to time."""
    torch.set_num_threads(task.threads)
    if sys.argv[1] == "product":
        a, out = torch.randn(PRODUCT, PRODUCT), torch.empty(PRODUCT, PRODUCT)
        return lambda: torch.mm(a, a, out=out)
    module = build(task.network, task.outputs)
    x = inputs(task.network, task.samples) if task.data is None else images(task)
    peer = PEERS[sys.argv[1]]
    if peer is not regimes:
        torch.backends.mha.set_fastpath_enabled(False)

    def call() -> Tensor:
        if peer is regimes:
            return regimes(module, x, task)
        with sdpa_kernel(SDPBackend.MATH):
            return peer(module, x, task).detach()

    return call


def images(task: Task) -> Tensor:
    """MNIST, (n, 784)."""
    from regimes import data

    found = data.load(
        "mnist", train=task.samples, test=1, flat=True, dtype=torch.float32, directory=task.data or None
    )
    return found.train.x


def versions() -> str:
    """What is installed."""
    wanted = {"regimes": "regimes", "nngeometry": "nngeometry"}.get(sys.argv[1], "torch")
    return f"{wanted} {importlib.metadata.version(wanted)}"


if __name__ == "__main__":
    serve(prepare, versions)
