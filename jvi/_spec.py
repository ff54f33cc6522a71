"""Specs: immutable descriptions of behaviour that `jax.jit` compares by value."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def spec(cls: type[T]) -> type[T]:
    """Class decorator that makes a *spec*: a frozen dataclass with hashable fields and no arrays.

    A spec is a pytree without leaves, so it may be passed straight into a jitted function, and a spec rebuilt from
    equal parts is equal, hashes alike and therefore hits the same compiled program.

    Raises:
      TypeError: when an instance is built with a field that cannot be hashed (an array, a list, a dict).

    Example:
      >>> from jvi._spec import spec
      >>> @spec
      ... class Power:
      ...     exponent: int
      >>> Power(2) == Power(2), Power(2) == Power(3)
      (True, False)
    """
    check = cls.__dict__.get("__post_init__")

    def checked(self: Any) -> None:
        if check is not None:
            check(self)
        for field in dataclasses.fields(self):
            _check_hashable(type(self).__name__, field.name, getattr(self, field.name))

    changed: Any = cls
    changed.__post_init__ = checked
    return jax.tree_util.register_static(dataclasses.dataclass(frozen=True)(cls))


@spec
class Recipe:
    """A call put off: `Recipe(f, args, kwargs).build()` is `f(*args, **kwargs)`.

    Two recipes are equal when the function is the same object and its arguments are equal, which is what lets a
    library of closures (an optimizer, a bijector, a network) enter a spec.

    Example:
      >>> from jvi._spec import Recipe
      >>> Recipe(max, (3, 5)).build()
      5
    """

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()

    def build(self) -> Any:
        """Make the call."""
        return self.function(*self.args, **dict(self.kwargs))


def recipe(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Recipe:
    """A call put off, which compares by value: what a spec holds in place of an object that holds arrays, such as a bijector.

    Args:
      function: makes the object; compared by identity.
      args, kwargs: its arguments, hashable.

    Raises:
      TypeError: if `function` is not one, or an argument cannot be hashed.

    Example:
      >>> import jvi
      >>> jvi.recipe(max, 3, 5) == jvi.recipe(max, 3, 5), jvi.recipe(max, 3, 5).build()
      (True, 5)
    """
    if not callable(function):
        raise TypeError(
            f"function must make what the recipe is of, such as tfb.Scale, followed by its arguments; got {function!r}."
        )
    return Recipe(function, args, tuple(sorted(kwargs.items())))


def _check_hashable(owner: str, name: str, value: Any) -> None:
    try:
        hash(value)
    except TypeError:
        raise TypeError(
            f"{owner}.{name} must be hashable, because a spec describes behaviour and is compared by value; "
            f"got {type(value).__name__}. Use a tuple in place of a list, and hand arrays over as `x` or `params`."
        ) from None
