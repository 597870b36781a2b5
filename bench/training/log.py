"""The log of a training: a line of losses for each step."""

from __future__ import annotations

from pathlib import Path

from bench.training.trainer import Step


class TrainingLog:
    """The losses of each step as a csv file; a resumed training goes on behind its last finished step."""

    def __init__(self, path: Path):
        self.path = path
        self.known = path.read_text().splitlines() if path.is_file() else []

    def write(self, step: Step) -> None:
        if not self.path.is_file() or self.known:
            kept = [line for line in self.known[1:] if (k := line.split(",")[0]).isdigit() and int(k) < step.k]
            self.path.write_text("\n".join(["step,lr,losses", *kept]) + "\n")
            self.known = []
        with self.path.open("a") as file:
            file.write(f"{step.k},{step.lr:g},{' '.join(f'{loss:.6g}' for loss in step.losses)}\n")
