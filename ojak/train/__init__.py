"""Stage 5: from a model and rows to a trained model. One loop; objectives are functions handed to it."""
