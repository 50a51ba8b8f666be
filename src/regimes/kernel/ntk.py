"""The empirical tangent kernel of any module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from regimes.core.batch import Inputs, check, device_of
from regimes.core.check import checked
from regimes.core.derivative import Output, exact
from regimes.core.error import UserError
from regimes.kernel.confirm import survey
from regimes.kernel.factor import Reduce
from regimes.kernel.file import KernelFile, check_path, write
from regimes.kernel.fingerprint import fingerprint
from regimes.kernel.plan import Plan, by_jacobian, make_plan
from regimes.kernel.request import Request, request
from regimes.kernel.sink import Whole
from regimes.kernel.site import IrregularError
from regimes.kernel.tiles import Assembly, assemble
from regimes.kernel.tiling import Extent, choose_tiling

__all__ = ["assembly_of", "ntk", "ntk_sketch", "planned"]

_Path = str | PathLike[str]


@overload
def ntk(
    module: nn.Module,
    x1: Inputs,
    x2: Inputs | None = None,
    *,
    reduce: Reduce = "full",
    by_layer: Literal[False] = False,
    output: Output | None = None,
    memory: int | None = None,
    out: _Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
    parameters: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "n1 n ..."]: ...
@overload
def ntk(
    module: nn.Module,
    x1: Inputs,
    x2: Inputs | None = None,
    *,
    reduce: Reduce = "full",
    by_layer: Literal[True],
    output: Output | None = None,
    memory: int | None = None,
    out: _Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
    parameters: Mapping[str, Tensor] | None = None,
) -> dict[str, Float[Tensor, "n1 n ..."]]: ...
@checked
def ntk(
    module: nn.Module,
    x1: Inputs,
    x2: Inputs | None = None,
    *,
    reduce: Reduce = "full",
    by_layer: bool = False,
    output: Output | None = None,
    memory: int | None = None,
    out: _Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
    parameters: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "n1 n ..."] | dict[str, Float[Tensor, "n1 n ..."]]:
    r"""The empirical tangent kernel: K[i, j, a, b] = <df_a(x1_i)/dw, df_b(x2_j)/dw>.

    w are the parameters that require grad; each sample counts as a batch of one. Layers contribute by products
    of what they were given and of what flows back to them, in the cheapest order; parameters that no rule
    describes by rows of the Jacobian. All of it is exact (see the page "Tangent kernels"). For a module from
    :func:`regimes.control.scale` this is the kernel of F, alpha^2 times that of f: the origin does not move.
    Autocast is switched off, and so is TF32.

    Args:
        module: f.
        x1: n1 samples: a tensor (n1, ...); or a tuple, for ``module(*x)``; or a mapping, for ``module(**x)``.
        x2: n2 samples (default: x1; then half of the kernel is computed).
        reduce: "full" gives (n1, n2, c, c); "diagonal" (n1, n2, c), the entries a = b; "trace" (n1, n2), the
            mean of those over a. A full kernel is laid out so that ``K.permute(0, 2, 1, 3).reshape(n1 * c, -1)``
            copies nothing.
        by_layer: a dict from the name of the module that owns the parameters to its part; the parts add up to
            the whole.
        output: picks the outputs, (n, c) or (n,), from what the module returns: ``lambda out: out.logits``.
        memory: bytes of working memory, besides the result (default: 2^30).
        out: a path that ends in .npy: the kernel is written there, a tile at a time, and the result is a tensor
            over the mapped file. The same call continues a file that was left unfinished; a journal lies beside it,
            by whose checksums every number is verified first.
        overwrite: begin ``out`` anew, whatever it holds.
        progress: show a bar with the time left.
        parameters: w by name (default: the parameters of the module), as in ``State.parameters``.

    Returns:
        The kernel, without a graph, of the dtype of the parameters.

    Raises:
        UserError: if the inputs are empty, not finite or differ in shape; parameters are not finite, or neither
            float32 nor float64; ``reduce`` is unknown; nothing requires grad; the outputs have another shape;
            the module couples samples, is random or decides by its data; ``memory`` is too small for one sample;
            ``out`` holds something else or is damaged, or its disk is full.

    Source: Jacot, Gabriel, Hongler 2018; Geiger et al. 2020, section 2; orders of contraction: Novak, Sohl-Dickstein,
    Schoenholz 2022.

    >>> net = nn.Linear(2, 1)
    >>> ntk(net, torch.tensor([[1.0, 2.0], [0.0, 1.0]]), reduce="trace")
    tensor([[6., 3.], [3., 2.]])
    """
    if out is not None and by_layer:
        raise UserError("`out`: got a path with by_layer=True, expected one kernel; leave one of the two out")
    path = None if out is None else Path(out)
    if path is not None:
        check_path(path)
    check(x1, "x1")
    with exact(device_of(x1)), torch.no_grad(), _bar(progress) as tick:
        asked = request(module, x1, x2, reduce, output, memory, parameters)
        if path is None:
            return _computed(asked, planned(asked), by_layer, tick)
        return _written(asked, path, overwrite, tick)


@checked
def ntk_sketch(
    module: nn.Module,
    x1: Inputs,
    x2: Inputs | None = None,
    *,
    probes: int,
    seed: int = 0,
    output: Output | None = None,
    memory: int | None = None,
    parameters: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "n1 n2"]:
    """An unbiased estimate of the trace kernel from random outputs: (1/c) mean_r (v_r^T J1)(v_r^T J2)^T.

    v_r in {-1, 1}^c are independent signs, so that E v v^T = 1. It takes ``probes`` backward passes rather than
    c: worth it where there are many outputs. The relative error of an entry falls like probes^-1/2.

    Args:
        module: f.
        x1: n1 samples, as for :func:`ntk`.
        x2: n2 samples (default: x1).
        probes: the number of random outputs.
        seed: of the signs.
        output: as for :func:`ntk`.
        memory: as for :func:`ntk`.
        parameters: as for :func:`ntk`.

    Returns:
        (n1, n2), positive semi-definite where x2 is x1.

    Raises:
        UserError: as :func:`ntk`; or if ``probes`` is not at least 1.

    Source: the estimator of Hutchinson 1990, for the sum over outputs.

    >>> net = nn.Linear(2, 3)
    >>> x = torch.eye(2)
    >>> torch.allclose(ntk_sketch(net, x, probes=1), ntk(net, x, reduce="trace"))
    True
    """
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
        raise UserError(f"`probes`: got {probes!r}, expected a whole number of at least 1")
    check(x1, "x1")
    with exact(device_of(x1)), torch.no_grad():
        asked = request(module, x1, x2, "trace", output, memory, parameters)
        found = survey(asked.network, asked.probe)
        c = found.outputs
        signs = torch.randint(0, 2, (probes, c), generator=torch.Generator().manual_seed(seed)) * 2 - 1
        rays = signs.to(asked.network.dtype).to(asked.network.device) / c**0.5
        kernel = _computed(asked, make_plan(asked.network, found, "trace", rays), False, lambda _: None)
        assert isinstance(kernel, Tensor)
        return kernel


def planned(asked: Request) -> Plan:
    """How the kernel is put together. The network is looked at in each call: it may have changed in any way."""
    return make_plan(asked.network, survey(asked.network, asked.probe), asked.reduce)


def _by_jacobian(asked: Request, plan: Plan) -> Plan:
    """The plan for a network that does not keep to its own; looked at anew, it may have to be refused."""
    survey(asked.network, asked.probe)
    return by_jacobian(asked.network, plan)


def assembly_of(asked: Request, plan: Plan, by_layer: bool, stored: bool) -> Assembly:
    """The kernel of a plan, and how much is taken at a time."""
    n1, n2 = asked.shape
    network = asked.network
    extent = Extent(
        n1, None if asked.columns is None else n2, network.dtype.itemsize, asked.memory, stored,
        network.device.type != "cpu",
    )  # fmt: skip
    scale = asked.scale / (len(plan.asked) if asked.reduce == "trace" else 1)
    return Assembly(network, plan, choose_tiling(plan, extent), asked.rows, asked.columns, by_layer, scale)


def _computed(
    asked: Request, plan: Plan, by_layer: bool, tick: Callable[[float], None]
) -> Tensor | dict[str, Tensor]:
    """The kernel in memory."""
    try:
        sink = _filled(asked, plan, by_layer, tick)
    except IrregularError:
        plan = _by_jacobian(asked, plan)
        sink = _filled(asked, plan, by_layer, tick)
    if not by_layer:
        return sink.kernel("")
    owners = dict.fromkeys(name.rpartition(".")[0] for name in asked.network.trained)
    return {f"{asked.prefix}{owner}".removesuffix("."): sink.kernel(owner) for owner in owners}


def _filled(asked: Request, plan: Plan, by_layer: bool, tick: Callable[[float], None]) -> Whole:
    assembly = assembly_of(asked, plan, by_layer, stored=False)
    tiling = assembly.tiling
    sums = len(tiling.groups) > 1 or (asked.reduce == "trace" and len(tiling.directions) > 1)
    sink = Whole(asked.reduce, asked.shape, len(plan.asked), plan.directions, sums)
    assemble(assembly, sink, tick)
    return sink


def _written(asked: Request, path: Path, overwrite: bool, tick: Callable[[float], None]) -> Tensor:
    """The kernel in a file."""
    plan = planned(asked)
    c = len(plan.asked)
    shape = asked.shape + {"full": (c, c), "diagonal": (c,), "trace": ()}[asked.reduce]
    dtype = np.dtype(str(asked.network.dtype).removeprefix("torch."))
    file = KernelFile(path, fingerprint(asked, c), shape, dtype, asked.columns is None)
    assembly = assembly_of(asked, plan, False, stored=True)
    if overwrite:
        file.remove()
    begun = file.begun()
    by_rows = begun is not None and begun.by_rows
    if not by_rows:
        try:
            write(assembly, file, begun or file.create(by_rows), tick)
        except IrregularError:
            file.remove()
            begun, by_rows = None, True
    if by_rows:
        plan = _by_jacobian(asked, plan)
        write(assembly_of(asked, plan, False, stored=True), file, begun or file.create(by_rows), tick)
    return file.tensor()


@contextmanager
def _bar(shown: bool) -> Iterator[Callable[[float], None]]:
    """Hears of each share of the work that is done; shows a bar with the time left."""
    if not shown:
        yield lambda share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("tangent kernel"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(
        *columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True)
    ) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda share: bar.advance(task, share)
