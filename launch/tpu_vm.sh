#!/usr/bin/env bash
# Trains on Cloud TPU VMs, through queued resources.
#
# launch/tpu_vm.sh COMMAND [OPTIONS] [-- ARGS OF lumiere_jax.main]
#
#   create   ask for the TPU and wait until it is there
#   setup    copy this checkout (as committed) to all its hosts, and install
#   run      train on all hosts, and show the log of the first until it ends
#   follow   that log, of a run under way
#   watch    all of these; where the TPU is preempted, again from `create` on
#   status   the state of the request
#   ssh      a shell on the first host
#   delete   give the TPU back
#
#   --name=lumiere --zone=us-east5-a --type=v5p-128 --version=v2-alpha-tpuv5
#   --project=...  default: gcloud's own
#   --bucket=NAME  of Cloud Storage; mounted as /mnt/run on all hosts
#   --spot         cheaper, and can be preempted
#   --repo=URL     clone this instead of copying the checkout
#   --poll=30      seconds between looks at the state
#   --dry_run      print every command, run none
#
# launch/tpu_vm.sh watch --spot --type=v5p-128 --bucket=NAME -- \
#   --config=configs/base.py --workdir=/mnt/run/base \
#   --config.init_from=/mnt/run/t2i
#
# --workdir must be one folder for all hosts that outlives them: a run that is
# started again with it goes on where it was.
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
  # Better said now than once the TPU is there.
  [[ ! $bucket || " ${arguments[*]}" =~ \ --workdir[=\ ]/mnt/run/. ]] ||
    fail "--workdir must be in /mnt/run, where --bucket=$bucket is mounted"
  [[ ! " ${arguments[*]}" =~ \ --workdir[=\ ][^\ ]*:// ]] ||
    fail "--workdir must be a folder; give --bucket=NAME and one in /mnt/run"
fi

# What mounts it on a host, in the checkout.
mount=${bucket:+"bash launch/mount_bucket.sh $bucket /mnt/run && "}
where=("--zone=$zone")
[[ $project ]] && where+=("--project=$project")

call() { # runs a command, or in a dry run prints it
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
  if [[ $dry ]] || ! state >/dev/null 2>&1; then # else it is there already
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
  # The image's Python may be older than 3.11; uv brings its own.
  on all "rm -rf lumiere && $get && cd lumiere && ${mount}\
curl -LsSf https://astral.sh/uv/install.sh | sh \
&& ~/.local/bin/uv venv --python=3.12 .venv \
&& ~/.local/bin/uv pip install -r requirements.txt 'jax[tpu]' gcsfs"
}

# The run does not hang on the connection: it goes on by itself, and is
# followed by its log. A host that was restarted has lost its mount.
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
    # 255 is what ssh says of its own troubles.
    if [[ $dry || $code -ne 255 || $(state) != ACTIVE ]]; then
      return "$code"
    fi
    sleep "$poll"
  done
}

attempt() {
  create || return
  if [[ ! $dry ]] && on 0 "xargs kill -0 <lumiere/run.pid" 2>/dev/null; then
    follow # this script was ended, the run was not
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
    sleep "$poll" # that it was preempted shows a little later
    if [[ $(state) == ACTIVE ]]; then
      [[ $code -eq 143 ]] || return "$code" # 143: only told to stop
    else
      echo "$(date +%T) $name is gone; once more" >&2
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
