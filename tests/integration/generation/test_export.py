"""An exported directory generates in a process that has torch and numpy alone."""

import subprocess
import sys

import numpy as np

from crmuons.generation.export import export
from crmuons.generation.load import load_generator
from tests.unit.generation.test_export import save

# Runs the exported file as a command; a finder before all others refuses everything but what comes with torch and numpy.
LONELY = """
import sys
ALLOWED = set(sys.stdlib_module_names) | {"torch", "torchgen", "functorch", "numpy", "typing_extensions", "sympy", "mpmath"}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in ALLOWED:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)
sys.meta_path.insert(0, Refuse())
try:
    import crmuons
except ModuleNotFoundError:
    import runpy
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    sys.exit("the hook does not work")
"""


def test_the_exported_directory_generates_the_same_bundles_with_torch_and_numpy_alone(tmp_path, toy_events):
    model_dir = save("set", tmp_path, toy_events())
    primaries = toy_events(700, seed=1).primaries  # 2100 events: more than two blocks.
    out = tmp_path / "exported"
    export(model_dir, out)
    np.savetxt(
        tmp_path / "p.csv", primaries, fmt="%.9g", delimiter=",", header="energy_gev, zenith_rad, mass_gev, depth_m"
    )
    words = [out / "bundles.py", tmp_path / "p.csv", tmp_path / "o.npz", "--seed", "5"]
    done = subprocess.run(
        [sys.executable, "-c", LONELY, *words], cwd=out, env={"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, expected = np.load(tmp_path / "o.npz"), load_generator(model_dir).generate(primaries, seed=5)
    np.testing.assert_array_equal(found["primaries"], primaries)
    np.testing.assert_array_equal(found["counts"], expected.counts)
    np.testing.assert_array_equal(found["muons"], expected.muons)
