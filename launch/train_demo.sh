#!/usr/bin/env bash
# Trains the shipped cascade; a second run resumes.
#
#   launch/train_demo.sh [--out=out/train_demo] [--budget_minutes=30] [--warm] \
#     [-- FLAG...]
#
# On a GPU with 16 CPU cores:
#   launch/train_demo.sh --warm -- --config.execution.dtype=bfloat16 \
#     --config.data.workers=8
# docs/model_card.md has the time it took and the scores.
cd "$(dirname "$0")/.." && exec "${PYTHON:-python}" -m launch.train_demo "$@"
