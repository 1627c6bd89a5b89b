"""News of git hosts among the workers of a relay."""

from __future__ import annotations

from relay.upstream.colleagues import Colleagues, HostNews

NEWS = HostNews("main", "10.0.0.5:22", "refused", "dial")


def test_a_lone_worker_probes_and_sends_no_news() -> None:
    alone = Colleagues()
    assert alone.probing
    alone.tell(NEWS)


def test_one_of_several_workers_probes_only_when_chosen() -> None:
    sent: list[HostNews] = []
    one = Colleagues()
    one.connect(sent.append)
    assert not one.probing
    one.tell(NEWS)
    assert sent == [NEWS]


def test_a_listener_receives_news_of_its_address_only() -> None:
    heard: list[HostNews] = []
    one = Colleagues()
    one.listen("main", "10.0.0.5:22", heard.append)
    for news in (NEWS, HostNews("main", "10.0.0.6:22"), HostNews("other", "10.0.0.5:22")):
        one.told(news)
    assert heard == [NEWS]
