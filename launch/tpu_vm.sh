#!/usr/bin/env bash
# Trains on Cloud TPU VMs, with queued resources.
#
# launch/tpu_vm.sh COMMAND [OPTIONS] [-- ARGS OF lumiere_jax.main]
#
#   create   request the TPU and wait until it is ready
#   setup    copy this checkout (as committed) to all its hosts, and install
#   run      train on all hosts, and show the log of the first until it ends
#   follow   show that log for a running run
#   watch    all of these; after a preemption, again from `create` on
#   status   the state of the request
#   ssh      a shell on the first host
#   delete   delete the TPU
#
#   --name=lumiere --zone=us-east5-a --type=v5p-128 --version=v2-alpha-tpuv5
#   --project=...  default: gcloud's own
#   --bucket=NAME  Cloud Storage bucket to mount as /mnt/run on all hosts
#   --spot         cheaper, but preemptible
#   --repo=URL     clone this instead of copying the checkout
#   --poll=30      seconds between checks of the state
#   --dry_run      print every command, run none
#
# launch/tpu_vm.sh watch --spot --type=v5p-128 --bucket=NAME -- \
#   --config=configs/base.py --workdir=/mnt/run/base \
#   --config.init_from=/mnt/run/t2i
#
# --workdir must be a persistent folder shared by all hosts: a run that is
# restarted with it resumes.
set -euo pipefail
cd "$(dirname "$0")/.."

name=lumiere zone=us-east5-a type=v5p-128 version=v2-alpha-tpuv5
project='' bucket='' spot='' repo='' poll=30 dry='' arguments=()

fail() {
  echo "error: $*" >&2
  exit 2
}

command=${1:-}
[[ $command ]] || fail "no command; see the head of launch/tpu_vm.sh"
shift
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --bucket=*) bucket=${1#*=} ;;
    --repo=*) repo=${1#*=} ;;
    --poll=*) poll=${1#*=} ;;
    --spot) spot=1 ;;
    --dry_run) dry=1 ;;
    --)
      shift
      arguments=("$@")
      break
      ;;
    *) fail "$1 is no option; arguments of the trainer come after --" ;;
  esac
  shift
done

[[ ! $bucket || $bucket =~ ^[a-z0-9][-._a-z0-9]*$ ]] ||
  fail "--bucket=$bucket is no name of a bucket; give it without gs://"
if [[ $command == run || $command == watch ]]; then
  # Checked before the TPU is requested.
  [[ ! $bucket || " ${arguments[*]}" =~ \ --workdir[=\ ]/mnt/run/. ]] ||
    fail "--workdir must be in /mnt/run, where --bucket=$bucket is mounted"
  [[ ! " ${arguments[*]}" =~ \ --workdir[=\ ][^\ ]*:// ]] ||
    fail "--workdir must be a folder; give --bucket=NAME and one in /mnt/run"
fi

# The command that mounts it on a host, in the checkout.
mount=${bucket:+"bash launch/mount_bucket.sh $bucket /mnt/run && "}
where=("--zone=$zone")
[[ $project ]] && where+=("--project=$project")

call() { # runs a command, or prints it in a dry run
  if [[ $dry ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

queue() {
  call gcloud compute tpus queued-resources "$1" "$name" "${where[@]}" "${@:2}"
}

on() { # on WORKER COMMAND
  call gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" \
    "--command=$2"
}

state() {
  queue describe '--format=value(state.state)'
}

create() {
  local options=("--node-id=$name" "--accelerator-type=$type")
  options+=("--runtime-version=$version")
  [[ $spot ]] && options+=(--spot)
  if [[ $dry ]] || ! state >/dev/null 2>&1; then # else it exists already
    queue create "${options[@]}" || exit
  fi
  wait_for_it
}

wait_for_it() {
  local now
  while true; do
    now=$(state)
    if [[ $dry ]]; then
      echo "$now"
      return
    fi
    echo "$(date +%T) $name: $now" >&2
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPEND* | DELETING) return 1 ;;
    esac
    sleep "$poll"
  done
}

setup() {
  local archive=lumiere.tar.gz get
  get="git clone --depth=1 $(printf %q "$repo") lumiere"
  if [[ ! $repo ]]; then
    call git archive --format=tar.gz "--output=/tmp/$archive" HEAD || return
    call gcloud compute tpus tpu-vm scp "/tmp/$archive" "$name:$archive" \
      "${where[@]}" --worker=all || return
    get="mkdir lumiere && tar -xzf $archive -C lumiere"
  fi
  # The image's Python may be older than 3.11; uv installs its own.
  on all "rm -rf lumiere && $get && cd lumiere && ${mount}\
curl -LsSf https://astral.sh/uv/install.sh | sh \
&& ~/.local/bin/uv venv --python=3.12 .venv \
&& ~/.local/bin/uv pip install -r requirements.txt 'jax[tpu]' gcsfs"
}

# The run does not depend on the connection: it runs in the background, and its
# log is followed. A host loses its mount when it restarts.
run() {
  local line
  line=$(printf '%q ' .venv/bin/python -m lumiere_jax.main "${arguments[@]}")
  on all "cd lumiere && ${mount}rm -f run.code && { \
nohup bash -c $(printf %q "bash launch/until_done.sh $line; echo \$? >run.code") \
>run.log 2>&1 </dev/null & echo \$! >run.pid; }" || return
  follow
}

follow() {
  local code
  while true; do
    code=0
    on 0 "cd lumiere && tail -n +1 -F --pid=\$(cat run.pid) run.log; \
exit \$(cat run.code)" || code=$?
    # 255 is an error of ssh itself.
    if [[ $dry || $code -ne 255 || $(state) != ACTIVE ]]; then
      return "$code"
    fi
    sleep "$poll"
  done
}

attempt() {
  create || return
  if [[ ! $dry ]] && on 0 "xargs kill -0 <lumiere/run.pid" 2>/dev/null; then
    follow # this script was interrupted, the run was not
  else
    setup && run
  fi
}

watch() {
  local code
  while true; do
    code=0
    attempt || code=$?
    [[ $dry ]] && return
    sleep "$poll" # the preempted state appears a little later
    if [[ $(state) == ACTIVE ]]; then
      [[ $code -eq 143 ]] || return "$code" # 143: stopped by SIGTERM
    else
      echo "$(date +%T) $name is gone; retrying" >&2
      queue delete --force --quiet || true
    fi
  done
}

case $command in
  create | setup | run | follow | watch) "$command" ;;
  status) state ;;
  ssh) call gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=0 ;;
  delete) queue delete --force --quiet ;;
  *) fail "$command is no command; see the head of launch/tpu_vm.sh" ;;
esac
