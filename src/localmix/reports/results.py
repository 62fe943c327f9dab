"""The file of results: strict JSON, whole or not there."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from localmix.writing import write_atomically


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` wholly or not at all.

    JSON knows neither NaN nor infinity, which the loss of a run that diverged may be: they become null.
    """
    text = json.dumps(_finite(content), indent=2, allow_nan=False)
    write_atomically(path, lambda file: file.write(f"{text}\n".encode()))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
