"""Groups of a space's coordinates: what is given is checked, and by default every named latent is one."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate, pairwise

from jvi.spaces import Space

Groups = tuple[tuple[int, ...], ...]


def groups_of(space: Space, groups: Groups | None) -> Groups:
    """The groups, or those of the space's latents."""
    if groups is not None:
        return groups
    ends = accumulate((support.size for support in space.supports), initial=0)
    return tuple(tuple(range(start, end)) for start, end in pairwise(ends) if end > start)


def check_groups(space: Space, groups: Groups | None) -> None:
    """Raise a ValueError if the groups do not hold each coordinate of the space once."""
    found = groups_of(space, groups)
    held = Counter(i for group in found for i in group)
    if sorted(held.elements()) != list(range(space.size)) or not all(found):
        missing = sorted(set(range(space.size)) - set(held))
        twice = sorted(i for i, count in held.items() if count > 1)
        other = sorted(set(held) - set(range(space.size)))
        raise ValueError(
            f"groups must hold each of the {space.size} coordinates of {space} in one group, and no group be empty; got "
            f"{held.total()} entries: missing {missing[:5]}, in more than one {twice[:5]}, not of the space {other[:5]}. "
            "space.names lists the coordinates in their order."
        )
