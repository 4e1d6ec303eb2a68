"""The network at inference: as a graph, with batch norm folded, and in int8."""
