"""What a trained network says about images: embeddings, predictions, similar files."""
