"""What the claims of all papers have in common: rows, controls, truths, a protocol log."""

from __future__ import annotations

import pandas as pd
import pytest

from regimes.papers.catalog import CATALOG, find_study
from regimes.report.claim import Claim, verdicts
from regimes.report.power import ends_of
from regimes.study import Study
from tests.papers.feature_lazy import synthetic
from tests.papers.feature_lazy.test_frozen import obeyed
from tests.papers.iterative_linearisation.synthetic import claims_obeyed as blocks_obeyed
from tests.papers.lazy_training.synthetic import laws_obeyed
from tests.papers.rich_regime.synthetic import claims_obeyed

ROWS = {
    "feature-lazy": pd.concat(
        [
            synthetic.study((16, 32, 64), seeds=4, noise=0.02).assign(run="FlowRun", law="ntk"),
            obeyed(),
            obeyed("fc"),
        ],
        ignore_index=True,
    ),
    "iterative-linearisation": blocks_obeyed(),
    "lazy-training": laws_obeyed(),
    "rich-regime": claims_obeyed(),
}
CONTROLS = {
    "feature-lazy": {"R8/dK", "R8/dW", "R10/lazy", "R14/initial"},
    "iterative-linearisation": {"R15/stable", "R17", "P3-D/closed"},
    "lazy-training": {"R1/weights", "R1/distance", "R1/outputs", "R2/linear"},
    "rich-regime": {"R21/cost", "R21/least"},
}


def claims_of(study: Study) -> list[Claim]:
    return list(study.claims(ROWS[study.name]))


@pytest.fixture(params=list(ROWS))
def study(request: pytest.FixtureRequest) -> Study:
    return find_study(request.param)


def test_every_available_study_is_among_these() -> None:
    assert set(ROWS) == {name for name, entry in CATALOG.items() if entry.module}


def test_a_claim_reads_its_own_rows_alone(study: Study) -> None:
    """The value is the same of its rows and of all, in any order."""
    frame = ROWS[study.name]
    shuffled = frame.sample(frac=1.0, random_state=0)
    for claim in claims_of(study):
        assert claim.rows and set(claim.rows) <= set(frame.columns)
        whole, other = (verdicts([claim], rows)[0] for rows in (frame, shuffled))
        assert whole["value"] == pytest.approx(other["value"], rel=1e-9), claim.id


def test_controls_are_the_identities(study: Study) -> None:
    found = {claim.id for claim in claims_of(study) if claim.kind == "control"}
    assert {name for name in CONTROLS[study.name] for each in found if each.startswith(name)} == CONTROLS[
        study.name
    ]
    assert all(any(each.startswith(name) for name in CONTROLS[study.name]) for each in found)


def test_ensembles_of_three_widths_are_outside_this_scale() -> None:
    study = find_study("feature-lazy")
    wider = synthetic.study((16, 32, 64, 128), seeds=4, noise=0.02).assign(run="FlowRun", law="ntk")
    for frame, few in ((ROWS[study.name], True), (wider, False)):
        found = [one for one in verdicts(study.claims, frame) if one["id"].startswith(("R11", "R12"))]
        assert len(found) == 4
        assert {one["verdict"] == "outside this scale" for one in found} == {few}
        assert all(one["value"] is not None for one in found)


def test_every_claim_has_a_truth_in_its_range(study: Study) -> None:
    for claim in claims_of(study):
        low, high = ends_of(claim.range)
        assert claim.expected is not None and low <= claim.expected <= high, claim.id


def test_the_protocol_log_is_about_claims_of_the_study(study: Study) -> None:
    assert study.protocol
    known = CATALOG[study.name].card.claims
    assert {name.split("/")[0] for one in study.protocol for name in one.claims} <= set(known)
    assert [one.date for one in study.protocol] == sorted(one.date for one in study.protocol)
