"""Sweeps on a real Slurm of three nodes (tests/slurm/start), without accounting and with small arrays."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from light import calm, events, light_cell, submitted

from bench.contracts import BenchError
from bench.sweeps import pool, slurm
from bench.sweeps.sweep import Sweep, sweeps

ROOT = Path(__file__).parents[3]
START = ROOT / "tests" / "slurm" / "start"


def test_durations_of_slurm_are_read():
    found = [slurm.parsed(text) for text in ("1:05", "59:00", "2:00:01", "1-00:00:10", "UNLIMITED", "INVALID", "")]
    assert found == [65.0, 3540.0, 7201.0, 86410.0, None, None, None]


def test_without_submitit_one_sentence_says_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    made = submitted([light_cell(tmp_path)])
    with pytest.raises(
        BenchError, match="needs the package submitit, which is not installed; type: pip install submitit"
    ):
        slurm.Slurm(made, tmp_path).start(1)


# --- on a cluster

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")


def obstacle():
    """Why there can be no Slurm here, or ""."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    lacking = [tool for tool in TOOLS if shutil.which(tool, path=path) is None]
    if lacking:
        return f"no {', '.join(lacking)} here: apt-get install munge slurmctld slurmd slurm-client"
    return "" if os.geteuid() == 0 else "a Slurm of its own needs root"


class Cluster:
    def __init__(self, folder, port, *settings):
        self.folder = folder
        self.do(str(port), *settings)

    def do(self, *words):
        subprocess.run([START, self.folder, *words], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def cluster():
    yield from started(18100, "MaxArraySize=11")


def started(port, *settings):
    if obstacle():
        pytest.skip(obstacle())
    pytest.importorskip("submitit")
    folder = Path(tempfile.mkdtemp(prefix="bench-slurm-"))  # munge wants every folder above it open to all
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        made = Cluster(folder, port, *settings)
        yield made
        made.do("stop")
    shutil.rmtree(folder)


def on_slurm(made, **options):
    return slurm.Slurm(made, ROOT, **{"time_min": 10, "sbatch": {"cpus_per_task": 4, "mem": "100"}, **options})


def run_sweep(made, workers=2, **options):
    pool.watch(made, on_slurm(made, **options), workers)
    return {run_id: state.status for run_id, state in made.states().items()}


def logs(made):
    """One for each job that was submitted."""
    return list((made.folder / "log" / "slurm").glob("*_submission.sh"))


def wait_for(found, seconds=60):
    for _ in range(seconds * 20):
        if result := found():
            return result
        time.sleep(0.05)
    raise AssertionError("nothing came")


@contextmanager
def aside(work, *arguments, **options):
    """While it works in a thread; gives the future of its result."""
    with ThreadPoolExecutor(1) as threads:
        yield threads.submit(work, *arguments, **options)


@pytest.mark.slow
@pytest.mark.slurm
def test_a_sweep_over_three_nodes_with_more_workers_than_an_array_may_have(cluster, tmp_path):
    """12 workers though arrays end at 11, no accounting; and a second start submits nothing."""
    cells = [light_cell(tmp_path, seed, steps=20, pause_s=0.1) for seed in range(16)]
    made = submitted(cells, workers=12, pack=1, poll_s=0.5)
    accounting = subprocess.run(["sacct"], capture_output=True)
    assert accounting.returncode != 0
    assert set(run_sweep(made, 12, sbatch={"cpus_per_task": 2, "mem": "100"}).values()) == {"done"}
    assert all((tmp_path / cell.run_id / "adapter.bin").read_text() == calm(cell) for cell in cells)
    assert len(events(tmp_path, "began")) == 16 and len(logs(made)) == 12
    assert len({worker["node"] for worker in made.workers()}) >= 2
    assert set(run_sweep(submitted(cells, workers=12)).values()) == {"done"} and len(logs(made)) == 12


@pytest.mark.slow
@pytest.mark.slurm
def test_exception_exit_and_kill_each_cost_their_cell_and_retry_runs_only_them(cluster, tmp_path):
    does = ["", "raise", "exit", "kill", "kill once", "fail"]
    cells = [light_cell(tmp_path, i, name=f"m{i}", does=what) for i, what in enumerate(does)]
    made = submitted(cells, attempts=2, poll_s=0.3)
    found = run_sweep(made)
    assert [found[cell.run_id] for cell in cells] == ["done", "failed", "failed", "failed", "done", "failed"]
    reasons = [made.states()[cell.run_id].reason or "" for cell in cells]
    assert reasons[1:3] == ["ValueError: no such luck", "SystemExit: bye"] and reasons[5] == "The loss became nan."
    assert (
        reasons[3].startswith("It was given up: 2 workers died over it, the last was process") and "job" in reasons[3]
    )
    before = len(events(tmp_path, "began"))
    again = submitted([replace(cell, mode="retry") for cell in cells], attempts=2, poll_s=0.3)
    assert [entry.run_id for entry in again.open()] == [cells[i].run_id for i in (1, 2, 3, 5)]
    run_sweep(again)
    assert set(events(tmp_path, "began")[before:]) == {cells[i].run_id for i in (1, 2, 3, 5)}


@pytest.mark.slow
@pytest.mark.slurm
def test_a_node_that_goes_down_loses_nothing(cluster, tmp_path):
    cell = light_cell(tmp_path, steps=100, pause_s=0.1)
    made = submitted([cell], workers=1, poll_s=0.3)
    with aside(run_sweep, made, 1) as future:
        wait_for(lambda: (tmp_path / ".work" / cell.run_id / "checkpoint.json").exists())
        node = made.workers()[0]["node"]
        cluster.do("crash", node)
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=down", "reason=test"], check=True)
    cluster.do("revive", node)
    assert future.result() == {cell.run_id: "done"}
    assert (tmp_path / cell.run_id / "adapter.bin").read_text() == calm(cell)
    began = [line.split()[2] for line in (tmp_path / "events").read_text().splitlines() if line.startswith("began")]
    assert len(set(began)) == 2, "another worker went on"


def preempt(made, seconds=3):
    node = wait_for(lambda: [w["node"] for w in made.workers() if w["alive"]])[0]
    line = ["sbatch", "-p", "high", "-w", node, "--exclusive", "-o", "/dev/null", "--wrap", f"sleep {seconds}"]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)


def disturbed(tmp_path, made, cell, disturb, **options):
    """The sweep of one long cell, disturbed once it has begun; ends as if nothing had been, without a death."""
    with aside(run_sweep, made, 1, **options) as future:
        wait_for(lambda: (tmp_path / ".work" / cell.run_id / "checkpoint.json").exists())
        disturb()
    assert future.result() == {cell.run_id: "done"}
    assert (tmp_path / cell.run_id / "adapter.bin").read_text() == calm(cell)
    assert len(events(tmp_path, "began")) >= 2 and len(events(tmp_path, "ended")) == 1
    assert "asked to leave" in "".join(path.read_text() for path in (made.folder / "log" / "slurm").glob("*.out"))


@pytest.mark.slow
@pytest.mark.slurm
def test_preemption_without_notice_gives_the_cell_back(cluster, tmp_path):
    cell = light_cell(tmp_path, steps=100, pause_s=0.1)
    made = submitted([cell], workers=1, poll_s=0.3)
    disturbed(tmp_path, made, cell, lambda: preempt(made))
    assert len(logs(made)) == 1, "Slurm itself put the job into the queue again"


@pytest.mark.slow
@pytest.mark.slurm
def test_before_the_time_limit_the_job_queues_itself_again(cluster, tmp_path):
    """-t 1, notice 50 s before: Slurm may send it up to a minute early."""
    cell = light_cell(tmp_path, steps=450, pause_s=0.1)
    made = submitted([cell], workers=1, poll_s=0.3)
    disturbed(tmp_path, made, cell, lambda: None, time_min=1, notice_s=50)
    assert len(logs(made)) == 1


@pytest.fixture(scope="module")
def polite():
    """A second cluster: a preempted job gets its user signal first, one over its memory is killed."""
    memory = ("JobAcctGatherParams=OverMemoryKill", "JobAcctGatherFrequency=task=1")
    yield from started(18200, "SlurmctldParameters=preempt_send_user_signal", *memory, "nodes=2")


@pytest.mark.slow
@pytest.mark.slurm
def test_a_cell_over_the_memory_of_its_job_is_given_up_and_the_others_go_on(polite, tmp_path):
    cells = [light_cell(tmp_path, i, name=f"m{i}", does=what) for i, what in enumerate(["eat", "", ""])]
    made = submitted(cells, attempts=2, pack=1, poll_s=0.3)
    assert list(run_sweep(made, sbatch={"cpus_per_task": 2, "mem": "200"}).values()) == ["failed", "done", "done"]
    assert made.states()[cells[0].run_id].reason.startswith("It was given up: 2 workers died over it")


def command(results, *words):
    line = [
        sys.executable,
        "-m",
        "bench",
        "-m",
        f"results={results}",
        "sweep.runner=light.run_light",
        "sweep.poll_s=0.3",
    ]
    line += ["tracker=none", "method=zero_shot", "dataset=ink", "+method.recipe.steps=20", "+method.pause_s=0.1"]
    line += [
        "hydra/launcher=slurm",
        "hydra.launcher.sbatch.cpus_per_task=2",
        "hydra.launcher.sbatch.mem=100",
        "hydra.launcher.sbatch.gpus_per_node=null",
        "hydra.launcher.time_min=10",
    ]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a background shell's children ignore Ctrl-C
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*line, *words], cwd=ROOT, preexec_fn=heard, **pipes)


@pytest.mark.slow
@pytest.mark.slurm
def test_a_submitter_may_die_and_start_again_while_its_workers_live(cluster, tmp_path):
    words = ["seed=0,1,2,3", "workers=2"]
    first = command(tmp_path, *words)
    wait_for(lambda: events(tmp_path, "began"))
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second = command(tmp_path, *words)
    text = second.communicate(timeout=120)[0]
    assert second.returncode == 0 and "4 done" in text, text
    made = Sweep(next(sweeps(tmp_path)))
    assert len(logs(made)) == 2 and sorted(events(tmp_path, "ended")) == sorted(set(events(tmp_path, "began")))


@pytest.mark.slow
@pytest.mark.slurm
def test_two_submitters_on_one_store_and_an_interrupted_one(cluster, tmp_path):
    """One sweep from two processes and an overlapping one: each cell is run once. Ctrl-C leaves the jobs running."""
    both = [command(tmp_path, "seed=0,1,2,3", "workers=2") for _ in range(2)]
    other = command(tmp_path, "seed=2,3,4,5", "workers=1")
    wait_for(lambda: events(tmp_path, "began"))
    both[1].send_signal(signal.SIGINT)
    interrupted = both[1].communicate(timeout=60)[0]
    assert both[1].returncode == 130 and "scancel --user root --name bench-sweep-" in interrupted, interrupted
    for process in (both[0], other):
        text = process.communicate(timeout=120)[0]
        assert process.returncode == 0 and "4 done" in text, text
    assert len(events(tmp_path, "began")) == len(events(tmp_path, "ended")) == 6


@pytest.mark.slow
@pytest.mark.slurm
def test_preemption_with_notice(polite, tmp_path):
    """USR2 comes first, and the job queues itself again before Slurm has to kill it."""
    subprocess.run(["scontrol", "update", "partitionname=main", "gracetime=20"], check=True)
    cell = light_cell(tmp_path, steps=100, pause_s=0.1)
    made = submitted([cell], workers=1, poll_s=0.3)
    disturbed(tmp_path, made, cell, lambda: preempt(made))
