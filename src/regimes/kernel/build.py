"""The factors of some samples: one pass forward and one backward per direction, a few samples at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regimes.core.batch import Inputs, count, take, transform
from regimes.core.graph import reached
from regimes.core.jacobian import jacobian
from regimes.kernel.factor import Factor
from regimes.kernel.hold import Heads, JacobianRows, Products
from regimes.kernel.network import Network, Pass, record
from regimes.kernel.plan import Plan, Term
from regimes.kernel.rule import Rule, TokenRule, parameter_gradients, rule_of
from regimes.kernel.site import IrregularError
from regimes.kernel.watch import Watch, check_alone, check_mapped

__all__ = ["Builder", "Part"]


@dataclass(frozen=True)
class Part:
    """A factor, whose it is, and whether it still has to be carried through the head."""

    owner: str
    factor: Factor
    below: bool


@dataclass(frozen=True)
class Builder:
    """Forms the factors of some terms.

    Attributes:
        network: f.
        plan: how its kernel is put together.
        terms: those of the plan that are formed together.
        directions: which of the directions of the plan.
        micro: samples in one pass.
        room: numbers of working memory for the products of sequences.
        by_owner: whether the parts of the owners are kept apart.
    """

    network: Network
    plan: Plan
    terms: tuple[Term, ...]
    directions: slice
    micro: int
    room: int
    by_owner: bool

    def __call__(self, x: Inputs) -> list[Part]:
        """The factors of these samples.

        Raises:
            IrregularError: if the network does not do what the plan says.
        """
        collector = _Collector(self, count(x))
        with torch.no_grad():
            for start in range(0, count(x), self.micro):
                piece = take(x, slice(start, start + self.micro))
                self._fill(collector, piece, slice(start, start + count(piece)))
        return collector.parts()

    @property
    def rays(self) -> Tensor:
        """Where the backward passes begin, (r, c) or (r, H)."""
        return self.plan.directions[self.directions] if self.plan.begin is None else self.plan.directions

    @property
    def asked(self) -> Tensor:
        """What is asked for in output space, (r, c)."""
        return self.plan.asked[self.directions] if self.plan.begin is None else self.plan.asked

    def _fill(self, collector: _Collector, x: Inputs, at: slice) -> None:
        rest = [name for term in self.terms if term.order == "jacobian" for name in term.names]
        if rest:
            collector.put_jacobian(self._jacobian(x, rest), at)
        places = sorted({place for term in self.terms for place in term.sites})
        if not places:
            return
        n = count(x)
        with record(self.network, x, self.plan.survey.copied) as run, torch.no_grad():
            self._check(run, n)
            rules = {place: self._rule(run, place, n) for place in places}
            collector.put_inputs(rules, at)
            backed = collector.backed(places)
            edges = [run.uses[place].edge for place in backed]
            silent = self.plan.survey.silent
            root = run.outputs if self.plan.begin is None else run.uses[self.plan.begin].draft.inputs[0]
            watch = Watch(root, n) if at.start == 0 and n > 1 else None
            rays, mapped = self.rays, self._mapped
            for k, ray in enumerate(rays):
                keep = watch is not None or bool(mapped) or k < len(rays) - 1
                grads = run.back(root, edges, ray.expand(n, -1).reshape(root.shape), keep)
                if any(g is None and place not in silent for place, g in zip(backed, grads, strict=True)):
                    # A view that is changed in place, which it may be for one sample alone, leaves the graph.
                    raise IrregularError("nothing comes back to a use")
                collector.put_grads(run, rules, dict(zip(backed, grads, strict=True)), at, k)
                if watch is not None:
                    watch.note(ray, grads)
            if mapped:
                check_mapped(self.network, run, rules, mapped, x, watch is not None)
            if watch is not None:
                watch.check(run, edges, [rules[place].site for place in backed])
                check_alone(self.network, run, x)

    @property
    def _mapped(self) -> frozenset[str]:
        """The parameters whose gradients torch derives for all samples at once."""
        sites = self.plan.survey.sites
        return frozenset(
            name
            for term in self.terms
            if term.order == "explicit"
            for name in term.names
            for site in (sites[place] for place in term.sites)
            if site is not None and (site.kind == "operation" or site.factor_of(name) is None)
        )

    def _rule(self, run: Pass, place: int, samples: int) -> Rule:
        site, use = self.plan.survey.sites[place], run.uses[place]
        assert site is not None
        if not use.intact:
            raise IrregularError("inputs changed in place")
        return rule_of(site, use, samples)

    def _check(self, run: Pass, samples: int) -> None:
        """Raise unless the pass is the one that was planned."""
        sites = self.plan.survey.sites
        if len(run.uses) != len(sites):
            raise IrregularError("another number of uses")
        for site, use in zip(sites, run.uses, strict=True):
            if site is not None and not site.matches(use, samples):
                raise IrregularError("another use")
        leaves = reached(run.outputs)
        hidden = {name for name, leaf in run.leaves.items() if id(leaf) in leaves}
        if (hidden | run.recorder.rest) - set(self.plan.survey.rest):
            raise IrregularError("a parameter used in another way")

    def _jacobian(self, x: Inputs, names: Sequence[str]) -> dict[str, Tensor]:
        """Rows of the Jacobian in the directions asked for, (n, r, p) by name."""
        net = self.network
        rows = jacobian(net.module, net.values, transform(x, Tensor.clone), names=names, output=net.output)
        asked = self.asked
        return {name: asked @ each.reshape(*each.shape[:2], -1) for name, each in rows.items()}


class _Collector:
    """What is held of some samples for the terms of a builder."""

    def __init__(self, builder: Builder, samples: int) -> None:
        r, like, asked = len(builder.rays), builder.plan.directions, builder.asked
        terms, self._by_owner = builder.terms, builder.by_owner
        self._lifted = builder.plan.begin is not None
        self._explicit = self._rows([t for t in terms if t.order == "explicit"], samples, r, like)
        self._rest = self._rows([t for t in terms if t.order == "jacobian"], samples, len(asked), like)
        tokens = [t for t in terms if t.order in ("gram", "one-sided")]
        self._products = {t: Products(t, samples, r, builder.room, like) for t in tokens}
        self._heads = {t: Heads(t, samples, asked) for t in terms if t.order == "head"}
        # Which owner's rows a parameter belongs to.
        self._owner = {t.names[0]: t.owner if self._by_owner else "" for t in terms}
        explicit = {name for t in terms if t.order == "explicit" for name in t.names}
        self._wanted = explicit
        self._of_rows = {place for t in terms if t.order == "explicit" for place in t.sites}

    def _rows(self, terms: Iterable[Term], samples: int, r: int, like: Tensor) -> dict[str, JacobianRows]:
        sizes: dict[str, dict[str, int]] = {}
        for term in terms:
            sizes.setdefault(term.owner if self._by_owner else "", {})[term.names[0]] = term.shape.numel
        return {owner: JacobianRows(each, samples, r, like) for owner, each in sizes.items()}

    def backed(self, places: Sequence[int]) -> list[int]:
        """The uses that something has to come back to: all but that of a head."""
        heads = {place for term in self._heads for place in term.sites}
        return [place for place in places if place not in heads]

    def put_jacobian(self, rows: Mapping[str, Tensor], at: slice) -> None:
        """Rows of the Jacobian by autograd."""
        for name, each in rows.items():
            self._rest[self._owner[name]].put_all(name, at, each)

    def put_inputs(self, rules: Mapping[int, Rule], at: slice) -> None:
        """What the layers were given."""
        for term, held in self._products.items():
            held.put_inputs([_tokens(rules[place]) for place in term.sites], at)
        for term, head in self._heads.items():
            head.put_inputs(_tokens(rules[term.sites[0]]), at)

    def put_grads(
        self, run: Pass, rules: Mapping[int, Rule], backs: Mapping[int, Tensor | None], at: slice, k: int
    ) -> None:
        """What comes back in one direction."""
        for term, held in self._products.items():
            each = [_tokens(rules[place]) for place in term.sites]
            held.put_grads(each, [backs[place] for place in term.sites], at, k)
        for place, back in backs.items():
            if back is not None and place in self._of_rows:
                for name, each in parameter_gradients(rules[place], back, self._wanted, run.leaves):
                    self._explicit[self._owner[name]].put(name, at, k, each)
        for rows in self._explicit.values():
            rows.finish(at, k)

    def parts(self) -> list[Part]:
        """The factors; those that are formed below the head come first."""
        owners = {t: t.owner if self._by_owner else "" for t in (*self._products, *self._heads)}
        parts = [Part(owner, rows.factor(), self._lifted) for owner, rows in self._explicit.items()]
        parts += [Part(owners[t], held.factor(), self._lifted) for t, held in self._products.items()]
        parts += [Part(owners[t], head.factor(), False) for t, head in self._heads.items()]
        return parts + [Part(owner, rows.factor(), False) for owner, rows in self._rest.items()]


def _tokens(rule: Rule) -> TokenRule:
    assert isinstance(rule, TokenRule)
    return rule
