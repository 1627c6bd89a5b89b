"""What deploy/ offers, judged by the programs that read it."""
