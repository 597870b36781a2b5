"""By what a LoRA file's product up @ down is multiplied: alpha / rank as PEFT's settings, `.alpha` or nothing say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from bench.adapters.weight_files import first, number, parsed
from bench.contracts import BenchError

METADATA = "lora_adapter_metadata"  # of diffusers: a LoraConfig for each part, "unet.lora_alpha"
READ = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora")
# Fields of peft.LoraConfig on which the trained adapter does not depend, or which its tensors say themselves.
IDLE = (
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "target_modules", "exclude_modules", "lora_dropout", "layers_to_transform", "layers_pattern", "megatron_core",
    "qalora_group_size", "runtime_config", "ensure_weight_tying", "megatron_config",
)  # fmt: skip
STARTS = (True, False, None, "gaussian", "orthogonal", "eva")  # init_lora_weights that leave the network as it is
HEADER_ALPHAS = ("ss_network_alpha", "network_alpha", "lora_alpha", "alpha")
HEADER_FLAGS = ("use_rslora", "rslora", "use_dora")


class Scales:
    """The scale of each site. `settings` are PEFT's (empty: none), `alphas` numbers by site, `header` other text."""

    def __init__(self, path: Path, settings: Mapping[str, Any], alphas: Mapping[str, float], header: Mapping[str, str]):
        self.path, self.settings, self.alphas, self.header = path, settings, alphas, header
        if settings and alphas:
            raise BenchError(f"{path} has both PEFT's settings and .alpha tensors; save it with one of them.")
        if settings:
            check_settings(path, settings)

    def of(self, site: str, rank: int) -> float:
        """What up @ down is multiplied by at a site. Raises BenchError where the settings name another rank."""
        if self.settings:
            return self._of_settings(site, rank)
        if site in self.alphas:
            return self.alphas[site] / rank
        self._check_header(rank)
        return 1.0

    def _of_settings(self, site: str, rank: int) -> float:
        named = number(self._pattern("rank_pattern", "r", site), "r", self.path)
        alpha = number(self._pattern("alpha_pattern", "lora_alpha", site), "lora_alpha", self.path)
        if named != rank:
            raise BenchError(f"{self.path} says rank {named:g} for {site} and holds rank {rank}; save it again.")
        return alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)

    def _pattern(self, patterns: str, default: str, site: str) -> Any:
        from peft import LoraConfig
        from peft.utils.other import get_pattern_key

        known = self.settings.get(patterns) or {}
        return known.get(get_pattern_key(list(known), site), self.settings.get(default, getattr(LoraConfig(), default)))

    def _check_header(self, rank: int) -> None:
        """A scale that stands in the header's text alone is refused: no reader agrees on what it means."""
        said = {key: self.header[key] for key in HEADER_ALPHAS if key in self.header}
        said = {key: text for key, text in said.items() if number(text, key, self.path) != rank}
        said |= {key: self.header[key] for key in HEADER_FLAGS if self.header.get(key, "false").lower() != "false"}
        if said:
            raise BenchError(
                f"{self.path} says {first(f'{key}={value}' for key, value in said.items())} in its header without "
                "a tensor or PEFT's settings that hold it; save it with diffusers' save_lora_weights."
            )


def check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Raises BenchError with the list of settings that change what the tensors mean and that are not supported."""
    from peft import LoraConfig

    usual = {field.name: getattr(LoraConfig(), field.name) for field in fields(LoraConfig)}
    odd = {key: value for key, value in settings.items() if key not in (*READ, *IDLE, "init_lora_weights")}
    odd = {key: value for key, value in odd.items() if value != usual.get(key) and value not in (None, False, {}, [])}
    if settings.get("init_lora_weights", True) not in STARTS:  # others move the network's own weights
        odd["init_lora_weights"] = settings["init_lora_weights"]
    if str(settings.get("peft_type", "LORA")).rpartition(".")[2] != "LORA":
        odd["peft_type"] = settings["peft_type"]
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(settings.get(key) or {}, Mapping):
            odd[key] = settings[key]
    if odd:
        raise BenchError(
            f"{path} is not used, since these of its settings are not supported: "
            f"{', '.join(f'{key}={value!r}' for key, value in odd.items())}; give a plain LoRA."
        )


def settings_of(path: Path, header: Mapping[str, str], part: str) -> dict[str, Any]:
    """PEFT's settings of a part in diffusers' metadata; empty where there are none. Raises BenchError.

    Pipelines name the part, "unet.r"; a network's own `save_lora_adapter` does not, "r".
    """
    if METADATA not in header:
        return {}
    every = parsed(header[METADATA], path)
    if not any("." in key for key in every):
        return dict(every)
    return {key.removeprefix(f"{part}."): value for key, value in every.items() if key.startswith(f"{part}.")}
