#!/usr/bin/env bash
# launch/until_done.sh COMMAND...
#
# Runs a command and forwards SIGTERM to it. The trainer then saves and exits
# with code 0, as when it is done; this script exits with 143 instead, so that the
# caller knows to start it again.
set -uo pipefail

asked=
trap 'asked=1; kill -TERM "$!" 2>/dev/null' TERM
"$@" &
child=$!
wait "$child"
code=$?
while kill -0 "$child" 2>/dev/null; do # a signal only ended the wait
  wait "$child"
  code=$?
done
if [[ $asked && $code -eq 0 ]]; then
  code=143
fi
exit "$code"
