"""Flax models of Hugging Face's transformers, tiny and random."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import transformers

from .case import Case, random, tokens, values

_CLIP = jnp.clip


def _clip(x: Any, a_min: Any = None, a_max: Any = None, **rest: Any) -> Any:
    """`jnp.clip` with the argument names that these models still use, and jax 0.10 has no more."""
    return _CLIP(x, rest.get("min", a_min), rest.get("max", a_max))


jnp.clip = _clip

_SMALL = {
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "embedding_size": 32, "embed_dim": 32, "projection_dim": 16,
    "num_hidden_layers": 2, "n_layer": 2, "num_layers": 2, "n_layers": 2, "encoder_layers": 2, "decoder_layers": 2,
    "num_decoder_layers": 2, "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "d_kv": 8, "intermediate_size": 48, "d_ff": 48, "ffn_dim": 48, "hidden_dim": 48, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "n_inner": 48, "vocab_size": 99, "max_position_embeddings": 40, "n_positions": 40, "n_ctx": 40,
    "max_source_positions": 20, "max_target_positions": 20, "image_size": 16, "patch_size": 4, "rotary_dim": 4,
    "word_embed_proj_dim": 32, "num_mel_bins": 8, "block_size": 4, "num_random_blocks": 1, "embedding_dim": 32,
}  # fmt: skip


def _small(config: Any) -> Any:
    for name, value in _SMALL.items():
        if name in config.to_dict() and isinstance(getattr(config, name), int):
            setattr(config, name, value)
    return config


def _case(name: str, args: tuple[Any, ...], options: dict[str, Any], names: tuple[str, ...] = ()) -> Case:
    cls = getattr(transformers, f"Flax{name}")
    config = _small(cls.config_class(**options))
    for key, value in options.items():
        setattr(config, key, value)
    for part in ("text_config", "vision_config"):
        if hasattr(config, part):
            _small(getattr(config, part))
    model = cls(config, _do_init=False)
    shape = getattr(model, "input_shape", None) or args[0].shape
    if not names:
        shapes = jax.eval_shape(lambda: model.init_weights(jax.random.key(0), _shape(model, args)))
    else:
        shapes = jax.eval_shape(lambda: model.init_weights(jax.random.key(0), shape))
    params = random(shapes)

    def fn(params: Any, *args: Any) -> Any:
        given = dict(zip(names, args, strict=True)) if names else {}
        rest = () if names else args
        mode = {"deterministic": True} if name.startswith("OPT") else {"train": False}
        out = model(*rest, **given, params=params, return_dict=True, **mode)
        keys = [
            k
            for k in ("logits", "start_logits", "last_hidden_state", "logits_per_image", "pooler_output")
            if out.get(k) is not None
        ]
        return out[keys[0]]

    return Case(fn, params, args)


def _shape(model: Any, args: tuple[Any, ...]) -> Any:
    shape = args[0].shape
    if len(shape) == 4:  # images are transposed by the model's call, not by its initialization
        return (1, *shape[2:], shape[1])
    return shape if len(args) == 1 else getattr(model, "input_shape", shape)


_TEXT = {"attention_dropout": 0.0}
_ENCODERS = ("AlbertModel", "BertModel", "DistilBertModel", "ElectraModel", "RoFormerModel", "RobertaModel",
    "RobertaPreLayerNormModel", "XLMRobertaModel", "BertForMaskedLM", "BertForQuestionAnswering", "AlbertForMaskedLM",
    "CLIPTextModel", "T5EncoderModel")  # fmt: skip
_DECODERS = ("BloomModel", "GPT2Model", "GPT2LMHeadModel", "GPTJModel", "GPTNeoModel", "GemmaModel", "LlamaModel",
    "LlamaForCausalLM", "MistralModel", "OPTModel", "XGLMModel")  # fmt: skip
_BOTH = ("BartModel", "BlenderbotModel", "BlenderbotSmallModel", "MBartModel", "MarianModel", "PegasusModel", "T5Model",
    "T5ForConditionalGeneration", "MT5Model", "LongT5Model")  # fmt: skip
_VISION = {
    "ViTModel": {}, "BeitModel": {"out_indices": [0, 1]}, "Dinov2Model": {}, "CLIPVisionModel": {},
    "ResNetModel": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "RegNetModel": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 4},
}  # fmt: skip


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    """Yields names, and what makes the models."""
    for name in _ENCODERS:
        yield name, lambda name=name: _case(name, (tokens(2, 8),), {})
    for name in _DECODERS:
        options = {"attention_types": [[["global", "local"], 1]], "num_layers": 2} if name.startswith("GPTNeo") else {}
        yield name, lambda name=name, options=options: _case(name, (tokens(2, 8),), options)
    for name in _BOTH:
        yield name, lambda name=name: _case(name, (tokens(2, 8), tokens(2, 6)), {}, ("input_ids", "decoder_input_ids"))
    for name, options in _VISION.items():
        size = 32 if "Net" in name else 16
        yield name, lambda name=name, options=options, size=size: _case(name, (values(1, 2, 3, size, size),), options)
    big = {"attention_type": "block_sparse", "max_position_embeddings": 64}
    yield "BigBirdModel", lambda: _case("BigBirdModel", (tokens(1, 48),), big)
    yield "BigBirdModel, full", lambda: _case("BigBirdModel", (tokens(2, 8),), {"attention_type": "original_full"})
    names = "input_ids", "pixel_values"
    yield "CLIPModel", lambda: _case("CLIPModel", (tokens(2, 8), values(2, 2, 3, 16, 16)), {}, names)
    names = "input_features", "decoder_input_ids"
    yield "WhisperModel", lambda: _case("WhisperModel", (values(3, 1, 8, 40), tokens(1, 6)), {}, names)
    wave = {"conv_dim": [16, 16], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2, "do_stable_layer_norm": True, "feat_extract_norm": "layer"}  # fmt: skip
    yield "Wav2Vec2Model", lambda: _case("Wav2Vec2Model", (values(4, 1, 200),), wave)
