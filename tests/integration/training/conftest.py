"""Trainings of four steps for the tests of a run's data, and validations without figures."""

import pytest

SMALL = (
    "scaling.num_workers=0", "scaling.threads_per_worker=1", "train.log_every=4", "train.validate_every=100", "train.steps=4",
    "train.events_per_worker=256", "train.n_critic=1", "train.validation_events=100", "data.validation_share=0.2", "run.checkpoint_every=2",
    "model.width=8", "model.multiplicity_width=8", "model.multiplicity_components=2", "tracking.enabled=false",
    "run.name=r", "run.resume=auto",
)  # fmt: skip


@pytest.fixture(scope="module")
def no_figures():
    """No figures of a validation, which cost more than a run of four steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crmuons.evaluation.report.figures.marginals", lambda truth, generated: None)
        yield
