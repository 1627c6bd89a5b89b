"""[policy]: each requirement and its reason, who a rule holds for, and that a rule only takes away."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config import PolicyRuleSettings, PolicySettings
from relay.errors import ConfigError, Undecided
from relay.keys import USER_PRESENT, USER_VERIFIED, KeyFacts, KeyOptions, Membership, Needs, NotAccepted
from relay.keys.policy import Policy, key_refusal, member_of, policy_remarks, told

ED, SK = KeyFacts("ssh-ed25519", 256), KeyFacts("sk-ssh-ed25519@openssh.com", 256)
RSA = KeyFacts("ssh-rsa", 2048)
HERE = "192.0.2.7"
NONE = KeyOptions()


def policy(*rules: dict[str, Any], groups: dict[str, list[str]] | None = None, now: float = 0.0, **settings: Any) -> Policy:
    async def groups_of(identity: str) -> Membership:
        return member_of(identity, groups or {})

    made = [PolicyRuleSettings(**{"who": ["*"], **rule}) for rule in rules]
    return Policy(PolicySettings(rule=made, **settings), None if groups is None else groups_of, lambda: now)


async def refusal(one: Policy, facts: KeyFacts, who: str = "alice", options: KeyOptions = NONE, address: str = HERE) -> str:
    """The reason, or empty."""
    try:
        await one.check(who, facts, options, address)
    except NotAccepted as no:
        return no.reason
    return ""


@pytest.mark.parametrize(
    ("settings", "facts", "reason"),
    [
        ({}, RSA, ""),
        ({"key_types": ["ssh-ed25519"]}, ED, ""),
        ({"key_types": ["ssh-ed25519"]}, RSA, "key_type"),
        ({"rsa_bits": 3072}, RSA, "key_size"),
        ({"rsa_bits": 3072}, KeyFacts("ssh-rsa", 3072), ""),
        ({"rsa_bits": 4096}, ED, ""),
        ({"security_keys_only": True}, ED, "key_type"),
        ({"security_keys_only": True}, SK, ""),
        ({"verify_required": True}, ED, "key_type"),
        ({"verify_required": True}, SK, ""),
        ({"rsa_bits": 3072}, KeyFacts("ssh-ed25519", 256, "ssh-rsa", 2048), "key_size"),
        ({"security_keys_only": True}, KeyFacts(*SK[:2], "ssh-ed25519", 256), ""),  # what a CA signs with is another question
        ({"security_keys_only": True}, KeyFacts(*ED[:2], *SK[:2]), "key_type"),
    ],
)
async def test_each_requirement_has_its_reason_for_everybody_and_in_a_rule(settings: dict[str, Any], facts: KeyFacts, reason: str) -> None:
    assert await refusal(policy(**settings), facts) == reason
    if settings:
        assert await refusal(policy(settings), facts) == reason


async def test_the_type_of_a_cas_key() -> None:
    one = policy(ca_key_types=["ssh-ed25519"])
    assert await refusal(one, KeyFacts(*ED[:2], "ssh-ed25519", 256)) == ""
    assert await refusal(one, KeyFacts(*ED[:2], "ssh-rsa", 4096)) == "key_type"
    assert await refusal(one, RSA) == "", "a plain key has no CA"


@pytest.mark.parametrize(
    ("address", "reason"),
    [("10.1.2.3", ""), ("::ffff:10.1.2.3", ""), ("2001:db8::7", ""), ("11.0.0.1", "source_address"), ("unix", "source_address")],
)
async def test_networks(address: str, reason: str) -> None:
    assert await refusal(policy({"from_networks": ["10.0.0.0/8", "2001:db8::/32"]}), ED, address=address) == reason


async def test_an_expiry() -> None:
    rule = {"expires": "20300102Z"}
    assert await refusal(policy(rule, now=1_893_542_400), ED) == ""
    assert await refusal(policy(rule, now=1_893_542_401), ED) == "expired"


async def test_whom_a_rule_holds_for() -> None:
    one = policy(
        {"who": ["@ops", "carol"], "exempt": ["bob"], "key_types": ["ssh-ed25519"]},
        {"who": ["*"], "exempt": ["@bots"], "security_keys_only": True},
        groups={"ops": ["alice", "bob"], "bots": ["ci", "carol"]},
    )
    found = {who: [rule.name for rule in (await one.rules_for(who))[1:]] for who in ("alice", "bob", "carol", "ci", "dave")}
    first, second = "policy.rule#1", "policy.rule#2"
    assert found == {"alice": [first, second], "bob": [second], "carol": [first], "ci": [], "dave": [second]}


async def test_while_groups_are_in_doubt_a_rule_holds_and_an_exemption_does_not() -> None:
    async def groups_of(identity: str) -> Membership:
        return Membership(["ops"], [])

    settings = [PolicyRuleSettings(who=["@ops"], rsa_bits=3072), PolicyRuleSettings(who=["*"], exempt=["@ops"], rsa_bits=4096)]
    assert len(await Policy(PolicySettings(rule=settings), groups_of).rules_for("alice")) == 3


async def test_groups_that_cannot_be_found_out_are_undecided_and_are_asked_only_when_a_rule_names_one() -> None:
    async def groups_of(identity: str) -> Membership:
        raise Undecided("down", "timeout")

    with pytest.raises(Undecided):
        await Policy(PolicySettings(rule=[PolicyRuleSettings(who=["@ops"], rsa_bits=3072)]), groups_of).check("a", ED, KeyOptions(), HERE)
    await Policy(PolicySettings(rule=[PolicyRuleSettings(who=["bob"], rsa_bits=3072)]), groups_of).check("a", ED, KeyOptions(), HERE)


# -- touch and PIN -------------------------------------------------------------------------------------------------------------


def flags_refusal(needs: Needs, flags: int | None) -> str:
    try:
        needs.check(flags)
    except NotAccepted as no:
        return no.reason
    return ""


@pytest.mark.parametrize("touch_required", [True, False])
@pytest.mark.parametrize("no_touch", [True, False])
@pytest.mark.parametrize("of_key", [True, False])
@pytest.mark.parametrize("of_policy", [True, False])
async def test_what_a_signature_must_say(touch_required: bool, no_touch: bool, of_key: bool, of_policy: bool) -> None:
    one = policy(touch_required=touch_required, verify_required=of_policy)
    needs = await one.check("alice", SK, KeyOptions(of_key, no_touch), HERE)
    touch, verify = touch_required or not no_touch, of_key or of_policy
    assert flags_refusal(needs, 0) == ("not_touched" if touch else "not_verified" if verify else "")
    assert flags_refusal(needs, USER_PRESENT) == ("not_verified" if verify else "")
    assert flags_refusal(needs, USER_VERIFIED) == ("not_touched" if touch else "")
    assert flags_refusal(needs, USER_PRESENT | USER_VERIFIED) == ""


async def test_a_key_that_cannot_ask_for_a_pin_is_refused_where_its_line_asks_for_one() -> None:
    assert await refusal(policy(), ED, options=KeyOptions(verify_required=True)) == "key_type"


# -- a rule only takes away ------------------------------------------------------------------------------------------------------

TYPES = ["ssh-ed25519", "ssh-rsa", "sk-ssh-ed25519@openssh.com"]
RULES = st.fixed_dictionaries(
    {"who": st.lists(st.sampled_from(["alice", "bob", "*", "@g"]), min_size=1), "rsa_bits": st.sampled_from([3072, 4096])},
    optional={
        "exempt": st.lists(st.sampled_from(["alice", "bob", "@g"])),
        "key_types": st.lists(st.sampled_from(TYPES)),
        "security_keys_only": st.just(False),
        "from_networks": st.just(["10.0.0.0/8"]),
    },
)


@given(st.lists(RULES, max_size=4), RULES, st.sampled_from([ED, SK, RSA]), st.sampled_from(["10.1.1.1", HERE]))
async def test_one_more_rule_lets_in_nobody_who_was_refused(
    rules: list[dict[str, Any]], more: dict[str, Any], facts: KeyFacts, address: str
) -> None:
    groups = {"g": ["bob"]}
    for who in ("alice", "bob"):
        before = await refusal(policy(*rules, groups=groups), facts, who, address=address)
        after = await refusal(policy(*rules, more, groups=groups), facts, who, address=address)
        assert after or not before


# -- faults and warnings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "rule", "problem"),
    [
        ({}, {}, "policy.rule#1: asks for nothing, must have one of key_types, rsa_bits"),
        ({}, {"from_networks": ["10.0.0.1/8"]}, 'policy.rule#1.from_networks: "10.0.0.1/8" has bits set beyond its prefix'),
        ({}, {"expires": "2030-01-02"}, "policy.rule#1.expires: has the expiry-time"),
        ({}, {"who": ["@"], "rsa_bits": 3072}, 'policy.rule#1.who: "@" is empty'),
        ({}, {"who": ["a/b"], "rsa_bits": 3072}, 'policy.rule#1.who: "a/b" must have'),
        ({}, {"exempt": ["*"], "rsa_bits": 3072}, "policy.rule#1.exempt: is everybody, so the rule holds for nobody"),
        ({}, {"who": ["@ops"], "rsa_bits": 3072}, 'policy.rule#1.who: "@ops" is a group, and access by http has none'),
        ({}, {"key_types": ["ssh-rsa"], "verify_required": True}, "policy.rule#1.key_types: has no type that begins with sk-"),
        ({"key_types": ["ssh-rsa"], "security_keys_only": True}, {"rsa_bits": 3072}, "policy.key_types: has no type"),
    ],
)
def test_a_rule_that_can_never_hold_or_lets_nobody_in_is_refused(settings: dict[str, Any], rule: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        policy(rule, **settings)
    assert any(line.startswith(problem) for line in caught.value.problems), caught.value.problems


def remarked(one: Policy, known: Collection[str] | None, groups: dict[str, list[str]] | None) -> list[str]:
    return [f"{key}: {text}" for key, text in policy_remarks(one, known, groups, time.time())]


def test_rules_that_hold_for_nobody_or_have_run_out() -> None:
    groups = {"ops": ["alice"]}
    one = policy(
        {"who": ["carol"], "rsa_bits": 3072},
        {"who": ["@ops"], "exempt": ["alice"], "rsa_bits": 3072},
        {"who": ["alice"], "expires": "20200102Z"},
        {"who": ["*"], "rsa_bits": 3072},
        groups=groups,
    )
    assert remarked(one, ["alice", "bob"], groups) == [
        'policy.rule#1.who: no key is of "carol"',
        "policy.rule#1: holds for nobody: all whom it names have no key, or are exempt",
        "policy.rule#2: holds for nobody: all whom it names have no key, or are exempt",
        "policy.rule#3.expires: 2020-01-02T00:00:00Z has passed: whom the rule names cannot log in",
    ]
    assert len(remarked(one, None, None)) == 1


def test_what_a_rule_asks_for_and_the_keys_that_it_refuses() -> None:
    one = policy({"who": ["alice"], "security_keys_only": True, "from_networks": ["10.0.0.0/8"], "expires": "20300102Z"}, rsa_bits=3072)
    assert [told(rule) for rule in one.rules] == [
        "RSA keys of 3072 bits",
        "security keys; logins from 10.0.0.0/8; logins until 2030-01-02T00:00:00Z",
    ]
    assert str(key_refusal(one.rules, RSA)) == "the RSA key has 2048 bits, policy asks for 3072"
    assert key_refusal(one.rules, SK) is None and key_refusal(one.rules, None) is None
