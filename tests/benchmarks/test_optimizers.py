"""The comparison of optimizers, with a stand-in for training."""

import json
import xml.etree.ElementTree

from benchmarks import optimizers
from lumiere_jax.training.metric_logger import JsonLines


def test_every_optimizer_is_trained_and_drawn(tmp_path, monkeypatch, capsys):
  trained = []

  def train(experiment, workdir):
    trained.append(experiment.train)
    workdir.mkdir(parents=True)
    log = lambda name, **record: JsonLines(workdir / f"{name}.jsonl").append(
      record
    )
    log("runs", parameters={"trainable": 5, "frozen": 0})
    for step in (0, 5, 10):
      log("held_out", step=step, loss=1 / (1 + step))
      log("metrics", step=step, loss=1.0)

  monkeypatch.setattr(optimizers, "train", train)
  optimizers.compare(tmp_path, clips=160, batch_size=16, frames=16)
  assert [c.optimizer for c in trained] == ["adam", "muon", "schedule_free"]
  assert {c.steps for c in trained} == {10}
  found = json.loads((tmp_path / "optimizers.json").read_text())
  assert found["held_out"]["muon"] == [[0, 1.0], [80, 1 / 6], [160, 1 / 11]]
  picture = xml.etree.ElementTree.parse(tmp_path / "optimizers.svg")
  lines = picture.findall(".//{http://www.w3.org/2000/svg}polyline")
  assert [len(x.get("points").split()) for x in lines] == [3, 3, 3]
  assert "| 80 | 0.1667 | 0.1667 | 0.1667 |" in capsys.readouterr().out
