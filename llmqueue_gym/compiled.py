"""The one decorator around numba.

``NUMBA_DISABLE_JIT=1`` in the environment runs the same functions as plain Python, so that a
debugger can step through them. All kernels of a problem stand in one file: numba's disk cache
knows when that file changes, and not when a function called from another one does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, cast

import numba
from numba.core.runtime.nrt import rtsys

Function = TypeVar("Function", bound=Callable[..., Any])

NEWLY_KEPT: list[str] = []
"""Kernels that this process has compiled and kept for others.

What is compiled and what is loaded may round in other ways where sums may be taken in any order:
kernels hold copies of those they call, optimised apart, and which copy all of them use depends on
which was there first. Who needs the same bits again plays with kernels that were loaded.
"""


def compiled(function: Function, **more: Any) -> Function:
    """Compile ``function`` at its first call for the types it is given; later starts load it.

    Arithmetic is IEEE's, in the order that is written; a division by zero gives what NumPy gives.
    Where no folder can be written, or the disk is full, nothing is kept and each start compiles.
    ``more`` are options of `numba.njit`.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", **more}
    try:
        kernel = numba.njit(function, cache=True, **options)
    except RuntimeError:  # numba's word for: no folder to keep compiled code in
        kernel = numba.njit(function, **options)
    else:
        if cache := getattr(kernel, "_cache", None):  # a plain function has none
            _keep_if_possible(cache)
            _load_at_once(cache)
    return cast(Function, kernel)


def borrowing(function: Function) -> Function:
    """Compile as `compiled` does, for kernels that make no array: nobody counts who holds one.

    The caller holds what it passes for as long as the call lasts. To hand over an array costs half
    as much, and there is less to compile. To make one in such a kernel is an error at its first
    call.
    """
    return compiled(function, _nrt=False)


def part(function: Function) -> Function:
    """Compile as `borrowing` does, to be called by kernels only: Python has no door to it.

    To unpack tuples of arrays that come from Python is a quarter of what a kernel's parts take to
    compile.
    """
    return compiled(function, _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def summing(function: Function) -> Function:
    """Compile as `compiled` does, but sums may be taken in another order, as BLAS does.

    For the algebra of agents: a dot product is then computed several entries at a time. The
    dynamics of an environment never use it.
    """
    return compiled(function, fastmath={"reassoc", "nsz", "contract"})


def _keep_if_possible(cache: Any) -> None:
    """Let a cache that cannot be written, for want of space, cost time and no result."""
    save = cache.save_overload

    def save_or_not(signature: Any, data: Any) -> None:
        with suppress(OSError):
            save(signature, data)
            NEWLY_KEPT.append(str(signature))

    cache.save_overload = save_or_not


def _load_at_once(cache: Any) -> None:
    """Let kept code be loaded without what only numba's compiler needs, a third of a second.

    Before it loads, numba registers all it can compile. What is loaded is machine code, which needs
    numba's runtime and nothing else; where there is none to load, the compiler registers by itself.
    """
    load = cache.load_overload

    def load_only(signature: Any, context: Any) -> Any:
        context.refresh = partial(rtsys.initialize, context)  # numba holds its compiler's lock
        try:
            return load(signature, context)
        finally:
            del context.refresh

    cache.load_overload = load_only
