"""The pictures of the documentation, and the program that takes them."""
