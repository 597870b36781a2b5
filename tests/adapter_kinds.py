"""One spec of every kind of adapter, for tests that must hold for all of them."""

from bench.contracts import AdapterSpec, CrossAttentionSpec, FullSpec

KINDS = {
    "low rank": AdapterSpec(2),
    "convolutions": AdapterSpec(2, "all", alpha=1.0),
    "frozen basis": AdapterSpec(2, orthonormal_row=2),
    "full": FullSpec(text_encoder=True),
    "image tokens": CrossAttentionSpec(12),
}
