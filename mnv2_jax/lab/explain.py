"""Where in an image a classifier sees its class: class activation maps (arXiv 1512.04150).

The head is a mean over positions and a linear layer, so a logit is the mean of such a map, and the
bias. Grad-CAM (arXiv 1610.02391) gives the same map here, divided by the number of positions,
before it drops what is negative.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mnv2_jax.errors import UsageError, unknown
from mnv2_jax.lab.predict import Image, image_transform, read_pixels
from mnv2_jax.lab.tasks.classify import without_background
from mnv2_jax.lab.tasks.draw import draw_heat
from mnv2_jax.lab.tasks.task import TrainedModel
from mnv2_jax.models.dialect import normalize


class Explanation(NamedTuple):
    """What speaks for a class at each place of an image; what speaks against it is negative."""

    name: str  # of the class
    probability: float
    map: np.ndarray  # (h, w) float32, a number for each position of the last feature map
    picture: np.ndarray  # (size, size, 3) uint8: what the network sees, and the map over it


def activation_map(
    features: Float[Any, "b h w c"], kernel: Float[Any, " c"]
) -> Float[Any, "b h w"]:
    """Returns the class activation map: at each position, the features times a class's weights.

    >>> activation_map(np.array([[[[1.0, 2.0], [3.0, 5.0]]]]), np.array([1.0, -1.0])).tolist()
    [[[-1.0, -2.0]]]
    """
    return features @ kernel


def explain(model: TrainedModel, image: Image, name: str | None = None) -> np.ndarray:
    """Returns the class activation map (h, w) of an image, as `explainer` computes it."""
    return explainer(model)(read_pixels(image, model.backbone.in_channels), name).map


def explainer(model: TrainedModel) -> Callable[[np.ndarray, str | None], Explanation]:
    """Compiles a classifier into a function of an image, uint8 (h, w, c), and a class's name.

    Without a name it is that of the likeliest class.

    Raises:
      UsageError: the model is no classifier, or has no class of that name.
    """
    if model.task.name != "classify":
        raise UsageError(f"this is a {model.task.noun}; explain needs a classifier.")
    network: Any = model.model
    names = [model.class_name(i) for i in range(model.count_classes())]
    prepare, offset = image_transform(model), network.class_offset

    kernel = np.asarray(model.variables["params"]["classifier"]["kernel"])[:, offset:]

    @jax.jit
    def compute(variables: Any, pixels: Any) -> Any:
        images = normalize(pixels, network.dialect)
        found = network.apply(variables, images, method="endpoints")
        features = list(found.values())[-3].astype(jnp.float32)  # what is pooled
        return jax.nn.softmax(without_background(network, found["logits"]))[0], features

    def explained(pixels: np.ndarray, name: str | None = None) -> Explanation:
        if name is not None and name not in names:
            raise unknown("class", name, names)
        seen = prepare({"image": pixels}, np.random.default_rng(0))["image"]
        shares, features = jax.device_get(compute(model.variables, seen[None]))
        index = int(shares.argmax()) if name is None else names.index(name)
        heat = activation_map(features, kernel[:, index])[0]
        return Explanation(names[index], float(shares[index]), heat, draw_heat(seen, heat))

    return explained
