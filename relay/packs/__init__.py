"""Packs: equal fetches are answered from one file on the disk of this machine, which all workers share."""
