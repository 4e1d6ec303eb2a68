"""Weights of eight libraries, read and written exactly.

`names` and `tensors` are the naming of each library; `readers` read files and execute nothing in
them, `wrapping` finds the network in them, `architecture` infers it from the shapes, and `merge`
puts every tensor in its place, or none. `load` and `save` are the two directions; `published` has
the names of what others published, and fetches it.
"""

from mnv2_jax.weights.inspect import Finding, inspect_weights
from mnv2_jax.weights.load import Loaded, load_weights
from mnv2_jax.weights.merge import infer_ecosystem
from mnv2_jax.weights.names import ECOSYSTEMS
from mnv2_jax.weights.preprocessing import Preprocessing
from mnv2_jax.weights.published import PUBLISHED, Published, from_pretrained
from mnv2_jax.weights.save import export_weights

__all__ = [
    "ECOSYSTEMS",
    "PUBLISHED",
    "Finding",
    "Loaded",
    "Preprocessing",
    "Published",
    "export_weights",
    "from_pretrained",
    "infer_ecosystem",
    "inspect_weights",
    "load_weights",
]
