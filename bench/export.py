"""The adapter of a finished cell for other tools, with a model card: python -m bench.export RUN --format kohya

RUN is a run id or the folder of a cell. The folder that is written holds the adapter, the cell's grid of images and a
README.md in the hub's format: the row of the table, the prompts, and the command that makes the cell again.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench import paths
from bench.contracts import BenchError
from bench.environment import one_sentence
from bench.files import atomic_write

if TYPE_CHECKING:
    from torch import Tensor

    from bench.steps.work import Work

FORMATS = ("diffusers", "kohya", "peft")
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
LOADING = {
    "diffusers": '```python\npipe.load_lora_weights("FOLDER")\n```',
    "kohya": "Put `lora.safetensors` into the folder of LoRA files of ComfyUI or of another tool that reads kohya's "
    'names, or type `pipe.load_lora_weights("FOLDER", weight_name="lora.safetensors")` in diffusers.',
    "peft": '```python\nfrom peft import PeftModel\n\nPeftModel.from_pretrained(pipe.unet, "FOLDER")\n```',
}


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(
        prog="python -m bench.export", description="Write a cell's adapter for other tools, with a model card."
    )
    parse.add_argument("run", metavar="RUN", help="a run id, or the folder of a finished cell")
    parse.add_argument("--format", choices=FORMATS, required=True, help="names of the tensors")
    parse.add_argument("--results", type=Path, default=paths.results_folder(), help="folder of the records")
    parse.add_argument("--out", type=Path, help="folder to write; default: RUN-FORMAT in the working directory")
    parse.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="also upload it to this model repository, private when new, with your token",
    )
    return parse


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    if options.push and not REPOSITORY.fullmatch(options.push):
        raise BenchError(f"--push {options.push} was requested; give the repository as OWNER/NAME.")
    folder = Path(options.run) if (Path(options.run) / "record.json").is_file() else options.results / options.run
    out = options.out or Path(f"{folder.name}-{options.format}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BenchError(f"{out} is there already; give an empty or a new folder with --out.")
    print(export(folder, options.format, out))
    if options.push:
        print(push(out, options.push))


def export(folder: Path, kind: str, out: Path) -> Path:
    """Write the adapter of the cell in `folder` to `out`. Raises BenchError when it has no low-rank adapter."""
    from bench.adapters import lora_export
    from bench.steps.reopen import reopen

    work = reopen(folder)
    state = _adapter(work)
    card = _card(work, kind)
    out.mkdir(parents=True, exist_ok=True)
    lora_export.FORMATS[kind](state, out)
    if (folder / "grid.png").is_file():
        shutil.copy(folder / "grid.png", out / "grid.png")
        card += "\n![Images of the backbone and of this adapter](grid.png)\n"
    atomic_write(out / "README.md", card.encode())
    return out


def _adapter(work: Work) -> dict[str, Tensor]:
    from bench.adapters.lora_files import read_lora

    file = work.folder / "adapters" / "style.safetensors"
    if not file.is_file():
        raise BenchError(
            f"Cell {work.cell.run_id} ({work.cell.method['name']}) holds no low-rank adapter ({file} is not there); "
            "give a cell of a method that trains one, see docs/methods.md."
        )
    work.check("adapters/")
    return read_lora(file)


def _card(work: Work, kind: str) -> str:
    """A model card: what the hub reads, then how to load it, its row, its prompts and its command."""
    from huggingface_hub import ModelCardData

    from bench.report.command import command

    assert work.record is not None
    base = str(work.cell.backbone.get("path", "")).partition("@")[0]
    about = ModelCardData(
        base_model=base if REPOSITORY.fullmatch(base) and not paths.located(base).exists() else None,
        library_name="peft" if kind == "peft" else "diffusers",
        tags=["text-to-image", "lora", "t2i-bench"],
    )
    data, method = work.dataset, work.method
    shown = [texts.get("style", texts["content"]) for texts in (method.prompts(p, data) for p in data.prompts)]
    return "\n".join(
        [
            f"---\n{about.to_yaml()}\n---\n",
            f"# {work.cell.run_id}\n",
            f"`{work.cell.method['name']}` trained on `{data.name}` ({data.source}; licence of the images: "
            f"{data.licence}) for the backbone `{work.cell.backbone['name']}`. "
            f"{method.strength_knob.capitalize()} {method.strength:g} is the default.\n",
            f"## Load\n\n{LOADING[kind]}\n",
            f"## Row of the table\n\n{_row(work)}\n",
            *(["## Notes\n", *(f"- {note}" for note in work.record.notes), ""] if work.record.notes else []),
            "## Prompts\n",
            *(f"- {prompt}" for prompt in shown),
            f"\n## Command\n\n```\n{command(work.record)}\n```",
        ]
    )


def _row(work: Work) -> str:
    """The cell's own lines of the table, in Markdown."""
    from bench.analysis import formats, frames, layouts

    root, run_id = work.folder.parent, work.cell.run_id
    table = frames.where(frames.load(root), [f"run_id={run_id}"])
    per_image = frames.images(root)
    return formats.markdown(
        layouts.metrics(layouts.Source(table, per_image[per_image.run_id == run_id], False), None, False, True)
    )


def push(folder: Path, repository: str) -> str:
    """Upload a folder with the user's own token; its address. Raises BenchError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        return str(api.upload_folder(folder_path=folder, repo_id=repository))
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BenchError(
            f"{folder} was written and could not be uploaded to {repository} ({reason}); type hf auth login, then the "
            "same command with another --out."
        ) from error


if __name__ == "__main__":
    with one_sentence("bench.export"):
        main()
