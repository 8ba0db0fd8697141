"""The pages keep their promises: links and named files exist, commands name real tools and options, and compose."""

import re
import shlex
from functools import lru_cache
from pathlib import Path

import pytest

from mindspore_impl import schema
from mindspore_impl.curriculum import configuration
from mindspore_impl.curriculum.sweep.trials import plan_sweep

ROOT = Path(__file__).resolve().parent.parent
FRONT, CHINESE = "README.md", ".github/README.zh-CN.md"
ROOMS = ("conf", "kernels", "mindspore_impl", "tests")
FOUND = [ROOT / FRONT, *(ROOT / ".github").glob("*.md"), *(p for room in ROOMS for p in (ROOT / room).rglob("*.md"))]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in FOUND)
TOOLS = re.compile(r"(?:python|bash) tools/[a-z]|msrun |pangu-[a-z]")
PLUGIN = "experiment=my_lab/mine.yaml"  # the reader's own file: tests/curriculum/test_plugins.py writes one and runs it


@lru_cache
def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@lru_cache
def commands_of(page: str) -> list[str]:
    """Each command of a page's code blocks and code spans, on one line, without comments."""
    text = text_of(page).replace("\\\n", " ")
    blocks = re.findall(r"^```(?:bash|sh)?\n(.*?)^```", text, re.S | re.M)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    parts = [part.strip() for line in lines for part in re.split(r"&&|;", line)]
    return [part for part in parts if TOOLS.match(part)]


def words_of(command: str) -> list[str]:
    """Words without comments and without the dots that stand for what the reader fills in."""
    return [word for word in shlex.split(command, comments=True) if word != "..."]


COMMANDS = sorted({command for page in PAGES for command in commands_of(page)})


def configuration_of(command: str) -> str | None:
    """What a command that trains composes: --multirun and overrides, apart from run_dir; None for other commands."""
    words = words_of(command)
    tool = next((word for word in words if word in ("tools/train.py", "pangu-train")), None)
    if tool is None or PLUGIN in words or "--resume" in words:
        return None
    after = words[words.index(tool) + 1 :]
    options = ["--multirun"] if {"--multirun", "-m"} & set(after) else []
    overrides = [word for word in after if not word.startswith(("-", "run_dir=")) and re.match(r"[+~]?[^=]+=", word)]
    return shlex.join(options + overrides)


COMPOSED = sorted({found for command in COMMANDS if (found := configuration_of(command)) is not None})


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_the_pages_have_commands():
    assert len(COMMANDS) > 40
    assert len(COMPOSED) > 12


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.S | re.M)
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        if not path.exists():
            wrong.append(target)
        elif anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
            wrong += [target] if anchor not in map(slug, headings) else []
    assert not wrong


@pytest.mark.parametrize("page", [page for page in PAGES if not page.endswith("CHANGELOG.md")])
def test_named_files_exist(page):
    # Words in capitals stand for what the reader fills in. Inside the package and its own folder a page may be brief.
    pattern = r"(?<![\w/.])(?:tools|tests|conf|mindspore_impl|kernels)/[a-z0-9_./]*[a-z0-9](?!\w)"
    folders = (ROOT, ROOT / "mindspore_impl", (ROOT / page).parent)
    named = sorted(set(re.findall(pattern, text_of(page))))
    assert not [name for name in named if not any((folder / name).exists() for folder in folders)]


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_left_blank(page):
    assert not re.search(r"@[A-Z]+@|TODO|XXX|TBD", text_of(page))


def test_pages_are_short():
    longest = {FRONT: 200, CHINESE: 200}
    free = ("conf/README.md", ".github/CHANGELOG.md")  # the first is generated, the second grows
    lengths = {page: len(text_of(page).splitlines()) for page in PAGES if page not in free}
    assert not {page: lines for page, lines in lengths.items() if lines > longest.get(page, 250)}


def test_both_languages_have_the_same_commands_and_link_each_other():
    assert [words_of(command) for command in commands_of(FRONT)] == [words_of(c) for c in commands_of(CHINESE)]
    assert f"]({CHINESE})" in text_of(FRONT).splitlines()[0]
    assert "](../README.md)" in text_of(CHINESE).splitlines()[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_tools_and_options_that_exist(command):
    words = words_of(command)
    tools = [word for word in words if word.startswith("tools/")]
    tools += [f"tools/{word[6:].replace('-', '_')}.py" for word in words[:1] if word.startswith("pangu-")]
    assert len(tools) == 1
    assert (ROOT / tools[0]).is_file()
    source = (ROOT / tools[0]).read_text(encoding="utf-8")
    if tools[0].endswith(".py"):
        source = "".join(
            (ROOT / "mindspore_impl" / "cli" / name).read_text(encoding="utf-8")
            for name in (Path(tools[0]).name, "command.py")
        )
    own = words[words.index(tools[0]) + 1 :] if tools[0] in words else words[1:]
    options = [word.partition("=")[0] for word in own if re.match(r"--?[a-zA-Z]", word)]
    assert not [option for option in options if f'"{option}"' not in source and option not in source.split()]


@pytest.mark.parametrize("configured", COMPOSED)
def test_commands_compose(configured, tmp_path):
    words = shlex.split(configured)
    named_sweep = any(word.startswith("sweep=") for word in words)
    if "--multirun" in words and not named_sweep:
        plan_sweep([*words[1:], f"run_dir={tmp_path / 'sweep'}"])
    else:  # the trials of a named sweep: tests/curriculum/sweep
        configuration.compose([word for word in words if word != "--multirun" and not (named_sweep and "," in word)])


def test_the_changelog_has_every_renamed_key():
    text = text_of(".github/CHANGELOG.md")
    assert not [old for old, new in schema.RENAMED.items() if f"| `{old}` | `{new}` |" not in text]
