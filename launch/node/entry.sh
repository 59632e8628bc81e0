#!/usr/bin/env bash
# Start this node's processes of a run by `accelerate launch`. Run it once on every node: under Slurm, srun does so
# (launch/slurm/train.sbatch); elsewhere type it yourself, here on two hosts with two processes each:
#
#   HEAD_HOST=10.0.0.1 NUM_NODES=2 NODE_RANK=0 PROCESSES_PER_NODE=2 launch/node/entry.sh configs/digits.yaml
#   HEAD_HOST=10.0.0.1 NUM_NODES=2 NODE_RANK=1 PROCESSES_PER_NODE=2 launch/node/entry.sh configs/digits.yaml
#
# HEAD_HOST           name or address at which the other nodes reach node 0; not needed for one node
# HEAD_PORT           a free port on node 0 (29500)
# NUM_NODES           number of hosts (under Slurm: the nodes of the job)
# NODE_RANK           number of this host, from 0 (under Slurm: the number of the task)
# PROCESSES_PER_NODE  processes on each host: one per GPU, or as many as its cores can feed
# MODULE              the module to run (trainer.train)
# PYTHON              the interpreter (python)
# RUN_DIR             the run's folder, on a file system that all nodes share (default: as the configuration says)
# MAX_RESTARTS        maximum number of restarts from the last checkpoint after a fault (0); each start of node 0 uses the
#                     next port, and there is none after a start that saved no checkpoint
# PROLOGUE            a shell script that is read first, such as one that loads modules or sets variables of NCCL
# START_SECONDS       how long nodes wait for one another at the start (300)
# GRACE_SECONDS       how long a process may take to save after SIGTERM (300)
set -euo pipefail

refuse() {
  printf 'entry.sh: error on %s: %s\n' "$(hostname)" "$1" >&2
  exit 2
}
count() { [[ $2 =~ ^[0-9]+$ ]] || refuse "$1='$2', expected a number; see the head of $0"; }

if [[ -n ${PROLOGUE:-} ]]; then
  [[ -f $PROLOGUE ]] || refuse "PROLOGUE='$PROLOGUE' is no file here"
  # A script of others' may use variables that are not set.
  set +u
  # shellcheck source=/dev/null
  source "$PROLOGUE"
  set -u
fi
launch=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python}
nodes=${NUM_NODES:-${SLURM_NNODES:-1}}
node=${NODE_RANK:-${SLURM_NODEID:-0}}
port=${HEAD_PORT:-29500}
[[ $# -gt 0 ]] || refuse "no configuration. Type: $0 CONFIG [a.b=c ...]"
count NUM_NODES "$nodes"
count NODE_RANK "$node"
count HEAD_PORT "$port"
count PROCESSES_PER_NODE "${PROCESSES_PER_NODE:-}"
count MAX_RESTARTS "${MAX_RESTARTS:=0}"
((node < nodes)) || refuse "NODE_RANK=$node of NUM_NODES=$nodes: ranks count from 0"
if ((nodes > 1)); then
  case ${HEAD_HOST:-} in
    '' | localhost | 127.* | ::1)
      refuse "HEAD_HOST='${HEAD_HOST:-}' with $nodes nodes: each would wait for itself. Give node 0's address" ;;
  esac
fi
command -v "$python" >/dev/null || refuse "no '$python' here. Activate the environment, or set PYTHON=/path/to/python"

# Python must not find a folder `models` or `launch` of the user's, in the current folder, in place of ours. A checkout need
# not be installed.
export PYTHONSAFEPATH=1
[[ ! -e $launch/../pyproject.toml ]] || export PYTHONPATH=${launch%/*}${PYTHONPATH:+:$PYTHONPATH}

processes=$((nodes * PROCESSES_PER_NODE))
set -- "$@" "parallel.processes=$processes"
# On every node, even if RUN_DIR is set: a node that cannot read the configuration fails here, before others wait for it.
found=$("$python" -m launch.run_dir "$@")
RUN_DIR=${RUN_DIR:-$found}
export RUN_DIR MAX_RESTARTS

rendezvous=(--main_process_port 0)
if ((nodes > 1)); then
  # By default gloo and NCCL use the address of the host's name, which is often 127.0.1.1.
  if [[ -z ${GLOO_SOCKET_IFNAME:-} || -z ${NCCL_SOCKET_IFNAME:-} ]]; then
    interface=$("$python" -m launch.node.interface "$HEAD_HOST")
    export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$interface} NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$interface}
  fi
  # Static: ranks follow the order of the nodes, and a cut link ends the launchers in time.
  rendezvous=(
    --num_machines "$nodes" --machine_rank "$node"
    --main_process_ip "$HEAD_HOST" --main_process_port "$port"
    --rdzv_backend static --rdzv_conf "timeout=${START_SECONDS:-300}"
  )
fi

# Settings of torch's launcher for which accelerate has no options.
export PET_RDZV_ID=${PARETRAIN_JOB_ID:-paretrain}.${SLURM_RESTART_COUNT:-0}
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGUSR1  # SIGINT: see accelerated.py.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${GRACE_SECONDS:-300}
# The trainer applies parallel.threads; this limits threads that start before it reads the configuration.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PYTHONFAULTHANDLER=1 PYTHONUNBUFFERED=1
TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE="[\${rank} $(hostname)] "
export TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE

# Each start adds a folder to the logs of its node; `python -m launch.diagnose` reads the last one.
logs=$RUN_DIR/logs/${PARETRAIN_JOB_ID:-by-hand}.${SLURM_RESTART_COUNT:-0}/${MODULE:-trainer.train}/node$node
exec "$python" -m launch.node.restarts --config_file "$launch/accelerate/processes.yaml" \
  --num_processes "$processes" "${rendezvous[@]}" --tee 3 --log_dir "$logs" -m "${MODULE:-trainer.train}" "$@"
