"""Fetch a data set from OpenML and lay it out as its published files."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.data.catalog import Description, describe, home
from regimes.data.checksum import SUMS, locate, recorded
from regimes.data.idx import idx_encode
from regimes.data.image import choices, read
from regimes.data.openml import SERVER, listing, read_arff
from regimes.data.transfer import BY_HAND, Source, retrieve

__all__ = ["fetch"]

# Bytes that OpenML's copy can have: a value such as "255.0," and the lines before the first point.
LONGEST_VALUE, LONGEST_HEADER = 8, 1 << 20
BINARY = "cifar-10-batches-bin"


@checked
def fetch(
    name: str,
    directory: str | Path | None = None,
    progress: bool = True,
    *,
    server: str | Sequence[str] = SERVER,
) -> list[Path]:
    """Fetch a data set from OpenML into the data directory, where :func:`regimes.data.load` reads it.

    OpenML's copy is one ARFF file of all images. It is compared with the md5 that OpenML states, and written
    in the format of the published files, so that there is one reader whatever the files came from:

    ============= ====== ================= ==========================================
    data set      number OpenML's name     files written
    ============= ====== ================= ==========================================
    mnist            554 mnist_784         ``mnist/*.gz`` (IDX)
    fashion-mnist  40996 Fashion-MNIST     ``fashion-mnist/*.gz`` (IDX)
    emnist         41039 EMNIST_Balanced   ``emnist/emnist-balanced-*.gz`` (IDX)
    cifar-10       40927 CIFAR_10          ``cifar-10-batches-bin/*.bin``
    ============= ====== ================= ==========================================

    The name is compared with what OpenML answers. The result is compared with the published files where their
    checksums are known (all but EMNIST); if it holds the same classes equally often but in other bytes, which
    includes another order of the images, it is kept and reported, and ``provenance["verified"]`` says
    ``"fetched"`` instead of ``"published"``. The checksums of what was written are kept beside it in
    ``SHA256SUMS`` and verified at every load. The same download gives the same bytes. Files appear under
    their names only when complete; a fetch that is killed leaves nothing that a load would take. A download
    that breaks goes on where it stopped, in the same call or the next.

    What a fetch cannot give: the five other splits of EMNIST (``byclass``, ``bymerge``, ``letters``,
    ``digits``, ``mnist``): take ``gzip.zip`` from the data set's page at NIST and put its
    ``emnist-SPLIT-*-ubyte.gz`` files into ``DIR/emnist/``. And CIFAR-10's python batches, which hold
    more than images and labels: put those from the data set's page into ``DIR/cifar-10-batches-py/``.

    Args:
        name: ``mnist``, ``fashion-mnist``, ``emnist`` or ``cifar-10``.
        directory: the data directory; else ``REGIMES_DATA``; else ``~/.cache/regimes``.
        progress: whether to show a progress bar, with the time left, on standard error.
        server: OpenML, or mirrors of it: each is asked until one has the data set. Its address and those it
            leads to begin with ``https://``; on this machine ``http://`` will do.

    Returns:
        The files that hold the data set, whether they were there already or not.

    Raises:
        UserError: if the data set is unknown or embedded, the connection fails, a checksum or count is
            wrong, or the directory cannot be written to.
    """
    description = describe(name)
    if description.openml is None:
        raise UserError(f"`name`: '{name}' comes with scikit-learn and needs no fetch; load it as it is")
    base = home(directory)
    folder = base / (BINARY if name == "cifar-10" else description.folders[0])
    present = already(description, base)
    if present:
        return present
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths, published = build(description, folder, progress, server)
    except OSError as error:
        raise UserError(
            f"`directory`: {folder} cannot be written to ({error}); make room there, or name another directory"
        ) from error
    if not published and known(description):
        Console(stderr=True).print(
            f"{description.title}: OpenML's copy is whole, but not the published files byte for byte",
            style="yellow",
        )
    return paths


def build(
    description: Description, folder: Path, progress: bool, server: str | Sequence[str]
) -> tuple[list[Path], bool]:
    """Download, convert, compare and put into place; whether the files are the published ones."""
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as work:
        file, target = obtain(description, folder, Path(work), progress, server)
        with Console(stderr=True, quiet=not progress).status(f"{description.title}: writing"):
            pixels, labels = parse(description, file, target)
            contents = encode(description, pixels, labels)
            published = compare(description, labels, contents)
            return store(contents, folder, Path(work)), published


def already(description: Description, base: Path) -> list[Path]:
    """The files of the data set if they are there and pass their checks, else nothing."""
    try:
        read(description.name, base)
        return locate(description, base, choices(description, description.fetched))
    except UserError:
        return []


def obtain(
    description: Description, folder: Path, work: Path, progress: bool, server: str | Sequence[str]
) -> tuple[Path, str]:
    """OpenML's copy, downloaded from the first server that has it, and the name of its class column."""
    servers = [server] if isinstance(server, str) else list(server)
    failures: list[UserError] = []
    for each in servers:
        try:
            return obtain_from(each, description, folder, work, progress)
        except UserError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    told = "; ".join(str(error).removesuffix(f"; {BY_HAND}") for error in failures)
    raise UserError(f"`server`: none of {len(servers)} servers has it ({told}); {BY_HAND}")


def obtain_from(
    server: str, description: Description, folder: Path, work: Path, progress: bool
) -> tuple[Path, str]:
    """OpenML's copy from one server. What came before the connection broke is kept, by its checksum."""
    number, name = description.openml or (0, "")
    found = listing(number, server)
    if found.name.lower() != name.lower():
        raise UserError(
            f"`name`: OpenML's data set {number} is called '{found.name}', expected '{name}'; {BY_HAND}"
        )
    variant = description.variants[description.fetched]
    values = (variant.train + variant.test) * (math.prod(description.shape) + 1)
    most = LONGEST_VALUE * values + LONGEST_HEADER
    kept, path = folder / f".openml-{found.md5}.part", work / "openml.arff"
    if kept.exists():
        os.replace(kept, path)  # no other fetch writes to it now
    try:
        retrieve(Source(found.url, found.md5, most, description.title, server), path, progress)
    except BaseException:
        if path.exists():
            os.replace(path, kept)
        raise
    return path, found.target


def parse(description: Description, file: Path, target: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, d) and labels (n,), both uint8, of OpenML's copy: the training images first."""
    variant = description.variants[description.fetched]
    pixels, labels = read_arff(file, target, variant.classes, math.prod(description.shape))
    if len(labels) != variant.train + variant.test:
        raise UserError(
            f"`name`: OpenML's copy of {description.title} holds {len(labels)} images, "
            f"expected {variant.train} + {variant.test}; {BY_HAND}"
        )
    return pixels, labels


def encode(description: Description, pixels: np.ndarray, labels: np.ndarray) -> dict[str, bytes]:
    """The contents of the published files, before gzip, by the names of the files."""
    variant = description.variants[description.fetched]
    names = [file.name.format(split=description.fetched) for file in description.files]
    if description.name == "cifar-10":
        records = np.split(np.concatenate([labels[:, None], pixels], axis=1), len(names))
        return {f"{name}.bin": part.tobytes() for name, part in zip(names, records, strict=True)}
    images = pixels.reshape(-1, *description.shape[1:])
    if description.name == "emnist" and upright(images[labels == variant.classes.index("1")]):
        images = images.swapaxes(1, 2)
    cut = variant.train
    labels = labels + np.uint8(variant.first)
    parts = (images[:cut], labels[:cut], images[cut:], labels[cut:])
    return {f"{name}.gz": idx_encode(part) for name, part in zip(names, parts, strict=True)}


def upright(ones: np.ndarray) -> bool:
    """Whether images (n, h, w) of the digit 1 stand: their ink is spread more over rows than over columns.

    The published files of EMNIST hold every image transposed; this tells whether OpenML's copy does.

    >>> upright(np.ones((1, 3, 1)))
    True
    """
    ink = ones.sum(0, dtype=np.float64)
    rows, columns = np.indices(ink.shape)
    return spread(rows, ink) > spread(columns, ink)


def spread(places: np.ndarray, weights: np.ndarray) -> float:
    mean = np.average(places, weights=weights)
    return float(np.average((places - mean) ** 2, weights=weights))


def compare(description: Description, labels: np.ndarray, contents: dict[str, bytes]) -> bool:
    """Whether the contents are the published ones. If not, every class must at least be there equally often.

    Raises:
        UserError: if the classes of the training or of the test images are not equally frequent, while the
            bytes are not the published ones: then these are other images, or the two parts are mixed.
    """
    pairs = list(zip(description.files, contents.values(), strict=True))
    wrong = [(file, hashlib.sha256(data).hexdigest()) for file, data in pairs]
    wrong = [(file, found) for file, found in wrong if found != file.content]
    if not wrong:
        return True
    variant = description.variants[description.fetched]
    for part in (labels[: variant.train], labels[variant.train :]):
        counts = np.bincount(part, minlength=len(variant.classes))
        if (counts != counts[0]).any():
            file, found = wrong[0]
            raise UserError(
                f"`name`: OpenML's copy is not the published {description.title}: sha256 of {file.name} "
                f"expected {file.content or 'unknown'}, found {found}, and its classes are not equally "
                f"frequent; {BY_HAND}"
            )
    return False


def known(description: Description) -> bool:
    return all(file.content for file in description.files)


def store(contents: dict[str, bytes], folder: Path, work: Path) -> list[Path]:
    """Write the files beside their place, then rename them into it, the record of their checksums first."""
    sums = recorded(folder)
    for name, data in contents.items():
        packed = pack(data) if name.endswith(".gz") else data
        (work / name).write_bytes(packed)
        sums[name] = hashlib.sha256(packed).hexdigest()
    lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items())]
    (work / SUMS).write_text("".join(lines), encoding="utf-8")
    for name in (SUMS, *contents):
        os.replace(work / name, folder / name)
    return [folder / name for name in contents]


def pack(data: bytes) -> bytes:
    """The gzip file of some bytes, the same every time: without a name and a date."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=6, mtime=0) as file:
        file.write(data)
    return buffer.getvalue()
