"""Recorded pipelines in other ways of use: other tasks, ControlNet, adapters, changed attention, guidance."""

import pytest
from properties_of_families import FamilyProperties
from tiny_pipelines import VARIANTS


@pytest.mark.families
@pytest.mark.parametrize("name", VARIANTS)
class TestVariants(FamilyProperties):
    """The properties of every recorded pipeline."""
