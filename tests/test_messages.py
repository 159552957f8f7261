from lumiere_jax.errors import notice


def test_one_line_on_stderr(capsys):
  notice("--mask=x.png is 4x4,\n  made 8x8")
  out, err = capsys.readouterr()
  assert (out, err) == ("", "notice: --mask=x.png is 4x4, made 8x8\n")
