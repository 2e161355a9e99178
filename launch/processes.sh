#!/usr/bin/env bash
# Several processes on this machine as if each were a host, to try what a pod would do:
#   bash launch/processes.sh 2 train --config=configs/tiny.py --config.mesh.fsdp=2
# Each has its share of forced CPU devices (DEVICES of them, default 1), and a log in runs/processes. When one ends with
# an error, the others are ended too, and its last lines are shown. --dry-run before N prints the commands. Needs bash 5.1.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh

dry=
if [ "${1:-}" = --dry-run ]; then dry=1; shift; fi
if ! [[ "${1:-}" =~ ^[1-9][0-9]*$ ]] || [ $# -lt 2 ]; then
  echo "usage: bash launch/processes.sh [--dry-run] N COMMAND [ARGUMENT...], as in: 2 train --config=configs/tiny.py" >&2
  exit 2
fi
count=$1
shift
logs=${LOGS:-runs/processes}
port=${PORT:-$((20000 + RANDOM % 20000))}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${DEVICES:-1}"
export ALPHAALIGN_COORDINATOR=127.0.0.1:$port ALPHAALIGN_PROCESSES=$count

if [ -n "$dry" ]; then
  for ((i = 0; i < count; i++)); do
    printf 'ALPHAALIGN_COORDINATOR=%s ALPHAALIGN_PROCESSES=%s ALPHAALIGN_PROCESS=%s %s/bin/alphaalign' \
      "$ALPHAALIGN_COORDINATOR" "$count" "$i" "$VENV"
    printf ' %q' "$@"
    printf ' > %s/%s.log 2>&1 &\n' "$logs" "$i"
  done
  exit 0
fi

[ -x "$VENV/bin/alphaalign" ] || install
mkdir -p "$logs"
declare -A number # of each process that runs, by its pid
send() { for pid in "${!number[@]}"; do kill "-$1" "$pid" 2>/dev/null || true; done; }
# For good: commands other than train take a request to end as news of a preemption, as JAX does, and go on.
trap 'send KILL' EXIT
# Asked to end: each ends its step, saves, and ends with 75. Asked again: at once.
asked=
trap '[ -z "$asked" ] || exit 130; asked=1; echo "the processes are asked to end"; send TERM' TERM INT
for ((i = 0; i < count; i++)); do
  ALPHAALIGN_PROCESS=$i "$VENV/bin/alphaalign" "$@" > "$logs/$i.log" 2>&1 &
  number[$!]=$i
done
echo "$count processes, logs in $logs"
ended_asked=0
while [ "${#number[@]}" -gt 0 ]; do
  status=0
  wait -n -p ended "${!number[@]}" || status=$?
  if [ -z "${ended:-}" ]; then continue; fi # a signal came
  i=${number[$ended]}
  unset "number[$ended]"
  if [ "$status" -eq 75 ]; then # asked to end, and saved: so are the others, each by itself
    ended_asked=75
  elif [ "$status" -ne 0 ]; then
    echo "process $i ended with $status; the others are ended too. Its log ends:" >&2
    tail -n 15 "$logs/$i.log" >&2
    exit "$status"
  fi
done
tail -n 15 "$logs/0.log"
exit "$ended_asked"
