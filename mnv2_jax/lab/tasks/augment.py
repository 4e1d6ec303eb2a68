"""Augmentation on the device, for data sets that live there; the same draws on any topology.

Every example draws from a key of its own, folded from the step's key and the example's row in the
global batch, so neither the number of devices nor the launcher changes what is drawn.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

Augmentation = Callable[[Array, UInt8[Array, "h w c"]], UInt8[Array, "h w c"]]
Pixels = UInt8[Array, "b h w c"]
Images = Float[Array, "b h w c"]
Targets = Float[Array, "b classes"]


def random_shift(pad: int) -> Augmentation:
    """A random window of the image padded by `pad` zero pixels, the usual crop for small images."""

    def augment(key: Array, image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w c"]:
        h, w, c = image.shape
        top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
        padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
        return jax.lax.dynamic_slice(padded, (top, left, 0), (h, w, c))

    return augment


def random_flip(probability: float) -> Augmentation:
    """Mirrors left and right with the given probability."""

    def augment(key: Array, image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w c"]:
        return jnp.where(jax.random.bernoulli(key, probability), image[:, ::-1], image)

    return augment


def each(
    augmentations: tuple[Augmentation, ...], key: Array, images: Pixels, rows: Int[Array, " b"]
) -> Pixels:
    """Applies augmentations in turn to every image, each with a key of its own."""
    if not augmentations:
        return images

    def one(row: Array, image: Array) -> Array:
        keys = jax.random.split(jax.random.fold_in(key, row), len(augmentations))
        for augment, k in zip(augmentations, keys, strict=True):
            image = augment(k, image)
        return image

    return jax.vmap(one)(rows, images)


def mixup(
    key: Array, images: Images, targets: Targets, mask: Float[Array, " b"], alpha: float
) -> tuple[Images, Targets]:
    """Blends every image and target with those of another row (arXiv 1710.09412).

    One share is drawn from Beta(alpha, alpha) for the batch; the partner of row i is row b - 1 - i.
    A row whose partner is masked stays as it is.
    """
    share = jax.random.beta(key, alpha, alpha)
    share = jnp.maximum(share, 1 - share)
    return _mixed(mask, images, share), _mixed(mask, targets, share)


def cutmix(
    key: Array, images: Images, targets: Targets, mask: Float[Array, " b"], alpha: float
) -> tuple[Images, Targets]:
    """Pastes a rectangle of another row into every image (arXiv 1905.04899).

    The rectangle covers a Beta(alpha, alpha) share of the image, cut at the border; targets mix by
    the share of pixels that really changed hands. A row whose partner is masked stays as it is.
    """
    size = jnp.array(images.shape[1:3], jnp.float32)
    share_key, centre_key = jax.random.split(key)
    side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha))
    centre, half = jax.random.uniform(centre_key, (2,)) * size, side * size / 2
    rows, columns = (
        jnp.abs(jnp.arange(n, dtype=jnp.float32) + 0.5 - centre[axis]) < half[axis]
        for axis, n in enumerate(images.shape[1:3])
    )
    inside = rows[:, None] & columns[None, :]
    pasted = jnp.where(inside[None, :, :, None], images[::-1], images)
    return _paired(mask, pasted, images), _mixed(mask, targets, 1 - inside.mean())


def _mixed(mask: Array, rows: Array, share: Array) -> Array:
    return _paired(mask, share * rows + (1 - share) * rows[::-1], rows)


def _paired(mask: Array, mixed: Array, alone: Array) -> Array:
    """Takes the mixed rows, but those as they were whose partner is masked."""
    partner = mask[::-1].reshape(-1, *(1,) * (mixed.ndim - 1))
    return jnp.where(partner > 0, mixed, alone)
