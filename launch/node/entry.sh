#!/usr/bin/env bash
# Start this node's processes of a run, through `accelerate launch`. Runs once on every node: under Slurm by srun
# (launch/slurm/train.sbatch), elsewhere by hand, here on two hosts with two processes each:
#
#   HEAD_HOST=10.0.0.1 NUM_NODES=2 NODE_RANK=0 PROCESSES_PER_NODE=2 launch/node/entry.sh configs/digits.yaml
#   HEAD_HOST=10.0.0.1 NUM_NODES=2 NODE_RANK=1 PROCESSES_PER_NODE=2 launch/node/entry.sh configs/digits.yaml
#
# HEAD_HOST           name or address of node 0, as the others reach it; with one node it is not needed
# HEAD_PORT           a free port of node 0 (29500)
# NUM_NODES           hosts (under Slurm: the job's)
# NODE_RANK           this host, from 0 (under Slurm: the task's)
# PROCESSES_PER_NODE  processes on each host: one a GPU, or as many as its cores feed
# MODULE              what to run in them (trainer.train)
# PYTHON              the interpreter (python)
# RUN_DIR             the run's folder, on a file system that all nodes share (the configuration's)
# MAX_RESTARTS        how often the processes start again, from the last checkpoint, after a fault (0); each of these starts
#                     meets at the next port, and none follows one that saved nothing
# START_SECONDS       how long nodes wait for one another at the start (300)
# GRACE_SECONDS       how long a process may take to save after SIGTERM (300)
set -euo pipefail

refuse() {
  printf 'entry.sh: error on %s: %s\n' "$(hostname)" "$1" >&2
  exit 2
}
count() { [[ $2 =~ ^[0-9]+$ ]] || refuse "$1='$2', expected a number; the head of $0 explains it"; }

launch=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
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

processes=$((nodes * PROCESSES_PER_NODE))
set -- "$@" "parallel.processes=$processes"
# On every node, even where it is known: one that does not see the configuration says so here, and is not waited for.
found=$("$python" -m launch.run_dir "$@")
RUN_DIR=${RUN_DIR:-$found}
export RUN_DIR MAX_RESTARTS

rendezvous=(--main_process_port 0)
if ((nodes > 1)); then
  # gloo and NCCL would take the address of the host's own name, which often is 127.0.1.1.
  if [[ -z ${GLOO_SOCKET_IFNAME:-} || -z ${NCCL_SOCKET_IFNAME:-} ]]; then
    interface=$("$python" -m launch.node.interface "$HEAD_HOST")
    export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$interface} NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$interface}
  fi
  # Static, so that ranks follow the nodes' order, and a cut link ends the launchers in time.
  rendezvous=(
    --num_machines "$nodes" --machine_rank "$node"
    --main_process_ip "$HEAD_HOST" --main_process_port "$port"
    --rdzv_backend static --rdzv_conf "timeout=${START_SECONDS:-300}"
  )
fi

# Read by torch's launcher, and passed on by accelerate, which has no options of its own for them.
export PET_RDZV_ID=${PARETRAIN_JOB_ID:-paretrain}.${SLURM_RESTART_COUNT:-0}
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGUSR1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${GRACE_SECONDS:-300}
# parallel.threads decides in the trainer; this is for what starts threads before it is read.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PYTHONFAULTHANDLER=1 PYTHONUNBUFFERED=1
TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE="[\${rank} $(hostname)] "
export TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE

# Each start adds a folder to its node's logs; launch/diagnose/diagnosis.py reads the last one.
logs=$RUN_DIR/logs/${PARETRAIN_JOB_ID:-by-hand}.${SLURM_RESTART_COUNT:-0}/${MODULE:-trainer.train}/node$node
exec "$python" -m launch.node.restarts --config_file "$launch/accelerate/processes.yaml" \
  --num_processes "$processes" "${rendezvous[@]}" --tee 3 --log_dir "$logs" -m "${MODULE:-trainer.train}" "$@"
