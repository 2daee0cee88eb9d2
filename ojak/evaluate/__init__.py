"""What a model can do, in figures: how well it predicts texts, what it answers, whether it does as it is told."""
