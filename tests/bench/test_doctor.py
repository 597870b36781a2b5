"""The doctor tells right from wrong and absent, ends with the right status, and invents nothing."""

import errno
import re

import numpy as np
import pytest

from bench import doctor
from bench.contracts import BenchError
from bench.doctor import Check, Finding


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Nothing is staged."""
    for variable in ("BENCH_CACHE", "TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("BENCH_MIRROR", raising=False)


def test_combinations_are_bad_when_all_their_packages_match(monkeypatch):
    numbers = {"alpha": "1.18.1", "beta": "0.1.35"}
    monkeypatch.setattr(doctor, "_version", numbers.get)

    def told(when):
        return [finding.about for finding in doctor.libraries([{"when": when, "problem": "fails"}])]

    assert "fails" in told({"alpha": ">=1.18", "beta": ""})
    assert "none of 1 that are known to be bad" in told({"alpha": "<1.18", "beta": ""})
    assert "fails" not in told({"alpha": ">=1.18", "gamma": ""})


def test_the_library_clashes_of_this_release_are_listed():
    import yaml

    entries = yaml.safe_load((doctor.CONF / "doctor.yaml").read_text())["combinations"]
    clashes = [set(entry["when"]) for entry in entries]
    assert {"clean-fid", "scipy"} in clashes and {"torchmetrics", "transformers"} in clashes
    assert all(entry["problem"] for entry in entries)


class Fixed(Check):
    def __init__(self, result, absent=None):
        self.what, self.result, self.absent = "a check", result, absent

    def missing(self):
        return self.absent

    def run(self):
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.mark.parametrize(
    "check, state",
    [
        (Fixed((True, "0")), "ok"),
        (Fixed((False, "1 is not 0")), "WRONG"),
        (Fixed(BenchError("broken file")), "WRONG"),
        (Fixed(None, "the weights x are not here; type y"), "absent"),
    ],
)
def test_a_check_is_right_wrong_or_absent(check, state):
    assert doctor.checked(check).state == state


def test_the_mirror_is_looked_at(monkeypatch, tmp_path):
    assert doctor.mirror().state == "note"
    monkeypatch.setenv("BENCH_MIRROR", str(tmp_path))
    assert doctor.mirror() == Finding("machine", "offline mirror", "ok", f"BENCH_MIRROR is {tmp_path}")
    monkeypatch.setenv("BENCH_MIRROR", str(tmp_path / "gone"))
    assert doctor.mirror().state == "WRONG"


def test_absent_weights_say_what_to_type_and_wrong_ones_fail(tmp_path):
    found = doctor.weight("lpips_alex_trunk")
    assert found.state == "absent" and "python -m bench.fetch weights lpips_alex_trunk" in found.about
    (tmp_path / "mirror" / "weights").mkdir(parents=True)
    (tmp_path / "mirror" / "weights" / "alexnet-owt-7be5be79.pth").write_bytes(b"another network")
    assert doctor.weight("lpips_alex_trunk").state == "WRONG"


@pytest.mark.parametrize("right, status", [(True, 0), (False, 1)])
def test_the_table_ends_with_a_count_and_the_status_says_whether_all_is_well(monkeypatch, capsys, right, status):
    monkeypatch.setattr(doctor, "examine", lambda: iter([doctor.checked(Fixed((right, "found 1")))]))
    assert doctor.main([]) == status
    out = capsys.readouterr().out
    assert re.search(r"check\s+a check\s+(ok|WRONG)\s+found 1", out) and f"{1 - status} ok, 0 note, 0 absent" in out


def test_every_golden_number_names_its_source_and_every_check_can_be_built():
    import yaml

    from bench.settings import build

    requested = yaml.safe_load((doctor.CONF / "doctor.yaml").read_text())
    numbers = [spec for spec in requested["checks"] if {"score", "probabilities"} & set(spec)]
    assert len(numbers) == 2 and all(spec["source"] and spec["tolerance"] > 0 for spec in numbers)
    checks = [build(spec) for spec in requested["checks"]]
    here = [check for check in checks if check.missing() is None]
    assert {check.network.name for check in here} == {"mini-clip", "lpips-alex-64"}
    assert len({check.what for check in checks}) == len(checks)


def test_the_identities_hold_on_the_networks_of_mini_and_fail_on_a_broken_one():
    from metrics.health import ClipOnNoise, IdenticalImages, IdenticalSets, golden
    from metrics.networks import ImageNetwork, LpipsNet, OpenClip

    clip = OpenClip(name="mini-clip", model="bench/mini/weights/clip", device="cpu")
    alex = LpipsNet(name="lpips", weights="bench/mini/weights/lpips/alexnet.safetensors", size=64, device="cpu")
    assert IdenticalSets(clip).run()[0] and IdenticalImages(alex).run()[0]

    class OfItsBatch(ImageNetwork):
        """A network whose features depend on what else is in the batch."""

        def files(self):
            return ()

        recipe = "broken"

        def forward(self, images):
            x = images.float().mean((2, 3))
            return x - x.mean(0)

    assert not IdenticalSets(OfItsBatch(name="broken", device="cpu")).run()[0]
    right, about = ClipOnNoise(clip, 42, "a photo of a cat", score=300.0, tolerance=1, source="nobody").run()
    assert not right and "published 300, within 1 (nobody)" in about
    assert golden(np.array([1.0, 2.0]), np.array([1.0, 2.1]), 0.11, "x")[0]
    assert not golden(np.array([1.0, 2.0]), np.array([1.0, 2.1]), 0.09, "x")[0]


def test_a_file_that_cannot_be_read_is_one_wrong_row(monkeypatch):
    """The other rows are there; the sentence names the file."""

    class Unreadable(Check):
        what = "a network"

        def missing(self):
            raise PermissionError(errno.EACCES, "Permission denied", "/weights/net.pth")

        def run(self):
            raise AssertionError

    found = doctor.checked(Unreadable())
    assert found.state == doctor.WRONG and "/weights/net.pth cannot be used (Permission denied)" in found.about

    def stale(id):
        raise OSError(errno.ESTALE, "Stale file handle", "/weights/other.pth")

    monkeypatch.setattr(doctor, "weights_state", stale)
    found = doctor.weight("lpips_alex_trunk")
    assert found.state == doctor.WRONG and "/weights/other.pth cannot be used (Stale file handle)" in found.about
