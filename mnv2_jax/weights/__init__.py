"""Weights of seven libraries, read and written exactly.

`names` holds the naming of each library as tables, and `tensors` lists a network's tensors by them.
`readers` read files and execute nothing in them; `architecture` infers the network from the shapes;
`merge` puts every tensor in its place, or none; `preprocessing` is how images were prepared. `load`
and `save` are the two directions, and `inspect` says what a file is.
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


def __getattr__(name: str) -> object:
    if name == "doctor":
        raise AttributeError("doctor is now called inspect_weights")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
