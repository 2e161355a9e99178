#!/usr/bin/env bash
# Makes launch/constraints.txt anew: the versions that the launchers install, of everything that setup.py asks for and what
# that asks for in turn, for Python 3.11 to 3.13 and every platform. Needs uv (pip install uv).
set -euo pipefail
cd "$(dirname "$0")/.."
# torch, the tests' witness, has a version of its own (launch/environment.sh), and brings what suits it; pip upgrades itself.
uv pip compile setup.py --universal --python-version 3.11 --upgrade --extra gguf --extra gcs --extra plan --extra test \
  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet |
  grep -vE '^(torch|triton|pip|setuptools)==|^(nvidia|cuda)-' > launch/constraints.txt.new
mv launch/constraints.txt.new launch/constraints.txt
