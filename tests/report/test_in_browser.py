"""Pages in headless Chromium: no complaint on the console, every plot drawn, nothing wider than a phone."""

import json
import re
import shutil
import subprocess

import pytest

from mindspore_impl.report.sweep_report import write_sweep_report
from tests.report.test_sweep_report import build_named

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE = 390
# What the page looks like from inside, written where --dump-dom shows it.
PROBE = """<script>
addEventListener("load", () => {
  const one = (s) => document.querySelector(s), all = (s) => [...document.querySelectorAll(s)];
  const visible = (e) => e.getBoundingClientRect().width > 100 && e.getBoundingClientRect().height > 50;
  const press = (e, kind) => e.dispatchEvent(new Event(kind, { bubbles: true }));
  const root = document.documentElement, found = { width: root.clientWidth, overflow: root.scrollWidth };
  found.plots = all(".plot svg").filter(visible).length;
  found.wires = all(".wires .wire").filter((e) => e.getTotalLength() > 20).length;
  found.cut = all(".flow li").filter((e) => e.scrollHeight > e.clientHeight + 1).length;
  found.dark = getComputedStyle(document.body).backgroundColor;
  const browser = one("#browser");
  if (browser) {
    const [stage, set, verdict] = browser.querySelectorAll("select"), words = browser.querySelector("input");
    const count = () => browser.querySelector("[role=status]").textContent;
    found.stages = stage.options.length;
    found.all = count();
    browser.querySelectorAll("button")[1].click();
    found.second = count();
    verdict.value = "wrong"; press(verdict, "change");
    found.wrong = count();
    words.value = "no such words"; press(words, "input");
    found.none = count();
  }
  const token = all(".tokens .tok")[1];
  if (token) {
    token.dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
    found.teacher = token.closest("article").querySelector(".panel").textContent;
    found.rows = token.closest("article").querySelectorAll(".panel tr").length;
    found.panels = all(".panel table").length;
  }
  parent.postMessage("PROBE" + JSON.stringify(found), "*");
});
</script>"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt install chromium"),
]


def opened(page, folder, *flags, width: int = 1200) -> dict:
    """What PROBE finds in a copy of `page`, `width` wide (a window has 500 at least, a frame has not)."""
    html = page.read_text(encoding="utf-8")
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', html)[0]
    clean = console(page, folder, *flags)
    assert not clean, clean
    probed = html.replace(policy, "").replace("</body>", f"{PROBE}</body>")
    (folder / "probed.html").write_text(probed, encoding="utf-8")
    frame = f'<title></title><iframe src="probed.html" style="width:{width}px;height:4000px;border:0"></iframe>'
    outer = '<script>addEventListener("message", (event) => { document.title = event.data; });</script>'
    (folder / "outer.html").write_text(f"<!DOCTYPE html><meta charset=utf-8>{outer}{frame}", encoding="utf-8")
    dom = run(folder, "--virtual-time-budget=5000", "--dump-dom", *flags, (folder / "outer.html").as_uri()).stdout
    return json.loads(re.search(r"<title>PROBE(.*?)</title>", dom)[1].replace("&amp;", "&"))


def run(folder, *flags) -> subprocess.CompletedProcess:
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command.append(f"--user-data-dir={folder / 'profile'}")
    return subprocess.run([*command, *flags], capture_output=True, text=True, timeout=300, check=True)


def console(page, folder, *flags) -> list[str]:
    """What the page writes to the console; a breach of its own security policy is there, too."""
    done = run(folder, "--enable-logging=stderr", "--dump-dom", *flags, page.as_uri())
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_a_run_s_page_on_a_desk(distilled, tmp_path):
    found = opened(distilled / "report.html", tmp_path)
    assert found["overflow"] <= found["width"] and found["cut"] == 0
    assert found["plots"] == 5 and found["wires"] == 5
    assert found["stages"] == 5 and found["all"] == "1 to 10 of 12" and found["second"] == "11 to 12 of 12"
    assert found["wrong"] == "1 to 4 of 4" and found["none"] == "none"
    assert found["rows"] == 4 and "Teacher at token 2" in found["teacher"] and "all others" in found["teacher"]
    assert found["panels"] == 1


def test_a_run_s_page_on_a_phone_in_the_dark(distilled, tmp_path):
    found = opened(distilled / "report.html", tmp_path, "--blink-settings=preferredColorScheme=0", width=PHONE)
    assert (found["width"], found["overflow"], found["cut"]) == (PHONE, PHONE, 0)
    assert found["dark"] == "rgb(18, 22, 27)" and found["plots"] == 5


def test_a_sweep_s_page(tmp_path):
    page = write_sweep_report(build_named(tmp_path / "sweep", compare={"kd": ["sft"]}))
    found = opened(page, tmp_path, width=PHONE)
    assert (found["width"], found["overflow"], found["plots"]) == (PHONE, PHONE, 1)


def test_the_console_is_heard(tmp_path):
    """An error on a page would be seen by the tests above."""
    (tmp_path / "page.html").write_text("<!DOCTYPE html><script>no_such_thing()</script>", encoding="utf-8")
    assert any("no_such_thing" in line for line in console(tmp_path / "page.html", tmp_path))
