"""T5 encoder weights from Hugging Face files.

The decoder and output head of a full T5 are ignored.
"""

from collections.abc import Mapping
import os
from pathlib import Path
from typing import Any

import numpy as np

from lumiere_jax.errors import UserError, build
from lumiere_jax.models.importers.hf_checkpoint import (
  check_known,
  check_tensors,
  open_weights,
  read_json,
)
from lumiere_jax.models.t5 import T5Config, abstract_params
from lumiere_jax.storage.safetensors import LazyArray

_EMBEDDING = ("shared.weight", "encoder.embed_tokens.weight")

_LEAVES = {
  "attention/query/kernel": "layer.0.SelfAttention.q.weight",
  "attention/key/kernel": "layer.0.SelfAttention.k.weight",
  "attention/value/kernel": "layer.0.SelfAttention.v.weight",
  "attention/out/kernel": "layer.0.SelfAttention.o.weight",
  "pre_attention_layer_norm/scale": "layer.0.layer_norm.weight",
  "mlp/wi_0/kernel": "layer.1.DenseReluDense.wi_0.weight",
  "mlp/wi_1/kernel": "layer.1.DenseReluDense.wi_1.weight",
  "mlp/wo/kernel": "layer.1.DenseReluDense.wo.weight",
  "pre_mlp_layer_norm/scale": "layer.1.layer_norm.weight",
}

_TOP_LEVEL = {
  "token_embedder": _EMBEDDING[0],
  "relpos_bias": (
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
  ),
  "encoder_norm": "encoder.final_layer_norm.weight",
}

_CONFIG_KEYS = {
  "vocab_size": "vocab_size",
  "d_model": "d_model",
  "d_ff": "d_ff",
  "num_heads": "num_heads",
  "d_kv": "d_kv",
  "num_layers": "num_layers",
  "relative_attention_num_buckets": "num_buckets",
  "relative_attention_max_distance": "max_distance",
}


# Other values change the features; the first one is the default.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
  "model_type": ("t5", "mt5"),
  "feed_forward_proj": ("gated-gelu",),
  "dense_act_fn": ("gelu_new",),
  "is_gated_act": (True,),
  "is_decoder": (False,),
  "layer_norm_epsilon": (1e-6,),
  "chunk_size_feed_forward": (0,),
  "pruned_heads": ({},),
}

# Keys without effect on an encoder's features: the decoder, generation,
# training, and what the transformers library returns.
_IGNORED = {
  *("num_decoder_layers", "tie_word_embeddings", "tie_encoder_decoder"),
  *("is_encoder_decoder", "add_cross_attention", "scale_decoder_outputs"),
  *("cross_attention_hidden_size", "decoder_start_token_id", "use_cache"),
  *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id"),
  *("dropout_rate", "classifier_dropout", "initializer_factor"),
  *("gradient_checkpointing", "output_past", "n_positions", "tokenizer_class"),
  *("architectures", "torch_dtype", "dtype", "transformers_version"),
  *("output_attentions", "output_hidden_states", "return_dict", "torchscript"),
  *("use_bfloat16", "tf_legacy_loss", "finetuning_task", "problem_type"),
  *("id2label", "label2id", "num_labels", "task_specific_params", "prefix"),
  *("max_length", "min_length", "do_sample", "early_stopping", "num_beams"),
  *("num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p"),
  *("typical_p", "repetition_penalty", "length_penalty", "bad_words_ids"),
  *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "output_scores"),
  *("num_return_sequences", "return_dict_in_generate", "forced_bos_token_id"),
  *("forced_eos_token_id", "remove_invalid_values", "suppress_tokens"),
  *("begin_suppress_tokens", "exponential_decay_length_penalty"),
  *("max_new_tokens", "generation_config", "attn_implementation"),
}


def open_hf(
  source: str | os.PathLike, dtype: str = "float32"
) -> tuple[T5Config, dict[str, LazyArray]]:
  """Opens a folder or file of safetensors with config.json; see `open_t5`.

  The files are model.safetensors, or shards with model.safetensors.index.json.
  """
  source = Path(source)
  if not source.exists():
    raise UserError(f"{source}:", "no such file or folder", "check the path")
  folder = source if source.is_dir() else source.parent
  config = _read_config(folder / "config.json", dtype)
  tensors = open_weights(source, "model", keep=_is_encoder)
  return config, lazy_leaves(tensors, config, str(source))


def lazy_leaves(
  tensors: Mapping[str, Any], config: T5Config, source: str
) -> dict[str, LazyArray]:
  """The leaves of `T5Encoder(config)`, read from `tensors` on access.

  Matrices are transposed from (out, in) to (in, out) and cast to the dtypes of
  the config. Tensors outside the encoder (decoder, head) are ignored.
  """
  kept = {name: x for name, x in tensors.items() if _is_encoder(name)}
  alias = kept.pop(_EMBEDDING[1], None)
  if alias is not None:
    kept.setdefault(_EMBEDDING[0], alias)
  leaves = abstract_params(config)
  expected = {
    hf_name(path): leaf.shape[::-1] if is_transposed(path) else leaf.shape
    for path, leaf in leaves.items()
  }
  check_tensors(
    kept,
    expected,
    source,
    "give the T5 v1.1 encoder that its config describes (d_model "
    f"{config.d_model}, {config.num_layers} layers)",
  )

  def leaf(path: str) -> LazyArray:
    tensor, spec = kept[hf_name(path)], leaves[path]

    def make() -> np.ndarray:
      value = np.asarray(tensor).astype(spec.dtype, copy=False)
      return value.T if is_transposed(path) else value

    return LazyArray(spec.shape, spec.dtype, make)

  return {path: leaf(path) for path in leaves}


def hf_name(path: str) -> str:
  """The tensor of a leaf."""
  module, _, leaf = path.partition("/")
  if module.startswith("layers_"):
    return f"encoder.block.{module.removeprefix('layers_')}.{_LEAVES[leaf]}"
  return _TOP_LEVEL[module]


def is_transposed(path: str) -> bool:
  """Whether the tensor of a leaf is its transpose."""
  return path.endswith(("/kernel", "/rel_embedding"))


def _is_encoder(name: str) -> bool:
  return name in _EMBEDDING or name.startswith("encoder.")


def _read_config(path: Path, dtype: str) -> T5Config:
  content = read_json(path)
  content = {"feed_forward_proj": "relu", **content}
  for key, supported in _SUPPORTED.items():
    if (value := content.get(key, supported[0])) not in supported:
      raise UserError(
        f"{path}:",
        f"{key} is {value!r}",
        "give a T5 v1.1 encoder, which has "
        f"{' or '.join(map(repr, supported))}",
      )
  known = {*_CONFIG_KEYS, *_SUPPORTED, *_IGNORED}
  check_known(content, known, str(path), "give a T5 v1.1 encoder")
  values = {o: content[hf] for hf, o in _CONFIG_KEYS.items() if hf in content}
  return build(T5Config, {**values, "dtype": dtype}, str(path))
