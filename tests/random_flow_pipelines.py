"""Flow-matching pipelines of diffusers at tiny width with random weights."""

import torch
from random_pipelines import text_encoder, tokenizer

PIXELS, LENGTH = 32, 24
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def words(**options):
    """A tokenizer of bytes, in the form of Qwen's and T5's fast tokenizers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(letters)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", **options)
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return fast


def autoencoder(**options):
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, sample_size=PIXELS,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4, use_quant_conv=False,
        use_post_quant_conv=False, scaling_factor=1.5, shift_factor=0.06, force_upcast=False, **options,
    )  # fmt: skip


def t5(width):
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(3)
    config = T5Config(vocab_size=300, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    return T5EncoderModel(config)


def lively(transformer):
    """Weights so large that prompts and references show in a picture."""
    for name, weight in transformer.named_parameters():
        if "blocks" in name and weight.dim() == 2:
            weight.data *= 3
    return transformer


def scheduler(**options):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)


def sd3():
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    torch.manual_seed(0)
    clips = [text_encoder(CLIPTextModelWithProjection), text_encoder(CLIPTextModelWithProjection, 40)]
    transformer = SD3Transformer2DModel(
        sample_size=PIXELS // 2, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=80, caption_projection_dim=32, pooled_projection_dim=48,
        out_channels=4, pos_embed_max_size=24, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=lively(transformer), scheduler=scheduler(shift=3.0), vae=autoencoder(),
        text_encoder=clips[0], tokenizer=tokenizer(), text_encoder_2=clips[1], tokenizer_2=tokenizer(),
        text_encoder_3=t5(80), tokenizer_3=words(),
    )  # fmt: skip


def flux1():
    from diffusers import FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    clip = text_encoder(CLIPTextModel)
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=40, pooled_projection_dim=32, guidance_embeds=True, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return FluxPipeline(
        transformer=lively(transformer), vae=autoencoder(), text_encoder=clip, tokenizer=tokenizer(),
        text_encoder_2=t5(40),
        tokenizer_2=words(), scheduler=scheduler(use_dynamic_shifting=True, shift=3.0, base_shift=0.5, max_shift=1.15),
    )  # fmt: skip


def mini_flow():
    """As `bench.mini.recipe.export_flow` makes it: one text encoder in both places."""
    from diffusers import FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    encoder, names = text_encoder(CLIPTextModel), tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=False, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return FluxPipeline(
        transformer=lively(transformer), vae=autoencoder(), text_encoder=encoder, tokenizer=names,
        text_encoder_2=encoder, tokenizer_2=names, scheduler=scheduler(shift=1.0),
    )  # fmt: skip


def flux2_klein():
    from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, sample_size=PIXELS,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4, layers_per_block=1,
    )  # fmt: skip
    vae.bn.running_mean.copy_(torch.randn(16) * 0.1)
    vae.bn.running_var.copy_(0.5 + torch.rand(16))
    transformer = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=48, timestep_guidance_channels=16, guidance_embeds=False, axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip
    config = Qwen3Config(
        vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=28, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    return Flux2KleinPipeline(
        scheduler=scheduler(use_dynamic_shifting=True, shift=3.0), vae=vae, text_encoder=Qwen3ForCausalLM(config),
        tokenizer=words(chat_template=CHAT), transformer=lively(transformer),
    )  # fmt: skip


def z_image():
    from diffusers import ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[4, 6, 6], axes_lens=[256, 32, 32],
    )  # fmt: skip
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        token.data.normal_()
    for name, weight in transformer.named_parameters():
        if weight.dim() == 2 and name.startswith(("layers", "noise_refiner", "context_refiner")):
            weight.data *= 3
    config = Qwen3Config(
        vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    return ZImagePipeline(
        scheduler=scheduler(shift=3.0), vae=autoencoder(), text_encoder=Qwen3ForCausalLM(config),
        tokenizer=words(chat_template=CHAT), transformer=transformer,
    )  # fmt: skip


FAMILIES = {
    "sd35": (sd3, "bench.backbones.stable_diffusion_3.StableDiffusion3"),
    "flux1": (flux1, "bench.backbones.flux1.Flux1"),
    "mini_flow": (mini_flow, "bench.backbones.mini_flow.MiniFlow"),
    "z_image": (z_image, "bench.backbones.z_image.ZImage"),
    "flux2_klein": (flux2_klein, "bench.backbones.flux2.Flux2Klein"),
}
