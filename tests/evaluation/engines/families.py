"""The smallest configuration of each causal language model that transformers has."""

from __future__ import annotations

from typing import Any

_SIZES: dict[int, str] = {
    64: "vocab_size vocab_size_per_layer_input max_position_embeddings n_positions n_ctx max_seq_len context_length"
    " max_target_positions max_source_positions seq_length mamba_d_ssm",
    32: "hidden_size d_model n_embd embed_dim dim embedding_size word_embed_proj_dim intermediate_size ffn_dim n_inner"
    " d_inner encoder_ffn_dim decoder_ffn_dim ffn_hidden_size d_ff block_ff_dim lru_width",
    16: "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size sliding_window mamba_d_head"
    " mamba_head_dim attention_window_size image_size",
    8: "head_dim global_head_dim d_kv kv_lora_rank q_lora_rank qk_rope_head_dim qk_nope_head_dim v_head_dim"
    " mamba_d_state state_size ssm_state_size linear_key_head_dim linear_value_head_dim hidden_size_per_layer_input"
    " index_head_dim index_topk patch_size rotary_dim",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_experts"
    " num_local_experts n_routed_experts moe_num_experts mamba_d_conv mamba_n_heads mamba_num_heads time_step_rank"
    " linear_num_value_heads",
    3: "sep_token_id",
    2: "num_hidden_layers n_layer num_layers n_layers encoder_layers decoder_layers num_decoder_layers"
    " num_encoder_layers num_key_value_heads num_kv_heads num_experts_per_tok moe_topk moe_k mamba_expand"
    " linear_num_key_heads index_n_heads eos_token_id",
    1: "n_group topk_group n_shared_experts bos_token_id",
    0: "pad_token_id num_kv_shared_layers",
}
SIZES = {key: size for size, keys in _SIZES.items() for key in keys.split()}

_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
_AS_MANY = {"num_key_value_heads": 4}  # latent attention has as many keys as queries
ITS_OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "gpt_neo": {"attention_types": [[["global"], 2]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "qwen3_5_text": _HYBRID,
    "qwen3_5_moe_text": _HYBRID,
    "qwen3_next": _HYBRID,
    "reformer": {"is_decoder": True},
    "roc_bert": {"pronunciation_vocab_size": 8, "shape_vocab_size": 8},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "zaya": {"num_experts_per_tok": 1},
} | dict.fromkeys(
    ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "minicpm3", "youtu"),
    _AS_MANY,
)
"""What a family needs beside the sizes."""


def smallest(family: str) -> Any:
    """A configuration of a few thousand parameters.

    Args:
        family: A model_type of transformers.
    """
    from transformers import CONFIG_MAPPING

    return _small(CONFIG_MAPPING[family], family)


def _small(kind: Any, family: str) -> Any:
    usual = kind()
    known = usual.to_dict()
    keys = {key: size for key, size in SIZES.items() if key in known} | ITS_OWN.get(family, {})
    for part in getattr(kind, "sub_configs", {}):
        if (nested := getattr(usual, part, None)) is not None:
            keys[part] = _small(type(nested), nested.model_type)
    if known.get("layer_types") is not None and "layer_types" not in keys:
        try:
            return kind(**keys, layer_types=None)
        except (TypeError, ValueError, AttributeError):
            pass
    return kind(**keys)
