#!/usr/bin/env bash
# Trains on a TPU slice in GKE, with launch/gke.yaml.
#
# launch/gke.sh --image=IMAGE --bucket=NAME [OPTIONS] \
#   -- ARGS OF lumiere_jax.main
#
# The Cloud Storage bucket is mounted as /mnt/run, where --workdir must be.
#
#   --name=lumiere
#   --accelerator=tpu-v5p-slice   tpu-v5-lite-podslice is v5e
#   --topology=4x4x8              chips along each axis, here 128
#   --chips_per_host=4            8 for a single v5e host (2x4)
#   --dry_run                     print the manifest and the command
#
# The image: docker build -f launch/Dockerfile -t IMAGE . && docker push IMAGE
# The cluster needs JobSet (jobset.sigs.k8s.io), the Cloud Storage FUSE CSI
# driver, and a node pool of the slice.
set -euo pipefail
cd "$(dirname "$0")/.."

name=lumiere image='' bucket='' accelerator=tpu-v5p-slice topology=4x4x8
chips=4 dry='' arguments=()

fail() {
  echo "error: $*" >&2
  exit 2
}

while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --bucket=*) bucket=${1#*=} ;;
    --accelerator=*) accelerator=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --chips_per_host=*) chips=${1#*=} ;;
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
[[ $image ]] || fail "--image is missing; see the head of launch/gke.sh"
[[ $bucket =~ ^[a-z0-9][-._a-z0-9]*$ ]] ||
  fail "--bucket=$bucket is no name of a bucket; give it without gs://"
[[ " ${arguments[*]}" =~ \ --workdir[=\ ]/mnt/run/. ]] ||
  fail "--workdir must be in /mnt/run, where --bucket=$bucket is mounted"
[[ $topology =~ ^[0-9]+(x[0-9]+){1,2}$ ]] ||
  fail "--topology=$topology is none; give e.g. 4x4 or 4x4x8"
[[ $chips =~ ^[1-9][0-9]*$ ]] ||
  fail "--chips_per_host=$chips must be a whole number from 1 on"
all=$((${topology//x/*}))
((all > 0 && all % chips == 0)) ||
  fail "--topology=$topology has $all chips, not divisible among hosts of $chips"

quoted() { # "..." of JSON, which YAML reads too
  sed 's/\\/\\\\/g; s/"/\\"/g; s/^/"/; s/$/"/' <<<"$1"
}

list=''
for argument in "${arguments[@]}"; do
  # Kubernetes expands $(NAME) in arguments, and turns $$ into $.
  list+="${list:+, }$(quoted "${argument//\$/\$\$}")"
done

fill() { # fill NAME VALUE
  manifest=${manifest//"\${$1}"/"$2"}
}

manifest=$(grep -v '^#' launch/gke.yaml)
fill NAME "$(quoted "$name")"
fill IMAGE "$(quoted "$image")"
fill BUCKET "$(quoted "$bucket")"
fill ACCELERATOR "$(quoted "$accelerator")"
fill TOPOLOGY "$(quoted "$topology")"
fill HOSTS $((all / chips))
fill CHIPS "$chips"
fill ARGS "[$list]"

if [[ $dry ]]; then
  echo "$manifest"
  echo "# kubectl apply -f -"
else
  kubectl apply -f - <<<"$manifest"
fi
