"""MobileNetV2 (Sandler et al., arXiv 1801.04381) in JAX and Flax Linen.

The paper, section by section:

- Table 2, widths, output strides: `mnv2_jax.models.spec`
- inverted residual, linear bottleneck, shortcuts, Sec. 5.1's split: `mnv2_jax.models.block`
- the network and its endpoints: `mnv2_jax.models.mobilenet`; in Flax NNX: `mnv2_jax.nnx`
- SSDLite detection, Sec. 6.2, and Mobile DeepLabv3, Sec. 6.3: `mnv2_jax.models.ssdlite`, `.deeplab`
- parameters, multiply-adds, memory: `mnv2_jax.accounting`
- weights of other projects, in and out: `mnv2_jax.weights`
- its tables and figures, reproduced: `mnv2_jax.lab.paper`
- files for other runtimes, in float and in int8: `mnv2_jax.export`, `mnv2_jax.inference.quantize`
- data, training and the ablations of Fig. 6: `mnv2_jax.lab.data`, `.tasks`, `.train`
"""

from mnv2_jax.accounting import Account, account
from mnv2_jax.errors import UsageError
from mnv2_jax.inference.run import fold, folded_apply
from mnv2_jax.models.block import (
    InvertedResidual,
    between_bottlenecks,
    between_expansions,
    no_shortcut,
)
from mnv2_jax.models.build import add_parts, build
from mnv2_jax.models.deeplab import DeepLabV3
from mnv2_jax.models.dialect import DIALECTS, Dialect, normalize
from mnv2_jax.models.layers import ConvNorm, linear, relu6
from mnv2_jax.models.mobilenet import MobileNetV2
from mnv2_jax.models.spec import SPECS, Spec, make_divisible, unroll
from mnv2_jax.models.ssdlite import SSDLite
from mnv2_jax.ops import compiler
from mnv2_jax.ops.convolution import convolution
from mnv2_jax.version import __version__ as __version__
from mnv2_jax.weights import (
    export_weights,
    from_pretrained,
    inspect_weights,
    load_weights,
)

__all__ = [
    "DIALECTS", "SPECS", "Account", "ConvNorm", "DeepLabV3", "Dialect", "InvertedResidual",
    "MobileNetV2", "SSDLite", "Spec", "UsageError", "account", "add_parts", "between_bottlenecks",
    "between_expansions", "build", "convolution", "export_weights", "fold", "folded_apply",
    "from_pretrained", "inspect_weights", "linear", "load_weights", "make_divisible",
    "no_shortcut", "normalize", "relu6", "unroll",
]  # fmt: skip

compiler.warn()
