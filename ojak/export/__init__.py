"""What is made goes out: an artifact to the Hugging Face hub, a model to other programs."""
