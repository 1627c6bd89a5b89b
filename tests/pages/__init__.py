"""The pages of docs/: what is generated in them (`make docs`), and what holds them against the code."""
