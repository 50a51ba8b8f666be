"""What was changed of this study after a look at its results."""

from __future__ import annotations

from regimes.study import Amendment

__all__ = ["PROTOCOL"]

PROTOCOL = (
    Amendment(
        "2026-11-21",
        ("R4/drop/cifar-10",),
        "the small scale trains on all 50000 images of CIFAR-10, not on the first 4000; the range is as it was",
        "the drop grows with the number of images: 5.1 points (2.6 to 7.5, five seeds) for 4000; with one seed "
        "6.4 for "
        "10000, 14.9 for 20000, 18.8 for 50000. Of few images the network at alpha = 1 knows all and has learnt "
        "little",
        "from not reproduced to inconclusive: 15.8 points (14.2 to 17.4)",
    ),
    Amendment(
        "2026-11-21",
        ("R4",),
        "learning rates below the largest that the linear dynamics bear",
        "runs at alpha = 1000 diverged slowly at a rate at which those at alpha = 1 trained",
        "no verdict before: the runs had not finished",
    ),
    Amendment(
        "2026-11-21",
        ("R4/drop/cifar-10", "R4/train/cifar-10", "R4/monotone/cifar-10"),
        "five seeds on all of CIFAR-10 instead of three",
        "five took no longer than three had, with images laid out channels last",
        "R4/drop stays inconclusive",
    ),
    Amendment(
        "2026-11-21",
        ("R1", "R2/linear"),
        "they are listed as controls, apart from the claims",
        "a theorem holds for every smooth network, and a lazy start is its linearisation: they fail only if the "
        "code is "
        "wrong",
        "none; they no longer count among the claims",
    ),
    Amendment(
        "2026-11-21",
        ("R1", "R2", "R3", "R4", "R5"),
        "networks of one seed and different sizes start from independent draws, and random pixels share none "
        "with the "
        "network that looks at them; all runs are made anew",
        "the start of a narrow network was a corner of that of a wide one",
        "at the quick scale R4/train goes from inconclusive to reproduced, all others are as before; the small "
        "scale was not run anew yet",
    ),
    Amendment(
        "2026-11-21",
        ("R4/monotone",),
        "the least loss from one alpha to the next may be minus one point; it had to be 0 or more",
        "at a plateau the least of several losses lies below 0 as often as not: the power was 0.02, with any number of "
        "seeds",
        "from inconclusive to reproduced at the quick scale, with a power of 1.00",
    ),
)
"""The changes, the oldest first."""
