#!/usr/bin/env bash
# Trains on several machines, by torchrun. To be started on each of them with the same arguments, in any order:
#
#     HEAD=node0 NODES=4 GPUS=8 recipes/cluster/torchrun.sh --config recipes/imagenet/dwnet_base.yaml --data.root DIR --output SHARED/dwnet_base
#
# HEAD is the name of one of the machines, NODES their number, GPUS the number on each. The output folder has to be one
# that all of them see. A process that dies is started again up to RESTARTS times, with all others, and the run goes on
# from the last checkpoint. One of several runs at a time on the same machines needs another PORT.
set -euo pipefail

HEAD=${HEAD:?name of the machine where the processes meet}
NODES=${NODES:?number of machines}
GPUS=${GPUS:?GPUs of each machine}
PORT=${PORT:-29400}
RESTARTS=${RESTARTS:-3}

# Processes that are started again meet at a new port: at the old one the addresses of the dead ones may still be found.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# Threads of each process beside its workers.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}

exec torchrun --nnodes="$NODES" --nproc-per-node="$GPUS" --max-restarts="$RESTARTS" \
    --rdzv-backend=c10d --rdzv-endpoint="$HEAD:$PORT" --rdzv-id="localmix-$PORT" \
    --module localmix fit "$@"
