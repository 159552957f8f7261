#!/usr/bin/env bash
# launch/until_done.sh COMMAND...
#
# Runs a command and passes SIGTERM on to it. The trainer then saves and ends
# with exit code 0, as it does when it is done; here that is 143, so that who
# started it knows to start it again.
set -uo pipefail

asked=
trap 'asked=1; kill -TERM "$!" 2>/dev/null' TERM
"$@" &
child=$!
wait "$child"
code=$?
while kill -0 "$child" 2>/dev/null; do # a signal ended only the waiting
  wait "$child"
  code=$?
done
if [[ $asked && $code -eq 0 ]]; then
  code=143
fi
exit "$code"
