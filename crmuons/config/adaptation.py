"""Settings of the adaptive critic."""

from typing import Annotated

from pydantic import Field, field_validator

from crmuons.config.base import MANY, Section

Steps = Annotated[int, Field(ge=1, le=10_000)]
Weight = Annotated[float, Field(gt=0, le=1e6)]


class Adapt(Section):
    enabled: bool = False
    """Adapt the number of critic steps and the weight of the penalty to the Wasserstein estimate (docs/metrics.md).
    They begin at n_critic and lambda_gp. For losses that run away or stall; a run that converges does not need it."""
    n_critic_bounds: tuple[Steps, Steps] = (1, 5)
    """[least,most]: bounds of the critic steps per generator step."""
    lambda_gp_bounds: tuple[Weight, Weight] = (1.0, 100.0)
    """[least,most]: bounds of the weight of the penalty."""
    every: int = Field(default=100, ge=10, le=MANY)
    """Steps over which the estimate is averaged; at their end at most one change is made."""
    band: float = Field(default=0.5, gt=0, le=100)
    """Relative change of the estimate since the last change that leads to the next one: 0.5 is a rise to 1.5 times, or
    a fall to 1 / 1.5. To turn back takes twice the band, and each turn doubles it again."""

    @field_validator("n_critic_bounds", "lambda_gp_bounds")
    @classmethod
    def _in_order(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if bounds[0] > bounds[1]:
            msg = f"the bounds [{bounds[0]:g},{bounds[1]:g}] cross: give the lowest value first"
            raise ValueError(msg)
        return bounds

    def check_start(self, n_critic: int, lambda_gp: float | None) -> None:
        """Refuse values to begin with that are outside the bounds; lambda_gp is None without a penalty.

        Raises:
            ValueError: naming the value and the bounds.
        """
        values = {
            "train.n_critic": (n_critic, self.n_critic_bounds),
            "train.penalty.lambda_gp": (lambda_gp, self.lambda_gp_bounds),
        }
        for name, (value, (least, most)) in values.items():
            if value is not None and not least <= value <= most:
                bounds = f"train.adapt.{name.rpartition('.')[2]}_bounds = [{least:g},{most:g}]"
                msg = f"{name} = {value:g} is outside {bounds}: the run begins with it; move the value or the bounds"
                raise ValueError(msg)
