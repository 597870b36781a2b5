"""UNets with the blocks of SD 1.x and SDXL at tiny widths, and a backbone on either."""

import torch
from diffusers import UNet2DConditionModel
from tiny import TinyBackbone


def sd():
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=2, norm_num_groups=8, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
    )  # fmt: skip


def sdxl():
    """The blocks of SDXL, narrow: attention groups 2 + 2 down, 1 in the middle, 3 + 3 up."""
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 16, 32), layers_per_block=2, norm_num_groups=8, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=24,
        transformer_layers_per_block=(1, 1, 2), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=16 + 6 * 8,
    )  # fmt: skip


class Shaped(TinyBackbone):
    """A backbone on one of these networks."""

    def __init__(self, make, dtype=torch.float64):
        super().__init__(dtype)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.network = make().to(dtype).eval().requires_grad_(False)

    def predict(self, z, t, text):
        return self.network(z, t, text.states, added_cond_kwargs=dict(text.extras) or None).sample
