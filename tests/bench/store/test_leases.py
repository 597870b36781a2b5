"""One owner at a time, whoever asks and whoever died; judged by the file server's clock."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bench.store import leases

ROOT = Path(__file__).parents[3]
HOLD = "import sys, time; from pathlib import Path; from bench.store import leases\n"
HOLD += "leases.take(Path(sys.argv[1]), 'It', float(sys.argv[2])); print('held', flush=True); time.sleep(60)"


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".x.lease"


def child(path, lease_s=100.0):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), str(lease_s)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    process.stdout.close()
    return process


def elsewhere(path, age_s, lease_s=100.0):
    """A lease of another machine, last renewed some seconds ago."""
    owner = {"host": "far", "machine": "far 1", "pid": 1, "started": 0.0, "token": "t", "lease_s": lease_s}
    path.write_text(json.dumps(owner))
    os.utime(path, (0, leases.now(path.parent) - age_s))


def test_a_lease_excludes_all_others_until_it_is_released(path):
    mine = leases.take(path, "It")
    with pytest.raises(leases.Taken, match=rf"^It is being worked on by process {os.getpid()} on .*; wait for it"):
        leases.take(path, "It")
    mine.release()
    mine.release()
    again = leases.take(path, "It")
    assert again.mine() and not mine.mine() and leases.deaths(path) == []
    again.release()
    assert not path.exists()


def test_a_killed_process_of_this_machine_is_known_to_be_dead_at_once(path):
    process = child(path)
    with pytest.raises(leases.Taken, match=f"process {process.pid} on"):
        leases.take(path, "It")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert leases.holder(path) is None
    leases.take(path, "It").release()
    assert [owner["pid"] for owner in leases.deaths(path)] == [process.pid]
    leases.forget_deaths(path)
    assert leases.deaths(path) == [] and list(path.parent.iterdir()) == []


def test_another_machine_is_trusted_for_its_own_lease(path):
    elsewhere(path, 90.0, lease_s=100.0)
    with pytest.raises(leases.Taken, match="process 1 on far"):
        leases.take(path, "It")
    elsewhere(path, 110.0, lease_s=100.0)
    leases.take(path, "It").release()
    assert [owner["host"] for owner in leases.deaths(path)] == ["far"]


def test_the_clock_of_this_machine_does_not_matter(path, monkeypatch):
    elsewhere(path, 50.0)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert leases.holder(path)["host"] == "far"


def test_a_living_owner_renews_its_lease(path):
    process = child(path, lease_s=0.5)
    try:
        time.sleep(1.2)
        assert leases.holder(path)["pid"] == process.pid
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.8)
        assert leases.holder(path) is None
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def test_a_paused_owner_learns_that_it_was_robbed_and_harms_nobody(path):
    old = leases.take(path, "It", 0.4)
    owner = json.loads(path.read_text()) | {"token": "thief"}
    os.rename(path, path.with_name("grave"))
    path.write_text(json.dumps(owner))
    before = path.stat().st_mtime_ns
    for _ in range(100):
        if old.lost:
            break
        time.sleep(0.02)
    assert old.lost and path.stat().st_mtime_ns == before
    old.release()
    assert json.loads(path.read_text())["token"] == "thief"


def test_of_many_thieves_one_wins(path):
    for _ in range(20):
        elsewhere(path, 500.0)
        gate, won = threading.Barrier(8), []

        def steal(gate=gate, won=won):
            gate.wait()
            try:
                won.append(leases.take(path, "It"))
            except leases.Taken:
                pass

        threads = [threading.Thread(target=steal) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        kept = [lease for lease in won if lease.mine()]
        assert len(kept) == 1
        [lease.release() for lease in won]
        path.unlink(missing_ok=True)


def test_a_living_lease_that_was_moved_by_mistake_is_put_back(path):
    elsewhere(path, 500.0)
    judged = json.loads(path.read_text())
    path.unlink()
    quicker = leases.take(path, "It")  # between our look and our rename
    leases._bury(path, judged)
    assert quicker.mine() and leases.deaths(path) == []
    quicker.release()


def test_what_is_reserved_goes_to_the_next_taker_of_this_process_only(path):
    reserved = leases.reserve(path, "It")
    with pytest.raises(leases.Taken, match="waiting in this process"):
        leases.reserve(path, "It")
    assert leases.take(path, "It") is reserved
    with pytest.raises(leases.Taken, match="being worked on"):
        leases.take(path, "It")
    reserved.release()
