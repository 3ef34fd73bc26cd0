"""Placement: an isotropic flux crosses the detector right, bundles are drawn at the depth of entry, tracks begin on the surface."""

import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from crmuons import config
from crmuons.cli import main
from crmuons.data import geometry
from crmuons.data.events import EventArrays
from crmuons.generation.formats.surface import C_M_PER_NS, Surface, at_entry, place
from crmuons.generation.formats.tracks import axes, to_tracks
from crmuons.generation.placement import PlacedSpectrum
from crmuons.generation.spectrum import Spectrum
from crmuons.models import saved_model
from crmuons.models.bundle_model import BundleModel
from crmuons.models.features import Features

INNER = Surface("cylinder", 150.0, 300.0)
NAMES = ("energy_gev", "x_m", "y_m", "dir_x", "dir_y", "t_ns")


def placed(surface, events, seed=0, zenith_deg=(0.0, 70.0)):
    """Zenith angles and entries of showers around a surface, and the etendue of the cylinder around it, m^2 sr."""
    spectrum = Spectrum(events, seed=seed, depth_m=(1950.0, 1950.0), zenith_deg=zenith_deg)
    source = PlacedSpectrum.around(surface, spectrum)
    parts = list(source.spectrum)
    ids, values = np.concatenate([part.ids for part in parts]), np.concatenate([part.values for part in parts])
    zenith = values[:, 1].astype(float)
    azimuth, entry = place(ids, zenith, surface, seed)
    length, radius = source.spectrum.cylinder_m
    angle = np.linspace(*np.deg2rad(zenith_deg), 20_001)
    area = np.pi * radius**2 * np.cos(angle) + 2 * radius * length * np.sin(angle)
    return zenith, azimuth, entry, 2 * np.pi * np.trapezoid(area * np.sin(angle), angle)


def rate_through(inner, surface, events, seed):
    """Rate in an inner surface for a flux of 1 per m^2 s sr, and its statistical error."""
    zenith, azimuth, entry, etendue = placed(surface, events, seed)
    crossed, _ = inner.crossings(entry, axes(zenith, azimuth)[:, 2])
    share = np.isfinite(crossed).mean()
    return share * etendue, etendue * np.sqrt(share / events)


@pytest.mark.parametrize("shape", ["cylinder:200,400", "sphere:300"])
def test_the_rate_in_an_inner_cylinder_does_not_change_when_the_radius_doubles(shape):
    surface = Surface.parse(shape)
    double = Surface(surface.shape, 2 * surface.radius_m, surface.length_m)
    small, small_error = rate_through(INNER, surface, 150_000, 1)
    large, large_error = rate_through(INNER, double, 400_000, 2)
    error = np.hypot(small_error, large_error)
    assert error < 0.01 * small
    assert large == pytest.approx(small, abs=0.01 * small + 2 * error)
    # The inner cylinder shows pi r^2 cos + 2 r l sin; 70 degrees end the integral.
    angle = np.linspace(0, np.deg2rad(70), 20_001)
    area = np.pi * 150**2 * np.cos(angle) + 2 * 150 * 300 * np.sin(angle)
    expected = 2 * np.pi * np.trapezoid(area * np.sin(angle), angle)
    assert small == pytest.approx(expected, rel=0.01, abs=2 * small_error)


@pytest.mark.parametrize("text", ["cylinder:300,900", "sphere:500", "plane:400"])
def test_axes_enter_the_cylinder_around_the_surface_and_points_of_entry_lie_on_it(text):
    surface = Surface.parse(text)
    zenith, azimuth, entry, _ = placed(surface, 5000)
    cylinder = surface.cylinder
    on_side = np.abs(np.hypot(entry[:, 0], entry[:, 1]) - cylinder.radius_m) < 1e-6
    on_top = np.abs(entry[:, 2] - cylinder.length_m / 2) < 1e-6
    assert (on_side | on_top).all()
    flight = axes(zenith, azimuth)[:, 2]
    assert ((entry[:, :2] * flight[:, :2]).sum(axis=1)[on_side & ~on_top] <= 1e-6).all()  # Inwards.
    crossed, left = surface.crossings(entry, flight)
    share = np.isfinite(crossed).mean()
    assert share == 1 if text[0] != "s" else 0.5 < share < 1  # A sphere shows 2/3 or less of its cylinder.
    inside = np.isfinite(crossed)
    middle = entry + ((crossed + left) / 2)[:, None] * flight
    radius = np.linalg.norm(middle, axis=1) if text[0] == "s" else np.hypot(middle[:, 0], middle[:, 1])
    assert (radius[inside] <= surface.radius_m * (1 + 1e-9)).all()


def test_the_depth_is_that_of_the_point_of_entry():
    surface = Surface("cylinder", 600.0, 1000.0)
    source = PlacedSpectrum.around(surface, Spectrum(2000, depth_m=(1950.0, 1950.0)))
    (primaries,) = list(source)
    zenith = primaries.values[:, 1].astype(float)
    _, entry = place(primaries.ids, zenith, surface, 0)
    expected = geometry.slant_depth_m(1950 - entry[:, 2], np.cos(zenith))
    np.testing.assert_allclose(primaries.values[:, 3], expected, rtol=1e-6)
    vertical = primaries.values[:, 3] * np.cos(zenith)  # Nearly: the Earth is round.
    assert vertical.min() == pytest.approx(1450, rel=0.02)  # The top,
    assert vertical.max() > 2200  # and showers that enter the side far below it.


def test_tracks_begin_on_the_surface_at_the_time_of_their_flight_and_those_that_miss_are_left_out():
    surface = Surface("sphere", 100.0)
    # A vertical shower whose axis enters at the top: muons at 0, 60 and 150 m from it, and an event that misses.
    muons = np.array(
        [[50, 0, 0, 0, 0, 5], [50, 60, 0, 0, 0, 0], [50, 150, 0, 0, 0, 0], [50, 150, 0, 0, 0, 0]], np.float32
    )
    primaries = np.tile(np.array([1e6, 0.0, 0.938, 1900.0], np.float32), (2, 1))
    events = EventArrays(np.array([[1, 0], [2, 0]], np.uint64), primaries, np.array([3, 1]), muons)
    core = np.tile([0.0, 0.0, 100.0], (2, 1))
    tracks = at_entry(to_tracks(events, NAMES, azimuth_rad=np.zeros(2), core_m=core), surface)
    assert tracks.counts.tolist() == [2]
    assert tracks.ids.tolist() == [[1, 0]]
    np.testing.assert_allclose(np.linalg.norm(tracks.position_m, axis=1), 100)
    np.testing.assert_allclose(tracks.position_m[:, 2], [100, 80])  # sqrt(100^2 - 60^2)
    np.testing.assert_allclose(tracks.t_ns, [5, 20 / C_M_PER_NS])


@pytest.fixture(scope="module")
def model(tmp_path_factory, toy_events):
    torch.manual_seed(3)
    settings = config.Model(width=8, multiplicity_width=8)
    whole = BundleModel(settings, Features().fit(toy_events(300)))
    return saved_model.save_model(tmp_path_factory.mktemp("run") / "model", whole, {"model": settings.model_dump()})


def test_generate_writes_tracks_in_the_detectors_frame(model, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["generate", "--model", str(model), "--out", str(out), "--surface", "sphere:300", "--counts", "3"]
    command += ["--spectrum", "events=300", "depth_m=1950:1950", "--fill", "dir_x=0", "dir_y=0", "t_ns=0"]
    assert main(command) == 0
    missed = int(re.search(r"(\d+) events miss the surface and are left out", capsys.readouterr().out).group(1))
    table = pq.read_table(out / "_tracks" / "events-00000.parquet")
    assert table.num_rows == 300 - missed
    assert 0 < missed < 200
    muons = {
        name: np.concatenate(table[name].to_pylist())
        for name in ("x_m", "y_m", "z_m", "dir_x", "dir_y", "dir_z", "t_ns")
    }
    distance = np.sqrt(muons["x_m"] ** 2 + muons["y_m"] ** 2 + muons["z_m"] ** 2)
    np.testing.assert_allclose(distance, 300, rtol=1e-5)
    np.testing.assert_allclose(muons["dir_x"] ** 2 + muons["dir_y"] ** 2 + muons["dir_z"] ** 2, 1, rtol=1e-5)
    inward = muons["x_m"] * muons["dir_x"] + muons["y_m"] * muons["dir_y"] + muons["z_m"] * muons["dir_z"]
    assert (inward <= 1e-3).all()
    assert main(command) == 0  # Everything is there already.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--surface", "cube:3"], "--surface cube:3: expected cylinder:RADIUS,LENGTH, sphere:RADIUS, plane:RADIUS, in metres"),
        (["--surface", "cylinder:600"], "expected cylinder:RADIUS,LENGTH with lengths in metres above 0"),
        (["--surface", "sphere:-1"], "expected sphere:RADIUS with lengths in metres above 0"),
        (["--surface", "sphere:300", "--spectrum", "events=9"], "depth_m=1450:2450 is a range; give the vertical depth"),
        (["--surface", "sphere:2000"], "it begins -50 m below the ground, with its centre at 1950 m"),
        (["--surface", "plane:300", "--spectrum", "events=99", "depth_m=1950:1950", "zenith_deg=89.9999:90"], "almost never reach"),
        (["--surface", "sphere:300", "--format", "parquet"], "--surface writes tracks, which the contract's files do not hold"),
    ],
)  # fmt: skip
def test_a_surface_that_cannot_be_is_refused(model, tmp_path, words, message, capsys):
    spectrum = [] if "--spectrum" in words else ["--spectrum", "events=9", "depth_m=1950:1950"]
    fill = ["--fill", "dir_x=0", "dir_y=0", "t_ns=0"]
    assert main(["generate", "--model", str(model), "--out", str(tmp_path / "out"), *fill, *words, *spectrum]) != 0
    assert message in capsys.readouterr().err
