"""Captioned pictures as people keep them: read, looked through, decoded once, and made examples to train on."""
