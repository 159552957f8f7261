"""Sentencepiece tokenizers as T5 uses them."""

from collections.abc import Iterable, Sequence
import hashlib
import io
import os
import pathlib
import warnings

from jaxtyping import Bool, Int
import numpy as np
import sentencepiece

from lumiere_jax.errors import UserError, foreign_errors
from lumiere_jax.storage.atomic import writing

PAD, EOS, UNK = 0, 1, 2
_SHOWN = 80  # Characters shown from each end of truncated text.


def default_tokenizer_path() -> pathlib.Path:
  """The built-in model: 1024 pieces, for simple English scene captions."""
  return pathlib.Path(__file__).parent / "assets" / "tokenizer.model"


class Tokenizer:
  """A sentencepiece model with T5's special ids: pad 0, eos 1."""

  def __init__(self, model_path: str | os.PathLike, max_length: int):
    """Loads a model file; `max_length` tokens include the final eos."""
    self.path = pathlib.Path(model_path)
    self.max_length = max_length
    if max_length < 1:
      raise UserError(f"max_length={max_length}", "must be at least 1")
    try:
      self._bytes = self.path.read_bytes()
    except OSError as error:
      raise UserError(
        f"{self.path}:",
        f"cannot read the tokenizer ({error.strerror})",
        "check the path",
      ) from error
    self._model = _parse(self._bytes, self.path)

  @property
  def vocab_size(self) -> int:
    """The number of pieces: every id is below it."""
    return self._model.vocab_size()

  @property
  def sha256(self) -> str:
    """SHA-256 (hex) of the model's bytes."""
    return hashlib.sha256(self._bytes).hexdigest()

  def to_bytes(self) -> bytes:
    """The content of the model file."""
    return self._bytes

  def encode(
    self, texts: Sequence[str]
  ) -> tuple[Int[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
    """Token ids of each text, ending in eos and padded with 0.

    Texts longer than `max_length` are truncated, with a UserWarning that shows
    the omitted part. The mask is True for real tokens.
    """
    if isinstance(texts, str):
      raise TypeError("encode takes a sequence of texts, not one text")
    tokens = np.full((len(texts), self.max_length), PAD, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i, text in enumerate(texts):
      kept, lost = self._split(text)
      if lost:
        warnings.warn(
          f"only {self.max_length} tokens of a text are read; left out: "
          f'"{_shorten(lost)}"',
          stacklevel=2,
        )
      tokens[i, : len(kept)] = kept
      mask[i, : len(kept)] = True
    return tokens, mask

  def decode(self, tokens: Int[np.ndarray, "b l"]) -> list[str]:
    """The texts of rows of ids, up to eos."""
    texts = []
    for row in np.asarray(tokens).tolist():
      ids = row[: row.index(EOS)] if EOS in row else row
      texts.append(self._model.decode([i for i in ids if i != PAD]))
    return texts

  def _split(self, text: str) -> tuple[list[int], str]:
    # Lone surrogates, which JSON allows, have no UTF-8 form.
    ids = self._model.encode(text.encode(errors="replace").decode())
    room = self.max_length - 1
    return [*ids[:room], EOS], self._model.decode(ids[room:])


def train_tokenizer(
  captions: Iterable[str], path: str | os.PathLike, vocab_size: int
) -> None:
  """Trains a T5-style model, deterministically, and writes it to `path`.

  As T5's: a unigram model, NFKC normalisation, pad 0, eos 1, unk 2. Unlike
  T5's, it encodes unknown characters as bytes, so that decoding is lossless.

  `vocab_size` is the largest number of pieces, including 256 single bytes; a
  small corpus gives fewer.
  """
  captions = [c for c in captions if c.strip()]
  if not captions:
    raise UserError(
      "captions:", "all are empty", "give texts to train a tokenizer on"
    )
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(captions),
      model_writer=model,
      model_type="unigram",
      vocab_size=vocab_size,
      hard_vocab_limit=False,
      character_coverage=1.0,
      byte_fallback=True,
      normalization_rule_name="nmt_nfkc",
      pad_id=PAD,
      eos_id=EOS,
      unk_id=UNK,
      bos_id=-1,
      shuffle_input_sentence=False,
      num_threads=1,
      minloglevel=2,
    )
  except RuntimeError as error:
    raise UserError(
      f"vocab_size={vocab_size}",
      f"does not suit these {len(captions)} captions ({error})",
      "increase it",
    ) from error
  with writing(path) as file:
    file.write(model.getvalue())


def _parse(
  content: bytes, path: pathlib.Path
) -> sentencepiece.SentencePieceProcessor:
  wrong = lambda reason: UserError(
    f"{path}:",
    "not a sentencepiece model",
    "give T5's spiece.model or one trained by train_tokenizer",
  )
  with foreign_errors(wrong):
    # An empty file would parse, into a model without even an unknown piece.
    model = sentencepiece.SentencePieceProcessor(model_proto=content or b"?")
  if (model.pad_id(), model.eos_id()) != (PAD, EOS):
    raise UserError(
      f"{path}:",
      f"has pad id {model.pad_id()} and eos id {model.eos_id()}, not 0 and 1",
      "give a T5 tokenizer",
    )
  return model


def _shorten(text: str) -> str:
  """Both ends of a text, on one line."""
  text = " ".join(text.split())
  if len(text) <= 2 * _SHOWN:
    return text
  return f"{text[:_SHOWN]} [...] {text[-_SHOWN:]}"
