"""Recorded pipelines in which the picture reads the text by cross-attention, or beside its own keys."""

import pytest
from families_of_pipelines import names
from properties_of_families import FamilyProperties


@pytest.mark.families
@pytest.mark.parametrize("name", names("cross", "added"))
class TestCross(FamilyProperties):
    """The properties of every recorded pipeline."""
