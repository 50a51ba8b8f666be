"""The IDX format: it is read as a plain reader reads it, and every cut is noticed."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regimes.core.error import UserError
from regimes.data.idx import idx_decode, idx_encode
from tests.data.published import read_idx_slowly, write_idx


@pytest.mark.parametrize("shape", [(5,), (1,), (3, 4, 6), (2, 28, 28)])
def test_it_reads_what_a_plain_reader_reads(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "values"
    write_idx(path, np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    array = idx_decode(path.read_bytes(), path.name)
    assert array.shape == shape
    assert array.tolist() == read_idx_slowly(path)


@given(st.lists(st.integers(0, 255)), st.sampled_from([1, 2, 3]))
def test_decoding_undoes_encoding(values: list[int], axes: int) -> None:
    array = np.array(values, np.uint8).reshape(-1, *[1] * (axes - 1))
    assert np.array_equal(idx_decode(idx_encode(array), "values"), array)


def test_encoding_gives_the_published_bytes(real_data: Path) -> None:
    content = gzip.decompress((real_data / "mnist" / "t10k-images-idx3-ubyte.gz").read_bytes())
    assert idx_encode(idx_decode(content, "images")) == content


@given(st.integers(0, 11))
def test_every_cut_is_noticed(end: int) -> None:
    whole = idx_encode(np.arange(4, dtype=np.uint8))
    with pytest.raises(UserError, match=r"labels.*(begins with|promises)"):
        idx_decode(whole[:end], "labels")


HEADS = ["00000d01", "01000801", "00010801", "00000800", "00000804", "1f8b0808"]


@pytest.mark.parametrize("head", HEADS)
def test_another_magic_number_is_refused(head: str) -> None:
    with pytest.raises(UserError, match=f"begins with 0x{head}, expected 0x00000801"):
        idx_decode(bytes.fromhex(head) + bytes(100), "labels")


def test_bytes_after_the_end_are_refused() -> None:
    with pytest.raises(UserError, match=r"holds 13 bytes, its header .* promises 12"):
        idx_decode(idx_encode(np.arange(4, dtype=np.uint8)) + b"x", "labels")


@pytest.mark.parametrize(
    "sizes", [(1 << 31, 1 << 31, 4), (1 << 16, 1 << 16, 1 << 31), (0xFFFFFFFF,) * 3, (1 << 31,)]
)
def test_sizes_of_any_product_are_refused(sizes: tuple[int, ...]) -> None:
    """In 64 bits the first product is 0, and the second negative."""
    head = bytes([0, 0, 8, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)
    with pytest.raises(UserError, match=f"promises {len(head) + math.prod(sizes)}"):
        idx_decode(head, "images")
