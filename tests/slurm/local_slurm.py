"""A real Slurm on this machine alone: munged, slurmctld and one slurmd a node, in a folder and on ports of their own.

    python tests/slurm/local_slurm.py --nodes 2 -- COMMAND...     # COMMAND sees the cluster; it ends with COMMAND

Needs Debian's ``slurm-wlm`` and ``munge`` and root, but no systemd and no cgroups. Nothing outside the folder is read
or written: a cluster that this machine belongs to is not touched.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "setpriv")
CONFIG = """\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,batch_sched_delay=0
ReturnToService=2
JobRequeue=1
KillWait=30
MinJobAge=300
SlurmdParameters=config_overrides
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why no Slurm can be started here; None where one can."""
    absent = [name for name in PROGRAMS if _program(name) is None]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "a Slurm of one's own needs root"


@contextmanager
def local_slurm(nodes: int = 1, cpus: int = 2) -> Iterator[dict[str, str]]:
    """Start a cluster of ``nodes`` with ``cpus`` each, all on this machine; yields the environment that reaches it.

    Jobs, daemons and folder are gone at the end. Raises ``RuntimeError`` with the daemons' logs when it does not start.
    """
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
    environment["SLURM_CONF"] = str(folder / "slurm.conf")
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        _configure(folder, nodes, cpus)
        _start(daemons, folder, environment, nodes)
        yield environment
    finally:
        if daemons:
            _stop(daemons, environment)
        shutil.rmtree(folder, ignore_errors=True)


def _configure(folder: Path, nodes: int, cpus: int) -> None:
    folder.chmod(0o755)  # munge refuses a socket that others cannot reach
    (folder / "state").mkdir()
    controller, *ports = _free_ports(1 + nodes)
    host = socket.gethostname()
    lines = [
        f"NodeName=node{index} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} State=UNKNOWN"
        for index, port in enumerate(ports)
    ]
    text = CONFIG.format(host=host, folder=folder, port=controller, nodes="\n".join(lines))
    (folder / "slurm.conf").write_text(text)


def _start(daemons: list[subprocess.Popen[bytes]], folder: Path, environment: dict[str, str], nodes: int) -> None:
    log = open(folder / "daemons.log", "wb")  # noqa: SIM115 - the daemons keep it open

    def daemon(name: str, *options: str) -> None:
        program = _program(name)
        assert program is not None
        started = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", program, *options],  # a test that is killed leaves nothing behind
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
        daemons.append(started)

    with log:
        key = folder / "munge.key"
        subprocess.run([str(_program("mungekey")), "--create", f"--keyfile={key}"], check=True, stderr=log)
        files = [f"--{name}-file={folder}/munge.{name}" for name in ("log", "pid", "seed")]
        daemon("munged", "--foreground", f"--key-file={key}", f"--socket={folder}/munge.socket", *files)
        _until(lambda: (folder / "munge.socket").exists(), daemons, folder)
        daemon("slurmctld", "-D", "-c")
        for index in range(nodes):
            daemon("slurmd", "-D", "-N", f"node{index}")
        _until(lambda: _idle(environment) == nodes, daemons, folder)


def _stop(daemons: list[subprocess.Popen[bytes]], environment: dict[str, str]) -> None:
    """Cancel every job, then end slurmd, slurmctld and munged in this order."""
    with_jobs = ["squeue", "--noheader", "--format=%A"]
    subprocess.run(
        ["scancel", "--user=root", "--full", "--signal=KILL"], env=environment, capture_output=True, timeout=30
    )
    subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True, timeout=30)
    for _ in range(100):
        if not subprocess.run(with_jobs, env=environment, capture_output=True, timeout=30).stdout.strip():
            break
        time.sleep(0.1)
    for daemon in reversed(daemons):
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(timeout=10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _idle(environment: dict[str, str]) -> int:
    asked = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"],
        env=environment,
        capture_output=True,
        timeout=30,
    )
    return len(asked.stdout.split())


def _until(ready: Callable[[], bool], daemons: list[subprocess.Popen[bytes]], folder: Path) -> None:
    for _ in range(300):
        if ready():
            return
        if any(daemon.poll() is not None for daemon in daemons):
            break
        time.sleep(0.1)
    logs = "".join(f"{path.name}:\n{path.read_text(errors='replace')[-3000:]}\n" for path in folder.glob("*.log"))
    raise RuntimeError(f"Slurm did not start.\n{logs}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run a command with a Slurm of its own.")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--cpus", type=int, default=2, help="of each node")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    if (reason := missing()) is not None:
        print(reason, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with local_slurm(given.nodes, given.cpus) as environment:
        return subprocess.run(given.command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
