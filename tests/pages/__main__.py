"""`make docs`: writes the generated parts of the pages anew."""

from __future__ import annotations

from tests.pages.pages import ROOT, pages, rendered

for page in pages():
    old = page.read_text()
    new = rendered(old)
    if new != old:
        page.write_text(new)
        print(f"{page.relative_to(ROOT)}: written")
