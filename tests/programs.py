"""Programs that tests start as processes of their own."""

import sys
import threading
import time
from pathlib import Path

import yaml

from tokenprune.testing.checkpoints import save_llava


def sweep_file(folder):
    """A sweep of a tiny model of random weights, two methods and two budgets."""
    sweep = {
        "name": "tiny",
        "model": {"name": "llava", "path": str(save_llava(folder / "model"))},
        "task": {"name": "scenes", "num_samples": 12},
        "grid": {"pruner": [{"name": "random", "seed": 0}, "divprune"], "budget.keep_tokens": [10, 5]},
        "batch_size": 3,
        "max_new_tokens": 2,
        "timing_repeats": 0,
        "output": str(folder / "runs"),
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep))
    return path


def answers(folder):
    """All lines of answers, in an order that does not depend on who was first."""
    return sorted((Path(folder) / "samples.jsonl").read_text().splitlines())


def work(path, output):
    """Run a sweep in a process that may be killed."""
    import torch

    from tokenprune.sweeps import runner
    from tokenprune.sweeps.grid import load_sweep

    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    runner.sweep(load_sweep(path, [f"output={output}"]))


def losing_a_node(path, output):
    """Run a sweep on a Ray cluster of two nodes, and take one away while it works."""
    import ray
    from ray.cluster_utils import Cluster

    from tokenprune.sweeps import runner
    from tokenprune.sweeps.grid import load_sweep
    from tokenprune.sweeps.launch.base import LAUNCHERS
    from tokenprune.sweeps.launch.ray import Ray

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]

    def lose():
        while ray.available_resources().get("CPU", 0):
            time.sleep(0.1)
        time.sleep(2)  # both nodes have a task, which imports torch and transformers for longer than that
        cluster.remove_node(nodes.pop(), allow_graceful=False)

    @LAUNCHERS.register("losing")
    class Losing(Ray):
        def run(self, jobs):
            with self._cluster():
                thread = threading.Thread(target=lose)
                thread.start()
                yield from super().run(jobs)
                thread.join()

    launcher = ["launcher.name=losing", f"launcher.address={cluster.address}"]
    outcome = runner.sweep(load_sweep(path, [*launcher, f"output={output}"]))
    assert len(nodes) == 1
    assert (len(outcome.records), outcome.failed) == (5, [])
    cluster.shutdown()


if __name__ == "__main__":
    losing_a_node(*sys.argv[1:])
