"""Published weights of six ecosystems into this project's variables and back, exactly.

`names` says as tables how each ecosystem names and orders its tensors; `files` and `formats` read
tensors and nothing else; `architecture` infers the network from shapes; `merge` puts all of it in
place or nothing; `hub` adds what only a description beside a segmenter says; `preprocessing` is
what the images went through; `save` is the way back; `doctor` says what has to agree with a file.
"""

from mnv2_jax.weights.inspect import Finding, doctor
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
    "doctor",
    "export_weights",
    "infer_ecosystem",
    "load_weights",
]
