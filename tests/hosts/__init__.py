"""The relay in front of the git hosts of docs/hosts/, each with the identity as the host saw it."""
