"""Which odd values a public function takes, each with the reason: the rules of ``tests/arguments.py``."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RULES", "Rule"]


@dataclass(frozen=True)
class Rule:
    """Odd values that are right, or do no harm.

    Attributes:
        reason: why.
        functions: names, separated by blanks; "*" for every function that has such a parameter.
        parameters: names, separated by blanks.
        values: names of bad values, separated by commas.
    """

    reason: str
    functions: str
    parameters: str
    values: str

    @property
    def pairs(self) -> frozenset[tuple[str, str]]:
        """The parameters with the values."""
        values = [each.strip() for each in self.values.split(",")]
        return frozenset((name, value) for name in self.parameters.split() for value in values)

    def allows(self, function: str, parameter: str, bad: str) -> bool:
        """Whether this function takes this value of this parameter."""
        named = self.functions == "*" or function in self.functions.split()
        return named and (parameter, bad) in self.pairs


SHARES = "core.estimate.share core.estimate.paired_share"
SIGNED = "minus one, zero, infinite, minus infinite"
HUGE = "huge 0, huge 1"
ENDS = "papers.feature_lazy.figures.ensemble_error papers.feature_lazy.figures.fluctuation_width"
PAGES = "report.page.build report.page.draw report.page.render"
RULES = (
    Rule("a study may have no tables", "report.page.render", "tables", "empty"),
    Rule("without names layers have numbers", "report.activity.layers_in_time", "names", "empty"),
    Rule(
        "half precision is widened, and its values are numbers",
        "*",
        "inputs outputs targets k k0 kernel x x_test y y_test",
        "half precision",
    ),
    Rule("class scores may be whole numbers", "measure.error_rate", "outputs", "whole numbers"),
    Rule(
        "a diverged network decides nothing, which counts as wrong",
        "measure.error_rate measure.averaging",
        "outputs",
        "nan, infinite",
    ),
    Rule(
        "(m, n) and (m, n, c) are both outputs of members",
        "measure.fluctuation",
        "outputs",
        "wider, one axis more",
    ),
    Rule(
        "an alignment with 0 and 1 is that of an uncentred target",
        "measure.alignment measure.KernelDrift",
        "y targets",
        "truths",
    ),
    Rule(
        "a power of the width may be any finite number",
        "control.Law",
        "output_power alpha_star",
        "minus one, zero",
    ),
    Rule("a power of m may be any finite number", "models.two_layer", "scaling", "minus one, zero, number"),
    Rule("a network without parameters is one", "*", "module network", "without parameters"),
    Rule("any whole number of 64 bits is a seed of torch's generator", "*", "seed", f"zero, {HUGE}"),
    Rule(
        "any whole number of 64 bits is a seed of torch's generator",
        "models.cnn models.mlp models.resnet models.two_layer models.vgg measure.ntk_sketch "
        "measure.reset_test study.bisection",
        "seed",
        "minus one",
    ),
    Rule("any whole number is a seed", "control.LayerwiseSparse control.layer_plan", "seed", "minus one"),
    Rule(
        "that there are so many layers is seen with the layers; a step that is never reached is one",
        "control.Cut control.CyclicBlocks control.Fixed control.RandomLayers control.UniformCut control.least_variance",
        "bottom count interval size top",
        HUGE,
    ),
    Rule(
        "a step that is never reached is one; there are as many samples as there are",
        "control.Adaptive control.Every control.IterativeLinearisation control.stable_rate",
        "batch_size batches directions every most samples steps",
        HUGE,
    ),
    Rule("any number below 1 is a threshold", "control.Adaptive", "trust", "minus one, zero"),
    Rule("any whole number is a seed", "control.Adaptive control.stable_rate", "seed", "minus one"),
    Rule("no moments are none", "control.AtSteps", "moments", "empty"),
    Rule(
        "0 is never, or none", "control.Cut control.Fixed control.LayerwiseSparse", "bottom p warmup", "zero"
    ),
    Rule("one probability for each layer, in an array too", "control.Cut", "p", "array"),
    Rule("1/p has no limit then", "control.LayerwiseSparse", "largest_factor", "infinite"),
    Rule(
        "no names are none",
        "compare.which_layers compare.would_sampling_pay control.Fixed control.LayerwiseSparse control.RandomLayers "
        "control.layer_plan measure.layer_costs",
        "always layers names",
        "empty",
    ),
    Rule(
        "the module takes samples with more axes, or fewer",
        "control.LayerwiseSparse control.layer_plan",
        "example",
        "one axis more, one axis less",
    ),
    Rule("several seeds are averaged over", "study.bisection", "seed", "list, array"),
    Rule("where no seed changes anything, one is enough", "compare.would_linear_do", "seeds", HUGE),
    Rule("as much as there is is taken", "data.load data.teacher", "probe", HUGE),
    Rule("as much as there is is taken", "*", "batch_size memory", HUGE),
    Rule("images tell what a padding costs, and there are none yet", "models.cnn", "padding", HUGE),
    Rule("0 is none", "models.cnn", "padding", "zero"),
    Rule(
        "no step is a run that ends at its start",
        "train.blocks train.descent train.flow train.kernel train.runge_kutta",
        "steps max_steps max_seconds",
        "zero",
    ),
    Rule(
        "a call without time says that it had none",
        "compare.how_many_feature_updates",
        "max_seconds",
        "zero",
    ),
    Rule("a limit that is never met", "train.blocks train.descent train.runge_kutta", "steps", HUGE),
    Rule("a limit that is never met", "train.GaussNewton", "max_products", HUGE),
    Rule(
        "a limit that is never met",
        "train.descent train.flow train.kernel train.runge_kutta train.Tolerance compare.how_many_feature_updates",
        "max_steps max_seconds gradient output",
        "infinite",
    ),
    Rule(
        "a limit that is never met",
        "study.bisection papers.feature_lazy.tables.plane.transition",
        "factor reach",
        "infinite",
    ),
    Rule(
        "a rate of 0 moves nothing, one above 1 is a rate",
        "train.descent compare.would_linear_do compare.how_many_feature_updates",
        "lr",
        "zero, number",
    ),
    Rule("0 is none", "*", "momentum ridge threshold validation margin tau", "zero"),
    Rule("one for each member", "train.flow", "tau", "number, list"),
    Rule("one for each member", "train.descent", "lr", "list"),
    Rule(
        "none of n is a share, of any n",
        SHARES,
        "count first second",
        "zero",
    ),
    Rule("none of n is a share, of any n", SHARES, "n", HUGE),
    Rule(
        "without freedom there is no quantile (nan), with infinite it is the normal one",
        "core.estimate.quantile",
        "freedom",
        "zero, infinite",
    ),
    Rule(
        "what is missing is nan",
        "core.estimate.array",
        "values",
        "empty, of None",
    ),
    Rule("a loss, or a column, may be negative", "measure.Times study.bisection", "level", "minus one, zero"),
    Rule("the two ends nearest to it are drawn", ENDS, "feature lazy", SIGNED),
    Rule(
        "words are free",
        "*",
        "title help cost description paper command name column unit claim id what why effect reason",
        "empty, nonsense",
    ),
    Rule("any whole number is a seed", "core.stream.entropy core.stream.generator", "seed", "minus one"),
    Rule(
        "any word and any whole number is a name",
        "core.stream.entropy core.stream.generator",
        "names",
        "minus one, zero, huge 0, huge 1, empty, nonsense, number",
    ),
    Rule(
        "a true value is any finite number",
        "report.power.power report.power.units",
        "truth",
        "minus one, zero",
    ),
    Rule("a true value is any number in the range", "report.claim.Claim", "truth", "zero"),
    Rule("a design may be large", "report.power.power", "n", HUGE),
    Rule("words are free", "report.claim.Claim", "origin", "empty, nonsense"),
    Rule(
        "a published value is a number or words",
        "report.claim.Claim",
        "reference",
        f"{SIGNED}, number, empty, nonsense",
    ),
    Rule("words of a column are free, one or several", "study.bisection", "usable", "empty, nonsense, list"),
    Rule("a place where nothing is yet", "*", "out directory", "nonsense, not there"),
    Rule("a place where nothing is yet", "control.CachedPrefix", "path", "nonsense"),
    Rule(
        "that there are so many is seen with the first; a pass that is never reached is one",
        "control.CachedPrefix",
        "samples recheck",
        HUGE,
    ),
    Rule("a place where nothing is yet", "report.page.build", "store", "nonsense"),
    Rule(
        "a place that is not looked at before it is needed",
        "study.run_study study.Study",
        "data source",
        "not there",
    ),
    Rule(
        "no rows is a state of a study: the page says so",
        PAGES
        + " report.claim.judge report.claim.verdicts report.table.filled papers.feature_lazy.tables.plane.panels",
        "frame",
        "empty, other columns",
    ),
    Rule(
        "some rows of none are none",
        "report.table.last report.table.rows_of",
        "frame",
        "empty",
    ),
    Rule(
        "figures of no rows are made when they are drawn, and say so then",
        "papers.feature_lazy.figures.figures papers.lazy_training.figures.figures",
        "frame",
        "empty",
    ),
    Rule("none have these values", "report.table.select", "frame", "empty"),
    Rule("columns that are not there are left out", "report.table.shared", "rows", "other columns"),
    Rule("a study of which nothing was changed, or said", "study.Study", "protocol methods", "empty"),
    Rule(
        "nothing to do is done", "*", "columns texts classes declared probes found shown notes split", "empty"
    ),
    Rule("a factor may be any finite number", "core.activation.Softplus", "a", "minus one, zero"),
    Rule("a factor may be any finite number", "core.layer.Scaling", "multiplier", "minus one, zero"),
    Rule("a layer may start at 0, and be frozen", "core.layer.Scaling", "std rate bias_rate", "zero"),
    Rule(
        "images tell that they do not fit, and there are none yet",
        "core.layer.ToImage",
        "channels height width",
        HUGE,
    ),
    Rule("0 asks for an exact fit", "core.loss.Squared", "tolerance", "zero"),
    Rule(
        "numbers are read one after another, whatever their shape",
        "core.estimate.array core.estimate.mean",
        "values",
        "shape (), one row, list of numbers",
    ),
    Rule(
        "numbers are read one after another", "report.fit.crossing report.fit.local_exponents", "y", "one row"
    ),
    Rule(
        "one member, or one row of numbers",
        "report.ensemble.ensemble_error report.ensemble.single_error report.ensemble.variance",
        "members",
        "one row",
    ),
    Rule(
        "a diverged member decides nothing, which counts as wrong",
        "report.ensemble.ensemble_error report.ensemble.single_error",
        "members",
        "nan",
    ),
    Rule(
        "what is missing stays missing",
        "core.estimate.array core.estimate.positive core.estimate.two_way core.estimate.two_way_variances",
        "values",
        "nan",
    ),
    Rule(
        "of any shape, and of none it is true",
        "core.estimate.positive",
        "values",
        "shape (), empty, one row",
    ),
    Rule(
        "one label for all is one group, which counts as none", "report.fit.power_law", "groups", "shape ()"
    ),
)
