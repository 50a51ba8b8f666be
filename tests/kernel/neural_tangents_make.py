"""Makes neural_tangents.npz: kernels by neural-tangents, in float64, and the weights and inputs they belong to.

    python -m venv DIR
    DIR/bin/pip install jax==0.4.23 jaxlib==0.4.23 "numpy<2" "scipy<1.13" tensorflow-cpu tf2jax==0.3.6 \
        dm-tree neural-tangents==0.6.5
    DIR/bin/python tests/kernel/neural_tangents_make.py

neural-tangents 0.6.5 is the last release and does not run on later versions of JAX, nor beside this library; so the
numbers are stored. The networks are plain functions in the NTK law (Jacot, Gabriel, Hongler 2018): every layer is
W * h / sqrt(fan_in) + b, with W and b drawn from N(0, 1). The three algorithms of neural-tangents (Novak,
Sohl-Dickstein, Schoenholz 2022) have to agree before anything is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SEED = 20220617
OUTPUTS, WIDTH = 3, 8
# The shapes of the weights in torch's order, and of one input.
MLP = ((WIDTH, 5), (WIDTH, WIDTH), (OUTPUTS, WIDTH)), (5,)
CNN = ((WIDTH, 2, 3, 3), (WIDTH, WIDTH, 3, 3), (OUTPUTS, WIDTH)), (2, 6, 6)
STRIDES = (1, 2)
ROWS, COLUMNS = 5, 4
Parameters = list[tuple[Any, Any]]


def scaled(weight: Any) -> Any:
    """W / sqrt(fan_in)."""
    return weight / np.sqrt(np.prod(weight.shape[1:]))


def mlp(parameters: Parameters, x: Any) -> Any:
    """Linear, tanh, linear, tanh, linear: (n, 5) -> (n, c)."""
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]

    *hidden, (last, shift) = parameters
    for weight, bias in hidden:
        x = jnp.tanh(x @ scaled(weight).T + bias)
    return x @ scaled(last).T + shift


def cnn(parameters: Parameters, x: Any) -> Any:
    """3x3 convolutions with padding 1 and ReLU, the mean over positions, linear: (n, 2, 6, 6) -> (n, c)."""
    import jax  # pyright: ignore[reportMissingImports]

    *hidden, (last, shift) = parameters
    for (weight, bias), stride in zip(hidden, STRIDES, strict=True):
        z = jax.lax.conv_general_dilated(
            x, scaled(weight), (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NCHW", "OIHW", "NCHW")
        )
        x = jax.nn.relu(z + bias[:, None, None])
    return x.mean((2, 3)) @ scaled(last).T + shift


def kernel(function: Any, parameters: Parameters, x1: Any, x2: Any) -> np.ndarray:
    """K[i, j, a, b] by Jacobian contraction; by the two other algorithms too, which must agree."""
    import neural_tangents as nt  # pyright: ignore[reportMissingImports]

    found = [
        np.asarray(
            nt.empirical_ntk_fn(
                function, trace_axes=(), diagonal_axes=(), vmap_axes=0, implementation=implementation
            )(x1, x2, parameters)
        )
        for implementation in (
            nt.NtkImplementation.JACOBIAN_CONTRACTION,
            nt.NtkImplementation.NTK_VECTOR_PRODUCTS,
            nt.NtkImplementation.STRUCTURED_DERIVATIVES,
        )
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=0, atol=1e-14 * np.abs(found[0]).max())
    return found[0]


def main() -> None:
    """Draw, compute, write."""
    import jax  # pyright: ignore[reportMissingImports]
    import neural_tangents as nt  # pyright: ignore[reportMissingImports]

    jax.config.update("jax_enable_x64", True)
    draw = np.random.default_rng(SEED)
    stored: dict[str, Any] = {"versions": f"neural-tangents {nt.__version__}, jax {jax.__version__}"}
    for name, function, (shapes, sample) in (("mlp", mlp, MLP), ("cnn", cnn, CNN)):
        parameters = [(draw.standard_normal(shape), draw.standard_normal(shape[0])) for shape in shapes]
        x1, x2 = draw.standard_normal((ROWS, *sample)), draw.standard_normal((COLUMNS, *sample))
        for i, (weight, bias) in enumerate(parameters):
            stored |= {f"{name}_weight_{i}": weight, f"{name}_bias_{i}": bias}
        stored |= {f"{name}_x1": x1, f"{name}_x2": x2}
        parameters, x1, x2 = jax.tree_util.tree_map(jax.numpy.asarray, (parameters, x1, x2))
        stored |= {f"{name}_square": kernel(function, parameters, x1, None)}
        stored |= {f"{name}_rectangle": kernel(function, parameters, x1, x2)}
    np.savez_compressed(Path(__file__).with_name("neural_tangents.npz"), **stored)


if __name__ == "__main__":
    main()
