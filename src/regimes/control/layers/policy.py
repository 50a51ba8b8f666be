"""Layer-wise sparse training in a loop of one's own: which layers move is decided anew at every step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from regimes.control.layers.compiled import Compiled
from regimes.control.layers.moves import Moves
from regimes.control.layers.order import by_depth, inside
from regimes.control.layers.passes import Passes, refuse_watched
from regimes.control.layers.plan import LayerPlan, plan_of
from regimes.control.layers.update import OptimizerState, Updates, at_rest, check_known
from regimes.control.unchanged.roster import Roster
from regimes.core.batch import Inputs
from regimes.core.batch import check as check_inputs
from regimes.core.check import checked, shown
from regimes.core.error import UserError

__all__ = ["LayerwiseSparse"]


@final
@checked
class LayerwiseSparse:
    r"""Train fewer layers: at each step of the optimiser some layers move, and the rest is frozen.

    The loop stays as it is. With the first pass after a step the layers of the next one are set free and all others
    frozen (``requires_grad``), so that below the lowest layer that moves no graph is recorded and no activation kept.
    What does not move has no gradient, and its momentum, weight decay and counts of steps are left alone. The
    gradients of what moves are exact in any network: skip connections, tied layers, several branches.

    The layers stay the same until the last optimiser has taken its step, through any number of batches whose
    gradients are accumulated. Which they are depends on the seed and the number of the step alone: they are the same
    on every rank, and in a run that goes on from ``state_dict``. Nothing is drawn from a global generator. Training and
    evaluation mode of layers are left as they are: batch norm in a frozen layer goes on with its statistics.

    A measurement of the module sees the parameters that move; inside ``with policy.free():`` it sees all.

    Sampling saves time and memory at each step; it does not learn more from a step. Read "Train fewer layers: which,
    and when" in the documentation first.

    Args:
        module: any module whose layers can be ordered by depth, in ``DistributedDataParallel`` or not (there with
            ``find_unused_parameters=True``), in ``torch.compile`` or not (best block by block).
        optimizer: any of ``torch.optim``, or several in the order in which they step.
        moves: which layers move: :class:`Cut`, :class:`UniformCut`, :class:`Fixed`, :class:`RandomLayers`,
            :class:`CyclicBlocks`.
        example: inputs as the module takes them, a few samples; the order of the layers is found from them.
        seed: of what is drawn.
        layers: names of modules that are one layer each, such as ``["transformer.h.*"]``; see :func:`layer_plan`.
        largest_factor: a layer that moves with probability p takes min(1/p, largest_factor) times its step. 1, the
            default, leaves steps as they are; infinity makes the mean step that of a layer that always moves, at the
            price of its variance. It multiplies what the optimiser did to the weights, not the gradient.
        state: what becomes of the state of the optimiser of a layer that does not move: "keep" it as it is, "drop" it,
            "offload" it to the memory of the CPU, or let it "decay" when it moves again, as if gradients had been 0,
            which ``SGD``, ``Adam`` and ``AdamW`` can: n steps multiply momentum by mu^n, the moments by beta^n, and
            count for the bias correction. None is "decay" for ``SGD`` with momentum, since a velocity that is kept
            remembers 1 / (p (1 - mu)) steps, and "keep" for all else.
        warmup: after state was dropped, so many steps of the layer grow from 1/warmup to 1 times themselves.
        by_curvature: min(1/p, largest_factor) is only what the factor of a layer may grow to. It begins at 1, and goes
            by the slope g . s at the layer's next step along its last one, s: if the loss still falls there the factor
            grows by 1.2, else it is halved, to no less than 1. So it stays near -g . d / d . H d, where a loss of
            second order is least along a step d. It keeps s, as much memory as the weights of those layers.

    Attributes:
        plan: which parameters move at which step, a :class:`LayerPlan`.
        step: how many steps were taken.

    Raises:
        UserError: if a name, a probability or a number of layers is wrong, a layer may move that no optimiser holds,
            the layers run in another order than in the example, the outputs do not depend on what moves, or the
            optimiser moves what has no gradient (``LBFGS``).

    Source: Li and Banerjee, layer-wise sparse SGD; with the bottom drawn as well, Pan et al. 2024 (LISA).

    >>> import torch
    >>> from regimes import control, models
    >>> net, x = models.mlp(3, 8, 3), torch.randn(16, 3, dtype=torch.float64)
    >>> optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    >>> policy = LayerwiseSparse(net, optimizer, control.Cut(p=0.2, top=1), example=x, seed=0)
    >>> for _ in range(10):
    ...     optimizer.zero_grad()
    ...     loss = (net(x)[:, 0] - x[:, 0]).square().mean()
    ...     loss.backward()
    ...     optimizer.step()
    >>> policy.step, policy.plan.probabilities
    (10, (0.2, 0.2, 0.2, 1.0))
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        moves: Moves,
        *,
        example: Inputs,
        seed: int = 0,
        layers: Sequence[str] | None = None,
        largest_factor: float = 1.0,
        state: OptimizerState | None = None,
        warmup: int = 0,
        by_curvature: bool = False,
    ) -> None:
        refuse_watched(module)
        check_inputs(example, "example")
        network = inside(module)
        found = by_depth(network, example, layers)
        self.plan: LayerPlan = plan_of(found, moves, seed)
        self.step = 0
        own = dict(network.named_parameters())
        self._layers = [[own[name] for name in names] for names in found.parameters]
        self._named = [
            (place, name, own[name]) for place, names in enumerate(found.parameters) for name in names
        ]
        known = {id(p) for _, _, p in self._named}
        self._others = [p for p in own.values() if id(p) not in known]
        self._roster = Roster(network.modules())
        optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        state = state or at_rest(optimizers)
        self._settings = _checked_settings(module, largest_factor, state, warmup, by_curvature)
        self._check_held(optimizers)
        if state == "decay":
            check_known(optimizers)
        self._last = optimizers[-1]
        factors = [min(1 / p, largest_factor) if p else 1.0 for p in self.plan.probabilities]
        self._updates = Updates(optimizers, self._layers, factors, state, warmup, by_curvature)
        self._known: tuple[int, frozenset[int]] = (0, self.plan.places(0))
        self._compiled = Compiled(module, self._layers)
        self._network, self._begun, self._free = network, -1, False
        self._versions: list[tuple[str, Tensor, int]] = []
        self._passes = Passes(module, network, found, self.begin, self._check_outputs)
        self._handles = [
            *(each.register_step_pre_hook(self._before_step) for each in optimizers),
            *(each.register_step_post_hook(self._after_step) for each in optimizers),
        ]

    @property
    def network(self) -> nn.Module:
        """The module, without wrappers."""
        return self._network

    @property
    def is_free(self) -> bool:
        """Whether all layers are, for a measurement."""
        return self._free

    @property
    def parameters(self) -> list[tuple[Tensor, float]]:
        """The parameters of the layers, each with the share of the steps at which it moves."""
        chances = self.plan.probabilities
        return [(p, chances[place]) for place, _, p in self._named]

    @property
    def moving(self) -> tuple[str, ...]:
        """The layers that move at the next step, from the bottom to the top."""
        return self.plan.names(self.step)

    def begin(self) -> None:
        """Freeze all but the layers that move at the next step. Each call of the module does it by itself.

        Call it before a pass that goes by parts of the module, or where the whole module is compiled.
        """
        if self._free:
            return
        moving = self._places(self.step)
        if self._begun != self.step:
            self._check_parameters()
            self._compiled.check(moving)
            self._begun = self.step
        for place, _, parameter in self._named:
            if parameter.requires_grad != (place in moving):
                parameter.requires_grad_(place in moving)
            if place not in moving:
                parameter.grad = None

    @contextmanager
    def free(self) -> Iterator[None]:
        """All layers free inside, for a measurement of the whole module between two steps; then as before."""
        flags = [(parameter, parameter.requires_grad) for _, _, parameter in self._named]
        self._free = True
        try:
            for parameter, _ in flags:
                parameter.requires_grad_(True)
            yield
        finally:
            self._free = False
            for parameter, flag in flags:
                parameter.requires_grad_(flag)

    def remove(self) -> None:
        """End the policy: all layers move again."""
        self._passes.remove()
        for handle in self._handles:
            handle.remove()
        for _, _, parameter in self._named:
            parameter.requires_grad_(True)

    def state_dict(self) -> dict[str, Any]:
        """What a policy needs to go on, after any step or between two batches of one: numbers, names and lists."""
        known = [name for _, name, p in self._named if self._updates.knows(p)]
        last = {name: self._updates.last[p] for _, name, p in self._named if p in self._updates.last}
        return {
            **self._identity(),
            "step": self.step,
            "known": known,
            **self._updates.numbers(),
            "last": last,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where the policy was that gave this state. Load it last, after module and optimisers.

        What the optimisers hold of a parameter that they knew nothing of then is dropped: the loader of
        ``torch.distributed.checkpoint`` makes it up.

        Raises:
            UserError: if it is that of another policy, or something is missing.
        """
        own = self._identity()
        # What a policy of an earlier version did not save: optimisers may know all, and factors do not change.
        older = {
            "known": [name for _, name, _ in self._named],
            "by_curvature": False,
            "idle": [0] * len(self._layers),
            "factors": self._updates.numbers()["factors"],
            "last": {},
        }
        state_dict = {**older, **state_dict}
        for name in (*own, "step", "ages"):
            if name not in state_dict:
                raise UserError(
                    f"`state_dict`: '{name}' is missing, expected the state_dict() of a LayerwiseSparse"
                )
        for name, mine in own.items():
            if state_dict[name] != mine:
                raise UserError(
                    f"`state_dict`: is that of another policy: `{name}` is {shown(state_dict[name])}, expected "
                    f"{shown(mine)}; make the policy as it was made then"
                )
        self.step = int(state_dict["step"])
        self._updates.load(state_dict)
        for _, name, p in self._named:
            if name not in state_dict["known"]:
                self._updates.forget(p)
            if name in state_dict["last"]:
                self._updates.last[p] = state_dict["last"][name].to(p)

    def __repr__(self) -> str:
        return f"LayerwiseSparse({self.plan.moves!r}, seed={self.plan.seed}, step={self.step})"

    def _places(self, step: int) -> frozenset[int]:
        """What moves at a step, found once."""
        if self._known[0] != step:
            self._known = (step, self.plan.places(step))
        return self._known[1]

    def _identity(self) -> dict[str, Any]:
        """What has to be the same in a policy that goes on."""
        plan = self.plan
        layers = [[layer, *names] for layer, names in zip(plan.layers, plan.parameters, strict=True)]
        return {"moves": repr(plan.moves), "seed": plan.seed, "layers": layers, **self._settings}

    def _check_held(self, optimizers: Sequence[Optimizer]) -> None:
        """Raise if a parameter may move that no optimiser holds."""
        if not optimizers:
            raise UserError("`optimizer`: got none, expected at least one")
        held = {id(p) for each in optimizers for group in each.param_groups for p in group["params"]}
        chances = self.plan.probabilities
        missing = [name for place, name, p in self._named if chances[place] and id(p) not in held]
        if missing:
            raise UserError(
                f"`optimizer`: does not hold '{missing[0]}', which moves at some steps; make it of all that may move "
                "(module.parameters()), or freeze that"
            )

    def _check_parameters(self) -> None:
        """Once a step: raise if the module has other parameters than those the policy was made for."""
        if self._roster.same() and not any(p.requires_grad for p in self._others):
            return
        now = dict(self._network.named_parameters())
        own = {id(p): name for _, name, p in self._named}
        strange = [name for name, p in now.items() if p.requires_grad and id(p) not in own]
        if strange:
            raise UserError(
                f"`module`: '{strange[0]}' requires grad, and did not when the policy was made, or was not there; "
                "freeze it, or remove() the policy and make it anew"
            )
        there = {id(p) for p in now.values()}
        if lost := [name for key, name in own.items() if key not in there]:
            raise UserError(
                f"`module`: '{lost[0]}' is another tensor than when the policy was made, or gone; remove() the policy "
                "and make it anew, after all that changes the module"
            )
        self._others = [p for p in now.values() if id(p) not in own]
        self._roster = Roster(self._network.modules())

    def _check_outputs(self, outputs: Sequence[Tensor]) -> None:
        """At the end of a pass: raise if nothing of it depends on what moves."""
        real = [each for each in outputs if each.is_floating_point()]
        if real and not self._free and not any(each.requires_grad for each in real):
            raise UserError(
                f"`module`: its outputs do not depend on what moves at step {self.step} ({', '.join(self.moving)}); "
                "let other layers move too, or call it under torch.no_grad() where nothing is trained"
            )

    def _before_step(self, optimizer: Optimizer, args: Any, named: Any) -> None:
        """Nothing has a gradient but what moves."""
        moving = self._places(self.step)
        if any(each is not None for each in (*args[1:], *named.values())):
            self.begin()  # a closure, which calls the module in the step
        for place, name, p in self._named:
            if p.requires_grad != (place in moving):
                raise UserError(
                    f"`module`: '{name}' {'is frozen' if place in moving else 'requires grad'} at step {self.step}, "
                    f"where it should {'' if place in moving else 'not '}move: requires_grad was changed by something "
                    "else, or the module was not called as a whole since the last step (then call begin() first)"
                )
        still = [(name, p) for place, name, p in self._named if place not in moving]
        for _, p in still:
            p.grad = None
        self._versions = [(name, p, p._version) for name, p in still]
        self._updates.before(optimizer, moving)

    def _after_step(self, optimizer: Optimizer, args: Any, named: Any) -> None:
        """Nothing has moved but what should; with the last optimiser, on to the next step."""
        for name, p, version in self._versions:
            if p._version != version:
                raise UserError(
                    f"`optimizer`: {type(optimizer).__name__} moved '{name}', without a gradient at step {self.step}; "
                    "take one that leaves parameters without a gradient alone, such as SGD or AdamW"
                )
        self._updates.after()
        if optimizer is not self._last:
            return
        moving = self._places(self.step)
        if all(p.grad is None for place in moving for p in self._layers[place]):
            raise UserError(
                f"`module`: the loss does not depend on what moves at step {self.step} ({', '.join(self.moving)}): "
                "none of it has a gradient; let other layers move too"
            )
        self._updates.advance(moving, self._places(self.step + 1))
        self.step += 1


def _checked_settings(
    module: nn.Module, largest_factor: float, state: str, warmup: int, by_curvature: bool
) -> dict[str, Any]:
    """The settings by name; raise if one is out of range."""
    if isinstance(module, DistributedDataParallel) and (
        module.static_graph or not module.find_unused_parameters
    ):
        raise UserError(
            "`module`: DistributedDataParallel waits for gradients that do not come; make it with "
            "find_unused_parameters=True and without static_graph"
        )
    if largest_factor < 1:
        raise UserError(
            f"`largest_factor`: got {largest_factor:g}, expected 1 (none) or more, up to infinity (1/p)"
        )
    if by_curvature and largest_factor == 1:
        raise UserError(
            "`largest_factor`: got 1 with `by_curvature`, which has nothing to choose from then; expected more, up to "
            "infinity (1/p)"
        )
    if warmup < 0:
        raise UserError(f"`warmup`: got {warmup}, expected a number of steps, 0 for none")
    if warmup and state != "drop":
        raise UserError(f'`warmup`: got {warmup} with `state` "{state}", expected 0; it is for state="drop"')
    return {
        "largest_factor": float(largest_factor),
        "state": state,
        "warmup": warmup,
        "by_curvature": by_curvature,
    }
