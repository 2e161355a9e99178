# Sourced by the launchers of pods: their options, --dry-run, and what they run on a host.

dry= # set by --dry-run: commands are printed, none is run
run=() # the command of alphaalign, with its arguments

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 2
}

usage() { # the comment at the head of the launcher
  sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p}' "$0"
}

parse() { # parse KNOWN... -- ARGUMENT...: --known=value sets a variable of that name; from the first other word on: $run
  local known=" " key
  while [ "$1" != -- ]; do known+="$1 " && shift; done
  shift
  while [ $# -gt 0 ]; do
    key=${1%%=*} && key=${key#--}
    case $1 in
      --help) usage && exit 0 ;;
      --dry-run) dry=1 ;;
      --*=?*) [[ "$known" == *" $key= "* ]] || fail "option $1 is not known; --help shows those that are"
        printf -v "$key" %s "${1#*=}" ;;
      --*) [[ "$known" == *" $key "* ]] || fail "option $1 is not known, or lacks its value; --help shows all"
        printf -v "$key" %s 1 ;;
      *) break ;;
    esac
    shift
  done
  run=("$@")
  [ ${#run[@]} -gt 0 ] || fail "what shall run? Such as: train --config=configs/qwen2_5_7b.py --config.out=gs://BUCKET/RUN"
}

need() { # need NAME...: options that have no default
  local option # no name of an option, as ${!option} would find this one
  for option in "$@"; do [ -n "${!option:-}" ] || fail "--$option=... is needed; --help shows how"; done
}

numbers() { # numbers NAME...: options that hold one
  local option
  for option in "$@"; do [[ "${!option}" =~ ^[0-9]+$ ]] || fail "--$option=${!option}: expected a number"; done
}

lasting() { # the disks of the hosts go when they do: what the command leaves must lie in a bucket. A run goes on from there
  local words=" ${run[*]}"
  case ${run[0]} in
    train | sft)
      [[ "$words" == *" --config.out=gs://"* ]] ||
        fail "${run[0]} needs --config.out=gs://BUCKET/RUN: the disks of the hosts go when they do" ;;
    *)
      [[ "$words" == *" --out=gs://"* ]] ||
        fail "${run[0]} needs --out=gs://BUCKET/FILE: the disks of the hosts go when they do" ;;
  esac
  if [ "${run[0]}" = train ] && [[ "$words" != *" --resume"* ]]; then run+=(--resume=auto); fi
}

quoted() { # the words as one line of shell
  local word line=
  for word in "$@"; do
    if [[ "$word" =~ ^[A-Za-z0-9_./:=,+@%-]+$ ]]; then line+=" $word"; else line+=" ${word@Q}"; fi
  done
  echo "${line# }"
}

call() { # runs a command, or prints it
  if [ -n "$dry" ]; then quoted "$@"; else "$@"; fi
}

shown= # what `show` runs
show() { # runs a command and waits; a signal to this program is heard at once, not when the command ends
  set -m # a group of its own, so that `hide` ends all of it
  "$@" < /dev/null &
  shown=$!
  set +m
  wait "$shown"
}
hide() {
  [ -z "$shown" ] || kill -- -"$shown" 2> /dev/null || true
}

say() { [ -n "$dry" ] || echo "$(date +%H:%M:%S) $name: $*"; }

stage= # a folder of this launcher's, which only its owner may read
guard() { # from here on, whatever ends this program, `undo STATUS` takes back what it began; 1 where that fails
  trap ended EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
}
ended() {
  local status=$?
  trap - EXIT
  trap '' INT TERM
  hide
  undo "$status" || status=1
  [ -z "$stage" ] || rm -rf "$stage"
  exit "$status"
}

archive() { # archive FILE: this folder as git knows it, ignored files left out
  local files='git ls-files -z --cached --others --exclude-standard'
  if [ -n "$dry" ]; then
    echo "$files | tar -czf $1 --null -T -"
  elif git rev-parse --git-dir > /dev/null 2>&1; then
    # What git knows of and is deleted here, tar would stumble over.
    $files | while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done | tar -czf "$1" --null -T -
  else
    tar -czf "$1" --exclude=./.venv --exclude=./runs .
  fi
}

passed_on() { # the variables that --env=NAME,NAME names, one NAME=VALUE a line
  local variable
  for variable in ${env//,/ }; do
    [ -n "${!variable:-}" ] || fail "--env=$env: $variable is not set here"
    [[ "${!variable}" != *$'\n'* ]] || fail "--env=$env: $variable has more than one line"
    echo "$variable=${!variable}"
  done
}
