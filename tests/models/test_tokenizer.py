"""The tokenizer: ids, truncation, training, and T5's own model."""

import json
import warnings

import numpy as np
import pytest
import sentencepiece

from launch import tokenizer_corpus
from lumiere_jax.errors import UserError
from lumiere_jax.models.tokenizer import (
  Tokenizer,
  default_tokenizer_path,
  train_tokenizer,
)
from tests.references import t5
from tests.references.strings import mixed_strings

TOKENS = json.loads((t5.FOLDER / "tokens.json").read_text(encoding="utf-8"))


def _builtin(max_length=32):
  return Tokenizer(default_tokenizer_path(), max_length)


def test_ids_end_in_eos_and_are_padded_with_zero():
  tokens, mask = _builtin(8).encode(["a red circle", "", "a"])
  assert tokens.shape == mask.shape == (3, 8)
  assert tokens.dtype == np.int32
  assert mask.dtype == bool
  assert mask.sum(axis=1).tolist() == [4, 1, 2]
  for row, real in zip(tokens, mask, strict=True):
    count = real.sum()
    assert real.tolist() == [True] * count + [False] * (8 - count)
    assert row[count - 1] == 1
    assert (row[count:] == 0).all()
    assert (row[: count - 1] > 2).all()


def test_decode_inverts_encode():
  texts = ["a red circle moves left.", "", "Grüße, 世界! 🙂", "4k"]
  tokenizer = _builtin(64)
  tokens, _ = tokenizer.encode(texts)
  assert tokenizer.decode(tokens) == texts
  assert (tokens != 2).all()  # Bytes stand in where a piece is missing.
  assert tokens.max() < tokenizer.vocab_size


def test_normalisation_is_that_of_t5():
  tokens, _ = _builtin().encode(["a ﬁsh", "a fish", "  a \t fish\n", "A fish"])
  assert (tokens[0] == tokens[1]).all()
  assert (tokens[0] == tokens[2]).all()
  assert (tokens[0] != tokens[3]).any()


def test_truncation_warns_and_shows_the_rest():
  tokenizer = _builtin(5)
  text = "a red circle moves left slowly"
  with pytest.warns(UserWarning, match=r'only 5 tokens.*"left slowly"'):
    tokens, mask = tokenizer.encode(["a dog", text])
  assert mask[1].all()
  assert tokens[1, -1] == 1
  assert tokenizer.decode(tokens) == ["a dog", "a red circle moves"]


def test_text_that_just_fits_is_not_truncated():
  tokenizer = _builtin(5)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    tokens, mask = tokenizer.encode(["a red circle moves"])
  assert mask.all()
  assert tokens[0, -1] == 1


def test_lone_surrogates_are_plain_text():
  tokenizer = _builtin(16)
  assert tokenizer.decode(tokenizer.encode(["a\ud83d dog"])[0]) == ["a? dog"]


genuine = pytest.mark.skipif(
  not t5.SPIECE.exists(), reason="T5's tokenizer not at hand"
)


@pytest.mark.parametrize(
  ("path", "less_than"),
  [
    (default_tokenizer_path(), "<"),
    # T5 has no piece for it: an unknown one, not an end, takes its place.
    pytest.param(t5.SPIECE, " ⁇ ", marks=genuine),
  ],
  ids=["built-in", "T5"],
)
@pytest.mark.parametrize(
  "special", ["</s>", "<pad>", "<unk>", "<s>", "<extra_id_0>", "<0x41>"]
)
def test_spellings_of_special_tokens_are_plain_text(path, less_than, special):
  tokenizer = Tokenizer(path, 40)
  for text in (special, f"a dog {special} in the rain", f"a{special}b"):
    tokens, mask = tokenizer.encode([text])
    ids = tokens[mask].tolist()
    assert ids.index(1) == len(ids) - 1  # No text can end itself,
    assert 0 not in ids  # pad itself,
    assert max(ids) < tokenizer.vocab_size  # or name an id.
    assert tokenizer.decode(tokens) == [text.replace("<", less_than)]


def test_one_text_instead_of_a_sequence_is_an_error():
  with pytest.raises(TypeError, match="sequence"):
    _builtin().encode("a red circle")


def test_common_words_are_single_pieces():
  tokens, mask = _builtin(16).encode(sorted(tokenizer_corpus.words()))
  assert set(mask.sum(axis=1)) == {2}
  assert len(np.unique(tokens[:, 0])) == len(tokens) > 500
  caption = "a person signs the word brother in sign language"
  assert _builtin().encode([caption])[1].sum() == len(caption.split()) + 1


def test_builtin_model_is_of_the_t5_kind():
  model = sentencepiece.SentencePieceProcessor(
    model_file=str(default_tokenizer_path())
  )
  specials = model.pad_id(), model.eos_id(), model.unk_id(), model.bos_id()
  assert specials == (0, 1, 2, -1)
  assert model.vocab_size() == _builtin().vocab_size == 1024


def test_bytes_and_hash_go_with_the_file(tmp_path):
  tokenizer = _builtin()
  copy = tmp_path / "copy.model"
  copy.write_bytes(tokenizer.to_bytes())
  assert Tokenizer(copy, 8).sha256 == tokenizer.sha256
  train_tokenizer(["a red circle", "a blue square"], copy, 300)
  assert Tokenizer(copy, 8).sha256 != tokenizer.sha256


def test_training_is_deterministic_and_quiet(tmp_path, capfd):
  captions = tokenizer_corpus.sentences(rounds=4)
  assert captions == tokenizer_corpus.sentences(rounds=4)
  for name in "ab":
    train_tokenizer(captions, tmp_path / name, 600)
  assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
  assert Tokenizer(tmp_path / "a", 8).vocab_size == 600
  assert capfd.readouterr() == ("", "")


def test_training_on_little_text_gives_fewer_pieces(tmp_path):
  train_tokenizer(["ab", "ba", " "], tmp_path / "m", 1000)
  tokenizer = Tokenizer(tmp_path / "m", 8)
  assert 256 < tokenizer.vocab_size < 300
  assert tokenizer.decode(tokenizer.encode(["ab z"])[0]) == ["ab z"]


def test_training_errors(tmp_path):
  with pytest.raises(UserError, match="captions: all are empty"):
    train_tokenizer(["", "  "], tmp_path / "m", 1000)
  with pytest.raises(UserError, match="vocab_size=100"):
    train_tokenizer(["a red circle"], tmp_path / "m", 100)
  assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("content", [None, b"", b"not a model", b"\x00" * 100])
def test_files_that_are_not_models_are_refused(tmp_path, content):
  path = tmp_path / "x.model"
  if content is not None:
    path.write_bytes(content)
  words = "cannot read" if content is None else "not a sentencepiece model"
  with pytest.raises(UserError, match=words) as error:
    Tokenizer(path, 8)
  assert error.value.field == f"{path}:"


def test_other_special_ids_and_lengths_are_refused(tmp_path):
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["a red circle"]),
    model_prefix=str(tmp_path / "bert"),
    vocab_size=300,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  with pytest.raises(UserError, match="pad id -1 and eos id 2"):
    Tokenizer(tmp_path / "bert.model", 8)
  with pytest.raises(UserError, match="max_length=0"):
    _builtin(0)


@genuine
def test_t5_model_gives_t5_ids():
  tokens, mask = Tokenizer(t5.SPIECE, 6).encode(["Hello world", ""])
  assert tokens.tolist() == [[8774, 296, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
  assert mask.sum(axis=1).tolist() == [3, 1]


@genuine
def test_ids_equal_transformers():
  tokenizer = Tokenizer(t5.SPIECE, 64)
  for text, ids in TOKENS["texts"].items():
    tokens, mask = tokenizer.encode([text])
    assert tokens[mask].tolist() == ids, text


@genuine
def test_ids_of_many_scripts_equal_transformers():
  strings = mixed_strings(t5.STRINGS, TOKENS["seed"])
  assert t5.digest(strings) == TOKENS["strings"]
  tokens, mask = Tokenizer(t5.SPIECE, 64).encode(strings)
  ids = [row[real].tolist() for row, real in zip(tokens, mask, strict=True)]
  assert t5.digest(ids) == TOKENS["ids"]
