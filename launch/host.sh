#!/usr/bin/env bash
# What runs on each host of a pod: installs, joins the other hosts, and runs a command of alphaalign.
#   bash launch/host.sh train --config=...           until it ends
#   bash launch/host.sh --start train --config=...   leaves it running, with its output in runs/host.log
#   bash launch/host.sh --follow [LINES]             shows that log until the run ends, and ends with its status
# EXTRA names what is installed beside the project (tpu,gcs). Lines NAME=VALUE of runs/host.env are its environment.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p runs
log=runs/host.log pid=runs/host.pid status=runs/host.status

case "${1:-}" in
  --start)
    shift
    if [ -s "$pid" ]; then pkill -KILL -s "$(cat "$pid")" || true; fi # an earlier run, whatever it started
    rm -f "$pid" "$status"
    # A host that shuts down asks all its processes to end: this one waits for the run, and writes down how it ended.
    setsid bash -c 'trap : TERM INT; echo $$ > "$1"; shift; bash "${@:2}"; echo $? > "$1"' -- "$pid" "$status" "$0" "$@" \
      < /dev/null > "$log" 2>&1 &
    until [ -s "$pid" ]; do sleep 0.1; done
    exit 0
    ;;
  --follow)
    [ -s "$pid" ] || { echo "no run was started here" >&2 && exit 1; }
    tail -n "${2:-+1}" -s 1 --pid="$(cat "$pid")" -F "$log" 2> /dev/null || true
    if kill -0 "$(cat "$pid")" 2> /dev/null; then exit 1; fi # it is this that was ended, not the run
    [ -s "$status" ] || echo 137 > "$status" # killed
    printf '\nthe run ended with %s\n' "$(cat "$status")"
    exit "$(cat "$status")"
    ;;
esac

. launch/environment.sh
if ! suitable "$PYTHON"; then # images of TPU VMs have an older one
  "$PYTHON" -m pip install --quiet --no-warn-script-location --user uv
  "$PYTHON" -m uv python install 3.12
  PYTHON=$("$PYTHON" -m uv python find 3.12)
fi
EXTRA=${EXTRA:-tpu,gcs}
install ${EXTRA//,/ }
if [ -f runs/host.env ]; then
  while IFS= read -r line; do export "${line?}"; done < runs/host.env
fi
export ALPHAALIGN_PROCESSES=${ALPHAALIGN_PROCESSES:-auto}
exec "$VENV/bin/alphaalign" "$@"
