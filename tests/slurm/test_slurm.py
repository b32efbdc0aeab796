"""Studies and single runs through a real Slurm: job arrays, jobs that are cancelled or queued again, several nodes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from local_slurm import local_slurm, missing

from pausebench.training import checkpoint

if (reason := missing()) is not None:
    pytest.skip(f"no Slurm can be started here: {reason}", allow_module_level=True)
pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra pausebench[slurm]")
pytest.importorskip("matplotlib", reason="needs the extra pausebench[report]")

DOCS = Path(__file__).parents[2] / "docs" / "cluster.md"
PAUSEBENCH = [sys.executable, "-m", "pausebench"]
STUDY = [
    *("reproduce", "result=demo", "result.primary=null", "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1"),
    *(f"~result.panels.{panel}" for panel in ("variants", "k_grid", "m_sweep", "filler")),
]
TWO_BY_TWO = ["result.panels.relay.k=[0,4]", "result.panels.relay.seeds=[0,1]", "hydra.launcher.array_parallelism=2"]
ONE_CELL = ["result.panels.relay.k=[0]", "result.panels.relay.seeds=[0]"]
LAST_STEP = 1000


def training(**options: float) -> str:
    """Every training cell: small batches, and no checkpoint but the one of a stop and the last."""
    given = {"steps": LAST_STEP, "batch_size": 8, "checkpoint_every": 100_000, "log_every": 10} | options
    return "overrides=[" + ",".join(f'"train.{name}={value}"' for name, value in given.items()) + "]"


class Cluster:
    """The commands of a user of this Slurm."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def run(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, text=True, capture_output=True, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def submit(self, script: Path) -> str:
        return self.run("sbatch", "--parsable", str(script)).strip()

    def states(self) -> dict[str, str]:
        listed = self.run("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return dict(line.split(" ", 1) for line in listed)

    def let_go(self, job: str) -> None:
        """Spare a job that was queued again the two minutes that Slurm gives its old processes to end."""
        until(lambda: self.states().get(job) == "PENDING")
        self.run("scontrol", "update", f"jobid={job}", "starttime=now+5")


def until(true: Callable[[], object], seconds: int = 100) -> None:
    for _ in range(seconds * 10):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def running_jobs(root: Path) -> dict[str, Path]:
    """The run folders that a job has locked and trains in, by the job's id."""
    found = {}
    for lock in root.glob("finetune/*/lock.json"):
        if (lock.parent / "metrics.jsonl").exists():
            found[json.loads(lock.read_text())["job_id"]] = lock.parent
    return found


def label(cluster: Cluster, job_id: str) -> str:
    return cluster.run("squeue", "--noheader", "--array", f"--jobs={job_id}", "--states=RUNNING", "--format=%i").strip()


def submitted(root: Path, command: str) -> list[list[str]]:
    """The cells of each submission, the first one first."""
    records = sorted((root / "slurm").glob(f"pausebench-{command}-*.json"), key=lambda path: path.stat().st_mtime)
    return [json.loads(path.read_text()) for path in records]


def steps_logged(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def script(number: int, changes: dict[str, str], path: Path) -> Path:
    """A batch script of docs/cluster.md, made small enough for here."""
    text = re.findall(r"```bash\n(.*?)```", DOCS.read_text(), re.S)[number]
    text = re.sub(r"#SBATCH --gpus-per-node=.*\n", "", text)
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with local_slurm(nodes=2) as environment:
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        yield Cluster(environment)


def test_a_study_that_was_left_is_completed_by_the_same_command(cluster: Cluster, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    command = [*PAUSEBENCH, *STUDY, *TWO_BY_TWO, training(), f"runs={root}"]
    driver = cluster.start(*command)
    until(lambda: len(running_jobs(root)) == 2 or driver.poll() is not None)
    driver.kill()
    driver.communicate()
    assert len(cluster.states()) == 4
    (one, saved), (other, ended) = running_jobs(root).items()
    again, cancelled = label(cluster, one), label(cluster, other)
    os.kill(json.loads((saved / "lock.json").read_text())["pid"], signal.SIGUSR2)  # as Slurm does near the time limit
    cluster.run("scancel", cancelled)
    until(lambda: cluster.states().get(again) == "PENDING" and cancelled not in cluster.states())
    for run in (saved, ended):
        (step,) = checkpoint.steps_of(run)
        assert 0 < step < LAST_STEP

    second = cluster.start(
        "sbatch", "--wait", f"--output={tmp_path}/driver.out", "--wrap", " ".join(map(quoted, command))
    )
    until(lambda: "waiting for" in read(tmp_path / "driver.out") or len(submitted(root, "finetune")) == 2)
    cluster.let_go(again)
    assert second.wait() == 0, read(tmp_path / "driver.out")
    assert not cluster.states()
    first_array, rest = submitted(root, "finetune")
    assert len(first_array) == 4
    assert rest == [ended.name]
    assert len(list(root.glob("evaluate/*/result.json"))) == 4
    assert steps_logged(saved) == list(range(10, LAST_STEP + 1, 10))


def quoted(word: str) -> str:
    return f"'{word}'"


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_a_cell_whose_job_is_killed_is_run_again_from_its_checkpoint(cluster: Cluster, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    options = (training(steps=400, checkpoint_every=50), "hydra.launcher.cpus_per_task=2")
    driver = cluster.start(*PAUSEBENCH, *STUDY, *ONE_CELL, *options, f"runs={root}")
    until(lambda: list(root.glob("finetune/*/checkpoints/*")) or driver.poll() is not None)
    (lock,) = root.glob("finetune/*/lock.json")
    pid = json.loads(lock.read_text())["pid"]
    assert b"SRUN_CPUS_PER_TASK=2" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    os.kill(pid, signal.SIGKILL)
    out, err = driver.communicate()
    assert driver.returncode == 0, (out, err)
    assert len(submitted(root, "finetune")) == 2


def test_the_log_of_a_failed_cell_names_what_its_job_printed(cluster: Cluster, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    driver = cluster.start(*PAUSEBENCH, *STUDY, *ONE_CELL, training(lr=1e30, clip=1e30), f"runs={root}")
    out, err = driver.communicate()
    assert driver.returncode == 1, (out, err)
    (log,) = root.glob("finetune/*/error.log")
    assert f"log: {log}" in err
    found = re.search(r"what the job printed: (.*)", log.read_text())
    assert found is not None
    assert "Starting with JobEnvironment" in Path(found.group(1)).read_text()


def test_the_script_of_the_docs_saves_and_queues_itself_again(cluster: Cluster, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    options = f"world=count16 pause=on runs={root} train.steps={LAST_STEP} train.batch_size=8 train.log_every=10"
    changes = {
        "model=130m pause=on": f"{options} train.checkpoint_every=100000 threads=1 tracking=off quiet=true",
        "--cpus-per-task=8": "--cpus-per-task=1",
        "--output=": f"--output={tmp_path}/",
    }
    job = cluster.submit(script(0, changes, tmp_path / "job.sh"))
    until(lambda: list(root.glob("pretrain/*/metrics.jsonl")))
    (run,) = root.glob("pretrain/*")
    cluster.run("scancel", "--signal=USR1", "--batch", job)
    cluster.let_go(job)
    (step,) = checkpoint.steps_of(run)
    assert 0 < step < LAST_STEP
    until(lambda: job not in cluster.states())
    assert (run / "result.json").exists()
    assert steps_logged(run)[-1] == LAST_STEP


SMALL = "world=count20 model=mini pause=on precision=fp32 parallel=fsdp threads=1 train.steps=40 train.log_every=10"


@pytest.mark.parametrize(
    ("number", "replaced"),
    [(1, "model=1b pause=on parallel=fsdp"), (0, "model=130m pause=on")],
    ids=["torchrun", "srun"],
)
def test_a_run_on_two_nodes_is_one_run(number: int, replaced: str, cluster: Cluster, tmp_path: Path) -> None:
    changes = {replaced: f"{SMALL} tracking=off runs={tmp_path}/runs", "--output=": f"--output={tmp_path}/"}
    if number == 1:
        changes |= {"--nodes=4": "--nodes=2", "--cpus-per-task=64": "--cpus-per-task=1", "node=8": "node=1"}
    else:
        changes |= {"--nodes=1": "--nodes=2", "--cpus-per-task=8": "--cpus-per-task=1"}
    job = cluster.submit(script(number, changes, tmp_path / "job.sh"))
    until(lambda: job not in cluster.states())
    (run,) = (tmp_path / "runs" / "pretrain").iterdir()
    assert (run / "result.json").exists(), read(next(tmp_path.glob("*.out")))
    assert json.loads((run / "manifest.json").read_text())["world_size"] == 2
    assert steps_logged(run) == [10, 20, 30, 40]
