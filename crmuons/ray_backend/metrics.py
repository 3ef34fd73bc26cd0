"""A run's progress as gauges of Ray, which its metrics agents offer to Prometheus (cluster/observability)."""

from collections.abc import Callable, Mapping

from ray.util.metrics import Gauge

# Of the metrics in docs/metrics.md, those to watch while a run goes on, and what Prometheus says of them.
SHOWN = {
    "speed/events_per_second": "events read and trained on per second, all workers",
    "speed/muons_per_second": "muons read and trained on per second, all workers",
    "speed/data_wait_share": "share of the time in which a worker waited for its next batch",
    "train/critic_loss": "loss of the critic, with its penalty",
    "train/generator_loss": "loss of the generator",
    "train/multiplicity_loss": "loss of the multiplicity model",
    "train/wasserstein_estimate": "mean critic score of true events minus that of generated ones",
    "train/gradient_penalty": "gradient penalty before its weight",
    "validation/score": "mean W1/sigma on held-out events, lower is better",
    "progress/share_done": "share of the run that is done",
}


def gauge_name(metric: str) -> str:
    """The gauge of a metric; Prometheus sees it with Ray's prefix, `ray_`."""
    return f"crmuons_{metric.replace('/', '_')}"


def gauges(run: str) -> Callable[[Mapping[str, float]], None]:
    """What sets the gauges of a run, labelled `run`, to the metrics it is told; Ray must be initialised."""
    made = {
        metric: Gauge(gauge_name(metric), said, ("run",)).set_default_tags({"run": run})
        for metric, said in SHOWN.items()
    }

    def show(values: Mapping[str, float]) -> None:
        for metric in SHOWN.keys() & values.keys():
            made[metric].set(values[metric])

    return show
