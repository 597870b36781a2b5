"""The stages for a GPU machine: limits, resuming, the parts of `mini`, groups of kernels, what the wheels are."""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent)]

import device  # noqa: E402
import device_report as report  # noqa: E402
import wheelhouse  # noqa: E402
from device_profile import group, shares  # noqa: E402

MACHINE = {"device": "CPU", "small": True, "torch": "2", "python": "3.12", "cores": 2}


@pytest.fixture
def options(tmp_path):
    for name in ("out", "work"):
        (tmp_path / name).mkdir()
    return argparse.Namespace(out=tmp_path / "out", work=tmp_path / "work", device="cpu", small=True,
                              ends=time.monotonic() + 600)  # fmt: skip


def task_of(options, code, limit_s=30.0):
    write = f"from pathlib import Path; import json, time; file = Path({str(options.work / 'packs-sd15.json')!r}); "
    made = device.Task("d", "training", ["-S", "-c", write + code], "packs-sd15.json", limit_s)
    return replace(made, finished=lambda found: found is not None and "groups" in found)


def test_a_stage_that_takes_too_long_is_stopped_and_keeps_what_it_wrote(options, monkeypatch):
    monkeypatch.setattr(device, "GRACE_S", 1)
    results = report.Results(options.out, MACHINE)
    task = task_of(options, "file.write_text(json.dumps({'first': 1})); time.sleep(60)", limit_s=2)
    started = time.monotonic()
    device.run(task, options, results)
    assert time.monotonic() - started < 10
    known = report.read_json(options.out / "device.json")["stages"]["d"]["training"]
    assert known["found"] == {"first": 1} and known["status"] == "stopped at its limit"
    assert "This" in (options.out / "device.md").read_text() or "CPU" in (options.out / "device.md").read_text()
    assert not device.seed(task, options, report.Results(options.out, MACHINE)), "an unfinished task is done again"


def test_a_finished_stage_is_skipped_and_another_machine_begins_anew(options):
    table = {"what": "training", "groups": [], "item_ms": 1.0, "steps": 1, "longest": []}
    task = task_of(options, f"file.write_text(json.dumps({table!r}))")
    results = report.Results(options.out, MACHINE)
    device.run(task, options, results)
    assert results.failed(["d"]) == 0
    assert device.seed(task, options, report.Results(options.out, MACHINE))
    assert not device.seed(task, options, report.Results(options.out, MACHINE | {"device": "H100"}))


def test_a_process_that_fails_fails_the_command_and_nothing_starts_without_time(options):
    results = report.Results(options.out, MACHINE)
    device.run(task_of(options, "raise SystemExit(3)"), options, results)
    assert results.of("d", "training")["rc"] == 3 and results.failed(["d"]) == 1
    options.ends = time.monotonic()
    device.run(replace(task_of(options, ""), name="sampling"), options, results)
    assert results.of("d", "sampling")["status"] == "not started for want of time"


def test_mini_travels_in_parts_and_a_stage_without_its_files_is_not_called_done(tmp_path):
    source = tmp_path / "mini"
    files = {"weights/unet.safetensors": 700, "work/vae/model": 50, "work/vae.done": 1, "work/world/big": 5000,
             "work/world.done": 1, "work/unet.checkpoint.pt": 900}  # fmt: skip
    for name, size in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"x" * size)
    found = report.pack(source, tmp_path, room=8000)
    assert found["left_out"] == ["work/world/big"] and "work/world.done" not in found["files"]
    report.unpack(tmp_path, tmp_path / "again")
    back = {str(path.relative_to(tmp_path / "again")) for path in (tmp_path / "again").rglob("*") if path.is_file()}
    assert back == set(files) - {"work/world/big", "work/world.done"}
    (tmp_path / "again" / "work" / "vae.done").write_text("newer")
    report.unpack(tmp_path, tmp_path / "again")
    assert (tmp_path / "again" / "work" / "vae.done").read_text() == "newer", "what is under way was overwritten"


@pytest.mark.parametrize(
    "name, expected",
    [
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64>>", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", "attention"),
        ("nvjet_sm90_tst_128x256_64x4_1x2_h_bz_coopA_TNT", "matrix product"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "matrix product"),
        ("ampere_bf16_s16816gemm_bf16_128x64_ldg8", "matrix product"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32", "convolution"),
        ("cudnn::cnn::wgrad_alg0_engine", "convolution"),
        ("void at::native::RowwiseMomentsCUDAKernel layer_norm", "normalisation"),
        ("multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("Memcpy DtoD (Device -> Device)", "copies and casts"),
        ("void at::native::CatArrayBatchedCopy<OpaqueType<2u>>", "copies and casts"),
        ("void at::native::reduce_kernel<512, 1>", "reduction"),
        ("void at::native::vectorized_elementwise_kernel<4, GeluCUDAKernelImpl>", "element by element"),
        ("aten::mm", "matrix product"),
        ("aten::addmm", "matrix product"),
        ("aten::view", "other"),
    ],
)
def test_kernels_fall_into_their_groups(name, expected):
    assert group(name) == expected


def test_the_time_without_a_kernel_is_a_row_of_its_own():
    rows = {row["group"]: row for row in shares([("aten::mm", 3.0), ("aten::mm", 3.0), ("flash", 2.0)], 10.0)}
    assert {name: row["share"] for name, row in rows.items()} == {
        "matrix product": 0.6, "attention": 0.2, "no kernel runs": 0.2
    }  # fmt: skip
    assert rows["matrix product"]["calls"] == 2


def test_the_wheelhouse_brings_what_the_stages_import_and_nothing_that_is_there():
    missing, versions = wheelhouse.missing(), wheelhouse.locked()
    assert {"diffusers", "hydra-core", "omegaconf", "antlr4-python3-runtime", "open-clip-torch", "ftfy"} <= set(missing)
    assert not set(missing) & (wheelhouse.PRESENT | set(wheelhouse.DROPPED))
    assert all(versions[name] for name in missing)
    assert not any(name.startswith("nvidia") for name in missing)


def test_parts_of_the_wheelhouse_that_do_not_fit_are_named(monkeypatch):
    monkeypatch.setattr(wheelhouse, "_brought", lambda: [])
    monkeypatch.setattr(wheelhouse, "_version", lambda name: "1.18.1" if name == "scipy" else "999")
    assert any(line.startswith("t2i-bench needs scipy") and "found 1.18.1" in line for line in wheelhouse.unmet())
