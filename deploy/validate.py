"""Holds the YAML files of this folder against the schemas of those who will read them: make lint-deploy.

Kubernetes' own schemas for the claim, and for the Job inside of the JobSet; the Python client of JobSet for the rest of
it; shellcheck for the scripts in sky.yaml. SkyPilot's own check takes 300 MB of packages:
`python -c 'import sky; sky.Task.from_yaml("deploy/sky.yaml")'`.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

HERE = Path(__file__).resolve().parent
KUBERNETES = "1.31"  # the first in which podFailurePolicy is stable


def lost(given: Any, read: Any, at: str) -> list[str]:
    """Paths of what was given and not read: the client takes what it does not know, and forgets it."""
    if isinstance(given, dict) and isinstance(read, dict):
        return [p for k, v in given.items() for p in (lost(v, read[k], f"{at}.{k}") if k in read else [f"{at}.{k}"])]
    if isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        return [p for i, (a, b) in enumerate(zip(given, read, strict=True)) for p in lost(a, b, f"{at}[{i}]")]
    return []


def main() -> int:
    claim, jobset = yaml.safe_load_all((HERE / "jobset.yaml").read_text())
    jobs = [
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}, **job["template"]}
        for job in jobset["spec"]["replicatedJobs"]
    ]
    for document in (claim, *jobs):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    client = JobsetV1alpha2JobSet.from_dict(jobset)
    assert client is not None
    wrong = lost(jobset, client.to_dict(), "jobset.yaml")
    if wrong:
        print(f"JobSet has no such field: {', '.join(wrong)}", file=sys.stderr)
        return 1
    task = yaml.safe_load((HERE / "sky.yaml").read_text())
    for script in ("setup", "run"):
        shellcheck = [Path(sys.executable).parent / "shellcheck", "--shell=bash", "-"]
        if subprocess.run(shellcheck, input=task[script], text=True).returncode:
            print(f"sky.yaml: the script `{script}`", file=sys.stderr)
            return 1
    print("deploy: the schemas of Kubernetes and JobSet, and the scripts of SkyPilot, are satisfied")
    return 0


if __name__ == "__main__":
    sys.exit(main())
