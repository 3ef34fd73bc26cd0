"""A signal at any moment of `crmuons train`: a checkpoint or one sentence, and a run that goes on to the same weights."""

import re
import signal
import sys

import pytest
import torch

from tests.integration.conftest import output

STEPS = 24
SMALL = ("train.validate_every=8", "run.checkpoint_every=10", f"train.steps={STEPS}", "run.resume=auto")

# Sends the process a signal when a function is called for the n-th time, or a module is imported: no test waits for a moment.
SENDING = """
import atexit, importlib.abc, importlib.machinery, os, sys
number, module, function, count = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
del sys.argv[1:5]

def send():
    os.kill(os.getpid(), number)

class Sending(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != module:
            return None
        if not function:
            send()
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        loader, execute = spec.loader, spec.loader.exec_module

        def exec_module(made):
            execute(made)
            *owners, last = function.split(".")
            owner = made
            for each in owners:
                owner = getattr(owner, each)
            real, calls = getattr(owner, last), []

            def called(*words, **options):
                calls.append(1)
                if len(calls) == count:
                    send()
                return real(*words, **options)

            setattr(owner, last, called)

        loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Sending())
if module == "exit":
    atexit.register(send)
from crmuons.__main__ import main
sys.exit(main())
"""

# Module, function, and which of its calls the signal comes with.
PHASES = {
    "imports of the commands": ("pydantic", "", 1),
    "imports of the training": ("torch", "", 1),
    "listing": ("crmuons.storage.listing", "_Listing.add_pattern", 1),
    "writing the run": ("crmuons.runs.directory", "Run.create", 1),
    "first validation": ("crmuons.training.validation", "Validation.__call__", 1),
    "first batch": ("crmuons.training.waiting", "PatientBatches.__next__", 1),
    "training": ("crmuons.training.trainer", "Trainer.step", 13),
    "validation": ("crmuons.training.validation", "Validation.__call__", 2),
    "a checkpoint": ("crmuons.runs.checkpoint", "write_model_files", 2),
    "the model": ("crmuons.models.saved_model", "save_model", 1),
    "the last line": ("crmuons.training.summary", "RunSummary.describe", 1),
    "exit": ("exit", "", 1),
}
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
NOTHING_WRITTEN = ("imports of the commands", "imports of the training", "listing", "writing the run")
IN_A_SENTENCE = (*NOTHING_WRITTEN[1:], "the last line")


@pytest.fixture(scope="module")
def unbroken(bench):
    """The weights of a run that no signal meets."""
    output(bench.train(*SMALL, "run.name=unbroken"), 0)
    return weights(bench, "unbroken")


def weights(bench, name):
    """All numbers of a run's end: the selected model, and the networks and optimizers of the last step."""
    run = bench.run(name)
    trained = torch.load(run / f"checkpoints/step-{STEPS:08d}/training.pt", weights_only=True)
    return torch.load(run / "model/weights.pt", weights_only=True), trained["trainer"]


def equal(one, other):
    """Whether two trees of numbers are the same to the last bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        *[(phase, list(SIGNALS)[at % 3]) for at, phase in enumerate(PHASES)],
        *[("training", number) for number in SIGNALS if number != list(SIGNALS)[list(PHASES).index("training") % 3]],
    ],
)
def test_a_signal_ends_in_a_checkpoint_or_a_sentence_and_the_run_goes_on_to_the_same_weights(
    bench, unbroken, phase, number
):
    name = f"{phase}-{number.name}".replace(" ", "-")
    process = bench.start(
        sys.executable, "-c", SENDING, str(int(number)), *map(str, PHASES[phase]),
        "train", "small.toml", "data.train=data", *SMALL, f"run.name={name}",
    )  # fmt: skip
    # A run that is at its end is interrupted no more; after the last line the signal itself ends the process.
    said = output(process, -number if phase == "exit" else 0 if phase == "the model" else 130)
    assert not re.search(r"Exception ignored|Error", said), said
    ends = said.strip().splitlines()[-1]
    by = "" if number == signal.SIGINT else f" by {number.name}"
    if phase == "imports of the commands":
        assert said == f"crmuons: interrupted{by}\n"
    elif phase in IN_A_SENTENCE:
        assert ends == f"crmuons train: interrupted{by}"
    else:
        assert re.search(
            r"^saved +(\S+/step-\d{8}|nothing: it was stopped before the first step)|^model +\S+", said, re.MULTILINE
        )
    if phase in NOTHING_WRITTEN:
        assert not bench.run(name).exists()
        return
    if not (bench.run(name) / "done.json").exists():
        output(bench.train(*SMALL, f"run.name={name}"), 0)
    assert equal(weights(bench, name), unbroken)
