"""The console in a real browser: a real HTTP server, headless Chromium, and what a person sees and reaches."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright

from controlplane.api.app import create_app
from controlplane.api.parts import ConsoleSettings
from controlplane.api.views import Overview
from controlplane.errors import StoreUnavailable
from tests.browser import ARGUMENTS, find_chromium
from tests.controlplane.api.fakes import HOSTILE, OPERATOR, World, busy_overview, healed_outage

pytestmark = pytest.mark.e2e

CONTRASTS = r"""() => {
  const channel = (value) => { value /= 255; return value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4; };
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const parse = (text) => { const parts = text.match(/[\d.]+/g).map(Number); return [parts.slice(0, 3), parts[3] ?? 1]; };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const [rgb, alpha] = parse(getComputedStyle(one).backgroundColor);
      if (alpha === 1) return rgb;
    }
    return [255, 255, 255];
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility() || element.closest("noscript, script, .unseen, .skip")) continue;
    const [ink] = parse(getComputedStyle(element).color);
    const [a, b] = [light(ink), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) poor.push(`${walker.currentNode.textContent.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return poor;
}"""


@dataclass
class Site:
    """A console that is served, over parts in memory."""

    world: World
    url: str

    def show(self, overview: Overview) -> None:
        """Replaces what the page is about, a second later."""
        self.world.health.now = overview
        self.world.clock.move(1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium on this machine; `python -m tests.browser` says how to get one")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield chromium
        chromium.close()


@pytest.fixture
def site() -> Iterator[Site]:
    """The console on a real socket, open to this machine, polling fast."""
    yield from _serve(World(console=ConsoleSettings(open_loopback=True, poll_s=0.1)))


@pytest.fixture
def closed_site() -> Iterator[Site]:
    """The console as it is by default: it wants a login."""
    yield from _serve(World())


def _serve(world: World) -> Iterator[Site]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = uvicorn.Server(uvicorn.Config(create_app(world.parts), log_level="warning", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Site(world, f"http://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join(30)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that fails the test when a script breaks, a dialog opens or the content policy is violated."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    shown, troubles = context.new_page(), []
    shown.on("pageerror", lambda error: troubles.append(str(error)))
    shown.on("dialog", lambda dialog: (troubles.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    shown.on("console", lambda said: troubles.append(said.text) if "Content Security Policy" in said.text else None)
    yield shown
    context.close()
    assert [] == troubles


def test_the_first_page_shows_the_fleet(site: Site, page: Page) -> None:
    """Traffic, spend, savings, deployments in words, incidents with their timeline, proxies and the ledger are on one page."""
    page.goto(site.url)
    expect(page).to_have_title("Overview · Hephaestus")
    expect(page.get_by_role("main")).to_be_visible()
    traffic = page.get_by_role("region", name="Traffic")
    expect(traffic).to_contain_text("Latency p95")
    expect(traffic).to_contain_text("2.41 s")
    expect(traffic.locator("svg.chart .calls-bar")).to_have_count(60)
    expect(page.get_by_role("region", name="Spend")).to_contain_text("$12.40")
    expect(page.get_by_role("region", name="Saved by the cache")).to_contain_text("26.24 %")
    sick = page.get_by_role("row").filter(has_text="openai-eu/gpt-4o-mini").first
    expect(sick).to_contain_text("Breaker open")
    expect(sick).to_contain_text("43 s left")
    expect(page.get_by_role("row").filter(has_text="openai-us")).to_contain_text("Healthy")
    incidents = page.get_by_role("region", name="Incidents")
    for step in ("Fired", "Run matched", "Run lease granted", "Validation passed", "Resolved"):
        expect(incidents.locator("ol").get_by_text(step, exact=False).first).to_be_visible()
    expect(page.get_by_role("region", name="Proxies")).to_contain_text("proxy-1")
    expect(page.locator("#ledger")).to_contain_text("Every settled call is stored")


def test_the_page_keeps_itself_fresh(site: Site, page: Page) -> None:
    """An incident that begins, and its end, show up without reloading the page."""
    page.goto(site.url)
    page.evaluate("window.sameDocument = true")
    site.show(busy_overview(incidents=(healed_outage(title="mini/embed is down", resolved=False),)))
    status = page.get_by_role("status")
    expect(status).to_have_text("Incident open: mini/embed is down.")
    expect(page.get_by_role("region", name="Incidents")).to_contain_text("Firing")
    site.show(msgspec.structs.replace(busy_overview(), deployments=()))
    expect(status).to_have_text("All is well.")
    expect(page.get_by_role("region", name="Incidents")).to_contain_text("None so far")
    assert page.evaluate("window.sameDocument")


def test_a_reader_is_not_disturbed_by_news(site: Site, page: Page) -> None:
    """Focus and an opened incident stay where they are while the page renews itself."""
    site.show(busy_overview(incidents=(healed_outage(resolved=False), healed_outage())))
    page.goto(site.url)
    older = page.locator("details.incident").nth(1)
    older.locator("summary").press("Enter")
    site.show(msgspec.structs.replace(site.world.health.now, snapshot_version=43))
    expect(page.locator("[data-part=asof]")).to_contain_text("snapshot 43")
    expect(older).to_have_attribute("open", "")
    assert "SUMMARY" == page.evaluate("document.activeElement.tagName")


def test_hostile_names_stay_text(site: Site, page: Page) -> None:
    """An agent whose name is full of markup, and an incident about it, are shown as they are and run nothing."""
    site.show(busy_overview(incidents=(healed_outage(title=HOSTILE, resolved=False),)))
    site.world.incidents.details.append(healed_outage(title=HOSTILE, resolved=False))
    page.goto(site.url)
    expect(page.get_by_role("region", name="Spend")).to_contain_text(HOSTILE)
    expect(page.get_by_role("region", name="Incidents")).to_contain_text(HOSTILE)
    page.get_by_role("link", name="All 4 events").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(HOSTILE)
    assert 0 == page.locator("main script, main img").count()


def test_an_incident_has_its_own_page(site: Site, page: Page) -> None:
    """The timeline page tells the whole story in order and leads back."""
    page.goto(f"{site.url}/incidents/inc_1")
    kinds = page.locator("ol.timeline strong").all_inner_texts()
    assert ["Opened", "Fired", "Run matched", "Run lease granted", "Step confirmed", "Validation passed"] == kinds[:6]
    assert "Resolved" == kinds[-1]
    page.get_by_role("link", name="Overview").click()
    expect(page).to_have_url(f"{site.url}/")


def test_the_page_works_without_script(site: Site, browser: Browser) -> None:
    """With script switched off everything is there, and the page reloads itself."""
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(site.url)
    expect(page.get_by_role("region", name="Deployments")).to_contain_text("Breaker open")
    expect(page.locator("#ledger")).to_contain_text("Every settled call is stored")
    assert 1 == page.locator('head noscript meta[http-equiv="refresh"]').count()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_reads_well(site: Site, browser: Browser, width: int, scheme: str) -> None:
    """On desk and phone, light and dark, nothing is cut off sideways and every text has AA contrast."""
    site.show(busy_overview(incidents=(healed_outage(title="x" * 300, resolved=False), healed_outage())))
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)  # type: ignore[arg-type] # one of two
    page = context.new_page()
    for path in ("/", "/incidents/inc_1", "/console/login"):
        page.goto(site.url + path)
        assert width >= page.evaluate("document.documentElement.scrollWidth")
        assert [] == page.evaluate(CONTRASTS)
    context.close()


def test_the_page_says_when_its_data_is_missing(site: Site, page: Page) -> None:
    """While the store is down the page stands and says so, and comes back by itself."""
    site.world.health.trouble = StoreUnavailable("down")
    page.goto(site.url)
    expect(page.get_by_role("status")).to_contain_text("does not answer just now")
    site.world.health.trouble = None
    site.world.clock.move(10)
    expect(page.get_by_role("region", name="Traffic")).to_be_visible()


def test_a_closed_console_asks_for_the_token(closed_site: Site, page: Page) -> None:
    """A stranger lands on the login page; the wrong token is refused in words, the right one opens the console."""
    page.goto(closed_site.url)
    expect(page).to_have_url(f"{closed_site.url}/console/login")
    page.get_by_label("Operator token").fill("wrong")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_contain_text("not the operator token")
    page.get_by_label("Operator token").fill(OPERATOR)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("region", name="Traffic")).to_be_visible()
    page.get_by_role("button", name="Log out").click()
    expect(page).to_have_url(f"{closed_site.url}/console/login")
    page.goto(closed_site.url)
    expect(page).to_have_url(f"{closed_site.url}/console/login")
