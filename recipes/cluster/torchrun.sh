#!/usr/bin/env bash
# Trains on several machines, by torchrun. To be started on each of them with the same arguments, in any order, within
# ten minutes:
#
#     HEAD=node0 NODES=4 GPUS=8 recipes/cluster/torchrun.sh --config recipes/imagenet/dwnet_base.yaml --data.root DIR --output SHARED/dwnet_base
#
# HEAD is the name or the address of one of the machines, NODES their number, GPUS the number on each. The output folder
# has to be one that all of them see. A process that dies is started again up to RESTARTS times, with all others, and the
# run goes on from the last checkpoint. One of several runs at a time on the same machines needs another PORT. IS_HEAD=1 on
# HEAD and 0 on the others is found out; say it where HEAD is an address that no machine has itself, such as one of a router.
set -euo pipefail

HEAD=${HEAD:?name of the machine where the processes meet}
NODES=${NODES:?number of machines}
GPUS=${GPUS:?GPUs of each machine}
PORT=${PORT:-29400}
RESTARTS=${RESTARTS:-3}

# torchrun compares names, and all machines wait for each other where HEAD knows itself by another one. Only a machine
# that has an address can bind to it. The others tell the address from which they reach HEAD, not the name they have for
# themselves, which may mean nothing elsewhere.
PLACE=$(python3 - "$HEAD" "$PORT" "${IS_HEAD:-}" <<'PYTHON'
import socket
import sys

head, port, is_head = sys.argv[1:]
try:
    family, _, _, _, address = socket.getaddrinfo(head, int(port), type=socket.SOCK_DGRAM)[0]
except socket.gaierror as error:
    sys.exit(f"HEAD: expected the name or the address of a machine, got {head}: {error.strerror}")
with socket.socket(family, socket.SOCK_DGRAM) as own:
    try:
        own.bind((address[0], 0, *address[2:]))
        found = "1"
    except OSError:
        found = "0"
with socket.socket(family, socket.SOCK_DGRAM) as way:
    try:
        way.connect(address)  # sends nothing
    except OSError as error:
        sys.exit(f"HEAD: expected a machine that can be reached, got {head}: {error.strerror}")
    print(is_head or found, head if (is_head or found) == "1" else way.getsockname()[0])
PYTHON
)
read -r IS_HEAD ADDRESS <<<"$PLACE"

# Processes that are started again meet at a new port: at the old one the addresses of the dead ones may still be found.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# Threads of each process beside its workers.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}

exec torchrun --nnodes="$NODES" --nproc-per-node="$GPUS" --max-restarts="$RESTARTS" \
    --rdzv-backend=c10d --rdzv-endpoint="$HEAD:$PORT" --rdzv-id="localmix-$PORT" \
    --rdzv-conf="is_host=$IS_HEAD,read_timeout=600" --local-addr="$ADDRESS" \
    --module localmix fit "$@"
