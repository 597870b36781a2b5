"""What methods, metrics, backbones and datasets promise each other. Everything else in `bench` is a pipe between these.

Images cross every border as uint8 (N, 3, P, P); ranges are converted in one place, inside whoever needs another one.
"""

from bench.contracts.adapters import (
    AdapterSpec,
    CrossAttentionSpec,
    FullSpec,
    SharedAttentionSpec,
    Spec,
    TokenSpec,
    tuned,
)
from bench.contracts.backbone import CONVENTION, Backbone, TrainingData
from bench.contracts.dataset import Dataset, Example, Images, Pair, Truth
from bench.contracts.judge import Comparison, Judge
from bench.contracts.method import (
    Method,
    Recipe,
    Reference,
    Unbound,
    at_least_one,
    check_entries,
    learned_from,
    plain_guidance,
    with_token,
)
from bench.contracts.metric import Evaluation, Metric, Quantity, Score
from bench.contracts.prediction import CONTEXT, REFERENCE, Ask, Loss, Text
from bench.errors import BenchError, Impossible

__all__ = [
    "CONTEXT", "CONVENTION", "REFERENCE", "AdapterSpec", "Ask", "Backbone", "BenchError", "Comparison",
    "CrossAttentionSpec", "Dataset", "Evaluation", "Example", "FullSpec", "Images", "Impossible", "Judge", "Loss",
    "Method", "Metric", "Pair", "Quantity", "Recipe", "Reference", "Score", "SharedAttentionSpec", "Spec", "Text",
    "TokenSpec", "TrainingData", "Truth", "Unbound", "at_least_one", "check_entries", "learned_from",
    "plain_guidance", "tuned", "with_token",
]  # fmt: skip
