"""Recorded pipelines in which text and picture are one sequence of an attention."""

import pytest
from families_of_pipelines import names
from properties_of_families import FamilyProperties


@pytest.mark.families
@pytest.mark.parametrize("name", names("joint", "single", "joint and single"))
class TestJoint(FamilyProperties):
    """The properties of every recorded pipeline."""
