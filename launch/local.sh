#!/usr/bin/env bash
# Installs into .venv and aligns the built-in tiny model on the CPU; nothing is downloaded but packages.
# Arguments go to the run: bash launch/local.sh --config.steps=20
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
install
if [ -d runs/tiny ] && [ "$#" -eq 0 ]; then
  kept="runs/tiny.$(date +%Y%m%d-%H%M%S)"
  mv runs/tiny "$kept"
  echo "the earlier run is kept as $kept"
fi
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
exec "$VENV/bin/alphaalign" train --config=configs/tiny.py "$@"
