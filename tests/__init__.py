"""The tests: a folder a floor, mirroring relay/, plus e2e with real peers and support with the peers themselves."""
