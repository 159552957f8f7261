#!/usr/bin/env bash
# Trains the cascade that ships, stage by stage; started again, it goes on.
#
#   launch/train_shipped.sh [WORKDIR]      default: out/train_shipped
#
# Stages that are done are left as they are. docs/model_card.md says what this
# took and what it reached.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:-out/train_shipped}"
python="${PYTHON:-python}"

train() { # STAGE FROM
  local flags=(--config="configs/shipped.py:$1" --workdir="$out/$1")
  [ "$1" = t2i ] || flags+=(--config.text.weights="$out/t2i")
  [ -z "$2" ] || flags+=(--config.init_from="$out/$2")
  "$python" -m lumiere_jax.main "${flags[@]}"
}

train t2i ""
train base t2i
train base_long base
train conditional base_long
train ssr_image ""
train ssr ssr_image
"$python" -m lumiere_jax.convert --from=workdir --half \
  --src="$out/conditional" --src="$out/ssr" --out="$out/bundle"
