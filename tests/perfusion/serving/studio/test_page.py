"""The page itself: what it loads, whom it can be used by, and what happens when the server goes away."""

import time

import pytest

pytest.importorskip("axe_playwright_python.sync_playwright")
pytestmark = pytest.mark.browser

ROOMS = ("draw", "teach", "explore", "concepts", "history", "device")
LIGHT = {"color_scheme": "light"}
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}


@pytest.mark.parametrize("look", [LIGHT, {"color_scheme": "dark"}, PHONE], ids=["light", "dark", "phone"])
def test_axe_finds_nothing_in_any_room_and_nothing_is_wider_than_the_screen(
    open_page, studio, check_axe, look
):
    page = open_page(studio, **look)
    for room in ROOMS:
        page.goto(f"{studio.address}/#{room}")
        page.locator(f".room-{room}").wait_for()
        page.wait_for_load_state("networkidle")
        page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
        check_axe(page, room)


@pytest.mark.parametrize("look", [LIGHT, PHONE], ids=["light", "phone"])
def test_axe_finds_nothing_in_what_opens_and_in_what_goes_wrong(
    open_page, start_server, check_axe, draw, drop, tmp_path, look
):
    server = start_server("--no-training")
    page = open_page(server, **look)
    page.get_by_role("button", name="Draw", exact=True).click()
    check_axe(page, "an empty prompt")
    draw(page, "a <pink-cake> and a <gold-hat>", steps=2)
    page.get_by_label("What is to be drawn").press_sequentially(" <")
    check_axe(page, "offers")
    page.get_by_label("What is to be drawn").press("Escape")
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    page.get_by_role("button", name="Place <gold-hat>").click()
    page.locator(".stage").get_by_role("button", name="Draw over it").click()
    page.get_by_label("The part that is drawn anew").press("Space")
    check_axe(page, "boxes and a mask")
    page.locator(".stage .tile").first.click()
    check_axe(page, "a picture large")
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    (tmp_path / "no.txt").write_text("no picture")
    for room in ("concepts", "teach", "draw"):
        page.goto(f"{server.address}/#{room}")
        page.locator(f".room-{room}").wait_for()
        drop(page.locator(f".room-{room}"), tmp_path / "no.txt")
        page.locator(".failure, .notice.bad").first.wait_for()
        check_axe(page, f"a fault in {room}")
    page.goto(f"{server.address}/#explore")
    page.get_by_role("group", name="Across").get_by_label("Cells").fill("1")
    page.get_by_role("group", name="Down").get_by_label("Setting").select_option("")
    page.get_by_role("button", name="Draw the grid").click()
    page.get_by_role("button", name="make this the usual setting").click()
    check_axe(page, "a cell")
    page.get_by_role("button", name="Make it usual").click()
    page.goto(f"{server.address}/#history")
    page.locator(".gallery img").first.wait_for()
    check_axe(page, "a gallery")


def test_the_first_paint_is_light_and_nothing_is_asked_of_others(open_page, studio):
    page = open_page(studio, wait=False)
    page.locator(".room-draw").wait_for()
    page.wait_for_load_state("networkidle")
    entries = page.evaluate(
        "performance.getEntriesByType('resource').map(({ name, encodedBodySize }) => [name, encodedBodySize])"
    )
    assert all(name.startswith(studio.address) for name, _ in entries)
    assert sum(size for name, size in entries if "/api/" not in name) < 300_000


def test_rooms_are_reached_by_keys_and_the_focus_goes_along(open_page, studio):
    page = open_page(studio)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the room"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Alt+4")
    page.locator(".room-concepts").wait_for()
    assert page.title() == "Concepts · Perfusion Studio"
    assert page.locator(".rail a[aria-current=page]").inner_text() == "Concepts"


def test_the_theme_is_turned_and_remembered(open_page, studio):
    page = open_page(studio, **LIGHT)
    colour = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(colour)
    for _ in range(2):
        page.get_by_role("button", name="Light or dark").click()
    dark = page.evaluate(colour)
    assert dark != light
    page.reload()
    page.locator(".room-draw").wait_for()
    assert page.evaluate(colour) == dark


def test_a_key_is_asked_for_once_and_a_cookie_takes_its_place(open_page, start_server, tmp_path):
    (tmp_path / "key").write_text("open sesame\n")
    server = start_server("--key-file", str(tmp_path / "key"))
    page = open_page(server)
    page.get_by_role("dialog").wait_for()
    page.get_by_role("textbox", name="Key").fill("wrong")
    page.get_by_role("button", name="Enter").click()
    page.get_by_role("alert").wait_for()
    page.get_by_role("textbox", name="Key").fill("open sesame")
    page.get_by_role("textbox", name="Key").press("Enter")
    page.get_by_role("button", name="Put <pink-cake> into the prompt").wait_for()
    assert page.get_by_role("dialog").count() == 0
    (cookie,) = page.context.cookies()
    assert cookie["httpOnly"] and cookie["sameSite"] == "Strict" and "sesame" not in cookie["value"]
    page.reload()
    page.get_by_role("button", name="Put <pink-cake> into the prompt").wait_for()
    assert page.get_by_role("dialog").count() == 0


def test_two_tabs_know_of_each_other(open_page, studio, draw):
    page = open_page(studio)
    other = page.context.new_page()
    other.goto(f"{studio.address}/#history")
    other.locator(".room-history").wait_for()
    address = draw(page, "a yellow boat in two tabs")
    other.locator(f".gallery img[src='{address}']").wait_for()


def test_a_cut_network_is_said_and_the_page_goes_on_when_it_is_back(open_page, studio, draw):
    page = open_page(studio)
    page.get_by_role("button", name="Put <pink-cake> into the prompt").wait_for()
    page.context.set_offline(True)
    page.get_by_label("What is to be drawn").fill("a cat")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_role("alert").filter(has_text="The server does not answer").wait_for()
    assert page.locator(".banner").is_visible()
    page.context.set_offline(False)
    page.locator(".banner").wait_for(state="hidden")
    draw(page, "a cat")


def test_a_server_killed_while_it_draws_comes_back_with_its_history(open_page, start_server, draw):
    server = start_server()
    page = open_page(server)
    kept = draw(page, "a purple owl")
    page.get_by_label("Steps", exact=True).fill("500")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.locator(".tile.has-preview").wait_for()
    server.kill()
    page.locator(".banner").wait_for()
    time.sleep(0.5)
    server.start()
    page.locator(".banner").wait_for(state="hidden")
    page.locator(".filmstrip li.drawing, .filmstrip li.waiting").wait_for(state="detached")
    draw(page, "a purple owl, again")
    page.goto(f"{server.address}/#history")
    page.locator(f".gallery img[src='{kept}']").wait_for()
    assert page.locator(".gallery img").count() == 2
