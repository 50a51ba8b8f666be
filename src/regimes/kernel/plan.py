"""How the kernel of a network is put together: which parameters go together, in which order their factors meet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regimes.kernel.confirm import Survey
from regimes.kernel.cost import Order, Shape, cheapest
from regimes.kernel.factor import Reduce
from regimes.kernel.network import Network
from regimes.kernel.site import Site

__all__ = ["Plan", "Term", "by_jacobian", "make_plan"]


@dataclass(frozen=True)
class Term:
    """Parameters of one owner whose part of the kernel is formed in one way.

    Attributes:
        owner: the module that owns them.
        names: the parameters; the weight first where there is one.
        order: how its factors meet.
        sites: the uses, by their place in the network.
        shape: sizes.
        factor: of the weight.
        bias: whether a bias is in it.
    """

    owner: str
    names: tuple[str, ...]
    order: Order
    sites: tuple[int, ...]
    shape: Shape
    factor: float = 1.0
    bias: bool = False


@dataclass(frozen=True)
class Plan:
    """All terms, and where the backward passes begin.

    Attributes:
        survey: how the network uses its parameters.
        terms: in the order of the network.
        reduce: the form of the kernel.
        begin: the use at whose inputs the backward passes begin, or None for the outputs.
        asked: (r, c), what is asked for in output space.
        directions: the same, or (r, H) at the inputs of that use: what the backward passes begin with.
        lift: (c, H): takes the part of the kernel below that use to the outputs; None where r = c, or where
            the directions have seen to it.
    """

    survey: Survey
    terms: tuple[Term, ...]
    reduce: Reduce
    begin: int | None
    asked: Tensor
    directions: Tensor
    lift: Tensor | None

    @property
    def width(self) -> int:
        """r, the number of backward passes."""
        return len(self.directions)


def make_plan(network: Network, found: Survey, reduce: Reduce, directions: Tensor | None = None) -> Plan:
    """Choose the orders of contraction.

    Args:
        network: f.
        found: how it uses its parameters.
        reduce: the form of the kernel.
        directions: (r, c), what the kernel is asked for in output space (default: each output).
    """
    c = found.outputs
    asked = directions
    if asked is None:
        asked = torch.eye(c, dtype=network.dtype, device=network.device)
    base = Plan(found, (), reduce, None, asked, asked, None)
    head = _head_term(network, found)
    taken = frozenset(head.names) if head is not None else frozenset()
    if head is not None:
        base = _begun(base, head, network)
    terms = list(_terms(network, base, taken))
    if head is not None:
        terms.append(head)
    if found.rest:
        terms += _rest(network, found)
    return replace(base, terms=tuple(terms))


def by_jacobian(network: Network, plan: Plan) -> Plan:
    """The plan for a network that does not do the same each time: every parameter by rows of the Jacobian."""
    bare = replace(plan.survey, sites=(), ruled=frozenset(), rest=network.trained)
    found = replace(bare, head=None, silent=frozenset())
    terms = tuple(_rest(network, found))
    return replace(plan, survey=found, terms=terms, begin=None, directions=plan.asked, lift=None)


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _head_term(network: Network, found: Survey) -> Term | None:
    """The last layer, if its outcome is the output and its parameters are used nowhere else."""
    if found.head is None:
        return None
    site = found.sites[found.head]
    if site is None:
        return None
    parts = dict(site.names)
    weight, bias = parts.get("weight", ()), parts.get("bias", ())
    names = (*weight, *bias)
    alone = all(sum(name in s.trains for s in found.sites if s is not None) == 1 for name in names)
    same = len({_owner(name) for name in names}) == 1
    if len(weight) != 1 or not alone or not same or not set(names) <= found.ruled or site.factors[0] is None:
        return None
    if bias and site.factors[1] != 1.0:
        return None
    numel = sum(network.values[name].numel() for name in names)
    e = found.outputs
    shape = Shape(1, network.values[weight[0]].numel() // e, e, numel)
    return Term(_owner(weight[0]), names, "head", (found.head,), shape, site.factors[0], bool(bias))


def _begun(plan: Plan, head: Term, network: Network) -> Plan:
    """Where the head has more outputs than inputs, the passes begin below it."""
    c, h = plan.width, head.shape.taken
    site = plan.survey.sites[head.sites[0]]
    assert site is not None
    fewer = h**2 < c if plan.reduce == "diagonal" else h < c
    if not fewer or len(plan.survey.sites) < 2:
        return plan
    weight = network.values[head.names[0]].detach() * head.factor
    weight = weight if weight.shape == (plan.survey.outputs, h) and site.outward else weight.mT
    weight = plan.directions @ weight
    if plan.reduce == "trace":
        # sum_a <a, K a> over the rows of W is the same over the rows of R, W^T W = R^T R.
        return replace(plan, begin=head.sites[0], directions=torch.linalg.qr(weight, mode="r").R)
    unit = torch.eye(h, dtype=weight.dtype, device=weight.device)
    return replace(plan, begin=head.sites[0], directions=unit, lift=weight)


def _terms(network: Network, plan: Plan, taken: frozenset[str]) -> Iterator[Term]:
    """What goes by rule, in the order of the first use of each parameter."""
    uses: dict[str, list[tuple[int, str]]] = {}
    for place, site in enumerate(plan.survey.sites):
        for part, names in site.names if site is not None else ():
            for name in names:
                if name in plan.survey.ruled and name not in taken:
                    uses.setdefault(name, []).append((place, part))
    merged: set[str] = set()
    for name, places in uses.items():
        if name in merged:
            continue
        sites = [plan.survey.sites[place] for place, _ in places]
        shape = _shape(network, name, [s for s in sites if s is not None], [part for _, part in places])
        bias = _bias(plan.survey, name, places, uses) if shape.tokens == 1 else None
        order = cheapest(shape, plan.reduce, plan.width)
        at = tuple(place for place, _ in places)
        factor = sites[0].factor_of(name) if sites[0] is not None else 1.0
        if order == "gram" and bias is not None:
            merged.add(bias)
            numel = shape.numel + network.values[bias].numel()
            yield Term(
                _owner(name), (name, bias), order, at, replace(shape, numel=numel), factor or 1.0, True
            )
        else:
            yield Term(_owner(name), (name,), order, at, shape, factor or 1.0)


def _shape(network: Network, name: str, sites: Sequence[Site], parts: Sequence[str]) -> Shape:
    """Sizes; tokens are 0 where only the explicit order is open."""
    numel = network.values[name].numel()
    first = sites[0]
    kinds = {site.kind for site in sites}
    plain = Shape(0, 0, 0, numel)
    if set(parts) != {"weight"} or len(kinds) > 1 or any(site.factor_of(name) is None for site in sites):
        return plain
    if len(sites) > 1 and (
        first.kind != "linear" or len({(s.outward, s.factor_of(name)) for s in sites}) > 1
    ):
        return plain
    if first.kind == "linear":
        e = first.form[-1]
        return Shape(sum(site.positions for site in sites), numel // e, e, numel)
    if first.kind == "convolution" and first.options[4] == 1:
        e = first.form[1]
        return Shape(first.positions, numel // e, e, numel)
    if first.kind == "embedding":
        return Shape(first.positions, 0, first.form[-1], numel)
    return plain


def _bias(
    found: Survey, name: str, places: Sequence[tuple[int, str]], uses: dict[str, list[tuple[int, str]]]
) -> str | None:
    """The bias of the one use of a weight, if it has no other and the same owner."""
    if len(places) != 1:
        return None
    site = found.sites[places[0][0]]
    names = dict(site.names).get("bias", ()) if site is not None else ()
    if site is None or len(names) != 1 or site.factor_of(names[0]) != 1.0:
        return None
    bias = names[0]
    return bias if len(uses.get(bias, ())) == 1 and _owner(bias) == _owner(name) else None


def _rest(network: Network, found: Survey) -> list[Term]:
    """Each parameter by rows of the Jacobian."""
    return [
        Term(_owner(name), (name,), "jacobian", (), Shape(0, 0, 0, network.values[name].numel()))
        for name in found.rest
    ]
