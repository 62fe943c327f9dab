"""Trains the same steps in one process, in several, and on two nodes, and compares the losses.

    python tools/compare_processes.py [--processes 4] [--namespaces] [--kill]

The nodes are two agents of torchrun on this machine, started by recipes/cluster/torchrun.sh; with --namespaces (Linux,
as root) each has a network of its own, and a cable between the two is all that they share. With --kill one of the
workers of the second node is killed (SIGKILL) in the second epoch: torchrun starts all again, and the losses must be
the same nevertheless. The networks are nano ones and the images those that the package ships. Ends with status 1 if the
losses differ by more than the order of float32 sums explains: 1e-5 in the first three steps, 2e-4 in later ones
(relative).
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from localmix.tasks import fashion_mnist

GLOBAL_BATCH = 16
SETTINGS = {
    "model.name": "dwnet_nano",
    "model.lr": 1e-4,
    "data.img_size": 16,
    "data.workers": 0,
    "data.augment": "false",
    "trainer.accelerator": "cpu",
    "trainer.max_epochs": 2,
    "trainer.gradient_clip_val": 1.0,
    "log.tensorboard": "false",
    "save.every": 2,
}
SCRIPT = Path(__file__).parents[1] / "recipes" / "cluster" / "torchrun.sh"
NAMESPACES = ("localmix0", "localmix1")
FIRST_STEPS, FIRST, LATER = 3, 1e-5, 2e-4
TIMEOUT = 900


def main() -> int:
    """Runs and compares; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=4, help="in all; a divisor of 16 (4)")
    parser.add_argument("--namespaces", action="store_true", help="give each node a network of its own")
    parser.add_argument("--kill", action="store_true", help="kill a worker of the second node")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        data, root = _images(Path(folder) / "images"), Path(folder)
        _fit([sys.executable, "-m", "localmix", "fit"], data, root / "one", GLOBAL_BATCH).wait(TIMEOUT)
        share = GLOBAL_BATCH // args.processes
        agent = ["torchrun", "--standalone", f"--nproc-per-node={args.processes}", "--module", "localmix", "fit"]
        _fit(agent, data, root / "several", share).wait(TIMEOUT)
        _two_nodes(data, root / "nodes", share, args)
        one = _losses(root / "one")
        worst = max(_compare(name, one, _losses(root / name)) for name in ("several", "nodes"))
    return int(worst > 1)


def _two_nodes(data: Path, output: Path, share: int, args: argparse.Namespace) -> None:
    with _cable(args.namespaces) as places:
        meeting = {"HEAD": places[0][1], "PORT": "29471" if args.namespaces else str(_free_port()), "NODES": "2"}
        meeting |= {"GPUS": str(args.processes // 2), "RESTARTS": "2"}
        agents = []
        for node, (prefix, _, interface) in enumerate(places):
            # in a network of its own a node finds out; without one both have the address
            own = {} if args.namespaces else {"IS_HEAD": str(int(node == 0))}
            command = [*prefix, "bash", str(SCRIPT)]
            agents.append(_fit(command, data, output, share, GLOO_SOCKET_IFNAME=interface, **meeting, **own))
        if args.kill:
            # a checkpoint of the second epoch is there
            _wait(agents, lambda: len(_losses(output)) >= 8)
            worker = _workers(agents[1].pid)[-1]
            print(f"kill worker {worker} of the second node")
            os.kill(worker, signal.SIGKILL)
        statuses = [agent.wait(TIMEOUT) for agent in agents]
        if any(statuses):
            raise SystemExit(f"the agents of the nodes ended with {statuses}")


def _fit(command: list[str], data: Path, output: Path, batch_size: int, **environment: str) -> subprocess.Popen:
    settings = {**SETTINGS, "data.root": data, "data.batch_size": batch_size, "output": output}
    # the torchrun of this environment
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, **environment, "OMP_NUM_THREADS": "1", "PATH": path}
    return subprocess.Popen([*command, *(f"--{name}={value}" for name, value in settings.items())], env=environment)


@contextmanager
def _cable(namespaces: bool) -> Generator[list[tuple[list[str], str, str]]]:
    """For each node, how a command is run in it, its address and its interface."""
    if not namespaces:
        yield [([], "127.0.0.1", "lo")] * 2
        return
    addresses, interfaces = ("10.77.0.1", "10.77.0.2"), ("localmix-veth0", "localmix-veth1")
    try:
        for name in NAMESPACES:
            _ip("netns", "add", name)
        _ip("link", "add", interfaces[0], "type", "veth", "peer", "name", interfaces[1])
        for name, address, interface in zip(NAMESPACES, addresses, interfaces, strict=True):
            _ip("link", "set", interface, "netns", name)
            _ip("-n", name, "address", "add", f"{address}/24", "dev", interface)
            for link in (interface, "lo"):
                _ip("-n", name, "link", "set", link, "up")
        prefixes = [["ip", "netns", "exec", name] for name in NAMESPACES]
        yield list(zip(prefixes, addresses, interfaces, strict=True))
    finally:
        for name in NAMESPACES:
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL, check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _workers(agent: int) -> list[int]:
    """Processes that an agent has started, in the order in which it did; Linux."""
    return [int(pid) for pid in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()]


def _wait(agents: list[subprocess.Popen], condition: Callable[[], bool]) -> None:
    while not condition():
        if any(agent.poll() is not None for agent in agents):
            raise SystemExit("the run on two nodes ended before its second epoch")
        time.sleep(0.1)


def _losses(folder: Path) -> list[float]:
    path = folder / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]


def _compare(name: str, one: list[float], other: list[float]) -> float:
    """The worst difference in units of what is allowed."""
    if len(other) != len(one):
        print(f"{name}: {len(other)} steps, expected {len(one)}")
        return float("inf")
    differences = [abs(a - b) / abs(a) for a, b in zip(one, other, strict=True)]
    first, later = max(differences[:FIRST_STEPS]), max(differences[FIRST_STEPS:])
    print(
        f"{name}: {len(one)} steps; losses differ by {first:.1e} in the first {FIRST_STEPS}, {later:.1e} in the others"
    )
    return max(first / FIRST, later / LATER)


def _images(root: Path, per_class: int = 40) -> Path:
    images, labels = fashion_mnist.load("train")
    for name in ("Bag", "Sandal", "Trouser"):
        (root / name).mkdir(parents=True)
        for index in (labels == fashion_mnist.CLASSES.index(name)).nonzero()[0][:per_class]:
            Image.fromarray(images[index]).save(root / name / f"{index}.png")
    return root


if __name__ == "__main__":
    sys.exit(main())
