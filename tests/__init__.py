"""The tests: folders that mirror relay/, e2e with real peers, and support with the peers themselves."""
