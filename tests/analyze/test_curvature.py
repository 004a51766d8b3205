from pathlib import Path

import numpy as np
import pytest
import torch
from tests.small import SHAPE, distilled, gaussians, network, subject

from limbeck.analyze.curvature import Curvature, sampled_traces
from limbeck.analyze.operators import Curvature as Operators
from limbeck.progress import SILENT
from limbeck.streams import Streams
from limbeck.types.labels import Labels
from limbeck.types.measurement import Measurement

OPTIONS = {**Curvature.smoke, "steps": 0, "probes": 3}


def measure(folder: Path, **changes: object) -> Measurement:
    return Curvature(Curvature.Options(**{**OPTIONS, **changes})).measure(subject(cache=folder), SILENT)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("drawn", [False, True])
def test_standard_errors_of_sampled_traces_cover_what_they_say(drawn: bool) -> None:
    """Over 40 repetitions on a pool of 40 images: for given images the spread over signs; for drawn ones that over draws of 20 (with replacement) and signs."""
    net = network("mlp:width=4,depth=1", 3)
    state = {name: tensor.double() for name, tensor in net.init(Streams(0)).items()}
    images = torch.randn(40, *SHAPE, generator=rng(1), dtype=torch.float64)
    labels = torch.nn.functional.one_hot(torch.randint(0, 3, (40,), generator=rng(2)), 3).double()
    given, generator = Operators(net, state, images, labels), rng(3)
    exact = float(given.ggn(torch.eye(given.dimension, dtype=torch.float64)).trace())  # of the Hessian too: no norms
    values, errors = [], []
    for _ in range(40):
        rows = torch.randint(0, 40, (20,), generator=generator) if drawn else torch.arange(40)
        _, hessian = sampled_traces(Operators(net, state, images[rows], labels[rows]), generator, 1 if drawn else 2, drawn)
        values.append(hessian.value)
        errors.append(hessian.standard_error)
    spread = float(np.std(values))
    assert abs(np.mean(values) - exact) < 4 * spread / 40**0.5
    assert spread / 1.5 < float(np.sqrt(np.mean(np.square(errors)))) < 1.5 * spread


def test_estimators_agree_within_their_intervals(tmp_path: Path) -> None:
    ours, other = measure(tmp_path, probes=30), measure(tmp_path, estimator="xtrace", probes=30)
    for name in ("hessian_trace", "fisher_trace"):
        here, there = ours[name], other[name]
        assert here.high is not None
        assert there.high is not None
        width = (here.high - here.values) + (there.high - there.values)
        # the sets are the first two places; all real images are sampled alike by every estimator
        assert (np.abs(here.values - there.values)[..., :2] < 2 * width[..., :2] + 1e-6).all()


def test_a_run_of_lanczos_that_did_not_converge_is_said_so(tmp_path: Path) -> None:
    short, long = measure(tmp_path, lanczos_steps=2), measure(tmp_path, lanczos_steps=60, eigenvalues=1)
    assert not short.converged
    assert short.residuals["lanczos"] > 0.01
    assert any(note.startswith("Lanczos did not converge in 2 steps at ") for note in short.notes)
    assert long.converged
    assert not any("Lanczos" in note for note in long.notes)
    np.testing.assert_allclose(long["spectrum"].values.sum(-1), 1, rtol=1e-6)
    assert (long["top_eigenvalue"].values >= long["smallest_eigenvalue"].values).all()


def test_what_is_exact_has_no_interval_and_soft_labels_count(tmp_path: Path) -> None:
    made = measure(tmp_path)
    for name in ("loss", "empirical_fisher_trace"):
        quantity = made[name]
        assert quantity.low is not None
        gaps = quantity.values - quantity.low
        assert (gaps[..., :2] == 0).all()
        assert (gaps[..., 2] > 0).all()
    table = gaussians(3, seed=7)
    soft = distilled(table, Labels.encode(torch.full((6, 2), 0.5)))
    other = Curvature(Curvature.Options(**OPTIONS)).measure(subject(soft, cache=tmp_path), SILENT)
    assert other["empirical_fisher_trace"].values[0, 0, 0] != made["empirical_fisher_trace"].values[0, 0, 0]
    np.testing.assert_allclose(other["fisher_trace"].values[0, 0, 0], made["fisher_trace"].values[0, 0, 0], rtol=1e-5)  # it asks for no labels


def test_labels_that_are_no_distributions_are_noted(tmp_path: Path) -> None:
    free = distilled(gaussians(3, seed=7), Labels.encode(torch.full((6, 2), 0.3), sums_to_one=False))
    made = Curvature(Curvature.Options(**OPTIONS)).measure(subject(free, cache=tmp_path), SILENT)
    assert any("do not sum to one" in note for note in made.notes)
