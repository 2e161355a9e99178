#!/usr/bin/env bash
# Installs with the test extra into .venv and runs the tests, JOBS of their files at a time (default 2; 0: one after the
# other, in one process). Arguments go to pytest: bash launch/test.sh -k sampler
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
install test
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
exec "$VENV/bin/python" -m pytest -q --numprocesses="${JOBS:-2}" --dist=loadfile "${@:-tests}"
