"""Tables of results that others made, as a frame with a line per run, or per run and prompt.

Columns of the frame: row, value, and seed and prompt where the file has them. Without seeds a row is one model as it is
(`trained` is False): the comparison is over prompts and says nothing about another training.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.contracts import BenchError

if TYPE_CHECKING:
    import pandas as pd

ROW = ("method", "model", "name", "experiment_name", "experiment")
SEED = ("seed", "run", "training_seed", "trial")
PROMPT = ("prompt", "question", "item", "image", "task")
ACCURACY = "test accuracy"  # of PEFT's method comparison


@dataclass(frozen=True)
class Named:
    """Columns as the user names them; None: found by their usual names."""

    row: str | None = None
    value: str | None = None
    seed: str | None = None
    prompt: str | None = None


def read_results(files: Sequence[Path], named: Named) -> pd.DataFrame:
    """CSV files and PEFT's JSON files, or folders of them, in one frame. Raises BenchError in a sentence."""
    import pandas as pd

    found = [file for place in files for file in _files(place)]
    parts = [_of_peft(file, named) if file.suffix == ".json" else _of_csv(file, named) for file in found]
    frame = pd.concat(parts, ignore_index=True).dropna(subset=["value"])
    if "seed" not in frame:
        frame["trained"] = False
    keys = [key for key in ("row", "seed", "prompt") if key in frame]
    twice = frame.duplicated(keys)
    if twice.any():
        line = frame.loc[twice, keys].iloc[0].to_dict()
        raise BenchError(
            f"{found[0]} has several values of {line}; name the column that tells them apart (--seed, --prompt)."
        )
    return frame


def _files(place: Path) -> list[Path]:
    if place.is_dir():
        found = sorted(file for file in place.iterdir() if file.suffix in (".csv", ".json"))
        if not found:
            raise BenchError(f"{place} holds neither .csv nor .json; give a table of results.")
        return found
    if not place.is_file():
        raise BenchError(f"{place} is neither a file nor a folder; give a table of results, a .csv or PEFT's .json.")
    return [place]


# --- CSV


def _of_csv(file: Path, named: Named) -> pd.DataFrame:
    import pandas as pd

    try:
        frame = pd.read_csv(file)
    except (ValueError, OSError) as error:
        raise BenchError(f"{file} cannot be read as CSV ({' '.join(str(error).split())[:150]}); correct it.") from error
    row = _column(file, frame, named.row, ROW, "--row")
    if row is None:
        raise BenchError(f"{file} names no rows; its columns are {', '.join(frame)}; say which one with --row.")
    chosen = {"row": row}
    for key, usual in (("seed", SEED), ("prompt", PROMPT)):
        column = _column(file, frame, getattr(named, key), usual, f"--{key}")
        chosen |= {} if column is None else {key: column}
    chosen["value"] = _value(file, frame, named.value, list(chosen.values()))
    made = pd.DataFrame({key: frame[column] for key, column in chosen.items()})
    made["row"] = made["row"].astype(str)
    return made


def _column(file: Path, frame: pd.DataFrame, asked: str | None, usual: Sequence[str], option: str) -> str | None:
    if asked is not None and asked not in frame:
        raise BenchError(f"{option} {asked} was requested; the columns of {file} are {', '.join(frame)}.")
    by_name = {str(column).strip().lower(): column for column in frame}
    return asked if asked is not None else next((by_name[name] for name in usual if name in by_name), None)


def _value(file: Path, frame: pd.DataFrame, asked: str | None, others: Sequence[str]) -> str:
    """The column with the numbers: the one that is requested, or the only one."""
    numbers = [column for column in frame.select_dtypes("number") if column not in others]
    if asked is None and len(numbers) == 1:
        return numbers[0]
    if asked is None or asked not in numbers:
        what = "no column was named" if asked is None else f"--value {asked} was requested"
        raise BenchError(
            f"{file}: {what}; columns with numbers are {', '.join(numbers) or 'none'}; type --value COLUMN."
        )
    return asked


# --- PEFT's method comparison: a JSON file per run


def _of_peft(file: Path, named: Named) -> pd.DataFrame:
    """One line: the experiment, its seed, and the last value of `test accuracy` (or what --value names)."""
    import pandas as pd

    try:
        run = json.loads(file.read_text())
        about, metrics = run["run_info"], run["train_info"]["metrics"]
        line = {"row": str(about["experiment_name"]), "seed": about["train_config"]["seed"]}
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise BenchError(
            f"{file} is not a result of PEFT's method comparison ({error!r}); give such a file or a .csv."
        ) from error
    wanted = named.value or ACCURACY
    values = list(_values(metrics, wanted)) or list(_values([run["train_info"]], wanted))
    if not values:
        known = sorted({key for metric in metrics for key in metric})
        raise BenchError(f"{file} has no {wanted!r}; type --value with one of {', '.join(known)}.")
    return pd.DataFrame([{**line, "value": values[-1]}])


def _values(metrics: Any, wanted: str) -> Iterator[float]:
    for metric in metrics:
        if isinstance(metric.get(wanted), (int, float)):
            yield float(metric[wanted])
