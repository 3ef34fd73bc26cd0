"""Show a run's progress in gauges of Ray. Ray's metrics agents offer them to Prometheus (cluster/observability)."""

from collections.abc import Callable, Mapping

from ray.util.metrics import Gauge

# The metrics of docs/metrics.md to watch during a run, with their descriptions for Prometheus.
SHOWN = {
    "speed/events_per_second": "events read and trained on per second, all workers",
    "speed/muons_per_second": "muons read and trained on per second, all workers",
    "speed/data_wait_share": "share of the time in which a worker waited for its next batch",
    "train/critic_loss": "loss of the critic, with its penalty",
    "train/generator_loss": "loss of the generator",
    "train/multiplicity_loss": "loss of the multiplicity model",
    "train/wasserstein_estimate": "mean critic score of true events minus mean critic score of generated events",
    "train/gradient_penalty": "gradient penalty before its weight",
    "validation/score": "mean W1/sigma on held-out events, lower is better",
    "progress/share_done": "share of the run that is done",
}


def gauge_name(metric: str) -> str:
    """Return the gauge's name of a metric; in Prometheus it also has Ray's prefix, `ray_`."""
    return f"crmuons_{metric.replace('/', '_')}"


def gauges(run: str) -> Callable[[Mapping[str, float]], None]:
    """Return a function that sets the gauges of a run, labelled `run`, to metrics. Ray must be initialised."""
    by_metric = {
        metric: Gauge(gauge_name(metric), description, ("run",)).set_default_tags({"run": run})
        for metric, description in SHOWN.items()
    }

    def show(values: Mapping[str, float]) -> None:
        for metric in SHOWN.keys() & values.keys():
            by_metric[metric].set(values[metric])

    return show
