"""News of git hosts among the workers of a relay."""

from __future__ import annotations

from relay.upstream.colleagues import Colleagues, HostNews

NEWS = HostNews("main", "10.0.0.5:22", "refused", "dial")


def test_alone_it_probes_and_tells_nobody() -> None:
    alone = Colleagues()
    assert alone.probing
    alone.tell(NEWS)


def test_among_others_it_probes_only_when_it_is_chosen() -> None:
    sent: list[HostNews] = []
    one = Colleagues()
    one.connect(sent.append)
    assert not one.probing
    one.tell(NEWS)
    assert sent == [NEWS]


def test_who_listens_hears_of_its_address_only() -> None:
    heard: list[HostNews] = []
    one = Colleagues()
    one.listen("main", "10.0.0.5:22", heard.append)
    for news in (NEWS, HostNews("main", "10.0.0.6:22"), HostNews("other", "10.0.0.5:22")):
        one.told(news)
    assert heard == [NEWS]
