"""Hooks of MkDocs that write the manual's reference: commands and configuration from conf/, pages of the API."""

import ast
import re
from collections.abc import Iterator
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

DOCS = Path(__file__).parent
CONF, SRC = DOCS.parent / "conf", DOCS.parent / "src"
SAID: dict[str, Any] = yaml.safe_load((DOCS / "reference.yaml").read_text(encoding="utf-8"))
SETS = ("Set5", "Set14", "B100", "Urban100")


def on_config(config: MkDocsConfig) -> None:
    """Put the pages into the navigation, below the indices that mkdocs.yml names."""
    (reference,) = (entry["Reference"] for entry in config.nav or () if "Reference" in entry)
    _, configuration, api = reference
    configuration["Configuration"] += [f"reference/configuration/{group}.md" for group in SAID["groups"]]
    api["API"] += [f"reference/api/{part}.md" for part in SAID["api"]]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages."""
    for path, parts in {"verbs.md": _verbs(), **dict(_configuration()), **dict(_api())}.items():
        files.append(File.generated(config, f"reference/{path}", content="\n\n".join(parts) + "\n"))


def _verbs() -> Iterator[str]:
    yield "# Commands"
    yield SAID["texts"]["verbs"]
    for verb, told in SAID["verbs"].items():
        comment, body = _split(CONF / f"{told['keys']}.yaml")
        groups = [_choice(entry) for entry in yaml.safe_load(body)["defaults"] if isinstance(entry, dict)]
        yield f"## python -m {verb} {{ #{verb} data-toc-label={verb} }}"
        yield comment.replace("\n", "\n\n", 1)
        yield f"How it is used: [{_title(told['page'])}](../{told['page']})."
        yield f"Groups and what they are by default: {', '.join(filter(None, groups))}."
        yield _fenced(_without(body, "defaults", "hydra"))
    yield "## python -m mtkd_lightning.doctor { #mtkd_lightning.doctor data-toc-label=mtkd_lightning.doctor }"
    yield SAID["texts"]["doctor"]


def _configuration() -> Iterator[tuple[str, Iterator[str]]]:
    groups = sorted(path.name for path in CONF.iterdir() if path.is_dir())
    if missing := {*groups} ^ {*SAID["groups"]}:
        raise ValueError(f"docs/reference.yaml has to say what conf/ holds, and nothing else: {', '.join(missing)}")
    rows = ["| group | what it holds | on the command line |\n|---|---|---|"]
    rows += [f"| [{group}]({group}.md) | {SAID['groups'][group]['what']} | {_chosen(group)} |" for group in groups]
    yield "configuration/index.md", iter(["# Configuration", SAID["texts"]["configuration"], "\n".join(rows)])
    for group in groups:
        yield f"configuration/{group}.md", _group(group)


def _group(group: str) -> Iterator[str]:
    yield f"# {group}"
    yield f"{SAID['groups'][group]['what']}\n\nOn the command line: {_chosen(group)}."
    if group == "catalogue":
        yield "\n".join(_catalogue())
    for path in sorted((CONF / group).rglob("*.yaml")):
        comment, body = _split(path)
        yield f"## {path.relative_to(CONF / group).with_suffix('').as_posix()}"
        yield comment
        yield _fenced(body)


def _catalogue() -> Iterator[str]:
    # As text, for the PSNR with all the digits that it is given with.
    networks = {path.stem: yaml.load(path.read_text("utf-8"), yaml.BaseLoader) for path in CONF.glob("catalogue/*")}
    yield "| network | scales | training data | licence | source of the PSNR |\n|---|---|---|---|---|"
    for name, told in sorted(networks.items()):
        scales = ", ".join(f"x{scale}" for scale in told["scales"])
        yield f"| [`{name}`](#{name}) | {scales} | {told['training_data']} | {told['licence']} | {told['source']} |"
    yield f"\n| name | parameters | {' | '.join(SETS)} |\n|---|---:|{'---:|' * len(SETS)}"
    for name, told in sorted(networks.items()):
        for scale, entry in told["scales"].items():
            scores = " | ".join(entry["expected"].get(benchmark, "") for benchmark in SETS)
            yield f"| `{name}_x{scale}` | {int(entry['parameters']):,} | {scores} |"
    yield "\nPSNR-Y in dB, as the source gives it; empty where it gives none."


def _api() -> Iterator[tuple[str, Iterator[str]]]:
    rows = ["| module | what it is |\n|---|---|"]
    for part, told in SAID["api"].items():
        found = [path for pattern in told["modules"] for path in sorted((SRC / "mtkd_lightning").glob(f"{pattern}.py"))]
        modules = {_module(path): path for path in found if path.stem != "__init__" or part == "loading"}
        yield f"api/{part}.md", iter([f"# {part.capitalize()}", told["what"], *(f"::: {module}" for module in modules)])
        rows += [f"| [`{module}`]({part}.md#{module}) | {_summary(path)} |" for module, path in modules.items()]
    yield "api/index.md", iter(["# API", SAID["texts"]["api"], "\n".join(rows)])


def _split(path: Path) -> tuple[str, str]:
    """The comment that a file of conf/ starts with, as Markdown, and the rest of the file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = [line.removeprefix("#").removeprefix(" ") for line in takewhile(lambda line: line.startswith("#"), lines)]
    said = (line for line in comment if "@package" not in line)
    text: list[str] = []
    # What is indented in a comment is for the command line.
    for indented, block in ((key, list(lines)) for key, lines in groupby(said, lambda line: line.startswith("  "))):
        text += ["```{ .text .wrapped }", *(line[2:] for line in block), "```"] if indented else map(_escaped, block)
    return "\n".join(text), "\n".join(lines[len(comment) :])


def _escaped(text: str) -> str:
    """Text of a comment as Markdown: nothing in it is markup but what stands in backticks."""
    parts = re.sub(r": (python -m .*)", r": `\1`", text).split("`")
    parts[::2] = [re.sub(r"([*_\[\]])", r"\\\1", part.replace("<", "&lt;")) for part in parts[::2]]
    return "`".join(parts)


def _chosen(group: str) -> str:
    return ", ".join(f"`{choice}`" for choice in SAID["groups"][group]["chosen"])


def _choice(entry: dict[str, str | None]) -> str:
    """A line of a defaults list: the group, with a link, and what is chosen; nothing for those of Hydra."""
    ((key, choice),) = entry.items()
    group, _, place = key.partition("@")
    if group not in SAID["groups"]:
        return ""
    return f"[{group}](configuration/{group}.md){f' at `{place}`' if place else ''} (`{choice or 'null'}`)"


def _without(body: str, *keys: str) -> str:
    """A YAML text without some of its top-level blocks."""
    blocks = re.split(r"^(?=\S)", body, flags=re.MULTILINE)
    return "".join(block for block in blocks if block.partition(":")[0] not in keys)


def _fenced(text: str) -> str:
    return f"```yaml\n{text.strip()}\n```"


def _title(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def _module(path: Path) -> str:
    return ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")


def _summary(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
