"""What tests/perf/device.py writes: device.json and device.md, again after every change, and the parts of `mini`."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PART, PARTS = 15 * 10**6, 3  # bytes of a part of mini.tar, and how many


class Results:
    """Results by stage and task, kept in a folder; those of another machine or size are set aside."""

    def __init__(self, folder: Path, machine: dict[str, Any], unmet: Sequence[str] = ()):
        self.folder, self.about = folder, {"machine": machine, "unmet requirements": list(unmet)}
        old = read_json(folder / "device.json") or {}
        same = old.get("machine") == machine
        self.stages: dict[str, dict[str, Any]] = old.get("stages", {}) if same else {}
        self._write()

    def of(self, stage: str, name: str) -> dict[str, Any]:
        return self.stages.get(stage, {}).get(name, {})

    def put(self, stage: str, name: str, found: dict[str, Any], keep: bool = False) -> None:
        """Note something of a task; `keep` adds to what is known."""
        self.stages.setdefault(stage, {})[name] = (self.of(stage, name) if keep else {}) | found
        self._write()

    def failed(self, stages: Sequence[str]) -> int:
        """1 when a task of these stages did not end well, for the exit status."""
        ends = [task for stage in stages for task in self.stages.get(stage, {}).values()]
        return int(any(task.get("rc") != 0 and task.get("status") != "stopped at its limit" for task in ends))

    def section(self, stage: str, name: str) -> str:
        return section(stage, name, self.of(stage, name), self.about["machine"])

    def _write(self) -> None:
        _replace(self.folder / "device.json", json.dumps(self.about | {"stages": self.stages}, indent=1))
        machine = self.about["machine"]
        parts = [f"# {machine['device']}, torch {machine['torch']}, Python {machine['python']}"]
        if machine["device"] == "CPU":
            parts.append("**These numbers are of a CPU and say nothing of a GPU.**")
        parts += [f"Requirement not met: {line}" for line in self.about["unmet requirements"]]
        parts += [self.section(stage, name) for stage, names in sorted(self.stages.items()) for name in names]
        _replace(self.folder / "device.md", "\n\n".join(parts) + "\n")


def _replace(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def read_json(path: Path) -> Any:
    """None for a file that is not there or not whole."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def read_lines(path: Path) -> list[dict[str, Any]] | None:
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")] or None


# --- what each stage shows --------------------------------------------------------------------------------------------


def tests_finished(found: Any) -> bool:
    return bool(found) and not any(test["outcome"] == "failed" for test in found)


def packs_finished(found: Any) -> bool:
    return found is not None and found.get("left") == 0


def section(stage: str, name: str, task: dict[str, Any], machine: dict[str, Any]) -> str:
    code = f", exit status {task['rc']}" if task.get("rc") else ""
    took = f" after {task['seconds']} s" if "seconds" in task else ""
    cpu = " (CPU)" if machine["device"] == "CPU" else ""
    head = f"## {stage} {name}{cpu}: {task.get('status')}{took}{code}"
    show = {"a": _tests, "b": _mini, "c": _packs, "d": _profile, "e": _flow}[stage]
    return head + "\n\n" + show(task)


def _tests(task: dict[str, Any]) -> str:
    tests = task.get("found") or []
    count = {word: sum(test["outcome"] == word for test in tests) for word in ("passed", "failed", "skipped")}
    lines = [", ".join(f"{number} {word}" for word, number in count.items())]
    lines += [f"- FAILED {test['test']}: {test['reason']}" for test in tests if test["outcome"] == "failed"]
    skipped = {test["reason"] for test in tests if test["outcome"] == "skipped"}
    lines += [f"- skipped: {reason}" for reason in sorted(skipped)]
    far = sorted((test for test in tests if "grey" in test), key=lambda test: -test["grey"])[:5]
    lines += [f"- {test['test']}: images {test['grey']} grey levels, losses {test['losses']} away" for test in far]
    return "\n".join(lines)


def _mini(task: dict[str, Any]) -> str:
    lines = [f"- {name}, {size / 1e6:.2f} MB" for name, size in task.get("files", {}).items()]
    return "\n".join([*lines, *(f"- left out, too large: {name}" for name in task.get("left_out", []))]) or "no files"


def _packs(task: dict[str, Any]) -> str:
    import packs

    return packs.rendered(task["found"]) if task.get("found") else "no rows"


def _profile(task: dict[str, Any]) -> str:
    found = task.get("found") or {}
    if "groups" not in found:
        return "no table"
    head = f"{found['item_ms']:.1f} ms, of {found['steps']} step(s) of the network\n\n| group | share | ms | calls |\n"
    rows = [f"| {r['group']} | {r['share']:.1%} | {r['ms']:.2f} | {r['calls']} |" for r in found["groups"]]
    longest = [f"- {ms:.2f} ms {name[:110]}" for name, ms in found["longest"]]
    return head + "|---|---|---|---|\n" + "\n".join(rows) + "\n\nLongest:\n\n" + "\n".join(longest)


def _flow(task: dict[str, Any]) -> str:
    rows = (task.get("found") or {}).get("rows", [])
    lines = [f"| {r['part']} | {r.get('K', '')} | {r['per_s']:.3g} {r['unit']} | {r['peak_gb']:.1f} |"
             if "per_s" in r else f"| {r['part']} | {r.get('K', '')} | {r['failure']} | |" for r in rows]  # fmt: skip
    return "\n".join(["| part | K | rate | peak GB |", "|---|---|---|---|", *lines]) if rows else "no rows"


# --- the files of `mini` ----------------------------------------------------------------------------------------------


def pack(source: Path, folder: Path, room: int = PART * PARTS) -> dict[str, Any]:
    """Write mini.tar.0, .1, ...: weights, small files, then checkpoints, as far as there is room.

    A stage's `<stage>.done` stays out when one of its files does, so that a recipe that finds it missing does it again.
    """
    files = sorted((path for path in source.rglob("*") if path.is_file()), key=lambda path: _order(source, path))
    kept: dict[str, Path] = {}
    left_out: list[str] = []
    for path in files:
        name, size = str(path.relative_to(source)), path.stat().st_size + 1024
        if size <= room:
            kept[name], room = path, room - size
        else:
            left_out.append(name)
    for name in list(kept):
        stage = name.removesuffix(".done")
        if name.endswith(".done") and any(other.startswith((f"{stage}/", f"{stage}.")) for other in left_out):
            del kept[name]
    _write_parts(kept, folder)
    return {"files": {name: path.stat().st_size for name, path in kept.items()}, "left_out": left_out}


def _order(source: Path, path: Path) -> tuple[int, int]:
    """Weights that ship, then the smallest first."""
    return (0 if path.relative_to(source).parts[0] == "weights" else 1, path.stat().st_size)


def _write_parts(files: dict[str, Path], folder: Path) -> None:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for name, path in files.items():
            tar.add(path, name)
    data = whole.getvalue()
    for old in folder.glob("mini.tar.*"):
        old.unlink()
    for i in range(0, len(data), PART + 10**5):
        (folder / f"mini.tar.{i // (PART + 10**5)}").write_bytes(data[i : i + PART + 10**5])


def unpack(folder: Path, target: Path) -> None:
    """Lay the files of mini.tar.* where the recipe goes on from them, unless it has begun there already."""
    parts = sorted(folder.glob("mini.tar.*"))
    if parts and not target.exists():
        with tarfile.open(fileobj=io.BytesIO(b"".join(part.read_bytes() for part in parts))) as tar:
            tar.extractall(target, filter="data")
