#!/usr/bin/env bash
# Installs into .venv, and asks whether that is what launch/constraints.txt says and what is known against it.
#   bash launch/audit.sh --require      an error where the data of known faults cannot be reached
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
install test
exec "$VENV/bin/python" launch/audit.py "$@"
