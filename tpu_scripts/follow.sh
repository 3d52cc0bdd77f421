#!/usr/bin/env bash
# Shows what a run on a pod says, until it ends; exits with its status.
#
#   follow.sh --name crt --zone us-west4-a --project p
#
# --name, --zone, --project, --slices   as in create.sh
# --dry-run           print the command, do nothing
#
# Status 0: done; 75 (or 134, where jax aborts first): another process of the run was lost; 143: it
# was told to stop, and saved; 255: the host cannot be reached.

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse "$@"
need_pod

first=$(nodes | head -n 1)
step gcloud compute tpus tpu-vm ssh "$first" "${place[@]}" --worker=0 \
  "--command=touch jaxmm-log; tail -n 100 -F jaxmm-log & shown=\$!
until [ -s jaxmm-status ]; do sleep 2; done
sleep 2; kill \$shown; exit \"\$(cat jaxmm-status)\"" < /dev/null
