"""The kernel by neural-tangents, in an environment of its own; the argument names its algorithm.

    structured    structured derivatives (Novak, Sohl-Dickstein, Schoenholz 2022)
    jacobian      Jacobian contraction

neural-tangents 0.6.5 is its last release, and does not run on later versions of JAX:

    python3.11 -m venv DIR
    DIR/bin/pip install jax==0.4.23 jaxlib==0.4.23 "numpy<2" "scipy<1.13" tensorflow-cpu tf2jax==0.3.6 \
        dm-tree neural-tangents==0.6.5

Samples are mapped over (vmap_axes=0), as its documentation advises, and everything is compiled: the first call
compiles and is not timed. The networks are those of ``_kernel_models.py``, with the weights of its file, images with
their channels last; each algorithm gets the layout of the weights that it is fastest with.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from _kernel_protocol import Task, serve

Weights = dict[str, Any]


def limit_threads(threads: int) -> None:
    """XLA takes as many threads as the process may use cores. Before JAX is imported."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def project(x: Any, w: Weights, name: str) -> Any:
    """x W^T, from whichever of W and W^T is there."""
    return x @ w[f"{name}.T"] if f"{name}.T" in w else x @ w[name].T


def linear(w: Weights, name: str, x: Any) -> Any:
    """x W^T + b."""
    return project(x, w, f"{name}.weight") + w[f"{name}.bias"]


def conv(w: Weights, name: str, x: Any, stride: int, padding: int) -> Any:
    """A convolution of images (n, h, w, c) by square kernels; with a bias where there is one."""
    import jax  # pyright: ignore[reportMissingImports]

    z = jax.lax.conv_general_dilated(
        x, w[f"{name}.weight"], (stride, stride), ((padding, padding),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    return z + w[f"{name}.bias"] if f"{name}.bias" in w else z


def normalised(x: Any, axes: int | tuple[int, ...]) -> Any:
    """(x - mean) / sqrt(variance + eps), with torch's eps."""
    centred = x - x.mean(axes, keepdims=True)
    return centred / ((centred**2).mean(axes, keepdims=True) + 1e-5) ** 0.5


def group_norm(w: Weights, name: str, x: Any) -> Any:
    """32 groups."""
    n, height, width, channels = x.shape
    z = normalised(x.reshape(n, height * width, 32, channels // 32), (1, 3)).reshape(x.shape)
    return z * w[f"{name}.weight"] + w[f"{name}.bias"]


def layer_norm(w: Weights, name: str, x: Any) -> Any:
    """Over the last axis."""
    return normalised(x, -1) * w[f"{name}.weight"] + w[f"{name}.bias"]


def mlp(w: Weights, x: Any) -> Any:
    """See ``_kernel_models.mlp``."""
    import jax  # pyright: ignore[reportMissingImports]

    for name in ("0", "2", "4"):
        x = jax.nn.relu(linear(w, name, x))
    return linear(w, "6", x)


def cnn(w: Weights, x: Any) -> Any:
    """See ``_kernel_models.cnn``."""
    import jax  # pyright: ignore[reportMissingImports]

    for name, stride in (("0", 1), ("2", 2), ("4", 2)):
        x = jax.nn.relu(conv(w, name, x, stride, 1))
    return linear(w, "8", x.mean((1, 2)))


def resnet(w: Weights, x: Any) -> Any:
    """See ``_kernel_models.resnet``."""
    import jax  # pyright: ignore[reportMissingImports]

    x = jax.nn.relu(group_norm(w, "1", conv(w, "0", x, 1, 1)))
    for index in range(8):
        name = f"3.{index}"
        stride = 2 if index in (2, 4, 6) else 1
        z = jax.nn.relu(group_norm(w, f"{name}.norm1", conv(w, f"{name}.conv1", x, stride, 1)))
        z = group_norm(w, f"{name}.norm2", conv(w, f"{name}.conv2", z, 1, 1))
        if stride == 2:
            x = group_norm(w, f"{name}.shortcut.1", conv(w, f"{name}.shortcut.0", x, 2, 0))
        x = jax.nn.relu(z + x)
    return linear(w, "6", x.mean((1, 2)))


def attention(w: Weights, name: str, x: Any, heads: int) -> Any:
    """Self-attention of (n, t, d), with the three projections in one matrix."""
    import jax  # pyright: ignore[reportMissingImports]
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]

    n, tokens, width = x.shape
    packed = project(x, w, f"{name}.in_proj_weight") + w[f"{name}.in_proj_bias"]
    split = packed.reshape(n, tokens, 3, heads, width // heads)
    query, key, value = (split[:, :, i] for i in range(3))
    scores = jnp.einsum("nshd,nthd->nhst", query, key) / (width // heads) ** 0.5
    mixed = jnp.einsum("nhst,nthd->nshd", jax.nn.softmax(scores), value)
    return linear(w, f"{name}.out_proj", mixed.reshape(n, tokens, width))


def transformer(w: Weights, x: Any) -> Any:
    """See ``_kernel_models.Transformer``."""
    import jax  # pyright: ignore[reportMissingImports]

    x = linear(w, "embedding", x) + w["position"]
    for index in range(4):
        name = f"layers.{index}"
        x = layer_norm(w, f"{name}.norm1", x + attention(w, f"{name}.self_attn", x, 4))
        z = linear(w, f"{name}.linear2", jax.nn.relu(linear(w, f"{name}.linear1", x)))
        x = layer_norm(w, f"{name}.norm2", x + z)
    return linear(w, "head", x.mean(1))


NETWORKS: dict[str, Callable[[Weights, Any], Any]] = {
    "mlp": mlp, "cnn": cnn, "resnet": resnet, "transformer": transformer,
}  # fmt: skip


def load(task: Task, transpose: bool) -> tuple[Any, Weights]:
    """Inputs and weights. A transpose of W in the network hides its structure from the rules for structured
    derivatives (100 times slower), while Jacobian contraction is up to six times faster with W as torch has it.
    """
    from jax.numpy import asarray  # pyright: ignore[reportMissingImports]

    weights: Weights = {}
    with np.load(task.weights) as stored:
        x = stored["x"]
        for name in stored.files:
            key, w = name.removeprefix("weight:"), stored[name]
            if name != "x" and transpose and key.endswith("weight") and w.ndim == 2:
                weights[f"{key}.T"] = asarray(w.T)
            elif name != "x":
                weights[key] = asarray(w.transpose(2, 3, 1, 0) if w.ndim == 4 else w)
    return asarray(x.transpose(0, 2, 3, 1) if x.ndim == 4 else x), weights


def prepare(task: Task) -> Callable[[], Any]:
    """The call to time."""
    limit_threads(task.threads)
    import jax  # pyright: ignore[reportMissingImports]
    import neural_tangents as nt  # pyright: ignore[reportMissingImports]

    x, weights = load(task, transpose=sys.argv[1] == "structured")
    algorithm = {
        "structured": nt.NtkImplementation.STRUCTURED_DERIVATIVES,
        "jacobian": nt.NtkImplementation.JACOBIAN_CONTRACTION,
    }[sys.argv[1]]
    kernel = nt.empirical_ntk_fn(
        NETWORKS[task.network], trace_axes=() if task.reduce == "full" else (-1,), diagonal_axes=(),
        vmap_axes=0, implementation=algorithm,
    )  # fmt: skip
    compiled = jax.jit(lambda x, weights: kernel(x, None, weights))
    return lambda: compiled(x, weights).block_until_ready()


def versions() -> str:
    """What is installed."""
    from importlib.metadata import version

    return f"neural-tangents {version('neural-tangents')} (jax {version('jax')})"


if __name__ == "__main__":
    serve(prepare, versions)
