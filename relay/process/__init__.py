"""The processes of `relay serve`: the supervisor, its workers, and what they share."""
