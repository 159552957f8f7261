#!/usr/bin/env bash
#SBATCH --job-name=lumiere
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
#SBATCH --signal=B:TERM@120
#
# Trains under SLURM, one process per node with all its accelerators.
#
# launch/slurm.sh [--dry_run] [OPTIONS OF sbatch] -- ARGS OF lumiere_jax.main
#
# launch/slurm.sh --nodes=4 --gpus-per-node=8 --time=24:00:00 -- \
#   --config=configs/base.py --workdir=/shared/base
#
# Run from the checkout, in a folder that all nodes share. Two minutes before
# the time limit the run saves; the job is then requeued, and resumes. The same
# happens when SLURM preempts and requeues it. PYTHON sets the interpreter, by
# default .venv/bin/python.
set -euo pipefail

python=${PYTHON:-.venv/bin/python}

if [[ -z ${SLURM_JOB_ID:-} ]]; then # submit
  dry='' options=()
  while (($#)) && [[ $1 != -- ]]; do
    if [[ $1 == --dry_run ]]; then
      dry=1
    else
      options+=("$1")
    fi
    shift
  done
  if ! (($#)); then
    echo "error: arguments of the trainer are missing; give them after --" >&2
    exit 2
  fi
  # In a dry run, prints what the job will run; sbatch copies this script.
  step=(bash launch/until_done.sh srun "$python" -m lumiere_jax.main "${@:2}")
  command=(sbatch "${options[@]}" "$0" "$@")
  if [[ $dry ]]; then
    printf '%q ' "${command[@]}"
    echo
    printf '%q ' "${step[@]}"
    echo
    exit
  fi
  exec "${command[@]}"
fi

[[ ${1:-} == -- ]] && shift
# SLURM signals only this script (B:), which forwards the signal through srun.
trap 'kill -TERM "$!" 2>/dev/null' TERM
code=0
bash launch/until_done.sh srun "$python" -m lumiere_jax.main "$@" &
child=$!
wait "$child" || code=$?
while kill -0 "$child" 2>/dev/null; do
  code=0
  wait "$child" || code=$?
done
if [[ $code -eq 143 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
