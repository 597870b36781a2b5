"""Vision-language models of transformers as judges: the answer to a closed question, read from the logits.

Nothing is sampled and no text is generated. The pictures stand before the question, so what the model computes of them
is kept (its key-value cache) and continued with each question in turn.
Shapes: B rows, K pictures in a row, P pixels per side, A answers, S tokens, V words of the vocabulary.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bench.contracts import BenchError
from bench.data.files import sha256, verify, whole
from bench.data.weights import weights_at
from metrics.networks.network import Network, best_device, exact, reason_of

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 8  # read at once
Rows = Sequence[Sequence[np.ndarray]] | np.ndarray
MARK = "<<question>>"  # where a question goes in the chat template


@dataclass(frozen=True)
class Asked:
    """A question about rows of pictures: its text for each row, and the words that may answer it."""

    texts: Sequence[str]  # B
    answers: tuple[str, ...]  # A


@dataclass(frozen=True, kw_only=True)
class VisionLanguage(Network):
    """`model` is a folder in transformers' format, or `owner/name` of the hub as staged on this machine.

    `sha256` pins the weights file of a model that has one file; a folder of your own needs none.
    """

    model: str
    sha256: str | None = None
    packages: ClassVar[tuple[str, ...]] = ("torch", "transformers")

    @property
    def folder(self) -> Path:
        return weights_at(self.model)

    def files(self) -> tuple[Path, ...]:
        found = sorted(self.folder.glob("*.safetensors"))
        if not found or not (self.folder / "config.json").is_file():
            raise BenchError(
                f"The judge {self.name} needs {self.folder} to hold config.json and .safetensors files, but "
                f"{len(found)} weight files were found there; copy the whole folder."
            )
        if self.sha256 is not None:
            verify(found[0], self.sha256, "stage the revision that conf/weights.yaml names, or set sha256=null.")
        return tuple(whole(path, "copy it again.") for path in found)

    @property
    def recipe(self) -> str:
        """The texts of the folder: configuration, tokenizer, chat template and preprocessing."""
        texts = sorted(path for end in ("json", "jinja", "txt") for path in self.folder.glob(f"*.{end}"))
        digest = hashlib.sha256("".join(sha256(path) for path in texts).encode()).hexdigest()
        return f"chat template, tokenizer and preprocessing {digest[:16]}, answers from the next token's logits"

    @property
    def digest(self) -> str:
        """16 hex digits of the weights and the preprocessing, whatever the model is called."""
        return hashlib.sha256(f"{self.recipe} {self.weights_sha256}".encode()).hexdigest()[:16]

    def ask(self, pictures: Rows, labels: Sequence[str], questions: Sequence[Asked]) -> list[np.ndarray]:
        """Probabilities of the answers to each question, float32 (B, A + 1), of B rows of K pictures uint8 (3, P, P).

        Pictures of one place in the rows have one size. `labels` (K) are written before the pictures. Columns are
        probabilities among the answers, then the share that all answers together have in the vocabulary: near 0, the
        model would have said something else.
        Raises BenchError when an answer is no single token of the model.
        """
        parts = [
            self._ask(pictures[start : start + ROWS], labels, [_rows(one, start) for one in questions])
            for start in range(0, len(pictures), ROWS)
        ]
        return [np.concatenate(found) for found in zip(*parts, strict=True)]

    def _ask(self, pictures: Rows, labels: Sequence[str], questions: Sequence[Asked]) -> list[np.ndarray]:
        model, processor = _load(self)
        head, tail = _around(processor, labels)
        images = [[picture.transpose(1, 2, 0) for picture in row] for row in pictures]
        with exact():
            read = processor(text=[head] * len(pictures), images=images, return_tensors="pt", add_special_tokens=False)
            cache = model(**read.to(model.device), use_cache=True, logits_to_keep=1).past_key_values
            found = []
            for question in questions:
                ids = answer_tokens(processor.tokenizer, question.answers, self.name)
                logits = _continued(model, processor.tokenizer, cache, [text + tail for text in question.texts])
                found.append(_shares(logits, ids))
        return found


def _rows(question: Asked, start: int) -> Asked:
    return Asked(question.texts[start : start + ROWS], question.answers)


def _around(processor: Any, labels: Sequence[str]) -> tuple[str, str]:
    """The chat before and after a question: pictures with their labels, and the beginning of the answer."""
    content: list[dict[str, str]] = []
    for label in labels:
        content += [{"type": "text", "text": f"{label}: "}, {"type": "image"}]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": MARK}]}]
    chat = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    head, _, tail = chat.partition(MARK)
    return head, tail


def _continued(model: Any, tokenizer: Any, cache: Any, texts: Sequence[str]) -> Tensor:
    """Logits of the token after each text, float64 (B, V); the cache is cut back to the pictures afterwards.

    Shorter texts are padded on the right, where causal attention keeps them from being read.
    """
    import torch

    tokens = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    last = torch.tensor([len(row) - 1 for row in tokens])
    padded = torch.tensor([row + [row[-1]] * (int(last.max()) + 1 - len(row)) for row in tokens])  # (B, S)
    past, device = cache.get_seq_length(), model.device
    positions = past + torch.arange(padded.shape[1], device=device).expand(padded.shape)
    deltas = getattr(model.model, "rope_deltas", None)  # a picture takes fewer positions than it has tokens
    positions = positions if deltas is None else positions + deltas.to(device)
    kept = torch.unique(last)
    made = model(
        input_ids=padded.to(device), position_ids=positions, past_key_values=cache, logits_to_keep=kept.to(device)
    )
    cache.crop(-padded.shape[1])  # what is not negative is refused by newer versions
    return made.logits.cpu()[torch.arange(len(texts)), torch.searchsorted(kept, last)].double()


def answer_tokens(tokenizer: Any, answers: Sequence[str], name: str) -> list[list[int]]:
    """The single tokens that stand for each answer: as written, capitalised, in capitals, each with a space or none."""
    found = []
    for answer in answers:
        words = {variant for word in (answer, answer.capitalize(), answer.upper()) for variant in (word, f" {word}")}
        ids = [tokenizer(word, add_special_tokens=False).input_ids for word in sorted(words)]
        single = sorted({one[0] for one in ids if len(one) == 1})
        if not single:
            raise BenchError(f"The answer {answer!r} is no single token of {name}; choose another model as the judge.")
        found.append(single)
    return found


def _shares(logits: Tensor, ids: Sequence[Sequence[int]]) -> np.ndarray:
    """(B, V) -> float32 (B, A + 1)"""
    import torch

    logs = torch.stack([torch.logsumexp(logits[:, list(some)], dim=1) for some in ids], dim=1)  # (B, A)
    whole_mass = torch.exp(torch.logsumexp(logs, dim=1) - torch.logsumexp(logits, dim=1))
    return torch.cat([torch.softmax(logs, dim=1), whole_mass[:, None]], dim=1).float().numpy()


@functools.cache
def _load(network: VisionLanguage) -> tuple[Any, Any]:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText, AutoProcessor

    network.files()
    try:
        processor = AutoProcessor.from_pretrained(network.folder, local_files_only=True)
        model, info = AutoModelForImageTextToText.from_pretrained(
            network.folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise BenchError(
            f"The judge {network.name} cannot be loaded from {network.folder} ({reason_of(error)}); give the folder of "
            "a vision-language model that the installed transformers knows."
        ) from error
    if info["missing_keys"]:
        raise BenchError(
            f"The weights of {network.name} do not fit: {network.folder} lacks "
            f"{sorted(info['missing_keys'])[0]}; copy it again."
        )
    return model.eval().requires_grad_(False).to(best_device(network.device)), processor
