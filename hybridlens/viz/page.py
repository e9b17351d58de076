"""What every page shares: one file that works with the network off, and what is needed to run it again.

A page holds plotly.js and the circuitsvis bundle at most once, its data as JSON, and its code. Its content
security policy forbids every request, so a link that crept in would fail in the browser. All text that comes
from a model or a user goes through `escape` or `script_json`, and the code writes it as text, never as HTML.
How it fails: a `body` that was not escaped is put in as it is; nothing here can tell.
"""

import html
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from plotly.offline import get_plotlyjs

from hybridlens.viz.patterns import circuitsvis_bundle, inline_script, script_json

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
REPORT = "report.html"


def document(
    title: str,
    body: str,
    data: Mapping[str, Any],
    code: Sequence[str],
    styles: Sequence[str] = ("page.css",),
    with_patterns: bool = False,
) -> str:
    """A whole page.

    Args:
        title: of the window; escaped here.
        body: HTML of what is seen.
        data: what the code reads, as JSON values.
        code: files of this package, run in this order after `common.js`.
        styles: files of this package.
        with_patterns: whether circuitsvis is needed.
    """
    style = "\n".join(page_file(name) for name in styles)
    script = inline_script("\n".join(page_file(name) for name in ("common.js", *code)))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{style}
</style>
</head>
<body>
<main>
{body}
</main>
<noscript><p class="note">The figures need JavaScript; nothing comes from a network.</p></noscript>
<script type="application/json" id="data">{script_json(data)}</script>
<script>
{_plotly_bundle()}
</script>
{f"<script>{chr(10)}{circuitsvis_bundle()}{chr(10)}</script>" if with_patterns else ""}
<script>
{script}
</script>
</body>
</html>
"""


def escape(value: object) -> str:
    """Any value as text that HTML shows literally."""
    return html.escape(str(value), quote=True)


def unfinished(record: Mapping[str, Any]) -> str:
    """A line that says so when the run is not complete; none where it is not said."""
    if record.get("status", "complete") == "complete":
        return ""
    done, total = record.get("cells_done"), record.get("cells")
    state = f"This run is not complete: {done} of {total} cells. The same command goes on."
    return f'<p class="note warn">{escape(state)}</p>'


def day(record: Mapping[str, Any]) -> str:
    """The day on which a run ended, or else began."""
    return str(record.get("finished") or record.get("created") or "")[:10]


def provenance(record: Mapping[str, Any]) -> str:
    """What is needed to run it again: the command, the arguments, hashes and versions."""
    sessions: Sequence[Mapping[str, Any]] = record.get("sessions") or [{}]
    machine: Mapping[str, Any] = sessions[-1].get("environment", {})
    packages: Mapping[str, Any] = machine.get("packages", {})
    rows: list[tuple[str, object]] = [
        ("command", record.get("command") or "not recorded"),
        ("model", record["model"]),
        *((f"model: {name}", value) for name, value in record.get("facts", {}).items()),
        ("config, SHA-256", record.get("config_hash")),
        ("weights, SHA-256", record.get("weights_hash")),
        ("seed", record.get("seed")),
        *((name.replace("_", "-"), value) for name, value in record.get("arguments", {}).items()),
        *((name, value) for name, value in (record.get("growing") or {}).items()),
        *((name.replace("_", "-"), value) for name, value in sessions[-1].get("settings", {}).items()),
        ("started", record.get("created")),
        ("finished", record.get("finished") or "not yet"),
        ("python", machine.get("python")),
        ("platform", machine.get("platform")),
        ("packages", ", ".join(f"{name} {version}" for name, version in packages.items() if version)),
        *(("damaged, mended", line) for line in record.get("damaged", [])),
    ]
    body = "".join(f"<tr><th scope=row>{escape(n)}</th><td>{escape(_plain(v))}</td></tr>" for n, v in rows)
    return (
        "<details><summary>Everything needed to run it again (also in run.json)</summary>"
        f"<table class=facts><tbody>{body}</tbody></table></details>"
    )


def _plain(value: object) -> str:
    """A JSON value as people read it."""
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return "default" if value is None else str(value)


@cache
def _plotly_bundle() -> str:
    """plotly.js, made safe to stand inside a `<script>` element."""
    return inline_script(get_plotlyjs())


@cache
def page_file(name: str) -> str:
    """The text of a file that belongs to this package."""
    return resources.files("hybridlens.viz").joinpath(name).read_text(encoding="utf-8")
