#!/usr/bin/env bash
# Trains the cascade that ships, stage by stage; started again, it goes on.
#
#   launch/train_demo.sh [WORKDIR] [FLAG...]      default: out/train_demo
#
# Flags go to every stage. On a GPU with cores beside it:
#   launch/train_demo.sh out/train_demo --config.model.dtype=bfloat16 \
#     --config.data.workers=12 --config.data.threads=1
# docs/model_card.md says what this took and what it reached.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:-out/train_demo}"
shift || true
more=("$@")
python="${PYTHON:-python}"

train() { # STAGE FROM
  local flags=(--config="configs/shipped.py:$1" --workdir="$out/$1")
  [ "$1" = t2i ] || flags+=(--config.text.weights="$out/t2i")
  [ -z "$2" ] || flags+=(--config.init_from="$out/$2")
  # Stopped by a signal a run ends well, and the next stage would begin.
  launch/until_done.sh "$python" -m lumiere_jax.main "${flags[@]}" "${more[@]}"
}

train t2i ""
train base t2i
train base_long base
train conditional base_long
train ssr_image ""
train ssr ssr_image
"$python" -m lumiere_jax.convert --from=workdir --half \
  --src="$out/conditional" --src="$out/ssr" --out="$out/bundle"
