"""Rules of policy beside the files of access and keys."""

from __future__ import annotations

from relay.preflight import load_all, remarks
from tests.preflight.helpers import Setup
from tests.support.keys import make_key
from tests.support.problems import unplaced
from tests.support.toml import toml_text


def test_policy_names_groups_of_the_file_and_keys_that_it_refuses(setup: Setup) -> None:
    rules = {"groups": {"ops": ["alice"]}, "rule": [{"repositories": "**", "who": ["@ops"], "allow": "read"}]}
    (setup.folder / "access.toml").write_text(toml_text(rules))
    (setup.folder / "keys" / "bob.pub").write_text(make_key(setup.folder / "far", "bob", "rsa").line)
    policy = {"rsa_bits": 3072, "rule": [{"who": ["@ops"], "from_networks": ["10.0.0.0/8"]}, {"who": ["@none"], "expires": "tomorrow"}]}
    [first] = setup.problems(policy=policy)
    assert 'policy.rule#2.expires: has the expiry-time "tomorrow"' in first and first.startswith("relay.toml: ")
    policy["rule"][1] = {"who": ["@none"], "expires": "20200102Z"}  # type: ignore[index]
    [first] = setup.problems(policy=policy)
    assert first == 'relay.toml: policy.rule#2.who: "@none" is no group of access.toml'
    policy["rule"][1] = {"who": ["carol"], "expires": "20200102Z"}  # type: ignore[index]
    assert setup.problems(policy=policy) == []
    told = [unplaced(line).removeprefix(f"{setup.path}: ") for line in remarks(load_all(setup.path))]
    assert told[:3] == [
        "policy.rule#2.expires: 2020-01-02T00:00:00Z has passed: whom the rule names cannot log in",
        'policy.rule#2.who: no key is of "carol"',
        "policy.rule#2: holds for nobody: all whom it names have no key, or are exempt",
    ]
    assert told[3].startswith("policy: bob cannot log in with SHA256:") and told[3].endswith("2048 bits, policy asks for 3072")
    assert len(told) == 4
    [first] = setup.problems(policy=policy, access={"source": "http", "url": "https://a.example.com"})
    assert first.endswith('policy.rule#1.who: "@ops" is a group, and access by http has none, must be an identity')
