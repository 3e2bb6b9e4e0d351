"""A model with random weights, as small as it can be, of any family of transformers."""

import torch

import entropyfloor.language.model  # noqa: F401  before transformers, so that a broken torchvision does no harm

from transformers import AutoConfig, AutoModelForCausalLM  # isort: skip

WIDTHS = dict.fromkeys(("hidden_size", "n_embd", "d_model"), 32)
INNER = dict.fromkeys(
    ("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "shared_intermediate_size"), 48
)
LAYERS = dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers"), 2)
HEADS = dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads", "decoder_attention_heads"), 4)
EXPERTS = dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4)
SIZES = {
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "head_dim": 8,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "moe_intermediate_size": 16,
    "num_experts_per_tok": 2,
    "rotary_dim": 4,
    "is_decoder": True,
    "use_cache": True,
    **WIDTHS | INNER | LAYERS | HEADS | EXPERTS,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_d_ssm": 64, "mamba_n_groups": 1}


def build(family, **options):
    """`options` are of its config, beside those of `SIZES` that it knows."""
    known = AutoConfig.for_model(family)
    sizes = {name: value for name, value in SIZES.items() if hasattr(known, name)} | options
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **{name: value for name, value in sizes.items() if value is not None}),
        dtype=torch.float32,
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.1)  # a bias that is left out is seen
    return model.eval()
