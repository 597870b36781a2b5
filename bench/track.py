"""Where a cell shows its progress. A tracker never kills a cell: it fails once, says so, and goes silent."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bench.choices import Tracking

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

log = logging.getLogger(__name__)
OF_ONE_RUN = ("WANDB_RUN_ID", "WANDB_NAME", "WANDB_RESUME")  # of a job around ours; each cell is a run of its own


class Tracker(ABC):
    """One run per cell. `group` is the sweep's name; `tags` are short words to filter by; `job` is the run's kind.

    `resume` is the `id` of an earlier run of the same cell that goes on.
    """

    silent: ClassVar[bool] = False  # nobody will see what it is given
    all_adapters: bool = False  # keep also the adapters that images are not drawn with
    id: str = ""  # of the run under way

    @abstractmethod
    def start(
        self,
        run_id: str,
        config: Mapping[str, Any],
        group: str = "",
        tags: Sequence[str] = (),
        job: str = "",
        resume: str = "",
    ) -> None: ...

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers at a training step."""

    @abstractmethod
    def images(self, name: str, image: Path | str | np.ndarray) -> None:
        """A picture: a file, or one uint8 (3, P, P)."""

    @abstractmethod
    def pictures(self, name: str, images: np.ndarray, captions: Sequence[str]) -> None:
        """Single pictures, uint8 (N, 3, P, P), each with its caption."""

    @abstractmethod
    def describe(self, config: Mapping[str, Any]) -> None:
        """More of the run's config, known only at its end."""

    @abstractmethod
    def summary(self, values: Mapping[str, float]) -> None:
        """Scalars of the whole run, to filter and plot runs by."""

    @abstractmethod
    def table(self, name: str, frame: pd.DataFrame) -> None: ...

    @abstractmethod
    def artifact(self, name: str, path: Path | str, type: str) -> None:
        """A file to keep, such as the adapter."""

    @abstractmethod
    def finish(self, status: str) -> None:
        """Close the run; status is that of the record: done, failed or skipped."""


class Silent(Tracker):
    """Tracks nothing."""

    silent = True

    def __init__(self, folder: str = "") -> None: ...
    def start(
        self,
        run_id: str,
        config: Mapping[str, Any],
        group: str = "",
        tags: Sequence[str] = (),
        job: str = "",
        resume: str = "",
    ) -> None: ...
    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def images(self, name: str, image: Path | str | np.ndarray) -> None: ...
    def pictures(self, name: str, images: np.ndarray, captions: Sequence[str]) -> None: ...
    def describe(self, config: Mapping[str, Any]) -> None: ...
    def summary(self, values: Mapping[str, float]) -> None: ...
    def table(self, name: str, frame: pd.DataFrame) -> None: ...
    def artifact(self, name: str, path: Path | str, type: str) -> None: ...
    def finish(self, status: str) -> None: ...


class Wandb(Tracker):
    """Weights & Biases. Its files lie in `<folder>/wandb/`; `mode` is online or offline (WANDB_MODE goes before it)."""

    def __init__(
        self,
        mode: Tracking = "offline",
        project: str = "t2i-bench",
        entity: str | None = None,
        folder: str = "results",
        all_adapters: bool = False,
    ) -> None:
        self.mode, self.project, self.entity, self.folder = mode, project, entity, Path(folder)
        self.all_adapters = all_adapters
        self.broken = False
        self.run: Any = None

    def start(
        self,
        run_id: str,
        config: Mapping[str, Any],
        group: str = "",
        tags: Sequence[str] = (),
        job: str = "",
        resume: str = "",
    ) -> None:
        self._try("start", lambda: self._start(run_id, dict(config), group, list(tags), job, resume))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._try("log numbers", lambda: self.run and self.run.log({"step": step, **values}))

    def images(self, name: str, image: Path | str | np.ndarray) -> None:
        self._try("log an image", lambda: self.run and self.run.log({name: _image(image)}))

    def pictures(self, name: str, images: np.ndarray, captions: Sequence[str]) -> None:
        self._try("log images", lambda: self.run and self.run.log({name: _pictures(images, captions)}))

    def describe(self, config: Mapping[str, Any]) -> None:
        self._try("describe the run", lambda: self.run and self.run.config.update(dict(config), allow_val_change=True))

    def summary(self, values: Mapping[str, float]) -> None:
        self._try("summarise the run", lambda: self.run and self.run.summary.update(dict(values)))

    def table(self, name: str, frame: pd.DataFrame) -> None:
        self._try("log a table", lambda: self.run and self.run.log({name: _table(frame)}))

    def artifact(self, name: str, path: Path | str, type: str) -> None:
        self._try("keep a file", lambda: self._artifact(name, path, type) if self.run else None)

    def finish(self, status: str) -> None:
        self._try("finish", lambda: self._finish(status) if self.run else None)
        if self.run and self.broken:
            with contextlib.suppress(Exception):  # said already
                self.run.finish(exit_code=1)
        self.run = None

    def _start(self, run_id: str, config: dict[str, Any], group: str, tags: list[str], job: str, resume: str) -> None:
        mode: Any = os.environ.get("WANDB_MODE") or self.mode
        for name in ("WANDB_MODE", *OF_ONE_RUN):  # an empty mode is refused; one id for all cells would merge them
            if name != "WANDB_MODE" or not os.environ.get(name):
                os.environ.pop(name, None)
        if mode != "online":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # nothing leaves the machine unasked
        self.folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("WANDB_DATA_DIR", str((self.folder / "wandb").resolve()))  # not the home folder
        import wandb

        self.id = resume or secrets.token_hex(8)  # given, since WANDB_RUN_ID would be the id of every cell
        self.run = wandb.init(
            id=self.id,
            resume="allow",  # given, since WANDB_RESUME would hold for every cell
            project=self.project,
            entity=self.entity,
            name=run_id,
            group=group or None,
            job_type=job or None,
            tags=[tag[:64] for tag in tags],  # the server refuses longer ones
            config=config,
            mode=mode,
            dir=str(self.folder),
            reinit="create_new",  # many cells in one process, packed ones side by side
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )
        self.run.define_metric("*", step_metric="step")  # pictures in between do not move the training steps

    def _artifact(self, name: str, path: Path | str, type: str) -> None:
        import wandb

        artifact = wandb.Artifact(name[:128], type=type)
        artifact.add_file(str(path))
        self.run.log_artifact(artifact)

    def _finish(self, status: str) -> None:
        self.run.summary["status"] = status
        self.run.finish(exit_code=int(status == "failed"))

    def _try(self, what: str, action: Callable[[], Any]) -> None:
        """Run the action; at the first failure say so in one line and turn the tracker off."""
        if self.broken:
            return
        try:
            action()
        except Exception as error:
            self.broken = True
            log.warning(
                "The tracker could not %s (%s: %s); tracking is off from here, the cell goes on.",
                what,
                type(error).__name__,
                " ".join(str(error).split()),
            )


def _image(image: Path | str | np.ndarray) -> Any:
    import wandb

    return wandb.Image(str(image) if isinstance(image, (str, Path)) else image.transpose(1, 2, 0))


def _pictures(images: np.ndarray, captions: Sequence[str]) -> list[Any]:
    import wandb

    pairs = zip(images, captions, strict=True)
    return [wandb.Image(image.transpose(1, 2, 0), caption=caption) for image, caption in pairs]


def _table(frame: pd.DataFrame) -> Any:
    import wandb

    return wandb.Table(dataframe=frame.astype(object).where(frame.notna(), None))
