"""Fill I3MCTree from Parquet files of muon bundles. The module runs inside IceTray; reading needs pyarrow and numpy alone.

    tray.Add(bundles.make_module(), Files=["out/events-00000.parquet"])

Each row becomes a DAQ frame: the primary is the root of I3MCTree and PolyplopiaPrimary, the muons are its daughters, and the
column weight_hz, if there is one, is CrmuonsWeight. Muons without dir_x, dir_y, t_ns, charge run parallel to the axis, in the
plane front, as mu-. docs/formats.md has the geometry.
"""

import json

import numpy as np
import pyarrow.parquet as pq


def read_bundles(path, azimuth=None, random=None):
    """Yield primary, azimuth, positions (m), directions, energies (GeV), times (ns), charges and weight of each row."""
    file, random = pq.ParquetFile(path), random or np.random.default_rng()
    declared = (file.schema_arrow.metadata or {}).get(b"crmuons.muon_features")
    names = [row["name"] for row in json.loads(declared)] if declared else ["energy_gev", "x_m", "y_m"]
    for row in (row for batch in file.iter_batches(1024) for row in batch.to_pylist()):
        muons = dict(zip(names, np.array(row["muons"], np.float64).reshape(-1, len(names)).T))
        none = np.zeros(len(row["muons"]))
        phi = random.uniform(0, 2 * np.pi) if azimuth is None else azimuth
        sin, cos, s, c = np.sin(row["primary"][1]), np.cos(row["primary"][1]), np.sin(phi), np.cos(phi)
        across, flight = np.array([[-cos * c, -cos * s, sin], [s, -c, 0.0]]), np.array([-sin * c, -sin * s, -cos])
        slope = np.stack([muons.get("dir_x", none), muons.get("dir_y", none)], axis=1)
        direction = slope @ across + np.sqrt(1 - (slope**2).sum(axis=1))[:, None] * flight
        position = np.stack([muons["x_m"], muons["y_m"]], axis=1) @ across
        rest = (muons["energy_gev"], muons.get("t_ns", none), muons.get("charge", none - 1), row.get("weight_hz"))
        yield (row["primary"], phi, position, direction, *rest)


def make_module():
    """Return the module."""
    from icecube import dataclasses, icetray

    particle, kinds = dataclasses.I3Particle, {1: "PPlus", 4: "He4Nucleus", 14: "N14Nucleus", 16: "O16Nucleus"}
    kinds |= {27: "Al27Nucleus", 56: "Fe56Nucleus"}

    class Bundles(icetray.I3Module):
        def __init__(self, context):
            super().__init__(context)
            self.AddParameter("Files", "Parquet files of events", [])

        def Configure(self):
            self.rows = (row for path in self.GetParameter("Files") for row in read_bundles(path))

        def Process(self):
            row = next(self.rows, None)
            if row is None:
                self.RequestSuspension()
                return
            (energy, zenith, mass, _), phi, positions, directions, energies, times, charges, weight = row
            primary, tree = particle(), dataclasses.I3MCTree()
            primary.type, primary.shape = getattr(particle, kinds[round(mass / 0.9315)]), particle.Primary
            primary.energy, primary.dir, primary.pos = (
                energy,
                dataclasses.I3Direction(zenith, phi),
                dataclasses.I3Position(0, 0, 0),
            )
            tree.add_primary(primary)
            for position, direction, muon_energy, time, charge in zip(positions, directions, energies, times, charges):
                muon = particle()
                muon.type = particle.MuMinus if charge < 0 else particle.MuPlus
                muon.pos, muon.dir = dataclasses.I3Position(*position), dataclasses.I3Direction(*direction)
                muon.energy, muon.time, muon.location_type = (
                    muon_energy,
                    time,
                    particle.InIce,
                )  # GeV and ns are 1 in I3Units.
                tree.append_child(primary, muon)
            frame = icetray.I3Frame(icetray.I3Frame.DAQ)
            frame["I3MCTree"], frame["PolyplopiaPrimary"] = tree, primary
            if weight is not None:
                frame["CrmuonsWeight"] = dataclasses.I3Double(weight)
            self.PushFrame(frame)

    return Bundles
