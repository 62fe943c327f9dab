"""Local attention and dynamic depth-wise convolution: one equation, six mixers.

The submodules are loaded when they are first used, so `import localmix` is cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localmix import axes, functional, kernels, layers, models, point, reports, tasks, testing

__version__ = "0.1.0"
__all__ = ["axes", "functional", "kernels", "layers", "models", "point", "reports", "tasks", "testing"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
