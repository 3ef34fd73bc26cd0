"""Primaries read from files in every legal form, refused with file, column, row and remedy, or drawn from a spectrum."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crmuons.data import arrow
from crmuons.generation.primaries import PrimaryFiles
from crmuons.generation.spectrum import Spectrum

ROWS = 5
FLAT = {
    "energy_gev": np.geomspace(1e4, 1e8, ROWS),
    "zenith_rad": np.linspace(0, 1, ROWS),
    "mass_gev": np.full(ROWS, 0.938),
    "depth_m": np.linspace(1500, 2500, ROWS),
}
VALUES = np.stack(list(FLAT.values()), axis=1).astype(np.float32)
NESTED = {"primary": pa.array(VALUES.tolist(), pa.list_(pa.float32()))}
IDS = {"primary_major_id": np.full(ROWS, 2**63 + 7, np.uint64), "primary_minor_id": np.arange(ROWS)[::-1]}
MUONS = {"muons": pa.array([[[10.0, 0.0, 0.0]] * n for n in range(ROWS)], pa.list_(pa.list_(pa.float32())))}


def read(path, columns, **options):
    pq.write_table(pa.table(columns), path)
    (primaries,) = PrimaryFiles([str(path)], **options)
    return primaries


@pytest.mark.parametrize(
    "columns",
    [
        FLAT,
        NESTED,
        NESTED | MUONS,
        {name: values.astype(np.float32) for name, values in FLAT.items()},
        {"primary": pa.array(VALUES.tolist(), pa.list_(pa.float32(), 4))},
        {"primary": pa.array(VALUES.tolist(), pa.large_list(pa.float64()))},
        {"comment": ["x"] * ROWS} | FLAT,
    ],
    ids=["flat", "nested", "events", "float32", "fixed-size", "large float64", "further column"],
)
def test_every_legal_form_gives_the_same_primaries(tmp_path, columns):
    primaries = read(tmp_path / "p.parquet", columns)
    np.testing.assert_array_equal(primaries.values, VALUES)
    assert primaries.counts is None


def test_ids_are_carried_over_and_otherwise_number_the_events_of_all_files(tmp_path):
    given = read(tmp_path / "with.parquet", FLAT | IDS)
    np.testing.assert_array_equal(given.ids, np.stack([IDS["primary_major_id"], np.arange(ROWS)[::-1]], axis=1))
    for name in "ab":
        pq.write_table(pa.table(FLAT), tmp_path / f"{name}.parquet")
    two = [part.ids for part in PrimaryFiles([str(tmp_path / "{a,b}.parquet")])]
    np.testing.assert_array_equal(np.concatenate(two)[:, 0], np.arange(2 * ROWS))


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.int64])
def test_a_negative_id_is_the_same_shower_in_training_and_generation(tmp_path, kind):
    """A signed hash (Spark's xxhash64) and an unsigned one share their 64 bits: -1 is 2^64 - 1, whatever the width."""
    ids = {
        "primary_major_id": np.array([-1, 5, -2, 0, -128], kind),
        "primary_minor_id": np.arange(ROWS, dtype=kind) - 3,
    }
    columns = NESTED | MUONS | ids
    generated = read(tmp_path / "p.parquet", columns).ids
    assert generated[:3].tolist() == [[2**64 - 1, 2**64 - 3], [5, 2**64 - 2], [2**64 - 2, 2**64 - 1]]
    trained = arrow.legal_arrays(pa.table(columns))
    np.testing.assert_array_equal(trained.ids, generated)
    np.testing.assert_array_equal(arrow.to_arrays(arrow.to_table(trained)).ids, generated)  # What crmuons writes.


def test_counts_come_from_num_muons_or_from_the_lists_of_muons(tmp_path):
    path = tmp_path / "p.parquet"
    assert read(path, NESTED | MUONS, with_counts=True).counts.tolist() == [0, 1, 2, 3, 4]
    explicit = {"num_muons": np.array([5, 0, 3, 2, 1], np.int32)}
    assert read(path, NESTED | MUONS | explicit, with_counts=True).counts.tolist() == [5, 0, 3, 2, 1]


def test_a_vertical_depth_becomes_the_slant_one(tmp_path):
    slant = read(tmp_path / "p.parquet", FLAT, vertical_depth=True).values[:, 3]
    assert slant[0] == 1500  # Vertical shower.
    flat_earth = 2500 / np.cos(1.0)  # A round Earth shortens the path, here by about 0.05 %.
    assert slant[-1] == pytest.approx(flat_earth, rel=2e-3)
    assert slant[-1] < flat_earth


def changed(name, row, value):
    values = FLAT[name].copy()
    values[row] = value
    return FLAT | {name: values}


@pytest.mark.parametrize(
    ("columns", "options", "says"),
    [
        ({"energy_gev": [1.0]}, {}, ["p.parquet", "no column 'primary'", "'zenith_rad'", "expected"]),
        (FLAT | {"mass_gev": ["p"] * ROWS}, {}, ["p.parquet", "'mass_gev'", "string", "a number"]),
        ({"primary": [1.0]}, {}, ["p.parquet", "'primary'", "double", "list<float32>"]),
        ({"primary": [[1e5, 0.0, 0.9]]}, {}, ["p.parquet", "row 0", "not 4 wide"]),
        (changed("energy_gev", 3, -1), {}, ["p.parquet", "row 3", "energy_gev is not positive", "leave it out"]),
        (changed("zenith_rad", 2, np.nan), {}, ["p.parquet", "row 2", "NaN"]),
        (changed("depth_m", 4, 2.5), {}, ["p.parquet", "row 4", "depth_m", "kilometres"]),
        (FLAT | {"mass_gev": pa.array([None, 1.0, 1.0, 1.0, 1.0])}, {}, ["p.parquet", "row 0", "NaN"]),
        (FLAT | {"primary_major_id": np.arange(ROWS)}, {}, ["'primary_major_id' stands alone"]),
        (FLAT | IDS | {"primary_minor_id": pa.array([1, None, 2, 3, 4])}, {}, ["'primary_minor_id'", "row 1", "null"]),
        (FLAT | IDS | {"primary_minor_id": ["x"] * ROWS}, {}, ["'primary_minor_id'", "string", "uint64"]),
        (FLAT, {"with_counts": True}, ["no column 'num_muons'", "--counts predict"]),
        (FLAT | {"num_muons": [1.5] * ROWS}, {"with_counts": True}, ["'num_muons'", "double", "integer"]),
        (FLAT | {"num_muons": [1, -2, 3, 4, 5]}, {"with_counts": True}, ["'num_muons'", "row 1", "negative"]),
        (FLAT | {"num_muons": [1, 2, None, 4, 5]}, {"with_counts": True}, ["'num_muons'", "row 2", "null"]),
    ],
)
def test_what_is_not_legal_is_refused_by_file_column_and_row(tmp_path, columns, options, says):
    with pytest.raises(ValueError, match=r"p\.parquet") as error:
        read(tmp_path / "p.parquet", columns, **options)
    for words in says:
        assert words in str(error.value)


def test_a_file_that_is_not_parquet_and_files_with_and_without_ids_are_named(tmp_path):
    (tmp_path / "p.parquet").write_bytes(b"energy_gev,zenith_rad")
    with pytest.raises(ValueError, match=r"p\.parquet is not a Parquet file"):
        list(PrimaryFiles([str(tmp_path / "p.parquet")]))
    pq.write_table(pa.table(FLAT | IDS), tmp_path / "p.parquet")
    pq.write_table(pa.table(FLAT), tmp_path / "q.parquet")
    with pytest.raises(ValueError, match=r"q\.parquet: some files have primary_major_id"):
        list(PrimaryFiles([str(tmp_path)]))


def drawn(spectrum):
    return np.concatenate([part.values for part in spectrum]).astype(np.float64)


def test_drawn_primaries_follow_the_spectrum():
    spectrum = Spectrum(
        40_000, seed=2, energy_gev=(1e4, 1e8), gamma=2.0, composition=(("p", 3.0), ("Fe", 1.0)), zenith_deg=(0, 60),
        cylinder_m=(0.0, 1.0),
    )  # fmt: skip
    energy, zenith, mass, depth = drawn(spectrum).T
    # E^-2 from 1e4: the median is near 2e4. A flat disc: cos^2 is uniform, here on 1/4 .. 1. Four standard errors each.
    assert np.median(energy) == pytest.approx(2e4, rel=0.04)
    assert (np.cos(zenith) ** 2).mean() == pytest.approx(0.625, abs=4 * 0.75 / np.sqrt(12 * 40_000))
    assert (mass < 1).mean() == pytest.approx(0.75, abs=4 * np.sqrt(0.75 * 0.25 / 40_000))
    assert set(np.round(np.unique(mass), 1)) == {0.9, 52.2}
    vertical = depth * np.cos(zenith)  # Over a flat Earth; a round one shortens slant depths by 0.1 % at most here.
    assert vertical.min() == pytest.approx(1450, rel=2e-3)
    assert vertical.max() == pytest.approx(2450, rel=2e-3)


def test_zenith_angles_follow_the_area_of_a_cylinder_seen_from_them():
    zenith = drawn(Spectrum(60_000, seed=3, zenith_deg=(0, 60), cylinder_m=(1600.0, 800.0)))[:, 1]
    cosine = np.linspace(0.5, 1, 100_001)
    area = np.pi * 800**2 * cosine + 2 * 1600 * 800 * np.sqrt(1 - cosine**2)  # Caps and side, as seen.
    mean = (area * cosine).sum() / area.sum()
    spread = np.sqrt((area * (cosine - mean) ** 2).sum() / area.sum())
    assert np.cos(zenith).mean() == pytest.approx(mean, abs=4 * spread / np.sqrt(60_000))


def test_the_first_primaries_do_not_depend_on_how_many_are_drawn():
    np.testing.assert_array_equal(drawn(Spectrum(70_000))[:100], drawn(Spectrum(100)))
    assert not np.array_equal(drawn(Spectrum(100, seed=1)), drawn(Spectrum(100)))


def test_drawn_values_do_not_leave_their_ranges_by_rounding():
    high = 1e8 / 3  # Not a number of single precision.
    energy, zenith, *_ = drawn(Spectrum(100_000, energy_gev=(1e4 / 3, high), gamma=0.0, zenith_deg=(10.1, 10.2))).T
    assert energy.max() <= high
    assert zenith.min() >= np.deg2rad(10.1)
    assert zenith.max() <= np.deg2rad(10.2)


def test_a_spectrum_reads_as_it_is_written_on_the_command_line():
    words = ["events=10", "energy_gev=1e5:1e7", "gamma=2.7", "composition=p:0.5,O:0.5", "cylinder_m=0:1"]
    assert Spectrum.parse(words, seed=4) == Spectrum(
        10, 4, (1e5, 1e7), 2.7, (("p", 0.5), ("O", 0.5)), cylinder_m=(0.0, 1.0)
    )


def test_a_spectrum_may_break():
    spectrum = Spectrum.parse(["events=60000", "energy_gev=1e3:1e9", "gamma=1:1e5:2"], seed=4)
    assert spectrum.gamma == (1.0, 1e5, 2.0)
    energy = drawn(spectrum)[:, 0]
    # 1/E over two decades, ln 100 = 4.605, and E^-2 from there: 1 - 1e-4.
    assert (energy < 1e5).mean() == pytest.approx(4.605 / 5.605, abs=4 * np.sqrt(0.15 / 60_000))


def test_by_default_every_decade_has_primaries():
    share = np.histogram(np.log10(drawn(Spectrum(60_000))[:, 0]), [np.log10(600), 3, 4, 5, 6, 7, 8, 9, 10])[0] / 60_000
    assert share.sum() == pytest.approx(1)
    assert share.min() > 0.003  # Above 1e9 GeV: 0.0046.


def test_a_range_may_be_a_single_value():
    spectrum = Spectrum.parse(["events=100", "zenith_deg=0:0", "energy_gev=1e6:1e6", "depth_m=1500:1500"], seed=0)
    energy, zenith, _, depth = drawn(spectrum).T
    assert (energy == 1e6).all()
    assert (zenith == 0).all()
    assert depth == pytest.approx(np.full(100, 1_500.0))


def test_nuclei_are_known_in_any_case_and_h_is_the_proton():
    spectrum = Spectrum.parse(["events=10", "composition=H:1,fe:2,SI:1"], seed=0)
    assert spectrum.composition == (("p", 1.0), ("Fe", 2.0), ("Si", 1.0))
    spectrum = Spectrum.parse(["events=10", "composition=hydrogen:1,Iron:2,silicon:1"], seed=0)
    assert spectrum.composition == (("p", 1.0), ("Fe", 2.0), ("Si", 1.0))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "how many"),
        (["events=10", "energy=1:2"], "nearest is 'energy_gev='"),
        (["events=10", "energy_gev=5"], r"energy_gev=1e5:1e8"),
        (["events=10", "zenith_deg=0"], "zenith_deg=0:60"),
        (["events=10", "depth_m=2000"], "depth_m=1950:1950"),
        (["events=ten"], "events=1000000"),
        (["events=0"], "at least 1"),
        (["events=1.5"], "whole number"),
        (["events=10", "energy_gev=1e8:1e5"], "LOW <= HIGH"),
        (["events=10", "composition=p:0.5,Xe:0.5"], "'Xe' is none of p, He"),
        (["events=10", "composition=p:0"], "share of p is 0"),
        (["events=10", "composition=p:inf"], "share of p is inf"),
        (["events=10", "cylinder_m=inf:3"], "expected finite LENGTH"),
        (["events=inf"], "events=inf: expected a whole number"),
        (["events=10", "composition=p:1,p:1"], "twice"),
        (["events=10", "zenith_deg=0:95"], "<= 90"),
        (["events=10", "depth_m=1.5:2.5"], "expected 10"),
        (["events=10", "gamma=nan"], "expected 0 to 10"),
        (["events=10", "energy_gev=nan:1e5"], "expected"),
        (["events=10", "gamma=1:1e6"], "gamma=1 1e+06: expected a power, or powers with rising energies"),
        (["events=10", "gamma=1:x:2"], "gamma=1:x:2 cannot be read"),
        (["events=1e15"], "events=1e+15: that would be about 100,000 TB; expected at most 1e+10"),
        (["events=10", "composition=H:1,p:1"], "twice"),
        (["events=10", "zenith_deg=nan:0"], "expected"),
    ],
)
def test_a_spectrum_that_cannot_be_is_refused_with_what_would_be_right(words, says):
    with pytest.raises(ValueError, match=r"^--spectrum: ") as error:
        Spectrum.parse(words, seed=0)
    assert says in str(error.value)


def test_primaries_that_were_replaced_since_they_were_listed_are_refused(tmp_path):
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table(FLAT), path)
    source = PrimaryFiles([str(path)])
    assert sum(map(len, source)) == ROWS
    pq.write_table(pa.table({name: values * 1.5 for name, values in FLAT.items()}).slice(1), path)
    with pytest.raises(ValueError, match=r"p\.parquet has changed"):
        list(source)


def test_a_column_that_stands_twice_is_refused(tmp_path):
    columns = pa.table(FLAT)
    twice = pa.Table.from_arrays([*columns.columns, columns["depth_m"]], [*columns.column_names, "depth_m"])
    pq.write_table(twice, tmp_path / "p.parquet")
    with pytest.raises(ValueError, match=r"p\.parquet: 2 columns have the name 'depth_m'"):
        list(PrimaryFiles([str(tmp_path / "p.parquet")]))
