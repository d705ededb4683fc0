"""The files in deploy/ and the page about many hosts: they parse, agree with each other, and say what this code takes.

Small scripts that end with a given status stand in for SLURM and for Python. What the tools themselves say of the files
is for make lint-deploy.
"""

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from umbrella import cli

DEPLOY = ROOT / "deploy"
PAGE = ROOT / "docs" / "howto" / "many_hosts.md"
TOLD = [DEPLOY / name for name in ("Dockerfile", "jobset.yaml", "sky.yaml", "slurm.sbatch")] + [PAGE]
AGAIN, FINAL = (5, 134, 137, 143), (1, 2, 3, 4)  # statuses after which a run is started again, and after which not


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


CLAIM, JOBSET = documents("jobset.yaml")
[WORKER] = JOBSET["spec"]["replicatedJobs"]
JOB = WORKER["template"]["spec"]
POD = JOB["template"]["spec"]
[CONTAINER] = POD["containers"]
ARGS = dict(arg.removeprefix("--").split("=", 1) for arg in CONTAINER["args"])
[SKY] = documents("sky.yaml")
SBATCH = DEPLOY / "slurm.sbatch"
DIRECTIVES = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", SBATCH.read_text(), re.MULTILINE))
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
COMMANDS = "\n".join(re.findall(r"^    (.*)$", PAGE.read_text(), re.MULTILINE))
SCRIPTS = {
    "slurm.sbatch": SBATCH.read_text(),
    "setup of sky.yaml": SKY["setup"],
    "run of sky.yaml": SKY["run"],
    "many_hosts.md": COMMANDS,
}


def flags_of(path: Path) -> set[str]:
    """What follows launch.py, sbatch's script or the image on a line, and the arguments of the pods."""
    text = re.sub(r"\\\n#?", " ", path.read_text())
    lines = re.findall(r"(?:launch\.py|\.sbatch|docker run .* umbrella) (.*)", text)
    found = {flag for line in lines for flag in re.findall(r"(?<![\w-])--(\w[\w.]*)", line)}
    return found | (set(ARGS) if path.name == "jobset.yaml" else set())


FLAGS = sorted({(path.name, flag) for path in TOLD for flag in flags_of(path)})


# ------------------------------------------------------------------------------------------------- what this code takes
@pytest.mark.parametrize(("name", "flag"), FLAGS, ids=[" ".join(f) for f in FLAGS])
def test_its_flags_are_flags(name: str, flag: str) -> None:
    cli.split(["launch.py", f"--{flag}=1"])  # raises SettingsError when there is none


def test_all_flags_were_found() -> None:
    by_hand = {"config", "workdir", "coordinator", "processes", "process"}
    assert flags_of(PAGE) == by_hand
    assert flags_of(DEPLOY / "jobset.yaml") == flags_of(DEPLOY / "sky.yaml") == by_hand
    assert flags_of(SBATCH) == {"config", "workdir", "coordinator"}
    assert flags_of(DEPLOY / "Dockerfile") == {"config", "workdir"}


@pytest.mark.parametrize("path", [*TOLD, DEPLOY / "sky_volume.yaml", ROOT / "Makefile"], ids=lambda p: p.name)
def test_the_files_it_names_exist(path: Path) -> None:
    text = path.read_text()
    for spec in set(re.findall(r"configs/\w+\.py(?::\w+)?", text)):
        cli.load_config(spec)
    for name in set(re.findall(r"(?<![\w-])(?:deploy|docs)/[\w./-]*\w", text)):
        assert (ROOT / name).exists(), name


def test_the_batch_divides_over_all_devices() -> None:
    config = cli.load_config(ARGS["config"])
    devices = JOB["parallelism"] * int(CONTAINER["resources"]["limits"]["nvidia.com/gpu"])
    assert config["batch_size"] % devices == config["eval_batch_size"] % devices == 0


def test_every_exit_status_of_the_readme_is_explained() -> None:
    def statuses(text: str) -> set[str]:
        return set(re.findall(r"\d+", " ".join(re.findall(r"^\| ([\d, ]+) \|", text, re.MULTILINE))))

    readme = statuses((ROOT / "README.md").read_text())
    assert readme >= {"0", "1", "2", "3", "4", "130", "143"}
    assert statuses(PAGE.read_text()) >= readme | {"5"}


# --------------------------------------------------------------------------------------------------------------- images
def test_the_image_is_pinned_and_not_root() -> None:
    [base] = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    python = tuple(map(int, re.fullmatch(r"python:(\d+)\.(\d+)-slim-\w+", base).groups()))  # type: ignore[union-attr]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"Programming Language :: Python :: {python[0]}.{python[1]}" in project["classifiers"]
    extras = set(re.findall(r"\bcuda1\d\b", DOCKERFILE + SKY["setup"]))
    assert extras and extras <= project["optional-dependencies"].keys()
    [user] = re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)
    assert int(user) == POD["securityContext"]["runAsUser"] == POD["securityContext"]["fsGroup"] > 0
    assert json.loads(re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)[0])[-2:] == ["python", "launch.py"]
    assert cli.split(["launch.py", *json.loads(re.findall(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)[0])])[0].help


def test_what_is_copied_is_there_and_all_else_is_ignored() -> None:
    sources = [word for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]]
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert {"umbrella", "configs", "launch.py"} <= set(sources)
    assert ignore[0] == "*"
    assert sorted(sources) == sorted(line[1:] for line in ignore if line.startswith("!"))
    assert all((ROOT / source).exists() for source in sources)


@pytest.mark.parametrize("text", [DOCKERFILE, SKY["setup"]], ids=["Dockerfile", "sky.yaml"])
def test_the_constraints_are_the_lock(text: str) -> None:
    [expression] = re.findall(r"sed -nE '(.*?)' requirements\.lock", text)
    told = ["sed", "-nE", expression, str(ROOT / "requirements.lock")]
    made = subprocess.run(told, capture_output=True, text=True, check=True).stdout.splitlines()
    pins = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if re.match(r"\w", line)]
    assert made == [line.removesuffix("\\").rstrip() for line in pins]
    assert any(line.startswith("jax==") for line in made)


def test_runs_and_data_lie_in_what_is_mounted() -> None:
    [volume] = json.loads(re.findall(r"^VOLUME (.*)$", DOCKERFILE, re.MULTILINE)[0])
    [data] = re.findall(r"TFDS_DATA_DIR=(\S+)", DOCKERFILE)
    mounts = {mount["mountPath"]: mount["name"] for mount in CONTAINER["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    shared = volumes[mounts[volume]]["persistentVolumeClaim"]["claimName"]
    assert shared == CLAIM["metadata"]["name"]
    assert CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert all(path.startswith(f"{volume}/") for path in (data, ARGS["workdir"], SKY["envs"]["TFDS_DATA_DIR"]))
    [made] = documents("sky_volume.yaml")
    assert SKY["volumes"] == {volume: made["name"]}
    assert made["config"]["access_mode"] == "ReadWriteMany"
    assert f'--workdir="{volume}/' in SKY["run"]


# ----------------------------------------------------------------------------------------------------------- kubernetes
def test_the_pods_find_each_other() -> None:
    assert JOBSET["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert JOBSET["spec"]["network"]["enableDNSHostnames"] is True
    host, port = ARGS["coordinator"].split(":")
    subdomain = JOBSET["spec"]["network"]["subdomain"]
    assert host == f"{JOBSET['metadata']['name']}-{WORKER['name']}-0-0.{subdomain}"  # job 0 of it, pod 0
    assert int(port) == CONTAINER["ports"][0]["containerPort"]
    assert JOB["completionMode"] == "Indexed"
    assert WORKER["replicas"] == 1
    assert int(ARGS["processes"]) == JOB["parallelism"] == JOB["completions"] > 1
    [env] = [e for e in CONTAINER["env"] if ARGS["process"] == f"$({e['name']})"]
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert env["valueFrom"]["fieldRef"]["fieldPath"] == index


def test_a_job_set_starts_again_but_not_for_nothing() -> None:
    assert JOB["backoffLimit"] == 0 and POD["restartPolicy"] == "Never"  # what a podFailurePolicy asks for
    [rule] = JOB["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["containerName"] == CONTAINER["name"]
    assert rule["onExitCodes"]["operator"] == "In"
    assert {2, 4} <= set(rule["onExitCodes"]["values"]) <= set(FINAL)
    policy = JOBSET["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    assert [(r["action"], r["onJobFailureReasons"]) for r in policy["rules"]] == [("FailJobSet", ["PodFailurePolicy"])]
    assert POD["terminationGracePeriodSeconds"] >= 120


# ---------------------------------------------------------------------------------------------------------------- slurm
def test_slurm_has_a_task_for_each_gpu_and_warns_the_tasks() -> None:
    assert DIRECTIVES["ntasks-per-node"] == DIRECTIVES["gpus-per-node"]
    assert "requeue" in DIRECTIVES
    assert DIRECTIVES["open-mode"] == "append"  # a requeued job keeps its log
    signal, seconds = DIRECTIVES["signal"].split("@")
    assert signal == "TERM"  # with B: it would go to the script alone
    assert int(seconds) >= 120


def stand_in(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


def submitted(folder: Path, status: int, *args: str, restarts: int = 0) -> tuple[int, list[str], list[str]]:
    """The exit status of slurm.sbatch where srun ends with `status`; what srun and scontrol were called with."""
    for name, last in (("srun", f"exit {status}"), ("scontrol", "exit 0")):
        stand_in(folder / "bin" / name, f'printf "%s\\n" "$@" >{folder}/{name}.told; {last}')
    env = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7"}
    env |= {"UMBRELLA_PYTHON": "python3", "SLURM_RESTART_COUNT": str(restarts), "SLURM_CPUS_PER_TASK": "4"}
    done = subprocess.run(["bash", SBATCH, *args], env=env, capture_output=True, text=True, timeout=60)
    told = [folder / f"{name}.told" for name in ("srun", "scontrol")]
    return done.returncode, *(path.read_text().splitlines() if path.exists() else [] for path in told)


COMMAND = ("--config=configs/mlp.py", "--config.seed=3", "--workdir=runs/with a space")


@pytest.mark.parametrize("status", [0, *FINAL, 130, *AGAIN])
def test_slurm_requeues_what_can_go_on(status: int, tmp_path: Path) -> None:
    code, srun, scontrol = submitted(tmp_path, status, *COMMAND)
    assert scontrol == (["requeue", "7"] if status in AGAIN else [])
    assert code == (0 if status in AGAIN else status)
    assert srun[srun.index("launch.py") :] == ["launch.py", "--coordinator=auto", *COMMAND]
    assert {"--kill-on-bad-exit=0", "--gpu-bind=none", "--cpus-per-task=4"} <= set(srun)


@pytest.mark.parametrize("restarts", [2, 3])
def test_slurm_gives_up_what_fails_at_once_again_and_again(restarts: int, tmp_path: Path) -> None:
    code, _, scontrol = submitted(tmp_path, 5, *COMMAND, restarts=restarts)
    assert (code, scontrol) == ((5, []) if restarts == 3 else (0, ["requeue", "7"]))


def test_slurm_without_a_workdir_starts_nothing(tmp_path: Path) -> None:
    assert submitted(tmp_path, 0, "--config=configs/mlp.py") == (2, [], [])


# ------------------------------------------------------------------------------------------------------------- skypilot
def test_skypilot_recovers_what_can_go_on() -> None:
    recovery = SKY["resources"]["job_recovery"]
    assert {5, 143} == set(recovery["recover_on_exit_codes"])
    assert recovery["max_restarts_on_errors"] == 0
    assert SKY["num_nodes"] > 1
    assert (ROOT / SKY["workdir"] / "launch.py").exists()


@pytest.mark.parametrize("status", [0, *FINAL, 130, *AGAIN])
def test_skypilot_starts_a_process_on_each_host(status: int, tmp_path: Path) -> None:
    stand_in(tmp_path / "umbrella" / "bin" / "python", f'printf "%s\\n" "$@" >{tmp_path}/told; exit {status}')
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], **SKY["envs"], "SKYPILOT_NODE_IPS": "10.0.0.3\n10.0.0.4"}
    env |= {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    done = subprocess.run(["bash", "-c", SKY["run"]], env=env, timeout=60)
    assert done.returncode == (5 if status in AGAIN and status != 143 else status)
    launch, *args = (tmp_path / "told").read_text().splitlines()
    assert launch == "launch.py"
    assert args == [
        f"--config={SKY['envs']['CONFIG']}",
        f"--workdir=/shared/runs/{SKY['envs']['RUN']}",
        "--coordinator=10.0.0.3:12345",
        "--processes=2",
        "--process=1",
    ]


# -------------------------------------------------------------------------------------------------------------- scripts
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_are_bash(name: str) -> None:
    done = subprocess.run(["bash", "-n"], input=SCRIPTS[name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_pass_shellcheck(name: str) -> None:
    found = shutil.which("shellcheck") or shutil.which(ROOT / "build" / "lint-deploy" / "bin" / "shellcheck")
    if found is None:
        pytest.skip("shellcheck is not here; make lint-deploy brings one")
    told = [found, "--shell=bash", "-"]
    done = subprocess.run(told, input=SCRIPTS[name], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
