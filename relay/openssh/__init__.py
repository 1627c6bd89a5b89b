"""OpenSSH's file formats: public keys, private keys, revocation lists."""
