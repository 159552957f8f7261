"""Generates videos with the exported sampler in this folder.

python call.py --prompt="a small red circle moves left" --seed=1 --out=x.npy

Requires jax, numpy, safetensors and sentencepiece only. --out is .npy (uint8,
frames x height x width x 3), or .gif if Pillow is installed. signature.json
lists the inputs. If its "cleaning" is "lower" or "if", captions are stripped
and lower-cased; of "if", the removal of links, file names etc. is left to you.
"""

import argparse
import json
import pathlib
import sys

from jax import export
import numpy as np
import safetensors.numpy
import sentencepiece

HERE = pathlib.Path(__file__).parent
PAD, EOS = 0, 1


def load(folder=HERE):
  """The sampler, its weights, tokenizer and signature."""
  sampler = export.deserialize((folder / "sampler.stablehlo").read_bytes())
  weights = safetensors.numpy.load_file(folder / "weights.safetensors")
  pieces = sentencepiece.SentencePieceProcessor(
    model_file=str(folder / "tokenizer.model")
  )
  signature = json.loads((folder / "signature.json").read_text())
  return sampler, weights, pieces, signature


def tokenize(pieces, captions, length, cleaning="none"):
  """Tokens and mask, (captions, length): ending in 1, padded with 0."""
  tokens = np.full((len(captions), length), PAD, np.int32)
  mask = np.zeros(tokens.shape, bool)
  for row, caption in enumerate(captions):
    if cleaning != "none":
      caption = caption.strip().lower()
    ids = [*pieces.encode(caption)[: length - 1], EOS]
    tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
  return tokens, mask


def make(prompts, seeds, negative_prompt="", scales=None, folder=HERE):
  """Videos (b, t, h, w, 3) in about [-1, 1], one per prompt and seed."""
  sampler, weights, pieces, signature = load(folder)
  batch, length = signature["inputs"]["tokens"]["shape"]
  if not len(prompts) == len(seeds) == batch:
    raise SystemExit(f"this sampler takes {batch} prompts and seeds at once")
  encode = lambda captions: tokenize(
    pieces, captions, length, signature["cleaning"]
  )
  if scales is None:
    scales = signature["guidance_scale"], signature["ssr_guidance_scale"]
  if negative_prompt.strip() and all(scale == 1 for scale in scales):
    print(
      "notice: at guidance 1 the negative prompt changes nothing, unless the "
      "sampler was exported with oscillating guidance",
      file=sys.stderr,
    )
  tokens, mask = encode(prompts)
  negative_tokens, negative_mask = encode([negative_prompt] * batch)
  inputs = {
    "tokens": tokens,
    "mask": mask,
    "negative_tokens": negative_tokens,
    "negative_mask": negative_mask,
    "negative": np.bool_(negative_prompt.strip() != ""),
    "seeds": np.asarray(seeds, np.uint32),
    "guidance_scale": np.asarray(scales, np.float32),
  }
  return np.asarray(sampler.call(weights, inputs))


def main():
  """Parses flags, generates the videos and writes them."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--prompt", action="append", required=True)
  parser.add_argument("--negative_prompt", default="")
  parser.add_argument("--seed", action="append", type=int)
  parser.add_argument("--out", default="video.npy")
  args = parser.parse_args()
  seeds = args.seed or list(range(len(args.prompt)))
  made = make(args.prompt, seeds, args.negative_prompt)
  pixels = np.uint8(np.round((np.clip(made, -1, 1) + 1) * 127.5))
  if args.out.endswith(".gif"):
    from PIL import Image

    frames = [Image.fromarray(frame) for frame in pixels[0]]
    fps = json.loads((HERE / "signature.json").read_text())["fps"]
    frames[0].save(
      args.out, save_all=True, append_images=frames[1:], duration=1000 / fps
    )
  else:
    np.save(args.out, pixels)
  print(args.out, "x".join(map(str, pixels.shape)))


if __name__ == "__main__":
  main()
