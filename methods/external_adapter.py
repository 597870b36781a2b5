"""A LoRA file that was trained elsewhere, drawn and scored as every other method; nothing is trained (no paper)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from bench.contracts import AdapterSpec, BenchError, Dataset, Impossible, Method, plain_guidance
from bench.paths import located


@dataclass
class ExternalAdapter(Method):
    """Classifier-free guidance with the adapter on in both rows, as diffusers draws after `load_lora_weights`.

    `file` is of diffusers, PEFT (a folder), kohya or the attention processors: `bench.adapters.lora_files.read_lora`.
    `prompt` is a template of the drawn prompt: {prompt}, {style_words} and {noun} stand for the dataset's.
    """

    file: str | None = None
    prompt: str = "{prompt}"
    negative: str = ""
    trained_on: str = ""  # what is known of its training; the yaml's footnote shows it
    strength: float = 1.0

    strength_knob: ClassVar[str] = "LoRA scale"

    def __post_init__(self) -> None:
        try:
            filled = self.prompt.format(prompt="", style_words="", noun="")
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise BenchError(
                f"method.prompt={self.prompt} was requested ({type(error).__name__}: {error}); it may hold {{prompt}}, "
                "{style_words} and {noun}."
            ) from error
        if filled == self.prompt:
            raise BenchError(
                f"method.prompt={self.prompt} was requested, which is the same for all prompts; write {{prompt}}."
            )

    def missing(self) -> str | None:
        if self.file is None or located(self.file).exists():
            return None
        return f"method.file={self.file} was requested, and there is no such file or folder; correct the path."

    def lacks(self, dataset: Dataset) -> str | None:
        if self.file is None:
            raise Impossible("method=external_adapter needs an adapter; type method.file=/path/to/lora.safetensors.")
        return super().lacks(dataset)

    def adapters(self, dataset: Dataset) -> Mapping[str, AdapterSpec]:
        return {"style": AdapterSpec(1, file=str(located(self.file)))} if self.file is not None else {}

    def prompts(self, prompt: str, dataset: Dataset) -> Mapping[str, str]:
        drawn = self.prompt.format(prompt=prompt, style_words=dataset.style_words or "", noun=dataset.noun)
        return {"content": prompt, "negative": self.negative, "style": drawn.strip()}

    def guide(self, z, t, texts, cfg, strength):
        return (yield from plain_guidance(z, t, texts, cfg, "style", {"style": strength}))
