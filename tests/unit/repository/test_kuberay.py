"""The Kubernetes manifests against KubeRay's own schemas, and against what else they must agree with."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from crmuons import config

HERE = Path(__file__).parent
RECIPES = HERE.parents[2] / "cluster" / "kuberay"
SCHEMAS = {"RayCluster": "rayclusters", "RayJob": "rayjobs"}
MANIFESTS = ("cluster.yaml", "train.yaml", "sweep.yaml")


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((RECIPES / name).read_text())


def closed(schema: Any) -> Any:
    """The schema as Kubernetes applies it: keys that it does not name are refused."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    below = {key: closed(value) for key, value in schema.items()}
    named = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if named and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        below["additionalProperties"] = False
    return below


def check(manifest: dict[str, Any]) -> None:
    schema = json.loads(gzip.decompress((HERE / "kuberay" / f"{SCHEMAS[manifest['kind']]}.json.gz").read_bytes()))
    jsonschema.Draft202012Validator(closed(schema)).validate(manifest)


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"] if manifest["kind"] == "RayCluster" else manifest["spec"]["rayClusterSpec"]


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_are_what_the_operator_accepts(name: str) -> None:
    manifest = load(name)
    assert manifest["apiVersion"] == "ray.io/v1"
    check(manifest)


def test_mistakes_in_a_manifest_are_found() -> None:
    manifest = load("cluster.yaml")
    workers = manifest["spec"]["workerGroupSpecs"][0]
    workers["template"]["spec"]["containers"][0]["enviroment"] = []
    with pytest.raises(jsonschema.ValidationError, match="'enviroment' was unexpected"):
        check(manifest)
    del workers["template"]["spec"]["containers"][0]["enviroment"]
    workers["minReplicas"] = "two"
    with pytest.raises(jsonschema.ValidationError, match="'two' is not of type 'integer'"):
        check(manifest)


def test_both_clusters_are_one_and_the_same() -> None:
    assert cluster_of(load("train.yaml")) == cluster_of(load("cluster.yaml"))
    assert load("sweep.yaml")["spec"]["clusterSelector"] == {"ray.io/cluster": load("cluster.yaml")["metadata"]["name"]}


def test_clusters_ask_for_a_token_scale_and_run_without_privileges() -> None:
    cluster = cluster_of(load("train.yaml"))
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    (workers,) = cluster["workerGroupSpecs"]
    assert cluster["enableInTreeAutoscaling"]
    assert workers["minReplicas"] <= workers["replicas"] < workers["maxReplicas"]
    for pod in pods(cluster):
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]


def test_what_pods_mount_is_there_and_no_secret_is_in_a_manifest() -> None:
    (claim,) = yaml.safe_load_all((RECIPES / "storage.yaml").read_text())
    for pod in pods(cluster_of(load("train.yaml"))):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        assert volumes["shared"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert {name for name in container if name.startswith("env")} == {"env", "envFrom"}
        assert not [variable for variable in container["env"] if re.search("PASSWORD|TOKEN$", variable["name"])]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def settings_of(manifest: dict[str, Any], module: str) -> config.Config:
    """The settings of a job, from the words that its command would parse."""
    python, _, run, preset, *words = manifest["spec"]["entrypoint"].split()
    assert (python, run) == ("python", module)
    assert (HERE.parents[2] / f"{module.replace('.', '/')}.py").is_file()
    return config.load(preset, [word for word in words if "=" in word])


def test_the_training_job_asks_for_what_its_cluster_has() -> None:
    manifest = load("train.yaml")
    settings = settings_of(manifest, "jobs.train")
    (workers,) = cluster_of(manifest)["workerGroupSpecs"]
    scaling = settings.scaling
    assert (scaling.min_workers, scaling.num_workers) == (workers["minReplicas"], workers["maxReplicas"])
    (head,) = pods(cluster_of(manifest))[0]["containers"]
    mounts = [mount["mountPath"] for mount in head["volumeMounts"]]
    assert any(settings.run.storage_path.startswith(mount) for mount in mounts)


def test_jobs_continue_when_they_are_started_again() -> None:
    for name, module in (("train.yaml", "jobs.train"), ("sweep.yaml", "jobs.sweep")):
        settings = settings_of(load(name), module)
        assert settings.run.resume == "auto"
        assert settings.run.name
