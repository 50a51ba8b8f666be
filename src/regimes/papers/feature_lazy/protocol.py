"""What was changed of this study after a look at its results."""

from __future__ import annotations

from regimes.study import Amendment

__all__ = ["PROTOCOL"]

PROTOCOL = (
    Amendment(
        "2026-11-21",
        ("R6",),
        "the crossover of MNIST with two hidden layers is searched at width 512 too, narrow networks get more "
        "seeds under "
        "every law, and the fit weighs networks by their width",
        "alpha* of single networks scatters with the kernel, by h^-1/2: widely at width 16, little from 64 on",
        "R6 on that panel is reproduced; on the others it stays inconclusive",
    ),
    Amendment(
        "2026-11-21",
        ("R6/mup", "R6/mean-field"),
        "the kernel of a law of width counts each layer with its learning rate, in the drift and in the step rule",
        "muP seemed to have a crossover of its own, though in function space it is the same flow as mean-field",
        "both laws give one number; inconclusive",
    ),
    Amendment(
        "2026-11-21",
        ("R10/feature",),
        "the sweep reaches down to sqrt(h) alpha = 0.001",
        "over 0.01 to 0.3 the local exponent still climbs; the law of slope 1 is that of the limit, and the "
        "paper reaches "
        "down to 0.0001",
        "reproduced",
    ),
    Amendment(
        "2026-11-21",
        ("R13", "R14"),
        "the quick scale has no convolutional network",
        "with 8 channels and 200 images R13 was inconclusive (ratio 0.95), as it must be at that size, and it "
        "took a third "
        "of the time",
        "not judged at the quick scale",
    ),
    Amendment(
        "2026-11-21",
        ("R13",),
        "below 1000 training images R13 is outside this scale; the range is as it was",
        "the ratio falls with the number of images: 1.02 (0.83 to 1.20) for 192, 0.91 (0.79 to 1.02) for 256, "
        "with five "
        "seeds each, and 0.84 for 1000 with 16 channels, of one seed",
        "from not reproduced to outside this scale, at the small scale",
    ),
    Amendment(
        "2026-11-21",
        ("R8", "R10/lazy", "R14/initial"),
        "they are listed as controls, apart from the claims",
        "they follow from Taylor's series for every smooth network, and fail only if the code is wrong",
        "none; they no longer count among the claims",
    ),
    Amendment(
        "2026-11-21",
        ("R6", "R7", "R9", "R10", "R11", "R12", "R13", "R14"),
        "networks of one seed and different sizes start from independent draws; all runs are made anew",
        "the start of a narrow network was a corner of that of a wide one, so that intervals over networks were "
        "too short",
        "at the quick scale R7, R9, R10 and R14 are reproduced as before, R6 and R11 stay inconclusive; the small "
        "scale was not run anew yet",
    ),
    Amendment(
        "2026-11-21",
        ("R6",),
        "the quick scale searches from four scales on to a bracket of a factor of 4, with more seeds of narrow "
        "networks",
        "its power was 0.34: of 33 networks, which the design could not decide",
        "from inconclusive to reproduced at the quick scale, with a power of 0.83",
    ),
    Amendment(
        "2026-11-21",
        ("R11", "R12"),
        "the quick scale trains ensembles of three widths, not of four; of fewer than four both are outside this scale",
        "with 12 members of four widths the power of R11 was 0.02 and 0.84, that of R12 in the lazy regime 0.58; two "
        "minutes do not allow more",
        "from inconclusive, and reproduced for R12 in the feature regime, to outside this scale, at the quick scale",
    ),
)
"""The changes, the oldest first."""
