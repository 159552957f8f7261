import json

import pytest

from lumiere_jax.errors import UserError
from lumiere_jax.inference.prompt_files import (
  PromptLine,
  check_options,
  read_prompt_file,
)


def write(path, text):
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  return path


def test_txt(tmp_path):
  text = '\n# a comment\na dog, "big"\r\n\n  犬 # runs \n  # another\na cat'
  path = write(tmp_path / "x.txt", text)
  lines = read_prompt_file(path)
  assert lines == [
    PromptLine(prompt=prompt, seed=None, options={})
    for prompt in ('a dog, "big"', "犬 # runs", "a cat")
  ]
  assert [line.where for line in lines] == [
    f"{path}, line {k}:" for k in (3, 5, 7)
  ]


def test_csv(tmp_path):
  path = write(
    tmp_path / "x.CSV",
    "steps, prompt ,seed,negative_prompt\r\n"
    '20,"a dog, ""big""",7,\r\n'
    "\r\n"
    ",,,\r\n"
    ',"# two\nlines",, blurry \r\n'
    "5,a cat,0,\r\n",
  )
  lines = read_prompt_file(str(path))
  assert lines == [
    PromptLine(prompt='a dog, "big"', seed=7, options={"steps": "20"}),
    PromptLine(prompt="# two\nlines", options={"negative_prompt": "blurry"}),
    PromptLine(prompt="a cat", seed=0, options={"steps": "5"}),
  ]
  assert [line.where for line in lines] == [
    f"{path}, line {k}:" for k in (2, 5, 7)
  ]


def test_jsonl(tmp_path):
  rows = [
    {"prompt": "a dog", "seed": 4294967295, "steps": 20, "rescale": 0.5},
    {"prompt": " a cat ", "seed": "3", "loop": True, "out": "x.gif"},
    {"seed": None, "steps": None, "sampler": "", "prompt": "犬", "k": False},
    {"prompt": "zeros", "seed": 0, "overlap": 0},
  ]
  text = "\n\n".join(map(json.dumps, rows))
  lines = read_prompt_file(write(tmp_path / "x.jsonl", text))
  assert lines == [
    PromptLine(
      prompt="a dog", seed=2**32 - 1, options={"steps": "20", "rescale": "0.5"}
    ),
    PromptLine(
      prompt="a cat", seed=3, options={"loop": "true", "out": "x.gif"}
    ),
    PromptLine(prompt="犬", options={"k": "false"}),
    PromptLine(prompt="zeros", seed=0, options={"overlap": "0"}),
  ]
  assert lines[1].where.endswith("x.jsonl, line 3:")


@pytest.mark.parametrize(
  ("ending", "text"),
  [("txt", "犬"), ("csv", "prompt\n犬"), ("jsonl", '{"prompt": "犬"}')],
)
def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path, ending, text):
  path = write(tmp_path / f"x.{ending}", text.encode("utf-8-sig"))
  assert read_prompt_file(path) == [PromptLine(prompt="犬")]


DOG = '{"prompt": "a dog"}\n'


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("x.txt", "", ": has no prompts"),
    ("x.txt", "\n# nothing\n", ": has no prompts"),
    ("x.csv", "", ": has no prompts"),
    ("x.csv", "prompt,seed\n", ": has no prompts"),
    ("x.jsonl", "\n", ": has no prompts"),
    ("x.txt", b"a\nb\xe9\n", r", line 2: not UTF-8 \(byte 0xe9\)"),
    ("x.csv", "prompt\na".encode("utf-16"), ", line 1: not UTF-8"),
    ("x.xlsx", "", r": prompts .* '\.xlsx'; known: \.txt, \.csv, \.jsonl"),
    ("x", "a dog", ": prompts cannot be read from files ending in ''"),
    ("x.csv", "text\na\n", ", line 1: no column 'prompt'; .* 'text'; write"),
    ("x.csv", "prompt;seed\na;1\n", ", line 1: .* are 'prompt;seed'"),
    ("x.csv", "\nprompt,prompt\na,b\n", ", line 2: .* none 'prompt'"),
    ("x.csv", "prompt,\na,\n", ", line 1: .* none ''"),
    ("x.csv", "prompt,seed\na,1\n,2\n", ", line 3: has no prompt"),
    ("x.csv", "prompt,seed\na dog, running,2\n", ", line 2: 3 cells for 2"),
    ("x.csv", "prompt,seed\n\na\n", ", line 3: 1 cells for 2"),
    ("x.csv", 'prompt\na\n"b\nc\n', r", line 3: not CSV \(unexpected end"),
    ("x.csv", 'prompt\n"b"c\n', r", line 2: not CSV \(',' expected"),
    ("x.csv", "prompt,seed\na,1.5\n", ", line 2: the seed is '1.5'; write"),
    ("x.csv", "prompt,seed\na,-1\n", ", line 2: the seed is '-1'"),
    ("x.csv", "prompt,seed\na,4294967296\n", ", line 2: the seed is '4294"),
    ("x.csv", f"prompt,seed\na,{'9' * 5000}\n", ", line 2: the seed is '9"),
    ("x.csv", "prompt,seed\na,two\n", ", line 2: the seed is 'two'"),
    ("x.jsonl", DOG + '{"seed": 1}', ", line 2: has no prompt"),
    ("x.jsonl", DOG + '{"prompt": " "}', ", line 2: has no prompt"),
    ("x.jsonl", '{"prompt": null}', ", line 1: has no prompt"),
    ("x.jsonl", '{"prompt": 5}', ", line 1: the prompt is 5; write a string"),
    ("x.jsonl", DOG + "{'prompt': 1}", r", line 2: not JSON \(Expecting"),
    ("x.jsonl", f'{{"seed": {"9" * 5000}}}', ", line 1: not JSON"),
    ("x.jsonl", "[" * 99999, ", line 1: not JSON"),
    ("x.jsonl", '{"prompt": ["a", "b"]}', ", line 1: the prompt is "),
    ("x.jsonl", DOG + "\n[1]", ", line 3: a list, not an object"),
    ("x.jsonl", '"a dog"', ", line 1: a str, not an object"),
    ("x.jsonl", '{"prompt": "a", "seed": 1.0}', "the seed is '1.0'"),
    ("x.jsonl", '{"prompt": "a", "seed": true}', "the seed is 'true'"),
    ("x.jsonl", '{"prompt": "a", "x": [1]}', r", line 1: 'x' is \[1\]"),
    ("x.jsonl", '{"prompt": "a", "x": {}}', ", line 1: 'x' is {}; write a"),
  ],
)
def test_refuses(tmp_path, name, text, message):
  path = write(tmp_path / name, text)
  with pytest.raises(UserError, match=f"{path}.*{message}") as caught:
    read_prompt_file(path)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gone.txt", "gone.csv", "folder.jsonl"])
def test_files_that_cannot_be_read(tmp_path, name):
  (tmp_path / "folder.jsonl").mkdir()
  with pytest.raises(UserError, match=f"{tmp_path / name}: cannot be read"):
    read_prompt_file(tmp_path / name)


def test_options_are_known(tmp_path):
  path = write(tmp_path / "x.csv", "prompt,steps,guidance\na,5,\nb,,7\n")
  lines = read_prompt_file(path)
  check_options(lines, ["steps", "guidance"])
  check_options(lines[:1], ["steps"])  # what is not given is not asked
  message = (
    r"x\.csv, line 3: unknown option 'guidance' "
    r'\(did you mean "guidance_scale"\?\); known: steps, guidance_scale$'
  )
  with pytest.raises(UserError, match=message):
    check_options(lines, ["steps", "guidance_scale"])
