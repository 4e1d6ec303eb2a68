"""Every table and figure of the paper, reproduced from this project's models, counts and runs.

`report.write_paper` composes them; the modules are named after the items that they compute.
"""
