"""The benchmark suite: direct sshd, an OpenSSH relay, a Go relay and this relay, measured in turn in one run."""
