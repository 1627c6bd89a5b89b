"""The pages of docs/: their generated parts (`make docs`), and the tests that compare them with the code."""
