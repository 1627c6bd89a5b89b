"""The container image; `make image-test` builds it and runs `carried.py`, which `make test` does not collect."""
