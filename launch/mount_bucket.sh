#!/usr/bin/env bash
# launch/mount_bucket.sh BUCKET FOLDER
#
# Mounts a Cloud Storage bucket with gcsfuse, which it installs if needed
# (Debian, Ubuntu). Does nothing if the bucket is mounted already.
set -euo pipefail

bucket=$1 folder=$2
# The last two make writes of other hosts visible at once. They are also the
# mountOptions of launch/gke.yaml.
options=(--implicit-dirs --rename-dir-limit=200000)
options+=(--metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0)

if ! command -v gcsfuse >/dev/null; then
  site=https://packages.cloud.google.com/apt
  key=/usr/share/keyrings/cloud.google.asc
  curl -fsSL "$site/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $site gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  # A machine that has just started may still be running apt itself.
  sudo apt-get -o DPkg::Lock::Timeout=300 update
  sudo apt-get -o DPkg::Lock::Timeout=300 install -y gcsfuse
fi

mounted=$(findmnt --noheadings --output=SOURCE --mountpoint "$folder" || true)
if [[ $mounted ]]; then
  # After gcsfuse has died, the mount exists but does not respond.
  if [[ $mounted == "$bucket" ]] && stat "$folder" >/dev/null; then
    exit
  fi
  sudo umount --lazy "$folder"
fi
sudo mkdir -p "$folder"
sudo chown "$(id -u)" "$folder"
gcsfuse "${options[@]}" "$bucket" "$folder"
