"""Flax modules as the engine takes them: one function for evaluation, one for training."""

from collections.abc import Mapping
from typing import Any

from lowbit.adapters.linen import linen
from lowbit.adapters.nnx import nnx

from .experiment import Model


def from_nnx(module: Any) -> Model:
    """Returns the model of an nnx module: ``module.eval()`` is what is served, ``module.train()`` what is trained.

    Batch statistics and random streams (of dropout) are its state, and change in training.

    Args:
        module: a `flax.nnx.Module`.
    """
    module.train()
    train_fn, _, _ = nnx(module, mutable=True)
    module.eval()
    return Model(*nnx(module), train_fn)


def from_linen(
    module: Any, variables: Mapping[str, Any], *, training: Any = None, mutable: tuple[str, ...] = ("batch_stats",)
) -> Model:
    """Returns the model of a linen module.

    Args:
        module: the module, as it is served.
        variables: from ``module.init``.
        training: the module as it is trained, such as the same one with ``train=True``; None: no other than ``module``.
        mutable: collections that training changes. Its random stream is ``dropout``.
    """
    train_fn = None if training is None else linen(training, variables, mutable=mutable)[0]
    return Model(*linen(module, variables), train_fn)
