#!/usr/bin/env bash
# Starts a jaxmm command on every host of a pod, and returns; follow.sh shows what it says.
#
#   run.sh --name crt --zone us-west4-a --project p -- \
#     train --config experiments/crt/imagenet256.py:xl --workdir /mnt/runs/xl
#
# --name, --zone, --project, --slices   as in create.sh
# --dry-run           print the commands, do nothing
# -- WORDS            of the command; --distributed is added. Where it runs already, nothing is done.

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse "$@"
need_pod
((${#rest[@]})) || die 'there is no command; write it after --, for example: -- train --config ...' 2

# It outlives the connection, and leaves its output and its exit status in the home directory.
job="\$HOME/jaxmm-env/bin/jaxmm $(quoted "${rest[@]}" --distributed)"
job+="; echo \$? > \$HOME/jaxmm-status"
on_every_host "if [ -e jaxmm-pid ] && kill -0 \"\$(cat jaxmm-pid)\" 2> /dev/null; then
echo it runs already; exit 0; fi
rm -f jaxmm-status; cd jaxmm
nohup bash -c $(quoted "$job") >> ~/jaxmm-log 2>&1 < /dev/null &
echo \$! > ~/jaxmm-pid"
