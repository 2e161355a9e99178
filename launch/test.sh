#!/usr/bin/env bash
# Installs with the test extra into .venv and runs the tests. Arguments go to pytest: bash launch/test.sh -k sampler
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
install test
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
exec "$VENV/bin/python" -m pytest -q "${@:-tests}"
