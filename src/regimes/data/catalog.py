"""What is known of each data set: title, classes, files, checksums. Cheap to import."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from regimes.core.error import UserError, at_home, nearest

__all__ = ["DATASETS", "Description", "File", "Variant", "describe", "home"]


@dataclass(frozen=True)
class File:
    """One published file and its sha256, as published and after ``gunzip`` ("" where none is known)."""

    name: str
    sha256: str = ""
    content: str = ""


@dataclass(frozen=True)
class Variant:
    """One way a data set is cut: its classes, the sizes of its two files, the label of its first class."""

    classes: tuple[str, ...]
    train: int
    test: int
    first: int = 0


@dataclass(frozen=True)
class Description:
    """A data set as published.

    ``folders`` are looked into in this order, below the data directory; ``variants`` holds one entry named
    ``""`` unless the data set is published in several splits; ``openml`` is the number and the name of the
    copy that :func:`regimes.data.fetch` takes, and ``fetched`` the variant that this copy holds.
    """

    name: str
    title: str
    source: str
    shape: tuple[int, int, int]
    top: int
    folders: tuple[str, ...] = ()
    files: tuple[File, ...] = ()
    variants: Mapping[str, Variant] = field(default_factory=dict)
    openml: tuple[int, str] | None = None
    fetched: str = ""

    def variant(self, split: str | None) -> tuple[str, Variant]:
        """The variant called ``split`` and its name; ``None`` stands for the one that ``fetch`` can give."""
        name = self.fetched if split is None else split
        if name not in self.variants:
            if not any(self.variants):
                raise UserError(
                    f"`split`: {split!r} came, but '{self.name}' has only one split; leave it out"
                )
            known = ", ".join(self.variants)
            raise UserError(
                f"`split`: {split!r} is no split of '{self.name}' ({known}){nearest(name, self.variants)}"
            )
        return name, self.variants[name]

    def sizes(self, split: str) -> list[int]:
        """How many bytes each published file of a split holds, unpacked, in the order of ``files``.

        >>> describe("mnist").sizes("")
        [47040016, 60008, 7840016, 10008]
        """
        variant, pixels = self.variants[split], math.prod(self.shape)
        if self.name == "cifar-10":  # the binary version: one byte of label, then the pixels
            each = (variant.train + variant.test) // len(self.files)
            return [each * (1 + pixels)] * len(self.files)
        parts = (variant.train, variant.test)
        return [size for count in parts for size in (16 + count * pixels, 8 + count)]


def describe(name: str) -> Description:
    """The description of a data set.

    Raises:
        UserError: if there is no data set of this name; the nearest name is suggested.

    >>> describe("mnist").title
    'MNIST'
    """
    if name not in DATASETS:
        known = ", ".join(DATASETS)
        raise UserError(f"`name`: {name!r} is no data set ({known}){nearest(str(name), DATASETS)}")
    return DATASETS[name]


def home(directory: str | Path | None = None) -> Path:
    """The data directory: the argument, else ``REGIMES_DATA``, else ``~/.cache/regimes``.

    >>> home("/data").as_posix()
    '/data'
    """
    chosen = directory or os.environ.get("REGIMES_DATA") or "~/.cache/regimes"
    return at_home(chosen, "data" if directory else "REGIMES_DATA")


DIGITS = tuple("0123456789")
UPPER = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
LOWER = tuple("abcdefghijklmnopqrstuvwxyz")
MERGED = (*DIGITS, *UPPER, *"abdefghnqrt")  # the other lower-case letters look like their upper case
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

MNIST_FILES = (
    File(
        "train-images-idx3-ubyte",
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    File(
        "train-labels-idx1-ubyte",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    File(
        "t10k-images-idx3-ubyte",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    File(
        "t10k-labels-idx1-ubyte",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)
FASHION_FILES = (
    File(
        "train-images-idx3-ubyte",
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    File(
        "train-labels-idx1-ubyte",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    File(
        "t10k-images-idx3-ubyte",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    File(
        "t10k-labels-idx1-ubyte",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
)
# `content` is here the sha256 of the same images and labels in the layout of the binary version:
# per image one byte of label, then 3072 bytes of pixels.
CIFAR_FILES = (
    File(
        "data_batch_1",
        "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
        "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    ),
    File(
        "data_batch_2",
        "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
        "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    ),
    File(
        "data_batch_3",
        "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
        "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    ),
    File(
        "data_batch_4",
        "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
        "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    ),
    File(
        "data_batch_5",
        "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
        "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    ),
    File(
        "test_batch",
        "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
        "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
    ),
)

# The names of EMNIST's files carry the split; no checksum of theirs is known here.
EMNIST_FILES = (
    File("emnist-{split}-train-images-idx3-ubyte"),
    File("emnist-{split}-train-labels-idx1-ubyte"),
    File("emnist-{split}-test-images-idx3-ubyte"),
    File("emnist-{split}-test-labels-idx1-ubyte"),
)

#: The data sets by name: ``digits``, ``mnist``, ``fashion-mnist``, ``emnist``, ``cifar-10``.
DATASETS: dict[str, Description] = {
    "digits": Description(
        name="digits",
        title="Digits (embedded in scikit-learn, no download)",
        source="Alpaydin and Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998), test part",
        shape=(1, 8, 8),
        top=16,
        variants={"": Variant(DIGITS, 1347, 450)},
    ),
    "mnist": Description(
        name="mnist",
        title="MNIST",
        source="LeCun, Cortes and Burges, The MNIST database of handwritten digits",
        shape=(1, 28, 28),
        top=255,
        folders=("mnist", "MNIST/raw", "."),
        files=MNIST_FILES,
        variants={"": Variant(DIGITS, 60000, 10000)},
        openml=(554, "mnist_784"),
    ),
    "fashion-mnist": Description(
        name="fashion-mnist",
        title="Fashion-MNIST",
        source="Xiao, Rasul and Vollgraf, Fashion-MNIST (2017), arXiv 1708.07747",
        shape=(1, 28, 28),
        top=255,
        folders=("fashion-mnist", "FashionMNIST/raw", "."),
        files=FASHION_FILES,
        variants={"": Variant(FASHION, 60000, 10000)},
        openml=(40996, "Fashion-MNIST"),
    ),
    "emnist": Description(
        name="emnist",
        title="EMNIST (six splits)",
        source="Cohen, Afshar, Tapson and van Schaik, EMNIST (2017), arXiv 1702.05373",
        shape=(1, 28, 28),
        top=255,
        folders=("emnist", "emnist/gzip", "EMNIST/raw", "."),
        files=EMNIST_FILES,
        variants={
            "byclass": Variant((*DIGITS, *UPPER, *LOWER), 697932, 116323),
            "bymerge": Variant(MERGED, 697932, 116323),
            "balanced": Variant(MERGED, 112800, 18800),
            "letters": Variant(UPPER, 124800, 20800, first=1),
            "digits": Variant(DIGITS, 240000, 40000),
            "mnist": Variant(DIGITS, 60000, 10000),
        },
        openml=(41039, "EMNIST_Balanced"),
        fetched="balanced",
    ),
    "cifar-10": Description(
        name="cifar-10",
        title="CIFAR-10",
        source="Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009)",
        shape=(3, 32, 32),
        top=255,
        folders=("cifar-10-batches-py", "cifar-10-batches-bin", "."),
        files=CIFAR_FILES,
        variants={"": Variant(CIFAR, 50000, 10000)},
        openml=(40927, "CIFAR_10"),
    ),
}
