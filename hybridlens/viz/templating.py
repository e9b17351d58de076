"""The one Jinja2 environment of all pages, and the code and styles that stand inside them as they are.

Escaping is on, a name that a template misspells raises, and JSON is written by `tojson`, in which no character is left
that HTML acts on. Only `inline` marks text as safe: for files that belong to this package or to a library it draws
with, never for what a model or a user wrote. A page's content security policy forbids every request, so a link that
crept in would fail in the browser.
How it fails: `jinja2.UndefinedError` for a name that no one gave; `ValueError` for JSON with NaN in it.
"""

import gzip
import re
from base64 import b64encode
from functools import cache
from importlib import metadata, resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hybridlens.errors import HybridLensError
from hybridlens.viz.entries import interval, percent
from hybridlens.viz.inks import ink_on_percent

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"


_ASKING = (
    (  # what stands on the axes
        r'(\w+)\.map\(\((\w+),(\w+)\)=>`\$\{\2\.replace\(/\\s/g,""\)\} \(\$\{\3\}\)`\),\[\1\]',
        r"HybridlensPattern.labels(\1),[\1]",
        1,
    ),
    (  # what stands under the pointer; the tokens are those that `srcToken` reads
        r"(srcToken:)(\w+)(\[.*?)`\(\$\{(\w+)\.destIdx\}, \$\{\4\.srcIdx\}\)`",
        r"\1\2\3HybridlensPattern.where(\2,\4)",
        1,
    ),
    (r'(\w+)\("white"\),Math\.min', r"\1(HybridlensPattern.paper),Math.min", 2),
    (
        r"return (\w+)&&(\w+)\.srcIdx>\2\.destIdx\?",
        r"return \2.v===null?HybridlensPattern.gap:\1&&\2.srcIdx>\2.destIdx?",
        1,
    ),
    (r"upperTriColor:(\w+)=\w+", r"upperTriColor:\1=HybridlensPattern.masked", 1),
    (r'this\.color="#666"', 'Object.defineProperty(this,"color",{get:()=>HybridlensPattern.ink,enumerable:!0})', 1),
)
"""Where circuitsvis' code has a colour of light pages, or counts tokens from 0: (pattern, what is put there, times)."""


@cache
def templates() -> Environment:
    """The environment that holds the templates of this package."""
    made = Environment(
        loader=PackageLoader("hybridlens.viz"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.policies["json.dumps_kwargs"] = {"ensure_ascii": True, "separators": (",", ":"), "allow_nan": False}
    made.filters |= {"percent": percent, "interval": interval, "ink": ink_on_percent}
    return made


def render(name: str, /, **values: Any) -> str:
    """A template of this package with its values, as text; every value is escaped, whatever it holds."""
    return templates().get_template(name).render(policy=POLICY, asset=asset, **values)


def inline(source: str) -> Markup:
    """A script or a style sheet in which no string ends the element around it, or opens a comment in it."""
    return Markup(source.replace("</script", "<\\/script").replace("<!--", "<\\!--"))


@cache
def asset(name: str) -> Markup:
    """A file of this package's folder `assets`, to stand inside a `<script>` or `<style>` element."""
    return inline(resources.files("hybridlens.viz").joinpath("assets", name).read_text(encoding="utf-8"))


@cache
def packed(code: str) -> str:
    """Code as a page holds it: gzip in base64, which `assets/libraries.js` unpacks; the same text for the same code."""
    return b64encode(gzip.compress(code.encode("utf-8"), mtime=0)).decode("ascii")


@cache
def circuitsvis_bundle() -> Markup:
    """The JavaScript of the installed circuitsvis, which asks `assets/pattern.js` for colours and positions.

    One of its parts tries to compile WebAssembly and goes on without; a strict policy reports that attempt,
    so the name is hidden from the bundle.

    Raises:
        HybridLensError: a version that is written otherwise, and would number cropped tokens wrongly.
    """
    source = resources.files("circuitsvis").joinpath("dist/cdn/iife.js").read_text(encoding="utf-8")
    code = source[: source.rfind("//# sourceMappingURL")]
    for pattern, asking, times in _ASKING:
        code, found = re.subn(pattern, asking, code)
        if found != times:
            raise HybridLensError(
                f"circuitsvis {metadata.version('circuitsvis')} is installed, whose patterns are not drawn as those of "
                "1.43.3, so that positions would be wrong; install 'circuitsvis==1.43.3'"
            )
    return asset("pattern.js") + inline(
        f"\nvar CircuitsVis = (function (WebAssembly) {{\n{code}\nreturn CircuitsVis;\n}})();"
    )
