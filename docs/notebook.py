# %% [markdown]
# # In Python
#
# This page is the file `docs/notebook.py`, a notebook of Python cells. `make docs` executes it, so the output
# below is what the code prints. It takes about half a minute on two cores.
#
# ## A small model
#
# First simulate 30,000 events and train for 100 steps in this process. That is enough to show the interface,
# and not enough for physics. If you have a run already, skip this part.

# %%
from pathlib import Path

from crmuons import config
from crmuons.simulation.simulate import SimulationSettings, simulate
from crmuons.training.driver import LocalLauncher, run_training

simulate(SimulationSettings(), num_events=30_000, out=Path("data"), seed=1)
words = [
    "data.train=data",
    "run.name=small",
    "train.steps=100",
    "train.events_per_worker=1024",
    "train.validate_every=50",
    "train.validation_events=1000",
    "scaling.num_workers=0",  # In this process, without Ray.
    "tracking.enabled=false",
]
summary = run_training(config.load(None, words), LocalLauncher())
step, score = summary.run.lowest("validation/score")
print(f"{summary.outcome}: mean W1/sigma {score:.3f} on held-out events, at step {step}")

# %% [markdown]
# ## Load it and generate
#
# `load_generator` takes a run, a checkpoint, a model directory or an exported model, at a path or a URL.
# Primaries are an array with four columns: energy in GeV, zenith angle in radians, mass in GeV, slant depth in
# metres.

# %%
import numpy as np

from crmuons.generation.load import load_generator

generator = load_generator("runs/small")
proton = np.array([1e7, 0.3, 0.938, 1_900.0], np.float32)
iron = np.array([1e7, 0.3, 52.1, 1_900.0], np.float32)
events = {
    "proton": generator.generate(np.tile(proton, (5_000, 1)), seed=1),
    "iron": generator.generate(np.tile(iron, (5_000, 1)), seed=1),
}
for name, bundles in events.items():
    energy_gev = bundles.muons[:, 0]
    print(f"{name:6}  mean N {bundles.counts.mean():6.1f}   median E {np.median(energy_gev):5.0f} GeV")

# %% [markdown]
# The result is an `EventArrays`: `counts` holds N of each event, `muons` the energy, x and y of all muons, one
# event after the other.

# %%
import matplotlib.pyplot as plt

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
for name, bundles in events.items():
    step = {"histtype": "step", "density": True, "label": name}
    left.hist(bundles.counts, bins=np.arange(0, 250, 5), **step)
    radius_m = np.hypot(bundles.muons[:, 1], bundles.muons[:, 2])
    right.hist(np.log10(radius_m + 1e-3), bins=60, range=(-1, 2.5), **step)
left.set(xlabel="muons in the bundle", ylabel="share of events per muon", title="10 PeV, 1,900 m")
right.set(xlabel="log10(distance from the axis / m)", ylabel="density of muons")
left.legend()

# %% [markdown]
# ## A spectrum with weights
#
# `crmuons generate --spectrum` draws primaries with a known probability. The same in Python writes a data set:

# %%
from crmuons.generation import writer
from crmuons.generation.request import GenerationOptions
from crmuons.generation.spectrum import Spectrum
from crmuons.storage.output import Output

spectrum = Spectrum.parse(["events=50000", "gamma=2", "energy_gev=1e5:1e8"], seed=1)
job = writer.plan_generation(Output.at("generated"), generator, spectrum, GenerationOptions(seed=1))
written = writer.generate(generator, spectrum, job)
print(f"{written.events:,} events with {written.muons:,} muons")
print(f"{written.outside_training} outside the trained range")

# %% [markdown]
# The package `simweights` turns such a data set into rates for a model of the cosmic-ray flux. The weights are
# in Hz, one for each event, in the order of the files.

# %%
import pyarrow.parquet as pq
import simweights

from crmuons.generation.spectrum import simweights_tables

weighter = simweights.CorsikaWeighter(simweights_tables("generated"))
weights = weighter.get_weights(simweights.GaisserH3a())
shards = sorted(Path("generated").glob("*.parquet"))
counts = pq.read_table(shards)["num_muons_drawn"].to_numpy()
print(f"{weights.sum():.1f} primaries per second from 1e5 to 1e8 GeV")
print(f"{weights[counts > 0].sum():.1f} of them with a muon")

# %%
figure, axis = plt.subplots(figsize=(5, 3.2))
axis.hist(counts, bins=np.unique(np.geomspace(1, 1_000, 25).round()), weights=weights, histtype="step")
axis.set(xscale="log", yscale="log", xlabel="muons in the bundle", ylabel="rate per bin / Hz", title="Gaisser H3a")
