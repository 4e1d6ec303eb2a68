"""Tests of networks see the package's own specs, whatever tests of other rooms have named."""

import pytest

from mnv2_jax.models import spec


@pytest.fixture(autouse=True)
def only_the_packages_specs(monkeypatch):
    own = [value for value in vars(spec).values() if isinstance(value, spec.Spec)]
    for name in [name for name, value in spec.SPECS.items() if value not in own]:
        monkeypatch.delitem(spec.SPECS, name)
