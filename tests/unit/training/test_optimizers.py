"""Learning rates, optimizer steps and sums over ranks in closed form."""

import math

import pytest
import torch
from torch import nn

from crmuons import config
from crmuons.training.fault import FirstFault
from crmuons.training.optimizers import WeightedSum, all_reduce_gradients, build_optimizers, lr_share


def optimizer(**given):
    return config.Optimizer(**given)


def network(kind="sgd", **given):
    """One weight of value 1 under the name of the generator."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    return build_optimizers(optimizer(kind=kind, **given), {"generator": module})["generator"]


def moved(one, gradient, skip_step=False):
    norm = one.step(torch.tensor([gradient]), skip_step=torch.tensor(float(skip_step)))
    return one.parameters[0].item(), norm.item()


def test_the_learning_rate_rises_falls_and_ends_at_its_last_share():
    cosine = optimizer(warmup_steps=4, decay="cosine", final_lr_share=0.1)
    assert [lr_share(cosine, step, 0.0) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    # 0.1 + 0.9 (1 + cos(pi x)) / 2: 0.55 half-way, 0.1 + 0.9 x 0.853553 after a quarter, 0.1 at the end.
    assert lr_share(cosine, 100, 0.5) == pytest.approx(0.55)
    assert lr_share(cosine, 100, 0.25) == pytest.approx(0.868198, rel=1e-5)
    assert lr_share(cosine, 100, 1.0) == pytest.approx(0.1)
    linear = optimizer(warmup_steps=0, decay="linear", final_lr_share=0.2)
    assert [lr_share(linear, 0, x) for x in (0.0, 0.25, 1.0)] == pytest.approx([1.0, 0.8, 0.2])
    constant = optimizer(warmup_steps=2, decay="none")
    assert [lr_share(constant, step, 0.9) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert lr_share(cosine, 1, 0.5) == pytest.approx(0.5 * 0.55)  # Both at once.


def test_a_step_of_sgd_and_the_learning_rates_share():
    one = network(lr=0.1, momentum=0.5)
    assert moved(one, 2.0) == pytest.approx((0.8, 2.0))  # 1 - 0.1 x 2
    assert moved(one, 2.0) == pytest.approx((0.5, 2.0))  # momentum: 0.8 - 0.1 (2 + 0.5 x 2)
    one.set_lr_share(0.5)
    assert moved(one, 0.0)[0] == pytest.approx(0.425)  # 0.5 - 0.05 (0 + 0.5 x 3)


def test_a_step_of_adam_has_the_size_of_the_learning_rate():
    # The first step of Adam is lr x g / |g| whatever g is.
    for gradient in (1e-3, -50.0):
        assert moved(network("adam", lr=0.01), gradient)[0] == pytest.approx(
            1 - math.copysign(0.01, gradient), rel=1e-4
        )


def test_gradients_are_scaled_down_to_the_largest_norm_and_never_up():
    assert moved(network(lr=1.0, max_grad_norm=0.5), 4.0) == pytest.approx(
        (0.5, 4.0)
    )  # It returns the norm before scaling.
    assert moved(network(lr=1.0, max_grad_norm=0.5), 0.25) == pytest.approx((0.75, 0.25))
    assert moved(network(lr=1.0, max_grad_norm=0.5), 0.0) == pytest.approx((1.0, 0.0))


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_skip_step_optimizer_does_not_move_not_even_by_momentum(kind):
    # On a GPU the host learns of a NaN only at the next log step; until then this flag holds the weights.
    one = network(kind, lr=0.1)
    moved(one, 1.0)
    before = {key: value.clone() for key, value in flat(one.optimizer.state_dict()["state"]).items()}
    weight = one.parameters[0].item()
    assert moved(one, math.nan, skip_step=True)[0] == weight
    after = flat(one.optimizer.state_dict()["state"])
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert moved(one, 1.0)[0] < weight


def flat(state):
    return {f"{i}.{key}": value for i, entry in state.items() for key, value in entry.items() if torch.is_tensor(value)}


def test_every_network_has_its_own_learning_rate():
    modules = {name: nn.Linear(2, 1) for name in ("generator", "critic", "multiplicity")}
    given = optimizer(lr=0.3, critic_lr=0.1, multiplicity_lr=0.02, betas=(0.5, 0.9))
    networks = build_optimizers(given, modules)
    assert {name: one.lr for name, one in networks.items()} == {"generator": 0.3, "critic": 0.1, "multiplicity": 0.02}
    assert networks["critic"].optimizer.param_groups[0]["betas"] == (0.5, 0.9)
    sgd = build_optimizers(optimizer(kind="sgd", generator_lr=0.7), modules)
    assert isinstance(sgd["generator"].optimizer, torch.optim.SGD)
    assert isinstance(sgd["multiplicity"].optimizer, torch.optim.Adam)
    assert (sgd["generator"].lr, sgd["critic"].lr) == (0.7, config.Optimizer().lr)


def test_an_exchange_keeps_gradients_and_totals_apart():
    gradients = [torch.arange(6.0).reshape(2, 3), torch.zeros(2)]
    totals = {
        "a": WeightedSum(torch.tensor(3.0), torch.tensor(2.0)),
        "b": WeightedSum(torch.tensor(0.0), torch.tensor(0.0)),
    }
    fault = FirstFault(torch.device("cpu"))
    summed, sums = all_reduce_gradients(gradients, totals, fault)
    assert summed.tolist() == [0, 1, 2, 3, 4, 5, 0, 0]
    assert sums.tolist() == [[3, 2], [0, 0]]
    assert fault.place() is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["gradient", "loss"])
def test_the_first_number_that_is_not_finite_is_kept(bad, where):
    fault = FirstFault(torch.device("cpu"))
    for step, number in enumerate([1e38, bad, 0.0, bad]):  # 1e38, whose square is infinite, is a number.
        fault.begin_step(step)
        gradient = torch.tensor([[1.0, number if where == "gradient" else 0.0]])
        total = WeightedSum(torch.tensor(number if where == "loss" else 0.0), torch.tensor(1.0))
        summed, sums = all_reduce_gradients([gradient], {"critic_loss": total}, fault)
        torch.testing.assert_close(
            torch.cat([summed, sums[0]]), torch.tensor([*gradient[0], total.total, 1.0]), equal_nan=True
        )
        assert fault.place() == (None if step == 0 else (1, 0))
        assert fault.found.item() == (step > 0)
