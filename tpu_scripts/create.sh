#!/usr/bin/env bash
# Asks for a pod as a queued resource, and waits until it is there.
#
#   create.sh --name crt --zone us-west4-a --project p --topology v5e:16x16 --spot
#
# --name NAME         of the pod and its queued resource (or $JAXMM_POD)
# --zone ZONE         (or $JAXMM_ZONE)
# --project PROJECT   (or $JAXMM_PROJECT)
# --topology T        as in `jaxmm plan`: v4:2x2x4, v5e:4x4, v5p:4x4x4, v6e:16x16
# --slices N          so many of them, as one pod (default: 1, or $JAXMM_SLICES)
# --spot              cheaper, and may be taken away at any time; default: on demand
# --runtime VERSION   of the machines' software (default: the one for the topology)
# --no-wait           return as soon as the request is in the queue
# --dry-run           print the commands, do nothing
#
# A pod that is there already is left as it is.

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
topology='' runtime='' spot=false no_wait=false
values+=' topology runtime'
switches+=' spot no_wait'
parse "$@"
need_pod
need topology

case $topology in
  v4:*x*x*) type=v4 default=tpu-ubuntu2204-base ;;
  v5e:*x*) type=v5litepod default=v2-alpha-tpuv5-lite ;;
  v5p:*x*x*) type=v5p default=v2-alpha-tpuv5 ;;
  v6e:*x*) type=v6e default=v2-alpha-tpuv6e ;;
  *) die "--topology is '$topology', expected v4:AxBxC, v5e:AxB, v5p:AxBxC or v6e:AxB (TPU7x is \
rented through Kubernetes, not as a queued resource)" 2 ;;
esac

node=("--node-id=$name")
((slices == 1)) || node=("--node-count=$slices" "--node-prefix=$name")
tier=()
if $spot; then tier=(--spot); fi
wanted=(gcloud compute tpus queued-resources create "$name" "${place[@]}" "${node[@]}"
  "--type=$type" "--topology=${topology#*:}" "--runtime-version=${runtime:-$default}"
  ${tier[@]+"${tier[@]}"})
asked=(gcloud compute tpus queued-resources describe "$name" "${place[@]}"
  '--format=value(state.state)')

if $dry_run; then
  step "${wanted[@]}"
  $no_wait || step "${asked[@]}"
  exit
fi

now=$(state)
if [[ $now == MISSING ]]; then step "${wanted[@]}"; fi
while ! $no_wait; do
  now=$(state)
  case $now in
    ACTIVE) break ;;
    FAILED | SUSPENDING | SUSPENDED | DELETING | MISSING)
      die "$name is $now; delete.sh it and create it again, or keep_running.sh does both"
      ;;
  esac
  printf '%s is %s\n' "$name" "$now" >&2
  sleep "${JAXMM_POLL_SECONDS:-30}"
done
