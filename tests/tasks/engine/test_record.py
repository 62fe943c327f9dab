from types import SimpleNamespace

import pytest
import torch

from localmix.tasks.engine.record import STEP_COLUMNS, Record


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path, full_disk):
    record = Record(tmp_path, None, seed=0)
    record.columns = STEP_COLUMNS
    record.file = (tmp_path / "metrics.csv").open("w")
    rows = [{"epoch": 0, "step": step, "lr": 0.1, "loss": torch.tensor(1.0)} for step in range(20)]
    expected = r"File too large while writing: '.*metrics\.csv'"
    with full_disk(40):
        with pytest.raises(OSError, match=expected):
            record._write(SimpleNamespace(world_size=1, loggers=[]), rows)
        with pytest.raises(OSError, match=expected):
            record.__exit__()
