"""Weights of seven libraries, read and written exactly.

`names` and `tensors` are the naming of each library; `readers` read files and execute nothing in
them, `wrapping` finds the network in them, `architecture` infers it from the shapes, and `merge`
puts every tensor in its place, or none. `load` and `save` are the two directions.
"""

from mnv2_jax.weights.inspect import Finding, inspect_weights
from mnv2_jax.weights.load import Loaded, load_weights
from mnv2_jax.weights.merge import infer_ecosystem
from mnv2_jax.weights.names import ECOSYSTEMS
from mnv2_jax.weights.preprocessing import Preprocessing
from mnv2_jax.weights.save import export_weights

__all__ = [
    "ECOSYSTEMS",
    "Finding",
    "Loaded",
    "Preprocessing",
    "export_weights",
    "infer_ecosystem",
    "inspect_weights",
    "load_weights",
]
