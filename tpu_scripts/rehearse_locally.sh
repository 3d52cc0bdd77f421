#!/usr/bin/env bash
# Rehearses a pod on this machine: starts the command line in N processes with M fake devices each,
# kills one at random, sees that the others end and say so, and resumes with fewer processes.
#
#   rehearse_locally.sh --processes 4 --devices 2 --resume-processes 2 -- \
#     train --config experiments/crt/mini.py --config.checkpoint.every=20 --workdir /tmp/rehearsal
#
# --processes N          (default: 4)
# --devices M            fake devices of each process (default: 2)
# --resume-processes N   how many go on (default: half)
# --kill-within S        the kill comes at random within so many seconds after the first checkpoint
#                        (default: 10); the run must be longer than that, and
#                        --config.checkpoint.every small
# --seed S               of what is random (default: the clock)
# --logs DIR             what each process says (default: a new temporary directory)
# --dry-run              print the commands, do nothing
# -- WORDS               of the command, with a --workdir that all processes share

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
processes=4 devices=2 resume_processes='' kill_within=10 seed='' logs=''
values='processes devices resume_processes kill_within seed logs'
parse "$@"
[[ $processes =~ ^[1-9][0-9]*$ ]] || die "--processes is '$processes', expected a number from 1" 2
resume_processes=${resume_processes:-$(((processes + 1) / 2))}
for variable in devices resume_processes kill_within; do
  [[ ${!variable} =~ ^[1-9][0-9]*$ ]] ||
    die "--${variable//_/-} is '${!variable}', expected a number from 1" 2
done
((processes > 1)) || die '--processes is 1; of one process none is left when it is killed' 2
workdir=''
for ((i = 0; i < ${#rest[@]}; i++)); do
  case ${rest[i]} in
    --workdir) workdir=${rest[i + 1]:-} ;;
    --workdir=*) workdir=${rest[i]#*=} ;;
  esac
done
[[ -n $workdir ]] ||
  die 'there is no command with a --workdir; write it after --, for example: -- train ...' 2
RANDOM=${seed:-$((($(date +%s) + $$) % 32768))}
flags="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
if ! $dry_run; then
  [[ ! -e $workdir/checkpoints ]] || die "there is a run in $workdir already; name a new directory"
  logs=${logs:-$(mktemp -d)}
  mkdir -p "$logs"
fi
pids=()
trap '((${#pids[@]})) && kill -KILL "${pids[@]}" 2> /dev/null || true' EXIT

# launch COUNT ROUND: starts the processes; what process I says is in LOGS/ROUND-I.
launch() {
  local i port=$((20000 + RANDOM % 20000)) words
  pids=()
  for ((i = 0; i < $1; i++)); do
    words=(env JAX_PLATFORMS=cpu "XLA_FLAGS=${flags# }" jaxmm "${rest[@]}"
      "--coordinator=localhost:$port" "--process-count=$1" "--process-id=$i")
    if $dry_run; then
      # Ports are drawn when it runs.
      printf '%s &\n' "$(quoted "${words[@]}" | sed "s/localhost:$port/localhost:PORT/")"
    else
      "${words[@]}" > "$logs/$2-$i" 2>&1 &
      pids+=($!)
    fi
  done
}

# end I PID: waits for it; its exit status is in `status`.
end() {
  status=0
  wait "$2" || status=$?
}

launch "$processes" killed
if $dry_run; then
  printf 'kill -KILL %s\n' "ONE_OF_THEM"
  launch "$resume_processes" resumed
  exit
fi

until compgen -G "$workdir/checkpoints/[0-9]*" | grep -q '/[0-9]*$'; do
  for i in "${!pids[@]}"; do
    kill -0 "${pids[i]}" 2> /dev/null || {
      tail -n 5 "$logs/killed-$i" >&2
      die "process $i ended before its first checkpoint; see $logs"
    }
  done
  sleep 0.2
done
sleep "$((RANDOM % kill_within)).$((RANDOM % 10))"
victim=$((RANDOM % processes))
kill -KILL "${pids[victim]}" 2> /dev/null ||
  die "the run was over before process $victim could be killed; give it more steps (see $logs)"
printf 'process %d of %d was killed\n' "$victim" "$processes"
began=$SECONDS
for i in "${!pids[@]}"; do
  end "$i" "${pids[i]}"
  if ((i == victim)); then
    ((status == 137)) || die "the run was over when process $victim was killed; give it more steps"
    continue
  fi
  last=$(tail -n 1 "$logs/killed-$i")
  printf 'process %d ended with status %d: %s\n' "$i" "$status" "$last"
  ((status != 0)) || die "process $i ended as if all were well"
  [[ $last == *"process $victim of $processes was lost"* ]] ||
    die "process $i did not say that process $victim was lost; see $logs"
done
pids=()
((SECONDS - began <= 30)) || die "the others took $((SECONDS - began)) seconds to end"

launch "$resume_processes" resumed
printf 'resuming in %d process(es)\n' "$resume_processes"
for i in "${!pids[@]}"; do
  end "$i" "${pids[i]}"
  ((status == 0)) || {
    tail -n 5 "$logs/resumed-$i" >&2
    die "process $i of the resumed run ended with status $status; see $logs"
  }
done
pids=()
grep -m 1 -e 'resumes from step' -e 'new, from' "$logs/resumed-0" || true
printf 'done: the run was killed, resumed and finished; what it said is in %s\n' "$logs"
