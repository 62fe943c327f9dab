"""Asks whether the size of the kernel matters, with few steps and seeds, and prints what the numbers support.

python examples/ablate_kernel_size.py [OUTPUT]
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import mkdtemp

from localmix.reports.ablation.ablate import ablate
from localmix.reports.ablation.report import paragraph


def main() -> None:
    """Trains and reports."""
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(mkdtemp()) / "runs"
    results = ablate(["kernel-size"], steps=20, seeds=[0, 1], img_size=16, output=output)
    for study in results["studies"]:
        print(paragraph(study))


# Each net trains in a process of its own, which imports this file.
if __name__ == "__main__":
    main()
