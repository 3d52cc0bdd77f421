#!/usr/bin/env bash
# Keeps a run going to its end: creates the pod where there is none, or it was taken away, sets it
# up, starts the run, which resumes from its newest checkpoint, and follows it. Can itself be
# stopped and started again at any time.
#
#   keep_running.sh --name crt --zone us-west4-a --project p --topology v5e:16x16 --spot \
#     --bucket my-runs -- train --config experiments/crt/imagenet256.py:xl --workdir /mnt/runs/xl
#
# --name, --zone, --project, --topology, --slices, --spot, --runtime   as in create.sh
# --bucket BUCKET     as in setup.sh
# --tries N           give up after so many starts (default: 100)
# --dry-run           print the commands of a run whose pod was taken away, do nothing
# -- WORDS            of the command, as in run.sh
#
# The pod is not deleted at the end: collect.sh, then delete.sh. A run that fails for a reason of
# its own (any status but those of follow.sh) is not started again.

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
topology='' runtime='' bucket='' tries=100 spot=false
values+=' topology runtime bucket tries'
switches+=' spot'
parse "$@"
need_pod
need topology
((${#rest[@]})) || die 'there is no command; write it after --, for example: -- train --config ...' 2

pod=("--name=$name" "${place[@]}" "--slices=$slices")
if $dry_run; then pod+=(--dry-run); fi
kind=("--topology=$topology")
if [[ -n $runtime ]]; then kind+=("--runtime=$runtime"); fi
if $spot; then kind+=(--spot); fi
shared=()
if [[ -n $bucket ]]; then shared=("--bucket=$bucket"); fi

pause() { sleep "${JAXMM_POLL_SECONDS:-60}"; }

# Status 2 is a bad option, which another try would not mend.
renew() {
  local status=0
  "$here/create.sh" "${pod[@]}" "${kind[@]}" &&
    "$here/setup.sh" "${pod[@]}" ${shared[@]+"${shared[@]}"} || status=$?
  ((status != 2)) || exit 2
  ((status == 0)) || pause
  return "$status"
}

if $dry_run; then
  "$here/delete.sh" "${pod[@]}"
  renew
  "$here/run.sh" "${pod[@]}" -- "${rest[@]}"
  "$here/follow.sh" "${pod[@]}"
  exit
fi

for ((i = 1; i <= tries; i++)); do
  now=$(state)
  case $now in
    ACTIVE) ;;
    FAILED | SUSPENDING | SUSPENDED | DELETING)
      printf '%s is %s: it is created anew\n' "$name" "$now" >&2
      "$here/delete.sh" "${pod[@]}"
      renew || continue
      ;;
    *) renew || continue ;; # missing: asks for it; in the queue: waits for it
  esac
  status=0
  "$here/run.sh" "${pod[@]}" -- "${rest[@]}" || status=255
  if ((status == 0)); then "$here/follow.sh" "${pod[@]}" || status=$?; fi
  case $status in
    0) exit 0 ;;
    75 | 134 | 143 | 255)
      printf 'the run stopped (status %d); trying again\n' "$status" >&2
      pause
      ;;
    *) die "the run failed with status $status, which another try would not mend; see above" "$status" ;;
  esac
done
die "given up after $tries starts"
