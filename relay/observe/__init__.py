"""What is seen of the relay: log, audit, metrics and the admin address."""
