"""What a run says before it begins when few showers select its model."""

from crmuons import config
from crmuons.training.setup import set_up_run


def said(caplog, folder, *words):
    set_up_run(config.load(None, ["train.steps=1", f"data.train={folder}", *words]))
    lines = [
        record.getMessage() for record in caplog.records if "the score that selects the model" in record.getMessage()
    ]
    caplog.clear()
    return lines


def test_few_showers_that_validate_are_counted_with_the_share_that_holds_back_more(
    toy_events, write_toy, tmp_path, caplog
):
    write_toy(tmp_path / "a.parquet", toy_events(1200, mean=30.0))
    (line,) = said(caplog, tmp_path)
    # A hash chooses about 60 of 1,200 showers (5 %), with three events each; 100 of 1,200 are 8.3 %.
    words = line.split()
    showers = int(words[words.index("showers") - 1])
    assert 40 <= showers <= 80
    assert f"({3 * showers} events), so chance alone gives about {1.8 / showers**0.5:.2f} sigma" in line
    assert line.endswith("data.validation_share=0.09 holds back about 100")
    assert not said(caplog, tmp_path, "data.validation_share=0.15")


def test_where_no_share_is_enough_other_showers_are_asked_for(toy_events, write_toy, tmp_path, caplog):
    write_toy(tmp_path / "train" / "a.parquet", toy_events(200, mean=30.0))
    (line,) = said(caplog, tmp_path / "train", "data.validation_share=0.3", "train.validation_events=1000")
    assert "more would leave too few of" in line
    write_toy(tmp_path / "validation" / "a.parquet", toy_events(60, seed=1, mean=30.0))
    (line,) = said(caplog, tmp_path / "train", f"data.validation={tmp_path / 'validation'}")
    assert "comes from 60 showers (180 events)" in line
    assert line.endswith("give more showers in data.validation")


def test_a_validation_that_is_as_large_as_asked_for_is_not_called_small(toy_events, write_toy, tmp_path, caplog):
    write_toy(tmp_path / "a.parquet", toy_events(1200, mean=30.0))
    assert not said(caplog, tmp_path, "train.validation_events=100")
