"""Time and memory of a default audit, relative to those of another version of evenslice, in one run.

    git worktree add ../other COMMIT
    python benchmarks/audit_versions.py ../other/src

Each audit is that of the demonstration's U-Net on MNI152 (48 windows, one thread), in a process of its own; the versions
take turns. The time is that of the processor.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

OWN = Path(__file__).parents[1] / "src"

AUDIT = """
import json, resource, time
import torch
import evenslice
from evenslice.neutralizing import load_network
from evenslice.volumes import mni152
torch.set_num_threads(1)
network, volume = load_network("smp:Unet/tu-tf_efficientnet_lite0", "imagenet")[0], mni152()
begun = time.process_time()
found = evenslice.audit(network, volume, max_windows=48, progress=False)
spent = time.process_time() - begun
windows = len(found.measurements.volume)
print(json.dumps([spent, windows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def measure(source: Path) -> tuple[float, int, float]:
    """Return the seconds, the windows and the peak memory in MiB of an audit by the evenslice in a folder."""
    variables = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", AUDIT], env=variables, capture_output=True, text=True, check=True
    )
    seconds, windows, memory = json.loads(done.stdout.splitlines()[-1])
    return seconds, windows, memory


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(
        description="Time and memory of a default audit against another version."
    )
    parser.add_argument("other", type=Path, help="folder src of the other version")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    pairs = [(measure(OWN), measure(options.other)) for _ in range(options.rounds)]
    (_, own, _), (_, other, _) = pairs[0]
    for name, column in (("processor time", 0), ("peak memory", 2)):
        ratios = [mine[column] / before[column] for mine, before in pairs]
        print(
            f"{name} of {own} windows, relative to {other} of the other version: median {statistics.median(ratios):.2f} "
            f"(from {min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
