#!/usr/bin/env bash
# Brings this checkout to every host of a pod and installs it; again, it brings what has changed.
#
#   setup.sh --name crt --zone us-west4-a --project p --bucket my-runs
#
# --name, --zone, --project, --slices   as in create.sh
# --bucket BUCKET     mount this bucket at /mnt/runs on every host: a run's --workdir, and its data,
#                     must be seen by all of them (default: none, for pods of one host)
# --dry-run           print the commands, do nothing

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
bucket=''
values+=' bucket'
parse "$@"
need_pod

# What git knows, as it is in the working tree.
package=jaxmm.tar.gz
if ! $dry_run; then
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  package=$scratch/jaxmm.tar.gz
  (cd "$here/.." && git ls-files -z | tar --null -T - -czf "$package")
fi
for node in $(nodes); do
  step gcloud compute tpus tpu-vm scp "$package" "$node:jaxmm.tar.gz" "${place[@]}" --worker=all
done

# The images have an older Python than jaxmm needs.
on_every_host 'set -e; rm -rf jaxmm; mkdir jaxmm; tar -xzf jaxmm.tar.gz -C jaxmm
python3 -m pip install --quiet --user uv
[ -d jaxmm-env ] || ~/.local/bin/uv venv --quiet --python 3.12 jaxmm-env
~/.local/bin/uv pip install --quiet --python jaxmm-env/bin/python -e "./jaxmm[tpu]"
jaxmm-env/bin/jaxmm --version'

if [[ -n $bucket ]]; then
  on_every_host "set -e; if ! command -v gcsfuse > /dev/null; then
key=/usr/share/keyrings/cloud.google.asc; from=https://packages.cloud.google.com/apt
curl -fsS \$from/doc/apt-key.gpg | sudo tee \$key > /dev/null
echo \"deb [signed-by=\$key] \$from gcsfuse-\$(lsb_release -cs) main\" \
| sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
sudo apt-get -qq update; sudo apt-get -qq install -y gcsfuse; fi
sudo mkdir -p /mnt/runs; sudo chown \"\$USER\" /mnt/runs
mountpoint -q /mnt/runs || gcsfuse --implicit-dirs $(quoted "$bucket") /mnt/runs"
fi
