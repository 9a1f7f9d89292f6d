"""What a person touches: the command and the page."""
