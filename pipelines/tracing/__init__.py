"""Looking into a pipeline: trace, attribute, verify, follow one query, heat maps as pictures."""
