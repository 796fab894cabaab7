"""The site builds without a warning, every link of it leads somewhere, and no page loads anything from a network."""

import re
from html.parser import HTMLParser

import pytest

from tests.site.load import ROOT, module

build, pages_made = module("build"), module("pages")

LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src"), ("video", "src"), ("object", "data")}


class Links(HTMLParser):
    """Every address of a page, and every name in it that an address can point to."""

    def __init__(self, text):
        super().__init__()
        self.targets, self.loaded, self.ids = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = {k: v for k, v in attrs if v is not None}
        self.ids |= {given[k] for k in ("id", "name") if k in given}
        self.targets += [given[k] for k in ("href", "src") if k in given and (tag, k) not in {("use", "href")}]
        self.loaded += [given[k] for t, k in LOADED if t == tag and k in given and given.get("rel") != "canonical"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    stage = tmp_path_factory.mktemp("stage")
    problems = build.collect(ROOT, stage)
    assert not problems, "\n".join(problems)
    status, said = build.render(stage, stage / "site")
    assert status == 0, said
    return stage / "site"


@pytest.fixture(scope="module")
def pages(site):
    return {f: Links(f.read_text(encoding="utf-8")) for f in sorted(site.rglob("*.html")) if f.name != "404.html"}


def test_every_page_of_docs_is_a_page_of_the_site(site, pages):
    for page in (ROOT / "docs").rglob("*.md"):
        assert site / page.relative_to(ROOT / "docs").with_suffix(".html") in pages


def test_every_address_leads_somewhere(pages):
    for page, links in pages.items():
        for target in links.targets:
            if re.match(r"https?:|mailto:|data:|javascript:", target):
                continue
            file, _, anchor = target.partition("#")
            there = (page.parent / file).resolve() if file else page
            there = there / "index.html" if there.is_dir() else there
            assert there.is_file(), f"{page.name}: {target}"
            if anchor and there.suffix == ".html":
                assert anchor in pages[there].ids | {"__comments"}, f"{page.name}: {target}"


def test_nothing_is_loaded_from_a_network(site, pages):
    for page, links in pages.items():
        outside = [a for a in links.loaded if re.match(r"(https?:)?//", a)]
        assert not outside, f"{page.name} loads {outside}"
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"url\(\s*['\"]?(https?:)?//|@import\s+['\"]?(url\()?['\"]?(https?:)?//", text), sheet.name


@pytest.mark.slow
def test_in_a_browser_search_works_from_files_and_no_page_is_wider_than_a_phone(site, chromium):
    outside = []
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(120_000)  # a busy machine is no failure
    page.on("request", lambda r: outside.append(r.url) if not re.match(r"file:|data:|blob:|about:", r.url) else None)
    page.on("pageerror", lambda e: outside.append(str(e)))
    page.goto((site / "methods" / "grpo.html").as_uri())
    page.keyboard.press("Control+k")
    page.keyboard.type("entropy_coef", delay=20)
    page.get_by_text(re.compile(r"[1-9]\d* results?")).first.wait_for()
    page.set_viewport_size({"width": 400, "height": 800})
    for name in ("index", "overview", "methods/dapo", "reference/mathematics", "systems", "recipes", "troubleshooting", "papers"):
        page.goto((site / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, name
    page.close()
    assert not outside


def test_a_dead_link_ends_the_build(tmp_path):
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "index.md").write_text("# A\n\n[nowhere](missing.md)\n")
    (tmp_path / "mkdocs.yml").write_text('{"site_name": "x", "docs_dir": "pages", "site_dir": "out"}')
    status, said = build.render(tmp_path, tmp_path / "site")
    assert status and "missing.md" in said
    assert not (tmp_path / "site").exists()


def test_a_page_outside_the_menu_is_named_and_shown_all_the_same():
    made = {page: "# T\n" for part in build.NAV.values() for page in part} | {"new.md": "# New thing\n"}
    menu, problems = build.navigation(made)
    assert menu[-1] == {"More": [{"New thing": "new.md"}]}
    assert problems == ["docs/new.md is in no part of the menu; add it to NAV in docs/build.py"]
    del made["metrics.md"]
    assert "docs/build.py, NAV: metrics.md is no page of the site" in build.navigation(made)[1]


def test_links_out_of_docs_lead_to_copies(tmp_path):
    made = {}
    text = "<!-- a -->\nSee [it](../examples/loop.py), [up](../README.md#limits), [there](data.md).\n\n```text\n[x](../README.md)\n```\n"
    out = build.staged(text, "nouns/task.md", ROOT, made, tmp_path)
    assert out == text.replace("<!-- a -->", "")  # one folder down, ../ stays inside docs/
    out = build.staged(text, "task.md", ROOT, made, tmp_path)
    assert "[it](files/examples/loop.md), [up](overview.md#limits), [there](data.md)" in out
    assert "[x](../README.md)" in out
    assert made["files/examples/loop.md"].startswith("# loop.py\n\n```python\n")


def test_a_method_has_its_page(site):
    from fovea.methods import METHODS

    for name in METHODS:
        text = (site / "methods" / f"{name}.html").read_text(encoding="utf-8")
        assert "<math" in text, name
        for part in ("What is computed", "Departures from the paper", "Fields", "What is shown", "The file"):
            assert part in text, f"{name}: {part}"
    assert re.search("Not measured yet|Control (behaves|fails)", (site / "methods/dapo.html").read_text(encoding="utf-8"))


def test_commands_of_made_pages_name_recipes_that_exist():
    from fovea import recipes

    for page, text in pages_made.made(ROOT).items():
        for name in re.findall(r"fovea train ([a-z]\S*)", text):
            assert name in recipes.names(), f"{page}: {name}"


def test_every_field_of_a_method_is_explained():
    from fovea import methods

    for name in methods.METHODS:
        said = pages_made.attributes(methods.get(name))
        assert all(said.get(f) for f in methods.get(name).__dataclass_fields__), f"{name}: {said}"
