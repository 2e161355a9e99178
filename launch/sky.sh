#!/usr/bin/env bash
# A run as a managed job of SkyPilot (pip install 'skypilot[gcp]'), from launch/sky.yaml: SkyPilot finds the chips, starts
# the run again where it was after a preemption, and deletes what it took.
#   bash launch/sky.sh --name=qwen --type=v5litepod-64 --region=us-west4 \
#       train --config=configs/qwen2_5_7b.py --config.out=gs://BUCKET/qwen
# --name, --type           of the job, to which the time is added, and its chips: v5litepod-N, v5p-N, v6e-N
# --region                 of Google Cloud; default: wherever there are such chips
# --ondemand               not spot
# --env=NAME,NAME          variables of this shell that the run sees, as SkyPilot's secrets
# --keep                   leave the job running when this is interrupted
# --dry-run                print the commands
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/commands.sh

name= type= region= ondemand= env= keep=
parse name= type= region= ondemand env= keep -- "$@"
need name type
lasting
passed_on > /dev/null
job=$name-$(date +%m%d-%H%M%S) # cancelled by its name, which no other may have
options=(--name="$job" --infra="gcp${region:+/$region}" --gpus="tpu-$type:1")
if [ -n "$ondemand" ]; then options+=(--no-use-spot); else options+=(--use-spot); fi
for each in ${env//,/ }; do options+=(--secret="$each"); done # its value is read from this shell

undo() { # the job goes on without this program
  if [ "$1" -le 128 ] || [ -n "$keep" ]; then return 0; fi
  echo "if SkyPilot had not begun with $job yet, it still may: see sky jobs queue, sky api status" >&2
  call sky jobs cancel --name="$job" --yes
}

guard
call sky jobs launch launch/sky.yaml "${options[@]}" --env=COMMAND="$(quoted "${run[@]}")" --yes
