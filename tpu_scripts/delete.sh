#!/usr/bin/env bash
# Gives a pod back: deletes the queued resource and its machines, with all that is on their disks.
#
#   delete.sh --name crt --zone us-west4-a --project p
#
# --name, --zone, --project   as in create.sh
# --dry-run           print the command, do nothing

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse "$@"
need_pod

step gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
