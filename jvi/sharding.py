"""Meshes of devices, and what lies where on them: the only file that knows that devices exist.

A run with `mesh=` enters its compiled loop under that mesh. There minibatches and the keys of their examples are split over the axes
"data" and "fsdp", the keys of particles over "particle", and large parameters and their moments over "fsdp"; all else is on every
device. The compiler finds the sums over devices that this takes. Random numbers, and so what a run computes, depend on the mesh by
nothing but the order in which floating-point numbers are added.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jvi._checks import check_count

__all__ = ["data_mesh", "mesh"]

T = TypeVar("T")

_AXES = ("data", "particle", "fsdp")
_BATCH = ("data", "fsdp")  # a device that holds a part of the parameters has examples of its own, too
_SMALL = 1_024  # entries of a leaf that is not worth splitting


def data_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh that splits minibatches, and nothing else, over devices: the first `num_devices`, or all of all processes.

    Raises:
      TypeError: if the count is no whole number.
      ValueError: if there are fewer devices.

    Example:
      >>> import jvi
      >>> dict(jvi.sharding.data_mesh(1).shape)
      {'data': 1, 'particle': 1, 'fsdp': 1}
    """
    return mesh(num_devices)


def mesh(data: int | None = None, particle: int = 1, fsdp: int = 1) -> Mesh:
    """A mesh of data * particle * fsdp devices, for the argument `mesh` of `fit`, `fit_batches`, `adapt`, `infer` and `diagnose`.

    Split the examples first: it costs one sum over devices a step. Split particles where a minibatch has too few examples and a bound
    many draws; the objective's `num_samples` is then a multiple of `particle`. Split parameters where they do not fit one device.

    Args:
      data: parts of the minibatch; by default as many as the devices allow.
      particle: parts of the particles.
      fsdp: parts of every large parameter and its moments: along its largest axis that they divide. They split the minibatch, too.

    Raises:
      TypeError: if a count is no whole number.
      ValueError: if a count is less than 1, there are fewer devices, or without `data` the other two do not divide their number; with
        several processes, if the mesh leaves one out.

    Example:
      >>> import jax, jvi
      >>> mesh = jvi.sharding.mesh(particle=jax.device_count())
      >>> mesh.shape["data"], mesh.shape["particle"] == jax.device_count()
      (1, True)

    References:
      Xu et al. (2021), GSPMD; Zhao et al. (2023), PyTorch FSDP.
    """
    there = jax.device_count()
    inner = check_count(particle, "particle") * check_count(fsdp, "fsdp")
    if data is None:
        if there % inner:
            raise ValueError(
                f"particle * fsdp must divide the number of devices, {there}; got {particle} * {fsdp} = {inner}. Say data=..., and "
                "the mesh takes the first devices."
            )
        data = there // inner
    wanted = check_count(data, "data") * inner
    if wanted > there:
        raise ValueError(
            f"a mesh of data={data}, particle={particle}, fsdp={fsdp} takes {wanted} devices, and there are {there}. On a CPU, "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={wanted} makes as many."
        )
    found = jax.make_mesh((data, particle, fsdp), _AXES, (AxisType.Auto,) * 3, devices=jax.devices()[:wanted])
    if left_out := set(range(jax.process_count())) - {device.process_index for device in found.devices.flat}:
        raise ValueError(
            f"a mesh must hold devices of every process, and {wanted} of {there} devices leave out {sorted(left_out)}."
        )
    return found


def check_mesh(mesh: Any) -> Mesh | None:
    """Return `mesh` if it is one of these, or None.

    Raises:
      TypeError: if it is anything else.
    """
    if mesh is None or (isinstance(mesh, Mesh) and mesh.axis_names == _AXES):
        return mesh
    raise TypeError(f"mesh must be made by jvi.sharding.data_mesh or jvi.sharding.mesh, got {mesh!r}.")


def check_batch_size(mesh: Mesh | None, size: int, name: str = "batch_size") -> None:
    """Refuse a minibatch that the mesh cannot split evenly.

    Raises:
      ValueError: if it cannot.
    """
    parts = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    if size % parts:
        raise ValueError(
            f"{name} must be a multiple of the {parts} parts (data * fsdp) that the mesh splits a minibatch into, got {size}: take "
            f"{size - size % parts or parts}, or a mesh of fewer devices."
        )


def check_slices(mesh: Mesh) -> None:
    """Refuse a mesh on which several processes would have to yield the same examples.

    Raises:
      ValueError: if particles are split over processes.
    """
    if any(
        len({device.process_index for device in line}) > 1
        for line in np.moveaxis(mesh.devices, 1, 2).reshape(-1, mesh.shape["particle"])
    ):
        raise ValueError(
            "where every process yields its own minibatches the mesh must not split particles over processes: take as many parts of "
            "particles as divide the devices of one, or arrays with batch_size."
        )


# -- in a compiled program: nothing, unless it is entered under a mesh ---------------------------------------------------------


def by_example(tree: T) -> T:
    """Split the leading axis of every leaf over the axes of examples; within another split of examples nothing."""
    if _ambient() is None or _within("examples"):
        return tree
    return _constrained(tree, lambda leaf: P(_BATCH) if leaf.ndim else P())


def by_particle(keys: Any) -> Any:
    """Split the keys of particles [K]; within another split of particles nothing.

    Raises:
      ValueError: if there are not equally many for every part.
    """
    ambient = _ambient()
    if ambient is None or ambient.shape["particle"] == 1 or _within("particles"):
        return keys
    if keys.shape[0] % (parts := ambient.shape["particle"]):
        raise ValueError(
            f"the mesh splits particles into {parts} parts, so num_samples and chunk_size must be multiples of it, got "
            f"{keys.shape[0]} particles."
        )
    return _constrained(keys, lambda leaf: P("particle"))


def by_device(tree: T) -> T:
    """Split the leading axis of every leaf over all devices."""
    return _constrained(tree, lambda leaf: P(_AXES))


def as_stored(tree: T) -> T:
    """Split what is large over the axis of parameters."""
    ambient = _ambient()
    return tree if ambient is None else _constrained(tree, lambda leaf: _stored(leaf.shape, ambient.shape["fsdp"]))


def everywhere(tree: T) -> T:
    """Bring every leaf as a whole to every device."""
    return _constrained(tree, lambda leaf: P())


def parted() -> bool:
    """Whether a program is traced for a mesh."""
    return _ambient() is not None


def num_devices(mesh: Mesh | None) -> int:
    """How many devices share the work."""
    return 1 if mesh is None else mesh.size


# -- on the host ---------------------------------------------------------------------------------------------------------------


def entered(mesh: Mesh | None) -> AbstractContextManager[Any]:
    """The context in which compiled programs split their work over the mesh."""
    return nullcontext() if mesh is None else jax.set_mesh(mesh)


def stored(mesh: Mesh | None, tree: T) -> T:
    """A state, as a run on this mesh keeps it; without one on a single device.

    Raises:
      ValueError: without a mesh, if parts of it are on devices of other processes.
    """
    if mesh is not None:
        parts = mesh.shape["fsdp"]
        return jax.tree.map(lambda leaf: _put(leaf, NamedSharding(mesh, _stored(np.shape(leaf), parts))), tree)

    def gathered(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or len(leaf.devices()) == 1:
            return leaf
        if not leaf.is_fully_addressable:
            raise ValueError("this state is on devices of several processes: go on with it by mesh=.")
        return _single(leaf)

    return jax.tree.map(gathered, tree)


def put(mesh: Mesh | None, tree: T) -> T:
    """Data on the device; as a whole on every device of the mesh, but for what lies split over them already."""
    if mesh is None:
        return jax.device_put(tree)
    devices = set(mesh.devices.flat)

    def one(leaf: Any) -> Any:
        there = isinstance(leaf, jax.Array) and leaf.committed and leaf.devices() == devices
        return leaf if there else _put(leaf, NamedSharding(mesh, P()))

    return jax.tree.map(one, tree)


def joined(mesh: Mesh, tree: T, axis: int) -> T:
    """Minibatches on the mesh, split along `axis`, of which every process has its own slice, an array of the host's."""
    sharding = NamedSharding(mesh, P(*[None] * axis, _BATCH))
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, _narrowed(leaf)), tree)


def _stored(shape: tuple[int, ...], parts: int) -> P:
    """Where a parameter is split: along its largest axis that can be."""
    if parts == 1 or math.prod(shape) < _SMALL or not (axes := [i for i, size in enumerate(shape) if size % parts == 0]):
        return P()
    return P(*[None] * max(axes, key=lambda i: shape[i]), "fsdp")


def _ambient() -> Any:
    found = jax.sharding.get_abstract_mesh()
    return found if found.axis_names == _AXES else None


def _within(name: str) -> bool:
    """Whether a `vmap` over the axis of this name is around."""
    try:
        jax.lax.axis_size(name)
    except NameError:
        return False
    return True


def _constrained(tree: T, spec_of: Callable[[Any], P]) -> T:
    if _ambient() is None:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, spec_of(leaf)), tree)


def _put(leaf: Any, sharding: NamedSharding) -> Any:
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
        return leaf
    if sharding.is_fully_addressable or (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable):
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    # Of a host's array jax.device_put would send all to all processes, to see whether they agree.
    whole = _narrowed(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def _single(leaf: Any) -> Any:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_single(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
    return jax.device_put(np.asarray(leaf))


def _narrowed(leaf: Any) -> np.ndarray:
    """A host's array in the precision of the session."""
    leaf = np.asarray(leaf)
    return leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype), copy=False)
