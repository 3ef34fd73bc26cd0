"""What the driver says of a run before it starts."""

from crmuons import config
from crmuons.training.driver import _warn_if_inside


def test_a_run_among_its_own_data_is_warned_of(tmp_path, caplog):
    """The next listing of the data would take the run's Parquet files for events."""
    (tmp_path / "data" / "runs" / "a").mkdir(parents=True)
    (tmp_path / "data" / "x.parquet").touch()
    settings = config.load(None, ["train.steps=1", f"data.train={tmp_path / 'data'}"])
    _warn_if_inside(tmp_path / "runs" / "a", settings)
    assert not caplog.records
    _warn_if_inside(tmp_path / "data" / "runs" / "a", settings)
    assert "lies inside the data directory" in caplog.text
    assert "name a directory outside it with run.storage_path" in caplog.text
