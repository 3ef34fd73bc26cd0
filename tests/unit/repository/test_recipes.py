"""The programs for which the files in cluster/ are written can read them, and the files agree with the checkout."""

import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import htcondor2
import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from ray.autoscaler._private.util import prepare_config, validate_config

from crmuons import config

# The extras of `make setup`; `gpu` and `hf` are for machines that ask for them.
EXTRAS_LOCKED = ("corsika", "dev", "docs", "hdf5", "onnx", "server", "tensorboard")
ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster"
# JSON has no comments; a Python module is imported by a program, and its docstring shows the call.
RECIPES = sorted(path for path in CLUSTER.rglob("*") if path.is_file() and path.suffix not in {".json", ".py"})
SCRIPTS = [path for path in RECIPES if path.suffix in {".sh", ".sbatch"}]


def name(path: Path) -> str:
    return str(path.relative_to(CLUSTER))


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_every_recipe_begins_with_the_command_that_uses_it(path: Path) -> None:
    first = next(line for line in path.read_text().splitlines() if not line.startswith("#!"))
    assert re.match(
        r"# (kubectl|sbatch|srun|condor_submit|podman|apptainer|prometheus|source|cluster/|\w+\.sh) ?", first
    ), first
    named = re.findall(r"\bcluster/[\w./-]*\.\w+", path.read_text())
    assert not [other for other in named if not (ROOT / other).is_file()]


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_scripts_are_bash(path: Path) -> None:
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def job_description() -> htcondor2.Submit:
    return htcondor2.Submit((CLUSTER / "htcondor" / "train.sub").read_text())


def test_htcondor_reads_the_submit_description() -> None:
    job = job_description()
    assert job["universe"] == "container"
    assert job["use_oauth_services"] == "scitokens"
    assert job["transfer_checkpoint_files"] == job["transfer_output_files"] == "runs"
    script = (ROOT / job["executable"]).read_text()
    assert f"exit {job['checkpoint_exit_code']}" in script
    assert f"_CONDOR_CREDS/{job['use_oauth_services']}.use" in script
    with pytest.raises(Exception, match="parse_up_to_q_line"):
        htcondor2.Submit("universe container\nqueue")


def test_the_htcondor_job_has_settings_that_exist() -> None:
    job = job_description()
    preset, *words = shlex.split(job["arguments"].strip('"'))
    settings = config.load(preset, words)
    assert settings.train.max_seconds is None  # The steps that the recipe asks for end it, whatever the preset's time.
    assert settings.scaling.num_workers == 0  # One GPU: no cluster needed.
    assert job["request_gpus"] == "1"


@pytest.mark.skipif(shutil.which("condor_submit") is None, reason="needs HTCondor's condor_submit")
def test_condor_submit_accepts_the_description(tmp_path: Path) -> None:
    words = ["condor_submit", "-dry-run", str(tmp_path / "ads"), "cluster/htcondor/train.sub"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "CheckpointExitCode=85" in (tmp_path / "ads").read_text().replace(" ", "")


def copied() -> dict[str, set[str]]:
    """The paths that each image copies from the checkout."""
    lines = (CLUSTER / "container" / "Containerfile").read_text().splitlines()
    container = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    definition = (CLUSTER / "container" / "crmuons.def").read_text()
    files = re.search(r"^%files\n((?: +\S+ \S+\n)+)", definition, re.MULTILINE)
    assert files is not None
    return {"Containerfile": container, "crmuons.def": {line.split()[0] for line in files[1].splitlines()}}


@pytest.mark.parametrize("image", ["Containerfile", "crmuons.def"])
def test_images_hold_all_that_the_package_needs_and_the_lock_file(image: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {package.rstrip("*") for package in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    needed = {"pyproject.toml", "requirements.lock", "README.md", "LICENSE", "cluster/container/install.sh"}
    assert copied()[image] >= packages | needed
    assert all((ROOT / path).exists() for path in copied()[image])


def test_images_are_built_from_one_base_and_do_not_run_as_root() -> None:
    container = (CLUSTER / "container" / "Containerfile").read_text()
    instructions = [line.split()[0] for line in container.replace("\\\n", "").splitlines() if line and line[0] != "#"]
    assert set(instructions) <= {"FROM", "ARG", "RUN", "COPY", "ENV", "USER", "WORKDIR", "CMD"}
    assert instructions.index("USER") > max(i for i, word in enumerate(instructions) if word == "RUN")
    assert re.search(r"^USER 1000:1000$", container, re.MULTILINE)
    base = re.search(r"^FROM (\S+)$", container, re.MULTILINE)
    assert base is not None
    assert f"\nFrom: {base[1]}\n" in (CLUSTER / "container" / "crmuons.def").read_text()


def cloud() -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / "cloud" / "aws.yaml").read_text())


def test_ray_up_accepts_the_cloud_cluster() -> None:
    cluster = cloud()
    validate_config(prepare_config(cluster))
    mounted = cluster["file_mounts"]
    assert mounted["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in cluster["setup_commands"]
    for start in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        assert "source cluster/environment.sh" in start[-1]
    cluster["available_node_types"]["gpu"]["min_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="min_worker"):
        validate_config(prepare_config(cluster))


def wanted(name: str, extras: frozenset[str] = frozenset()) -> Iterator[Requirement]:
    """What a distribution of this environment needs here, of these extras too."""
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def test_the_lock_has_every_dependency_in_its_range_and_all_that_these_need() -> None:
    """A version of pyproject.toml that is raised without `make lock` fails here, and so does a file that nobody needs any more."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    locked = {
        canonicalize_name(name): Version(rest.split()[0]) for name, _, rest in (line.partition("==") for line in lines)
    }
    assert len(locked) == len(lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    own = [*project["dependencies"], *(text for name in EXTRAS_LOCKED for text in extras[name])]
    due = [Requirement(text) for text in own if not text.startswith("crmuons[")]
    seen: set[tuple[str, frozenset[str]]] = set()
    while due:
        requirement = due.pop()
        name, asked = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if name == "crmuons" or (requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})):
            continue
        assert name in locked, f"{requirement} is not in requirements.lock; run make lock"
        assert requirement.specifier.contains(locked[name], prereleases=True), (
            f"{requirement}, locked is {locked[name]}"
        )
        if (name, asked) not in seen:
            seen.add((name, asked))
            due += wanted(name, asked)


def test_every_locked_file_but_torch_has_a_hash_and_the_images_ask_for_it() -> None:
    lines = (CLUSTER.parent / "requirements.lock").read_text().splitlines()
    unhashed = [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.!]+ --hash=sha256:[0-9a-f]{64}", line)]
    assert [line.partition("==")[0] for line in unhashed] == ["torch"]
    install = (CLUSTER / "container" / "install.sh").read_text()
    commands = [
        line
        for line in install.splitlines()
        if "pip install" in line and "torch" not in line and "--dry-run" not in line
    ]
    assert len(commands) == 2
    assert "--require-hashes --no-deps --only-binary :all:" in commands[0]
    assert commands[1].endswith('--no-deps --no-build-isolation "$here"')
