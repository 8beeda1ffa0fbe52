"""What `data`, `tf2` and the application share. Nothing here imports TensorFlow."""
