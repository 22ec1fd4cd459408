"""What a network is judged by: image quality per picture, size and speed."""
