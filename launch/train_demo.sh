#!/usr/bin/env bash
# Trains the cascade that ships; started again, it goes on.
#
#   launch/train_demo.sh [--out=out/train_demo] [--budget_minutes=30] [--warm] \
#     [-- FLAG...]
#
# On a GPU with 16 cores beside it:
#   launch/train_demo.sh --warm -- --config.model.dtype=bfloat16 \
#     --config.data.workers=8
# docs/model_card.md says what this took and what it reached.
cd "$(dirname "$0")/.." && exec "${PYTHON:-python}" -m launch.train_demo "$@"
