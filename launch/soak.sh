#!/usr/bin/env bash
# Installs into .venv and puts the tiny run through kills at random moments, until 200 steps are done; then compares it with
# the same run left in peace. A table at the end, logs in runs/soak. Arguments: --steps, --kills, --minutes, --seed, --out.
#   bash launch/soak.sh --steps=12 --kills=4
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
install
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH}
exec "$VENV/bin/python" tests/soak.py "$@"
