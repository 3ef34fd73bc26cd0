"""Successive halving and population-based training, by hand."""

from tune.schedulers import Asha, Continue, Exploit, Population, Stop


def test_halving_stops_what_is_not_in_the_best_third_of_those_that_came_to_a_rung():
    asha = Asha(first_rung=0.1, reduction=3)
    assert asha.rungs() == [0.1, 0.30000000000000004, 0.9000000000000001]
    assert asha.decide(0, 0.05, 9.0) == Continue()  # Before the first rung.
    assert asha.decide(0, 0.1, 0.5) == Continue()
    assert asha.decide(1, 0.1, 0.9) == Continue()  # Of two there is no third.
    assert isinstance(asha.decide(2, 0.1, 0.7), Stop)  # One of three is better: not the best third.
    assert asha.decide(3, 0.1, 0.3) == Continue()
    assert asha.decide(4, 0.1, 0.4) == Continue()  # Second of five: one better, 5/3 may be.
    assert asha.decide(3, 0.2, 8.0) == Continue()  # Between rungs nothing is compared.


def test_halving_takes_the_best_score_so_far_and_says_why_it_stops():
    asha = Asha(first_rung=0.5, reduction=2)
    for trial, score in enumerate((0.1, 0.2)):
        asha.decide(trial, 0.5, score)
    asha.decide(2, 0.2, 0.05)
    assert asha.decide(2, 0.5, 3.0) == Continue()  # Its selected model is that of 0.2.
    stop = asha.decide(3, 0.6, 0.7)
    assert stop == Stop("score 0.7000 at 60% of the run, where 3 of 3 trials were better")


def test_asha_decides_the_same_after_its_scores_are_reported_again():
    scores = [(0, 0.1, 0.5), (1, 0.1, 0.9), (0, 0.3, 0.45), (2, 0.1, 0.4), (1, 0.3, 0.8)]
    before, after = Asha(0.1, 3), Asha(0.1, 3)
    for each in scores:
        before.decide(*each)
    for each in sorted(scores):  # Trial by trial, as the metrics files hold them.
        after.decide(*each)
    assert before.scores == after.scores
    for each in ((3, 0.1, 0.6), (2, 0.3, 0.9), (1, 0.1, 0.0)):
        assert before.decide(*each) == after.decide(*each)


def test_the_worst_of_a_population_exploits_one_of_the_best_at_each_interval():
    population = Population(size=4, seed=1, interval=0.25, quantile=0.25)
    for trial, score in enumerate((0.1, 0.2, 0.3)):
        assert population.decide(trial, 0.2, score) == Continue()
    assert population.decide(3, 0.2, 0.9) == Continue()  # The worst, but not yet due.
    assert population.decide(3, 0.25, 0.9) == Exploit(0)
    assert population.decide(3, 0.3, 0.9) == Continue()  # Due again at 0.5.
    assert population.decide(2, 0.5, 0.3) == Continue()  # In the middle.
    assert population.decide(0, 1.0, 0.05) == Continue()  # At its end: it is no donor.
    assert population.decide(3, 0.5, 0.9) == Exploit(1)
    assert population.decide(3, 0.95, 0.9) == Continue()


def test_a_population_of_one_that_has_reported_keeps_to_itself():
    assert Population(size=4, seed=0).decide(2, 0.5, 1.0) == Continue()
