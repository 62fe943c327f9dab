import dataclasses
import os
from types import SimpleNamespace

import pytest
import torch

from localmix import kernels


@pytest.fixture(autouse=True)
def same_numbers_every_day(poisoned_memory):
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def quick_interpreter():
    """Triton's interpreter in less than half of the time.

    It replaces the functions of `triton.language` once, not anew at each call of a function by a kernel, and does not
    look for an overflow at each sum of integers: the code for a GPU does not either.
    """
    if kernels.triton.MISSING or os.environ["TRITON_INTERPRET"] != "1":
        yield
        return
    from triton import language
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    replaced = interpreter._patch_lang(SimpleNamespace(__globals__={"tl": language, "core": language.core}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False))
        patch.setattr(interpreter, "_patch_lang", lambda function: SimpleNamespace(restore=lambda: None))
        yield
    replaced.restore()
