#!/usr/bin/env bash
# box.sh CMD...: run CMD in a world of its own, with two virtual hosts beside it: node1 (10.77.0.1), node2 (10.77.0.2).
# Each host has its own network card, name and process table; all share the file system. Whatever happens, even kill -9,
# nothing is left: all processes live in one process namespace, and end with its first one.
#
# Installs Slurm from Debian's packages where root may and it is missing. A machine that cannot have it, or no virtual
# hosts, skips CMD and says why; where the packages are there and Slurm is not in the end, that is an error.
#
# In CMD's environment BOX is a folder that holds, for each host, the process to enter it by:
#   nsenter --all -t "$(cat $BOX/node1)" CMD    runs CMD on node1
#   ip link set node1 down                      cuts its cable (up: heals it)
set -euo pipefail

if [[ ${1:-} != --inside ]]; then
  skip() {
    echo "box.sh: skipped: $1: $2" >&2
    exit 0
  }
  has_all() { command -v munged slurmctld slurmd sbatch ip nsenter | wc -l | grep -qx 6; }
  [[ $(id -u) == 0 ]] || skip "virtual hosts take root" "$(id -un) is not"
  if ! has_all; then
    get=(apt-get -y -qq -o Dpkg::Use-Pty=0 --no-install-recommends)
    packages=(munge slurm-wlm iproute2 util-linux)
    export DEBIAN_FRONTEND=noninteractive
    command -v apt-get >/dev/null || skip "Slurm is missing" "and so is apt-get, which would install it"
    "${get[@]}" update || true # what counts is whether these can be fetched
    reason=$("${get[@]}" install --download-only "${packages[@]}" 2>&1) ||
      skip "Slurm is missing, and apt-get cannot fetch it" "$reason"
    "${get[@]}" install "${packages[@]}"
    has_all || { echo "box.sh: error: ${packages[*]} are installed, and not all of Slurm's commands are there" >&2; exit 2; }
  fi
  reason=$(unshare --mount --net --pid --fork --kill-child --uts ip link add box type bridge 2>&1) ||
    skip "this machine cannot have virtual hosts, which takes CAP_SYS_ADMIN and CAP_NET_ADMIN" "$reason"
  BOX=$(mktemp -d -t box.XXXXXX)
  export BOX
  trap 'rm -rf "$BOX"' EXIT
  chmod 755 "$BOX" # munge asks it of every folder above its socket
  unshare --mount --net --pid --fork --kill-child --mount-proc --uts "$0" --inside "$@"
  exit
fi
shift

printf '127.0.0.1 localhost\n10.77.0.254 box\n10.77.0.1 node1\n10.77.0.2 node2\n' >"$BOX/hosts"
printf 'passwd: files\ngroup: files\nhosts: files\n' >"$BOX/nsswitch" # torch looks every peer up: no DNS
mount --bind "$BOX/hosts" /etc/hosts
mount --bind "$BOX/nsswitch" /etc/nsswitch.conf
hostname box
ip link set lo up
ip link add bridge0 type bridge
ip address add 10.77.0.254/24 dev bridge0
ip link set bridge0 up
for number in 1 2; do
  name=node$number
  unshare --mount --net --pid --fork --kill-child --mount-proc --uts bash -c "
    hostname $name
    ip link set lo up
    touch '$BOX/$name.ready'
    sleep infinity & # the shell stays: it is the host's first process, which has to reap the others
    wait
  " </dev/null &
  until [[ -e $BOX/$name.ready ]]; do sleep 0.02; done
  pid=$(<"/proc/$!/task/$!/children")
  echo "${pid% }" >"$BOX/$name"
  ip link add "$name" type veth peer name eth0 netns "${pid% }"
  ip link set "$name" master bridge0 up
  nsenter --net -t "${pid% }" ip address add "10.77.0.$number/24" dev eth0
  nsenter --net -t "${pid% }" ip link set eth0 up
done

# The first process of a process namespace hears only signals that it has handlers for.
trap 'exit 143' TERM INT
status=0
"$@" <&0 &
wait $! || status=$?
exit "$status"
