"""What keys, access and routes are asked of: HTTP, Redis, files, and the cache before them."""
