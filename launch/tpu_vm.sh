#!/usr/bin/env bash
# A run on Cloud TPU VMs: asks for them, waits, copies this folder there, runs, shows the first host's log, starts again
# after a preemption, and deletes what it asked for however it ends.
#   bash launch/tpu_vm.sh --name=qwen --type=v5litepod-64 --zone=us-west4-a --spot \
#       train --config=configs/qwen2_5_7b.py --config.out=gs://BUCKET/qwen
# --name, --type, --zone   of the queued resource; types are v5litepod-N, v5p-N, v6e-N
# --project                default: gcloud's
# --slices=N               so many of the type, joined (default 1)
# --spot                   chips that may be taken away; --reservation=NAME: those of a reservation
# --runtime                image of the VMs (default: by type)
# --env=NAME,NAME          variables of this shell that the run sees, such as a token
# --wait=SECONDS           at most, for the chips (default: 86400)
# --restarts=N             at most, after preemptions (default: 50); where a host fails, three in a row on the same chips
# --attach                 the queued resource is there: show the log of the run on it, or start it; then as without
# --keep                   do not delete it at the end
# --dry-run                print the commands
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/commands.sh

name= type= zone= project= slices=1 spot= reservation= runtime= env= wait=86400 restarts=50 attach= keep=
POLL=${POLL:-15} # seconds between looks
parse name= type= zone= project= slices= spot reservation= runtime= env= wait= restarts= attach keep -- "$@"
need name type zone
lasting
case $type in
  v5litepod-*) runtime=${runtime:-v2-alpha-tpuv5-lite} ;;
  v5p-*) runtime=${runtime:-v2-alpha-tpuv5} ;;
  v6e-*) runtime=${runtime:-v2-alpha-tpuv6e} ;;
  *) [ -n "$runtime" ] || fail "--type=$type: expected v5litepod-N, v5p-N or v6e-N; for others give --runtime too" ;;
esac
numbers slices wait restarts
where=(--zone="$zone" ${project:+--project="$project"})
nodes=("$name") which=(--node-id="$name") alpha=
if [ "$slices" -gt 1 ]; then
  nodes=() which=(--node-count="$slices" --node-prefix="$name")
  for ((i = 0; i < slices; i++)); do nodes+=("$name-$i"); done
fi
if [ -n "$reservation" ]; then alpha=alpha; fi
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
passed_on > "$stage/host.env"

queued() { call gcloud compute tpus queued-resources "$@" "${where[@]}"; }
on() { # on NODE WORKER COMMAND
  call gcloud compute tpus tpu-vm ssh "$1" "${where[@]}" --worker="$2" --command="$3"
}

state() { # of the queued resource; GONE where there is none, UNKNOWN where gcloud does not say
  local found
  if found=$(queued describe "$name" --format="value(state.state)" 2> "$stage/error"); then
    echo "${found:-UNKNOWN}"
  elif grep -qiE "not.?found" "$stage/error"; then
    echo GONE
  else
    echo UNKNOWN
  fi
}

ask() {
  call gcloud $alpha compute tpus queued-resources create "$name" "${which[@]}" "${where[@]}" \
    --accelerator-type="$type" --runtime-version="$runtime" ${spot:+--spot} ${reservation:+--reservation="$reservation"}
}

delete() {
  local try
  for try in 1 2 3 4 5; do
    queued delete "$name" --force --quiet || true
    if [ -n "$dry" ]; then return 0; fi
    if [ "$(state)" = GONE ]; then say "deleted" && return 0; fi
    sleep "$POLL"
  done
  echo "$name could not be deleted, and may be billed. Do it by hand:" >&2
  echo "  $(quoted gcloud compute tpus queued-resources delete "$name" --force "${where[@]}")" >&2
  return 1
}

undo() {
  if [ -n "$keep" ]; then say "kept, and billed until it is deleted"; else delete; fi
}

await() { # until the chips are there; fails where they were taken away before that
  local now before= began=$SECONDS
  if [ -n "$dry" ]; then queued describe "$name" --format="value(state.state)" && return 0; fi
  while true; do
    now=$(state)
    [ "$now" = "$before" ] || say "$now"
    before=$now
    case $now in
      ACTIVE) return 0 ;;
      SUSPENDING | SUSPENDED) return 1 ;;
      FAILED | DELETING | GONE)
        queued describe "$name" >&2 || true
        exit 1
        ;;
    esac
    if [ $((SECONDS - began)) -ge "$wait" ]; then
      echo "no chips in $wait s" >&2
      exit 1
    fi
    sleep "$POLL"
  done
}

start() { # copies this folder to every host and starts the run there
  local node command
  command="mkdir -p alphaalign_jax/runs && mv host.env alphaalign_jax/runs/ && chmod 600 alphaalign_jax/runs/host.env"
  command+=" && cd alphaalign_jax && tar -xzf ../alphaalign_jax.tgz && $(quoted bash launch/host.sh --start "${run[@]}")"
  for node in "${nodes[@]}"; do
    call gcloud compute tpus tpu-vm scp "$stage/alphaalign_jax.tgz" "$stage/host.env" "$node:" "${where[@]}" \
      --worker=all || return 1
  done
  for node in "${nodes[@]}"; do on "$node" all "$command" || return 1; done
}

started() { # a host that is just up may not let anyone in yet; fails where the chips were taken away
  local try
  for try in 1 2 3 4 5 6; do
    start && return 0
    if taken; then return 1; fi
    say "not reached yet" && sleep "$POLL"
  done
  echo "the hosts could not be reached" >&2
  exit 1
}

taken() { # whether the chips are; what somebody deletes is not asked for again
  local now
  now=$(state)
  case $now in
    SUSPENDING | SUSPENDED | FAILED) return 0 ;;
    DELETING | GONE) echo "$name is $now: somebody has deleted it" >&2 && exit 1 ;;
    *) return 1 ;;
  esac
}

log() {
  on "${nodes[0]}" 0 "cd alphaalign_jax && bash launch/host.sh --follow $1" | tee "$stage/seen"
}

follow() { # shows the first host's log until the run ends, with its status; 100 where the chips were or will be taken away
  local status look lost=0 lines=$1
  while true; do
    show log "$lines" || true
    if [ -n "$dry" ]; then return 0; fi
    status=$(sed -n '$s/^the run ended with \([0-9]*\).*/\1/p' "$stage/seen")
    case $status in
      0 | 2) return "$status" ;; # done, or refused for its arguments
      75) return 100 ;;          # asked to end, and saved: the chips are about to go
    esac
    # A host that is taken away ends the others before its end is known here.
    for look in 1 2 3 4 5 6 7 8; do
      if taken; then return 100; fi
      sleep "$POLL"
    done
    if [ -n "$status" ]; then return "$status"; fi
    # The line was cut; the run goes on.
    if [ -s "$stage/seen" ]; then lost=0; fi
    lost=$((lost + 1)) lines=10
    if [ "$lost" -gt 20 ]; then echo "the first host is not reached any more" >&2 && return 1; fi
    say "the line was cut; again"
  done
}

if [ -z "$dry" ]; then
  now=$(state)
  case $now in
    UNKNOWN) cat "$stage/error" >&2 && exit 1 ;;
    GONE) [ -z "$attach" ] || fail "--attach: there is no queued resource $name in $zone" ;;
    *) [ -n "$attach" ] || fail "$name is there already ($now): take another --name, or --attach to the run on it" ;;
  esac
fi
archive "$stage/alphaalign_jax.tgz"
guard
again() { # after a run that ended with $1 on chips that are still there: whether another start may help, as where a host failed
  case $1 in 1 | 134 | 137) [ "$failed" -lt 3 ] ;; *) return 1 ;; esac
}

for ((turn = 0; turn <= restarts; turn++)); do
  status=100
  if [ -n "$attach" ]; then
    if await && { on "${nodes[0]}" 0 "[ -s alphaalign_jax/runs/host.pid ]" || started; }; then
      status=0 && follow 10 || status=$?
    fi
    attach=
  else
    ask
    if await && started; then status=0 && follow +1 || status=$?; fi
  fi
  failed=0
  while again "$status"; do
    failed=$((failed + 1))
    say "the run ended with $status; starting it again ($failed of 3)"
    if started; then status=0 && follow +1 || status=$?; else status=100; fi
  done
  if [ "$status" -ne 100 ]; then exit "$status"; fi
  say "the chips were taken away; asking again"
  delete
done
echo "$name: taken away $((restarts + 1)) times; no more is tried" >&2
exit 1
