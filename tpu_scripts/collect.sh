#!/usr/bin/env bash
# Brings the output of every host of a pod here, and the run from its bucket.
#
#   collect.sh --name crt --zone us-west4-a --project p --bucket my-runs --run xl --to collected
#
# --name, --zone, --project, --slices   as in create.sh
# --to DIR            made if it is not there
# --bucket BUCKET, --run PATH   the run gs://BUCKET/PATH comes to DIR/run; default: only the output
# --dry-run           print the commands, do nothing

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
bucket='' run='' to=''
values+=' bucket run to'
parse "$@"
need_pod
need to
[[ -z $bucket$run ]] || need bucket run

for node in $(nodes); do
  step mkdir -p "$to/$node"
  step gcloud compute tpus tpu-vm ssh "$node" "${place[@]}" --worker=all \
    "--output-directory=$to/$node" '--command=cat jaxmm-log' < /dev/null
done
if [[ -n $bucket ]]; then
  step mkdir -p "$to/run"
  step gcloud storage rsync --recursive "gs://$bucket/$run" "$to/run"
fi
