"""Contrastive models that a vision tower comes from: their text towers, and the space that both share."""
