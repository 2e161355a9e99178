#!/usr/bin/env bash
# A run on a GKE cluster with TPU nodes, as a workload of XPK (pip install xpk): the image is made of this folder, the
# first host's log is shown, pods that are taken away start again where the run was, and the workload is deleted however
# this ends.
#   bash launch/gke.sh --name=qwen --cluster=CLUSTER --project=PROJECT --zone=us-west4-a --type=v5litepod-64 \
#       train --config=configs/qwen2_5_7b.py --config.out=gs://BUCKET/qwen
# --name                   of the workload
# --cluster, --project, --zone, --type   where it runs, and on which of the cluster's nodes
# --slices=N               so many of the type, joined (default 1)
# --image=IMAGE            what this folder is added to (default: python:3.12)
# --env=NAME,NAME          variables of this shell that the run sees; who may read the workload may read them
# --restarts=N             at most (default: 50)
# --keep                   do not delete the workload at the end, nor when this is interrupted
# --dry-run                print the commands
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/commands.sh

name= cluster= project= zone= type= slices=1 image=python:3.12 env= restarts=50 keep=
POLL=${POLL:-15} # seconds between looks
parse name= cluster= project= zone= type= slices= image= env= restarts= keep -- "$@"
need name cluster project zone type
lasting
numbers slices restarts
where=(--cluster="$cluster" --project="$project" --zone="$zone")
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
export KUBECONFIG=$stage/kubeconfig # another cluster that is chosen meanwhile is none of this run's business
passed_on > "$stage/host.env"

undo() {
  if [ -n "$keep" ]; then
    say "kept"
  elif ! call xpk workload delete --workload="$name" --force "${where[@]}"; then
    echo "the workload could not be deleted, and may hold its nodes" >&2
    return 1
  fi
}

follow() { # shows the first host's log, of each start, until the workload ends
  local look state lost=0
  look=(kubectl get jobset "$name" --output="jsonpath={.status.terminalState}")
  local first="jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0"
  first+=",batch.kubernetes.io/job-completion-index=0"
  local logs=(kubectl logs --follow --selector="$first" --container=jax-tpu --tail=-1)
  if [ -n "$dry" ]; then call "${logs[@]}" && call "${look[@]}" && return 0; fi
  while true; do
    show "${logs[@]}" 2> "$stage/error" || true
    if state=$("${look[@]}" 2> "$stage/error"); then
      lost=0
    else
      lost=$((lost + 1))
      if grep -qiE "not.?found" "$stage/error" || [ "$lost" -gt 20 ]; then cat "$stage/error" >&2 && return 1; fi
    fi
    case $state in Completed) return 0 ;; Failed) echo "the workload failed" >&2 && return 1 ;; esac
    sleep "$POLL" # queued, or starting again
  done
}

call gcloud container clusters get-credentials "$cluster" --project="$project" --location="$zone"
if [ -z "$dry" ] && kubectl get jobset "$name" > /dev/null 2> "$stage/error"; then
  fail "$name is there already: take another --name"
fi
archive "$stage/alphaalign_jax.tgz"
call mkdir "$stage/code"
call tar -xzf "$stage/alphaalign_jax.tgz" -C "$stage/code"
guard
# XPK starts again what a signal ended. A host whose neighbour was taken away ends with 1, one that was asked to end and
# has saved with 75; bad arguments end with 2. A step and its checkpoint may take longer than the 30 s that pods are given.
call xpk workload create --workload="$name" "${where[@]}" --tpu-type="$type" --num-slices="$slices" \
  --base-docker-image="$image" --script-dir="$stage/code" --env-file="$stage/host.env" \
  --max-restarts="$restarts" --restart-on-exit-codes=1,75 --termination-grace-period-seconds=300 \
  --command="$(quoted bash launch/host.sh "${run[@]}")" < /dev/null
follow
