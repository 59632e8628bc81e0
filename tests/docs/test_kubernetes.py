"""The recipe for Kubernetes asks for what the run needs; no cluster takes part."""

import re
import shlex

import yaml

from launch.grid import points
from tests.docs.markdown import ROOT

RECIPE = ROOT / "examples" / "kubernetes" / "pytorchjob.yaml"
OF_THE_OPERATOR = {"RANK"}
"""Variables that the training operator sets in each pod."""
OF_ENTRY = set(re.findall(r"^# ([A-Z_]+) {2,}", (ROOT / "launch" / "node" / "entry.sh").read_text(), re.MULTILINE))
"""Variables that the head of entry.sh lists."""


def test_the_recipe_is_a_pytorchjob_whose_pods_start_one_run() -> None:
    job = yaml.safe_load(RECIPE.read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    replicas = job["spec"]["pytorchReplicas"]
    assert replicas.keys() == {"Master", "Worker"}
    assert replicas["Master"]["replicas"] == 1
    nodes = sum(replica["replicas"] for replica in replicas.values())
    for replica in replicas.values():
        assert replica["restartPolicy"] == "OnFailure", "exit code 75 has to start the pod again"
        pod = replica["template"]["spec"]
        (container,) = pod["containers"]
        assert container["name"] == "pytorch", "the operator looks for this name"
        variables = {variable["name"]: variable["value"] for variable in container["env"]}
        assert all(isinstance(value, str) for value in variables.values())
        assert variables.keys() <= OF_ENTRY
        assert variables["HEAD_HOST"] == f"{job['metadata']['name']}-master-0", "the master's service"
        assert int(variables["NUM_NODES"]) == nodes
        assert int(variables["PROCESSES_PER_NODE"]) == container["resources"]["limits"]["nvidia.com/gpu"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert set(mounts.values()) == volumes.keys()
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"

        (command,) = container["args"]
        assert set(re.findall(r"\$([A-Z_]+)", command)) <= OF_THE_OPERATOR
        _, _, arguments = command.partition('/node/entry.sh" ')
        config, *overrides = shlex.split(arguments)
        processes = nodes * int(variables["PROCESSES_PER_NODE"])
        (run,) = points(ROOT / config, [*overrides, f"parallel.processes={processes}"], [])
        assert run.experiment.parallel.device == "cuda"
        for place in (run.experiment.run_dir, run.experiment.data.path):
            assert any(str(place).startswith(f"{mount}/") for mount in mounts), place
