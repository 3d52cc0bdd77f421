# shellcheck shell=bash
# What the scripts beside it share: options, dry runs, and how a pod is addressed. Works with the
# bash 3.2 of a Mac.

set -euo pipefail

# shellcheck disable=SC2034  # here, place: for the scripts that source this
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dry_run=false
name=${JAXMM_POD:-} zone=${JAXMM_ZONE:-} project=${JAXMM_PROJECT:-} slices=${JAXMM_SLICES:-1}
# What a script takes besides --help and --dry-run; each value is a variable of that name.
values="name zone project slices"
switches="dry_run"
rest=() # what follows --

die() {
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  exit "${2:-1}"
}

# The comment at the head of a script is its help.
usage() {
  awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"
}

parse() {
  local key variable
  while (($#)); do
    case $1 in
      -h | --help) usage && exit 0 ;;
      --)
        shift
        rest=("$@")
        return
        ;;
      --*) ;;
      *) die "'$1' is no option; see --help" 2 ;;
    esac
    key=${1#--}
    key=${key%%=*}
    variable=${key//-/_}
    if [[ " $switches " == *" $variable "* && $1 != *=* ]]; then
      printf -v "$variable" true
      shift
    elif [[ " $values " != *" $variable "* ]]; then
      die "there is no option --$key; see --help" 2
    elif [[ $1 == *=* ]]; then
      printf -v "$variable" %s "${1#*=}"
      shift
    else
      (($# > 1)) || die "--$key needs a value" 2
      printf -v "$variable" %s "$2"
      shift 2
    fi
  done
}

# need NAME... : these options must have been given.
need() {
  local variable
  for variable in "$@"; do
    [[ -n ${!variable:-} ]] || die "--${variable//_/-} is missing; see --help" 2
  done
}

need_pod() {
  need name zone project
  [[ $slices =~ ^[1-9][0-9]*$ ]] || die "--slices is '$slices', expected a number from 1" 2
  # shellcheck disable=SC2034
  place=("--zone=$zone" "--project=$project")
}

# The words, each so that a shell reads it as it is.
quoted() {
  local word out=()
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      out+=("$word")
    else
      out+=("'${word//\'/\'\\\'\'}'")
    fi
  done
  printf '%s' "${out[*]}"
}

# Does what the words say; in a dry run prints it instead.
step() {
  if $dry_run; then
    printf '%s\n' "$(quoted "$@")"
  else
    printf '+ %s\n' "$(quoted "$@")" >&2
    "$@"
  fi
}

# The nodes of the pod: one a slice.
nodes() {
  local i
  if ((slices == 1)); then
    printf '%s\n' "$name"
  else
    for ((i = 0; i < slices; i++)); do printf '%s-%d\n' "$name" "$i"; done
  fi
}

# on_every_host COMMAND [FLAG...]: over ssh, on all hosts of all slices.
on_every_host() {
  local node command=$1
  shift
  for node in $(nodes); do
    step gcloud compute tpus tpu-vm ssh "$node" "${place[@]}" --worker=all "$@" \
      "--command=$command" < /dev/null
  done
}

# The state of the queued resource, or MISSING.
state() {
  local said
  if said=$(gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
    '--format=value(state.state)' 2>&1); then
    printf '%s\n' "${said##*$'\n'}"
  elif [[ $said == *NOT_FOUND* ]]; then
    printf 'MISSING\n'
  else
    die "cannot ask for the state of $name: $said"
  fi
}
